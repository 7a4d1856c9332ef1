"""What is refused before a single request can come."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import serve.deployments.encoder
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import ToolCatalog
from model.llm.bundle import Bundle
from serve.app import build_app
from serve.config import ServeArgs


def test_arguments_and_bundle_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'bundel' is unknown"):
        build_app({"bundle": "b", "bundel": "c"})
    with pytest.raises(InputError, match="no bundle at"):
        build_app({"bundle": str(tmp_path)})


def test_an_encoder_of_other_weights_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(encoder_id="tiny-1", encoder_name="tiny")
    bundle = Bundle(Path("b"), info, ToolCatalog([]), "rev")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(serve.deployments.encoder, "load_bundle", lambda _: bundle)
    asked = []

    def load_encoder(name: str, **_: object) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(encoder_id="tiny-2", recipe="mllm_tool")

    monkeypatch.setattr(serve.deployments.encoder, "load_encoder", load_encoder)
    for named in (None, "elsewhere"):
        with pytest.raises(InputError, match="'tiny-1', but 'tiny-2' was loaded"):
            serve.deployments.encoder.MediaEncoder.func_or_class(ServeArgs(bundle="b", encoder=named))  # pyright: ignore
    assert asked == ["tiny", "elsewhere"], "the bundle's encoder unless another is named"
