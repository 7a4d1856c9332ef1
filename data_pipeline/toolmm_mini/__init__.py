"""ToolMM-mini: a small fair model of ToolMMBench that is generated from a seed (DESIGN section 5)."""

from data_pipeline.toolmm_mini.catalog import build_catalog
from data_pipeline.toolmm_mini.generate import SIZES, MiniSize, generate

__all__ = ["SIZES", "MiniSize", "build_catalog", "generate"]
