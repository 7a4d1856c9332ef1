"""The media vectors of a run: from the lake into one mapped file, once, exact in both dtypes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.media.feature_lake import FeatureLake
from data_pipeline.records.schema import Modality, ToolRecord
from ray_jobs.config import RunSpec
from ray_jobs.train.features import load_media_vectors, save_embed_info

VECTORS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)  # of b, c, a


def _record(sha256: str) -> ToolRecord:
    modality = Modality.IMAGE if sha256 else Modality.TEXT
    return ToolRecord(f"r{sha256}", "test", modality, "do it", ("lab/tool",), f"{sha256}.png" if sha256 else "", sha256)


def _corpus(**hashes: list[str]) -> Any:
    def media_hashes(*splits: str) -> list[str]:
        return sorted({sha256 for split in splits for sha256 in hashes.get(split, [])})

    return SimpleNamespace(media_hashes=media_hashes, catalog=SimpleNamespace(content_hash="catalog"), path="corpus")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_mapped_as_they_are_stored_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    spec = RunSpec.model_validate({"name": "x", "runs_dir": str(tmp_path)})
    corpus = _corpus(train=["a", "absent", "b"], test=["c"])
    with pytest.raises(InputError, match="run `embed` first"):
        load_media_vectors(spec, corpus, "train", "val")
    FeatureLake.create(spec.lake_path, "enc", 4, dtype).write_features(["b", "c", "a"], "image", VECTORS)
    save_embed_info(spec.run_dir, "enc", "catalog")
    vectors = load_media_vectors(spec, corpus, "train", "val")
    assert (vectors.encoder_id, vectors.embed_dim) == ("enc", 4)
    assert not (tmp_path / "x" / "vectors").exists(), "nothing is written for a job that may still be refused"
    assert vectors.table.matrix.dtype == dtype
    for sha256, expected in zip("bca", VECTORS.astype(dtype).astype(np.float32), strict=True):
        found = vectors.get(_record(sha256))
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    assert vectors.get(_record("")) is None
    assert [vectors.has(_record(sha256)) for sha256 in ("a", "absent", "")] == [True, False, True]
    assert vectors.map_of([_record("a"), _record(""), _record("absent")]).keys() == {"a"}

    monkeypatch.setattr(FeatureLake, "fill", lambda *_, **__: pytest.fail("the file is there"))
    again = load_media_vectors(spec, corpus, "train", "val", "test")
    assert again.table.file == vectors.table.file, "training and evaluation share it"


def test_splits_without_media_need_no_encoder(tmp_path: Path) -> None:
    spec = RunSpec.model_validate({"name": "x", "runs_dir": str(tmp_path)})
    vectors = load_media_vectors(spec, _corpus(test=["c"]), "train", "val")
    assert (vectors.encoder_id, vectors.rows) == ("", {})
    assert vectors.embed_dim == vectors.table.file.embed_dim == spec.model.encoder_dim
    assert not list(tmp_path.iterdir())
