"""The feature lake on disk: what goes in comes out, other encoders are kept apart, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import InputError
from data_pipeline.media import feature_lake
from data_pipeline.media.feature_lake import FeatureLake

E = 6


def _vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, E)).astype(np.float32)


@pytest.fixture
def lake(tmp_path: Path) -> FeatureLake:
    lake = FeatureLake.create(tmp_path, "enc-1", E, "float32")
    lake.write_features(["a", "b", "c"], "image", _vectors(3))
    lake.write_features(["d"], "audio", _vectors(1, seed=1))
    lake.write_quarantine(["x"], "video", ["no frames"])
    return lake


def test_vectors_come_back_in_the_order_asked_for(lake: FeatureLake, tmp_path: Path) -> None:
    index, matrix = FeatureLake(tmp_path, "enc-1").load(["d", "absent", "b", "a", "b"])
    assert index == {"d": 0, "b": 1, "a": 2}
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.concatenate([_vectors(1, seed=1), _vectors(3)[[1, 0]]]))
    assert lake.known() == {"a", "b", "c", "d"}
    assert lake.modalities()["d"] == "audio"
    assert lake.quarantined() == {"x": "no frames"}
    index, matrix = lake.load([])
    assert index == {}
    assert matrix.shape == (0, E)


def test_layout_and_half_precision(tmp_path: Path) -> None:
    lake = FeatureLake.create(tmp_path, "enc-2", E, "float16")
    lake.write_features(["a"], "image", _vectors(1))
    (file,) = (tmp_path / "enc-2/features").glob("*.parquet")
    table = pq.read_table(file)
    assert table.schema.field("vector").type == pa.list_(pa.float16(), E)
    assert table.column_names == ["media_sha256", "modality", "vector"]
    _, matrix = lake.load(["a"])
    np.testing.assert_array_equal(matrix, _vectors(1).astype(np.float16).astype(np.float32))
    header = json.loads((tmp_path / "enc-2/lake.json").read_text())
    assert (header["encoder_id"], header["embed_dim"], header["dtype"]) == ("enc-2", E, "float16")
    assert header["created"]


def test_the_same_work_twice_is_one_file(lake: FeatureLake) -> None:
    lake.write_features(["a", "b", "c"], "image", _vectors(3))
    assert len(list((lake.path / "features").iterdir())) == 2


def test_merging_keeps_every_vector(lake: FeatureLake, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lake.load(["a", "b", "c", "d"])
    lake.merge_files()
    assert len(list((lake.path / "features").iterdir())) == 1
    after = lake.load(["a", "b", "c", "d"])
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    monkeypatch.setattr(feature_lake, "MERGED_ROWS", 8)
    lake.write_features(["e"], "image", _vectors(1, seed=2))
    lake.merge_files()  # a file of 4 rows is large now and stays as it is
    assert len(list((lake.path / "features").iterdir())) == 2
    assert lake.quarantined() == {"x": "no frames"}


def test_unfinished_files_are_not_read(lake: FeatureLake) -> None:
    (lake.path / "features/part-0.99.partial").write_bytes(b"half of a file")
    assert lake.known() == {"a", "b", "c", "d"}


def test_another_encoder_is_refused(lake: FeatureLake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no features of encoder 'enc-9' \(it has enc-1\); run `embed` first"):
        FeatureLake(tmp_path, "enc-9")
    with pytest.raises(InputError, match="float32 vectors of width 6, but float32 vectors of width 7"):
        FeatureLake.create(tmp_path, "enc-1", E + 1, "float32")
    with pytest.raises(InputError, match="but float16"):
        FeatureLake.create(tmp_path, "enc-1", E, "float16")
    with pytest.raises(InputError, match="must be one of float16, float32"):
        FeatureLake.create(tmp_path, "enc-3", E, "int8")
    with pytest.raises(InputError, match=r"shape \(1, 7\)"):
        lake.write_features(["z"], "image", np.zeros((1, E + 1), np.float32))
    with pytest.raises(InputError, match="cannot name a folder"):
        FeatureLake(tmp_path, "../enc-1")
    other = tmp_path / "enc-4"
    other.mkdir()
    (other / "lake.json").write_text((tmp_path / "enc-1/lake.json").read_text())
    with pytest.raises(InputError, match="describes encoder 'enc-1'"):
        FeatureLake(tmp_path, "enc-4")
    (other / "lake.json").write_text("{")
    with pytest.raises(InputError, match=r"lake\.json is damaged"):
        FeatureLake(tmp_path, "enc-4")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other columns"])
def test_damaged_file_is_named(lake: FeatureLake, damage: str) -> None:
    file = sorted((lake.path / "features").iterdir())[0]
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-20])
    elif damage == "flip":  # within the data of the last column, so only its page's checksum can tell
        end = pq.ParquetFile(file).metadata.row_group(0).column(2)
        content[end.data_page_offset + end.total_compressed_size - 3] ^= 0x10
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        pq.write_table(pa.table({"media_sha256": ["a"]}), file)
    with pytest.raises(InputError, match=rf"{file.name} is damaged .*delete it and run `embed` again"):
        lake.load(["a", "b", "c", "d"])
