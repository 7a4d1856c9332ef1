"""What `bundle.json` says: what belongs together in a bundle, and what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.errors import InputError
from model.scoring.calibration import UNCALIBRATED, Calibration
from model.wide.head import EQUAL_WEIGHT

FORMAT_VERSION = 1


class BundleInfo(BaseModel):
    """`bundle.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal["toolmm-bundle"] = "toolmm-bundle"
    format_version: int = FORMAT_VERSION
    backbone: str = Field(description="hub id, path or the name of a packaged one; 'backbone' where the bundle has it")
    has_backbone: bool = Field(description="whether the folder backbone/ is part of the bundle")
    encoder_id: str = Field(description="names the weights that made the media vectors of training")
    encoder_name: str = Field(description="what `model.imagebind.encoders.load_encoder` is given to get them")
    prompt_format: str
    prompt_version: int
    # bundles that do not say were written when these were the only ones
    dialogue_format: str = "gpt4tools"
    dialogue_version: int = 1
    max_target_tokens: int = Field(description="bound on question and answer together, as in training")
    catalog_hash: str = Field(description="`ToolCatalog.content_hash`")
    data_hash: str = Field(description="content hash of the corpus that it was trained on")
    writes_dialogues: bool = Field(
        default=True, description="whether its corpus held dialogues; bundles that do not say may be tried"
    )
    llm_config: dict[str, Any] = Field(description="`ModelConfig`")
    resolved_config: dict[str, Any] = Field(description="the whole run config")
    calibration: Calibration = Field(
        default=UNCALIBRATED, description="of first answers under the catalogue, fitted on the validation split"
    )
    wide_weight: float = Field(
        default=EQUAL_WEIGHT, ge=0, le=1, description="how much the wide head counts, where there is one"
    )
    metrics: dict[str, Any]
    git_revision: str
    created_utc: str
    files: dict[str, str] = Field(description="path within the bundle -> sha256")

    @model_validator(mode="before")
    @classmethod
    def _drop_temperature(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Bundles had a temperature for a while; what was fitted as one is no calibration."""
        return {key: value for key, value in values.items() if key != "temperature"}


def parse_info(raw: bytes, path: Path) -> BundleInfo:
    """Read `bundle.json`; InputError says what is wrong with it, naming `path`."""
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); export the run again.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format version {version!r}, this code reads {FORMAT_VERSION}; export the run again.")
    try:
        return BundleInfo.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        raise InputError(f"{path}: {name!r}: {fault['msg']}; export the run again.") from error
