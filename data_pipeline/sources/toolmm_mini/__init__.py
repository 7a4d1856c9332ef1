"""ToolMM-mini: a small fair model of ToolMMBench and of GPT4Tools that is made from a seed (DESIGN section 5)."""

from data_pipeline.sources.toolmm_mini.catalog import build_catalog
from data_pipeline.sources.toolmm_mini.described import (
    DESCRIBED_SIZES,
    DescribedSize,
    described_catalog,
    generate_described,
)
from data_pipeline.sources.toolmm_mini.dialogues import DIALOGUE_SIZES, DialogueSize, generate_dialogues
from data_pipeline.sources.toolmm_mini.generate import SIZES, MiniSize, count_questions, generate

__all__ = [
    "DESCRIBED_SIZES",
    "DIALOGUE_SIZES",
    "SIZES",
    "DescribedSize",
    "DialogueSize",
    "MiniSize",
    "build_catalog",
    "count_questions",
    "described_catalog",
    "generate",
    "generate_described",
    "generate_dialogues",
]
