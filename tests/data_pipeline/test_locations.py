"""Places as users write them: paths, buckets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from data_pipeline.errors import InputError
from data_pipeline.locations import AnyLocation, BucketPath, LocalPath, filesystem_of, join, locate, locate_local


class Options(BaseModel):
    anywhere: AnyLocation = Path()
    local: LocalPath = Path()


def test_paths_and_buckets_are_told_apart() -> None:
    assert locate("runs/a") == Path("runs/a")
    assert locate("C:x/a:b") == Path("C:x/a:b")
    assert locate("file:///data/a") == Path("/data/a")
    assert locate("s3://bucket/a//b/") == BucketPath("s3", "bucket/a/b")
    assert locate(Path("s3://bucket/a")) == BucketPath("s3", "bucket/a"), "a path that swallowed a slash of it"
    assert str(locate("s3://bucket/a") / "b/./c") == "s3://bucket/a/b/c"
    folder = BucketPath("s3", "bucket/a")
    assert (folder / ".", folder.name, folder.parent, folder.absolute()) == (folder, "a", locate("s3://bucket"), folder)
    assert filesystem_of(folder)[1] == "bucket/a"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("hdfs://host/x", "cannot be kept under hdfs://"),
        ("https://host/x", "cannot be kept under https://"),
        ("memory://x", r"give a path, or one of file://, s3://, gs://"),
        ("s3://", "names no folder of a bucket"),
        ("s3://bucket/../x", "names no folder of a bucket"),
        ("file://host/x", "names another machine"),
    ],
)
def test_other_places_are_refused_by_name(place: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        locate(place)


def test_a_missing_file_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("pyarrow.fs.S3FileSystem")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere:1")  # another one than those that are open
    with pytest.raises(InputError, match="this pyarrow has no file system for s3://"):
        locate("s3://bucket/x")


def test_what_lies_below_a_folder() -> None:
    for folder in (Path("/data"), BucketPath("s3", "bucket/a")):
        assert join(folder, "media") == folder / "media"
        assert join(folder, ".") == folder
        assert join(folder, "/other") == Path("/other")
        assert join(folder, "s3://other/x") == BucketPath("s3", "other/x")
    for part in ("..", "../b", "/b"):
        with pytest.raises(InputError, match="does not lie below s3://bucket"):
            BucketPath("s3", "bucket") / part


def test_options_hold_them_and_write_them_out() -> None:
    options = Options.model_validate({"anywhere": "s3://bucket/a", "local": "file:///b"})
    assert (options.anywhere, options.local) == (BucketPath("s3", "bucket/a"), Path("/b"))
    assert options.model_dump(mode="json") == {"anywhere": "s3://bucket/a", "local": "/b"}
    assert Options.model_validate(options.model_dump()) == options
    assert Options.model_validate(options.model_dump(mode="json")) == options
    with pytest.raises(ValidationError, match="s3://bucket/x is in a bucket, and this has to be a path on a disk"):
        Options.model_validate({"local": "s3://bucket/x"})
    with pytest.raises(TypeError):
        open(BucketPath("s3", "bucket/a"))  # type: ignore[call-overload]  # noqa: SIM115
    with pytest.raises(InputError, match="in a bucket"):
        locate_local(Path("s3://bucket/x"))
