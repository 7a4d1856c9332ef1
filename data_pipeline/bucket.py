"""Files and folders in a bucket, which knows neither renames nor locks. What writes there is `storage.py` beside this.

A file is one upload. A folder that is replaced whole is a version `<folder>/versions/<id>/`, and the file
`<folder>/CURRENT`, one upload again, names the version that holds. A plain folder that somebody copied there is read as
it is.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pyarrow import fs

from data_pipeline.errors import InputError
from data_pipeline.locations import BucketPath, Location, filesystem_of

CURRENT = "CURRENT"
VERSIONS = "versions"
ABANDONED_AFTER = datetime.timedelta(days=1)  # a version that nothing names is of a killed writer by then
_IN_MEMORY_BYTES = 64 * 2**20  # larger uploads wait on the disk


@contextlib.contextmanager
def naming(location: Location) -> Iterator[None]:
    """What a bucket's server or its client finds wrong, as an InputError that names the location."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not isinstance(location, BucketPath):
            raise
        raise InputError(
            f"{location} cannot be used ({' '.join(str(error).split())[:300]}); correct the bucket, the credentials or "
            "the endpoint (AWS_ENDPOINT_URL)."
        ) from error


def info_of(location: Location) -> fs.FileInfo:
    """What pyarrow knows of a file or folder, there or not."""
    filesystem, key = filesystem_of(location)
    with naming(location):
        return filesystem.get_file_info(key)


def require_file(file: Location) -> fs.FileInfo:
    """What pyarrow knows of a file; FileNotFoundError where there is none."""
    info = info_of(file)
    if info.type is not fs.FileType.File:
        raise FileNotFoundError(f"there is no file {file}")
    return info


def children_of(folder: BucketPath) -> list[fs.FileInfo]:
    """What lies in a folder, by name; [] for no folder."""
    filesystem, key = filesystem_of(folder)
    with naming(folder):
        found = filesystem.get_file_info(fs.FileSelector(key, allow_not_found=True))
    return sorted(found, key=lambda info: info.path)


@contextlib.contextmanager
def uploading(file: BucketPath) -> Iterator[BinaryIO]:
    """A stream that is uploaded when the block ends, and not on an error there: closing pyarrow's own would upload."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as stream:
        yield stream  # pyright: ignore[reportReturnType] - it is one in all but name
        stream.seek(0)
        filesystem, key = filesystem_of(file)
        with naming(file), filesystem.open_output_stream(key, compression=None) as upload:
            shutil.copyfileobj(stream, upload)


def open_version(folder: BucketPath) -> BucketPath:
    """The version of a folder that holds; the folder itself where it has none."""
    filesystem, key = filesystem_of(folder / CURRENT)
    try:
        with naming(folder), filesystem.open_input_file(key) as stream:
            return folder / VERSIONS / stream.read().decode().strip()
    except FileNotFoundError:
        return folder


@contextlib.contextmanager
def replacing_version(folder: BucketPath, unless: Callable[[], bool]) -> Iterator[BucketPath]:
    """As `storage.replacing_folder`; of several writers at once, the last to end stands."""
    version = folder / VERSIONS / uuid.uuid4().hex
    try:
        yield version
        before = open_version(folder)
        if unless():
            delete_folder(version)
            return
        with uploading(folder / CURRENT) as stream:
            stream.write(f"{version.name}\n".encode())
    except BaseException:
        delete_folder(version)
        raise
    if before != folder:
        delete_folder(before)
    _delete_abandoned(folder)


def delete_file(file: BucketPath) -> None:
    """Delete a file that is there or not."""
    filesystem, key = filesystem_of(file)
    with naming(file), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(key)


def delete_folder(folder: BucketPath) -> None:
    """Delete a folder that is there or not, what names its version first."""
    delete_file(folder / CURRENT)
    filesystem, key = filesystem_of(folder)
    with naming(folder), contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(key)


def _delete_abandoned(folder: BucketPath) -> None:
    """Delete the versions that killed writers left: age tells them."""
    filesystem, key = filesystem_of(folder / VERSIONS)
    with naming(folder):
        found = filesystem.get_file_info(fs.FileSelector(key, recursive=True, allow_not_found=True))
    newest: dict[str, int] = {}
    for info in found:
        if info.type is fs.FileType.File:
            version = info.path.removeprefix(key + "/").split("/")[0]
            newest[version] = max(info.mtime_ns, newest.get(version, 0))
    oldest_ns = (datetime.datetime.now(datetime.UTC) - ABANDONED_AFTER).timestamp() * 1e9
    for version, changed_ns in newest.items():
        if changed_ns < oldest_ns and folder / VERSIONS / version != open_version(folder):
            delete_folder(folder / VERSIONS / version)
