"""Bundles of tiny models, which come from no run: for benchmarks and tests."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.records.catalog import ToolCatalog
from model.llm.bundle import Bundle, load_bundle, save_bundle
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import UNCALIBRATED, Calibration


def save_tiny_bundle(
    folder: Path,
    mllm: ToolLLM,
    catalog: ToolCatalog,
    encoder_id: str = "",
    encoder_name: str = "",
    calibration: Calibration = UNCALIBRATED,
) -> Bundle:
    """Write a bundle that tells of no data, metrics and configs, and read it.

    Args:
        folder: where it shall lie.
        mllm: the built model with its values.
        catalog: its tools.
        encoder_id, encoder_name: as of `save_bundle`; "" for a model of words alone.
        calibration: of its first answers.
    """
    save_bundle(
        folder,
        mllm=mllm,
        catalog=catalog,
        encoder_id=encoder_id,
        encoder_name=encoder_name,
        model_config=mllm.config,
        data_hash="0" * 64,
        metrics={},
        resolved_config={},
        git_revision="",
        calibration=calibration,
    )
    return load_bundle(folder)
