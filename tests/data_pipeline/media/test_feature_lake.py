"""The feature lake on disk: what goes in comes out, other encoders are kept apart, damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import locate
from data_pipeline.media import feature_lake
from data_pipeline.media.feature_lake import FeatureLake

E = 6
REPO = Path(__file__).resolve().parents[3]


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
    matrix = np.zeros((3, E), np.float32)
    lake.fill(matrix, {"c": 2, "d": 0})
    np.testing.assert_array_equal(matrix, [_vectors(1, seed=1)[0], np.zeros(E), _vectors(3)[2]])
    with pytest.raises(InputError, match=r"vectors vanished .* run `embed` again"):
        lake.fill(matrix, {"absent": 1})


def test_layout_and_half_precision(tmp_path: Path) -> None:
    lake = FeatureLake.create(tmp_path, "enc-2", E, "float16")
    lake.write_features(["a"], "image", _vectors(1))
    (file,) = (tmp_path / "enc-2/features").glob("*.parquet")
    table = pq.read_table(file)
    assert table.schema.field("vector").type == pa.list_(pa.float16(), E)
    assert table.column_names == ["media_sha256", "modality", "vector"]
    _, matrix = lake.load(["a"])
    assert matrix.dtype == np.float16, "it takes half the memory"
    np.testing.assert_array_equal(matrix, _vectors(1).astype(np.float16))
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


def test_unfinished_files_are_not_read_and_go_when_the_lake_is_opened_for_writing(
    lake: FeatureLake, tmp_path: Path
) -> None:
    killed = Path(str(lake.path)) / "features/.part-0.99.partial"
    killed.write_bytes(b"half of a file")
    assert lake.known() == {"a", "b", "c", "d"}
    FeatureLake.create(tmp_path, "enc-1", E, "float32")
    assert not killed.exists()


ROUNDS = 20
PASS = """
import sys
from multiprocessing import Barrier, Process
import numpy as np
from data_pipeline.media.feature_lake import FeatureLake

def run(root, number, start):
    for i in range(int(sys.argv[2])):
        start.wait(60)
        lake = FeatureLake.create(f"{root}/{i}", "enc", 4, "float32")
        lake.write_features([f"{number}-{k}" for k in range(3)], "image", np.full((3, 4), number, np.float32))
        lake.write_features(["shared"], "image", np.ones((1, 4), np.float32))
        lake.merge_files()
        assert {f"{number}-{k}" for k in range(3)} <= lake.known()

if __name__ == "__main__":
    start = Barrier(4)
    passes = [Process(target=run, args=(sys.argv[1], number, start)) for number in range(4)]
    for process in passes:
        process.start()
    for process in passes:
        process.join()
    sys.exit(sum(process.exitcode != 0 for process in passes))
"""


@pytest.mark.slow
def test_four_passes_that_start_on_a_new_lake_all_end(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PASS, str(tmp_path), str(ROUNDS)], cwd=REPO, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for i in range(ROUNDS):
        lake = FeatureLake(tmp_path / str(i), "enc")
        index, matrix = lake.load([f"{number}-{k}" for number in range(4) for k in range(3)])
        np.testing.assert_array_equal(matrix[:, 0], np.repeat([0, 1, 2, 3], 3))
        assert len(index) == 12
        left = [path.name for path in Path(str(lake.path)).rglob("*") if path.is_file() and path.suffix != ".parquet"]
        assert left == ["lake.json"]


def test_a_lake_in_a_bucket(bucket: str) -> None:
    lake = FeatureLake.create(f"{bucket}/lake", "enc-1", E, "float16")
    lake.write_features(["a", "b"], "image", _vectors(2))
    lake.write_features(["c"], "audio", _vectors(1, seed=1))
    lake.write_quarantine(["x"], "video", ["no frames"])
    lake.merge_files()
    found = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"), Prefix="lake/")["Contents"]
    keys = [entry["Key"] for entry in found if not entry["Key"].endswith("/")]
    assert [key.split("/part-")[0] for key in keys] == [
        "lake/enc-1/features",
        "lake/enc-1/lake.json",
        "lake/enc-1/quarantine",
    ]
    assert list(Path.cwd().iterdir()) == [], "nothing is written to ./s3:"
    again = FeatureLake(Path(f"{bucket}/lake"), "enc-1")
    index, matrix = again.load(["c", "a", "x"])
    assert index == {"c": 0, "a": 1}
    expected = np.concatenate([_vectors(1, seed=1), _vectors(2)[:1]]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(matrix, expected)
    assert again.quarantined() == {"x": "no frames"}
    with pytest.raises(InputError, match=r"no features of encoder 'enc-9' \(it has enc-1\)"):
        FeatureLake(f"{bucket}/lake", "enc-9")
    file = keys[0].removeprefix("lake/")
    storage.write_file(locate(f"{bucket}/lake/{file}"), b"half")
    with pytest.raises(InputError, match=r"s3://.*parquet is damaged"):
        again.known()
    with pytest.raises(InputError, match="cannot be kept under hdfs://"):
        FeatureLake.create("hdfs://host/lake", "enc-1", E, "float16")


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
