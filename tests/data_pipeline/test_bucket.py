"""Files and folders in a bucket, against a real S3 HTTP server."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

import boto3
import pytest

from data_pipeline import bucket as bucket_module
from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate


def keys_in(bucket: str) -> list[str]:
    """What the server itself holds, but for the empty objects that stand for folders."""
    found = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://")).get("Contents", [])
    return [entry["Key"] for entry in found if not entry["Key"].endswith("/")]


def fill(folder: Location, content: str, fails: bool = False) -> None:
    with storage.replacing_folder(folder) as new:
        storage.write_file(new / "below/content", content)
        if fails:
            raise RuntimeError


def write_half(file: Location) -> None:
    with storage.writing_file(file) as stream:
        stream.write(b"half")
        raise RuntimeError


def test_files_are_written_read_listed_hashed_and_removed(bucket: str) -> None:
    folder = locate(f"{bucket}/folder")
    file = folder / "file.gz"
    assert not storage.exists(file)
    assert storage.is_empty(folder)
    for read in (storage.read_bytes, storage.size_of, storage.hash_file):
        with pytest.raises(FileNotFoundError):
            read(file)
    storage.write_file(file, b"12345")
    assert keys_in(bucket) == ["folder/file.gz"]
    assert list(Path.cwd().iterdir()) == [], "nothing is written to ./s3:"
    assert storage.read_bytes(file) == b"12345"
    assert storage.size_of(file) == 5
    assert storage.hash_file(file) == hashlib.sha256(b"12345").hexdigest(), "as it is, not decompressed"
    with pytest.raises(RuntimeError):
        write_half(file)
    assert storage.read_bytes(file) == b"12345"
    storage.write_file(folder / "below/other", "x")
    storage.write_file(folder / ".hidden", "x")
    assert storage.list_files(folder) == [file]
    assert storage.list_files(folder, ".txt") == []
    assert storage.list_folders(folder) == [folder / "below"]
    assert not storage.is_empty(folder)
    storage.remove_file(file)
    storage.remove_file(file)
    assert not storage.exists(file)


def test_the_hash_of_a_large_object_is_kept_beside_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGE_BYTES", 3)
    file = locate(bucket) / "file"
    storage.write_file(file, b"123")
    assert storage.hash_file(file) == storage.hash_file(file) == hashlib.sha256(b"123").hexdigest()
    assert keys_in(bucket) == [".file.sha256", "file"]


def test_a_folder_is_replaced_whole_or_not_at_all(bucket: str) -> None:
    folder = locate(f"{bucket}/folder")
    fill(folder, "first")
    with pytest.raises(RuntimeError):
        fill(folder, "half", fails=True)
    assert storage.read_bytes(storage.open_folder(folder) / "below/content") == b"first"
    with storage.replacing_folder(folder, unless=lambda: True) as new:
        storage.write_file(new / "content", "no better")
    with storage.replacing_folder(folder) as slow:
        storage.write_file(slow / "below/content", "slow")
        fill(folder, "fast")
        assert storage.read_bytes(storage.open_folder(folder) / "below/content") == b"fast"
    assert storage.read_bytes(storage.open_folder(folder) / "below/content") == b"slow", "the last to end stands"
    assert len(keys_in(bucket)) == 2, "CURRENT and the one file of its version"
    storage.remove_folder(folder)
    assert keys_in(bucket) == []
    assert storage.is_empty(folder)


def test_versions_of_killed_writers_go_after_a_day(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate(f"{bucket}/folder")
    storage.write_file(folder / "versions/killed/content", "half")
    fill(folder, "first")
    assert "folder/versions/killed/content" in keys_in(bucket), "it may be being written"
    monkeypatch.setattr(bucket_module, "ABANDONED_AFTER", datetime.timedelta(seconds=-60))
    fill(folder, "second")
    assert len(keys_in(bucket)) == 2
    assert storage.read_bytes(storage.open_folder(folder) / "below/content") == b"second"


def test_folders_travel_between_disk_and_bucket(bucket: str, tmp_path: Path) -> None:
    folder = locate(f"{bucket}/folder")
    with storage.replacing_folder(folder) as new, storage.staged_locally(new) as local:
        (local / "below").mkdir()
        (local / "below" / "content").write_text("first")
        (local / "top").write_text("top")
    copy = storage.fetch_folder(folder)
    assert sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*")) == ["below", "below/content", "top"]
    assert (copy / "below/content").read_text() == "first"
    assert tmp_path / "cache/toolmm" in copy.parents
    (copy / "top").write_text("kept")
    assert (storage.fetch_folder(folder) / "top").read_text() == "kept", "it is fetched once"
    fill(folder, "second")
    assert (storage.fetch_folder(folder) / "below/content").read_text() == "second"
    plain = locate(f"{bucket}/plain")  # that somebody copied there
    storage.write_file(plain / "content", "1")
    assert (storage.fetch_folder(plain) / "content").read_text() == "1"
    storage.write_file(plain / "content", "22")
    assert (storage.fetch_folder(plain) / "content").read_text() == "22"
    with pytest.raises(FileNotFoundError):
        storage.fetch_folder(locate(f"{bucket}/absent"))


def test_what_the_server_refuses_is_told_with_the_place(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = locate(f"{bucket}-absent/file")
    with pytest.raises(InputError, match=rf"{bucket}-absent/file cannot be used .*correct the bucket"):
        storage.write_file(absent, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="the endpoint"):
        storage.exists(locate(f"{bucket}/file"))
