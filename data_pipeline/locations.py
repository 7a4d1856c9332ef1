"""Where files lie: a path of this machine, or a folder in a bucket (`s3://`, `gs://`)."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pyarrow import fs
from pydantic import BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

from data_pipeline.errors import InputError

BUCKET_SCHEMES = ("s3", "gs")
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://?(?P<rest>.*)", re.DOTALL)  # one slash: as `Path` writes it


@dataclass(frozen=True)
class BucketPath:
    """A file or folder in a bucket. It is no `os.PathLike`: what can only open local files refuses it.

    Attributes:
        scheme: one of `BUCKET_SCHEMES`.
        key: bucket and path in it, "/" between the parts.
    """

    scheme: str
    key: str

    def __truediv__(self, part: str) -> BucketPath:
        """A path below; "." is the folder itself. InputError for one that is absolute or climbs out."""
        below = posixpath.normpath(part)
        if posixpath.isabs(below) or below.split("/")[0] == "..":
            raise InputError(f"{part!r} does not lie below {self}; give a relative path.")
        return self if below == "." else BucketPath(self.scheme, f"{self.key}/{below}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    @property
    def name(self) -> str:
        return posixpath.basename(self.key)

    @property
    def parent(self) -> BucketPath:
        return BucketPath(self.scheme, posixpath.dirname(self.key) or self.key)

    def absolute(self) -> BucketPath:
        return self


Location = Path | BucketPath


def locate(place: str | Path | BucketPath) -> Location:
    """A place as a user writes it: a path, `file:///folder`, `s3://bucket/folder` or `gs://bucket/folder`.

    Raises:
        InputError: another scheme, no bucket, or one whose file system this pyarrow was built without.
    """
    if isinstance(place, BucketPath):
        return place
    found = _URI.match(str(place))
    if found is None:
        return Path(place)
    scheme, rest = found["scheme"].lower(), found["rest"]
    if scheme == "file":
        if not rest.startswith("/") and isinstance(place, str):
            raise InputError(f"{place} names another machine; write file:///folder for a folder of this one.")
        return Path("/" + rest.lstrip("/"))
    if scheme not in BUCKET_SCHEMES:
        raise InputError(
            f"{place}: files cannot be kept under {scheme}://; give a path, or one of file://, "
            f"{', '.join(name + '://' for name in BUCKET_SCHEMES)}."
        )
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise InputError(f"{place} names no folder of a bucket; write {scheme}://bucket/folder.")
    _open_filesystem(scheme, _endpoint())
    return BucketPath(scheme, "/".join(parts))


def locate_local(place: str | Path | BucketPath) -> Path:
    """A place that has to be a path of this machine; InputError for one in a bucket, which names it."""
    location = locate(place)
    if isinstance(location, BucketPath):
        raise InputError(
            f"{location} is in a bucket, and this has to be a path on a disk; mount the bucket, or copy it from there."
        )
    return location


def join(folder: Location, place: str) -> Location:
    """`place` as seen from `folder`: below it, or where it says itself if it is absolute or a URI."""
    location = locate(place)
    if isinstance(location, BucketPath) or location.is_absolute():
        return location
    return folder / place


def filesystem_of(location: Location) -> tuple[fs.FileSystem, str]:
    """pyarrow's file system for a location, and what the location is called in it."""
    if isinstance(location, Path):
        return fs.LocalFileSystem(), str(location)
    return _open_filesystem(location.scheme, _endpoint()), location.key


def _check_text(place: object) -> object:
    if not isinstance(place, str | Path | BucketPath):
        raise PydanticCustomError("path_type", "Input is not a valid path")  # as pydantic says it of a plain `Path`
    return place


# For fields of options. `AnyLocation` may be in a bucket, `LocalPath` may not; neither takes a URI for a path.
AnyLocation = Annotated[Path | BucketPath, BeforeValidator(locate), BeforeValidator(_check_text), PlainSerializer(str)]
LocalPath = Annotated[Path, BeforeValidator(locate_local), BeforeValidator(_check_text)]


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@functools.lru_cache(maxsize=8)
def _open_filesystem(scheme: str, endpoint: str) -> fs.FileSystem:
    try:
        if scheme == "gs":
            return fs.GcsFileSystem()
        protocol, _, host = endpoint.rpartition("://")
        return fs.S3FileSystem(endpoint_override=host or None, scheme=protocol or None)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"this pyarrow has no file system for {scheme}:// ({error}); install pyarrow's own wheel."
        ) from error
