"""The one place that writes what a job leaves, on a disk or in a bucket.

A file or folder appears whole or not at all. On a disk it is written under a name of its own (`.<name>.<id>.partial`),
flushed, and renamed. Its writer holds a lock that ends with the process, so what a killed one left is told from what is
being written, and the next writer clears it. A folder takes two renames; a kill between them is mended by whoever opens
the folder next.

What differs in a bucket is in `data_pipeline/bucket.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, overload

from filelock import FileLock, Timeout
from pyarrow import fs

from data_pipeline import bucket
from data_pipeline.errors import InputError
from data_pipeline.locations import BucketPath, Location, filesystem_of

LARGE_BYTES = 64 * 2**20  # the hash of a file of this size is kept beside it
_PARTIAL, _LOCK, _HASH = ".partial", ".lock", ".sha256"
_NEW, _OLD = "new", "old"  # within a folder's partial: what is being written, and what it has replaced
_LOCK_POLL_S = 0.01


# ---- files


def exists(file: Location) -> bool:
    """Whether there is a file of this name."""
    return file.is_file() if isinstance(file, Path) else bucket.info_of(file).type is fs.FileType.File


def read_bytes(file: Location) -> bytes:
    """The whole file; FileNotFoundError where there is none."""
    with reading_file(file) as stream:
        return stream.read()


@contextlib.contextmanager
def reading_file(file: Location) -> Iterator[BinaryIO]:
    """A stream of the file's bytes; FileNotFoundError where there is none."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            yield stream
        return
    filesystem, key = filesystem_of(file)
    with bucket.naming(file), filesystem.open_input_file(key) as stream:
        yield stream  # pyright: ignore[reportReturnType]


def size_of(file: Location) -> int:
    """Bytes of a file; FileNotFoundError where there is none."""
    return bucket.require_file(file).size


def list_files(folder: Location, suffix: str = "") -> list[Location]:
    """The files in a folder, sorted, without those that are being written or are our own notes; [] for no folder."""
    if isinstance(folder, Path):
        paths = sorted(folder.glob(f"[!.]*{suffix}"))
        return [path for path in paths if path.is_file()]
    names = [info.base_name for info in bucket.children_of(folder) if info.type is fs.FileType.File]
    return [folder / name for name in names if name.endswith(suffix) and not name.startswith(".")]


def list_folders(folder: Location) -> list[Location]:
    """The folders in a folder, sorted, without those that are being written; [] for no folder."""
    if isinstance(folder, Path):
        return [path for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    return [folder / info.base_name for info in bucket.children_of(folder) if info.type is fs.FileType.Directory]


def is_empty(folder: Location) -> bool:
    """Whether a folder is not there or has nothing in it, not even a hidden file; False for a file of that name."""
    if isinstance(folder, Path):
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    return not exists(folder) and not bucket.children_of(folder)


def write_file(file: Location, content: bytes | str) -> None:
    """Write a file whole, in place of one that is there; its folder is made.

    Raises:
        OSError: the disk is full, or the like. What was there is as it was.
    """
    if isinstance(file, Path) and file.parent.is_dir():
        for partial in _partials_of(file):
            _clear(partial)
    with writing_file(file) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing_file(file: Location) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file when the block ends; on an error there, nothing changes."""
    if isinstance(file, BucketPath):
        with bucket.uploading(file) as stream:
            yield stream
        return
    partial = _partial_name(file)
    with _create_locked(partial) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(partial, file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _flush(file.parent)


def write_link(link: Path, target: str) -> None:
    """Let a symbolic link point to `target` from now on, in one step; it need not be there."""
    with locked(link):
        for partial in _partials_of(link):
            if partial.is_symlink():
                partial.unlink()
        partial = _partial_name(link)
        partial.symlink_to(target)
        os.replace(partial, link)
        _flush(link.parent)


def remove_file(file: Location) -> None:
    """Remove a file that is there or not."""
    if isinstance(file, Path):
        file.unlink(missing_ok=True)
    else:
        bucket.delete_file(file)


def hash_file(file: Location) -> str:
    """sha256 (hex) of a file's bytes. That of a large file is kept beside it and holds while size and time stay.

    Raises:
        OSError: missing, a folder, or not readable.
    """
    info = bucket.require_file(file)
    stamp = {"bytes": info.size, "mtime_ns": info.mtime_ns}
    note = file.parent / f".{file.name}{_HASH}"
    if info.size >= LARGE_BYTES:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError):  # no note, or not one of ours
            known = json.loads(read_bytes(note))
            if {key: known[key] for key in stamp} == stamp:
                return str(known["sha256"])
    filesystem, key = filesystem_of(file)
    with bucket.naming(file), filesystem.open_input_stream(key, compression=None) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    if info.size >= LARGE_BYTES:
        with contextlib.suppress(OSError, InputError):  # a folder that is only to be read
            write_file(note, json.dumps({**stamp, "sha256": digest}) + "\n")
    return digest


# ---- folders


@overload
def open_folder(folder: Path) -> Path: ...
@overload
def open_folder(folder: Location) -> Location: ...
def open_folder(folder: Location) -> Location:
    """Where the content of a folder lies that `replacing_folder` wrote; mends a swap that was cut short."""
    if isinstance(folder, BucketPath):
        return bucket.open_version(folder)
    if not folder.exists() and any(_partials_of(folder)):
        with locked(folder):
            _settle(folder)
    return folder


@overload
def replacing_folder(folder: Path, unless: Callable[[], bool] = ...) -> contextlib.AbstractContextManager[Path]: ...
@overload
def replacing_folder(
    folder: Location, unless: Callable[[], bool] = ...
) -> contextlib.AbstractContextManager[Location]: ...
@contextlib.contextmanager
def replacing_folder(folder: Location, unless: Callable[[], bool] = lambda: False) -> Iterator[Location]:
    """An empty folder that takes the place of `folder` when the block ends; on an error there, nothing changes.

    Several may write it at once: the last to end stands, and a finished one is there but for an instant of renaming.

    Args:
        folder: need not be there.
        unless: asked before the swap; True where what is there meanwhile is just as good and stays.
    """
    if isinstance(folder, BucketPath):
        with bucket.replacing_version(folder, unless) as version:
            yield version
        return
    is_parent_new = not folder.parent.exists()
    partial = _partial_name(folder)
    alive = FileLock(partial / _LOCK, thread_local=False)
    with locked(folder):
        _settle(folder)
        partial.mkdir()
        alive.acquire()
    new, old = partial / _NEW, partial / _OLD
    try:
        new.mkdir()
        yield new
        _flush_tree(new)
        with locked(folder):
            _settle(folder)
            if not unless():
                if folder.exists():
                    os.rename(folder, old)
                os.rename(new, folder)
                _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        alive.release()
        if is_parent_new:
            with contextlib.suppress(OSError):  # there is something in it
                folder.parent.rmdir()


def remove_folder(folder: Location) -> None:
    """Remove a folder that is there or not; a kill in between leaves no half of it under its name."""
    if isinstance(folder, BucketPath):
        bucket.delete_folder(folder)
        return
    partial = _partial_name(folder)
    if folder.exists():
        partial.mkdir()
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            os.rename(folder, partial / _OLD)
        shutil.rmtree(partial, ignore_errors=True)


def clear_partials(folder: Location) -> None:
    """Clear what killed writers left in a folder, and mend the swaps that they did not end."""
    if isinstance(folder, Path):
        for partial in folder.glob(f".*{_PARTIAL}"):
            if partial.is_symlink() or not partial.is_dir():
                _clear(partial)
                continue
            target = folder / _target_name(partial)
            with locked(target):
                _settle(target)


@contextlib.contextmanager
def staged_locally(folder: Location) -> Iterator[Path]:
    """A folder on a disk whose files lie in `folder` when the block ends: for what can only write to a disk."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="toolmm-") as name:
        yield Path(name)
        for path in sorted(Path(name).rglob("*")):
            if path.is_file():
                with path.open("rb") as source, writing_file(folder / path.relative_to(name).as_posix()) as stream:
                    shutil.copyfileobj(source, stream)


def fetch_folder(folder: Location) -> Path:
    """A folder's content on a disk: itself, or a copy of it in this user's cache that is made once.

    Raises:
        InputError: the bucket cannot be read.
        FileNotFoundError: there is no such folder.
    """
    source = open_folder(folder)
    if isinstance(source, Path):
        return source
    filesystem, key = filesystem_of(source)
    with bucket.naming(source):
        found = filesystem.get_file_info(fs.FileSelector(key, recursive=True))
    stamps = sorted((info.path, info.size, info.mtime_ns) for info in found if info.type is fs.FileType.File)
    copy = cache_folder() / "copies" / hashlib.sha256(json.dumps([str(source), stamps]).encode()).hexdigest()[:24]
    if not open_folder(copy).is_dir():
        with replacing_folder(copy, unless=copy.exists) as partial, bucket.naming(source):
            fs.copy_files(key, str(partial), filesystem, fs.LocalFileSystem())
    return copy


def cache_folder() -> Path:
    """Where this user's copies of what is in buckets lie: `toolmm` in XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toolmm"


@contextlib.contextmanager
def locked(path: Location) -> Iterator[None]:
    """Hold the lock of a path, among the processes of all machines that see its disk; nothing in a bucket.

    The lock file beside it is gone afterwards: whoever waited for it sees that, and takes a new one.
    """
    if isinstance(path, BucketPath):
        yield
        return
    file = path.with_name(f".{path.name}{_LOCK}")
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, poll_interval=_LOCK_POLL_S)
        with contextlib.suppress(FileNotFoundError):  # a writer that failed took its new parent folder along
            lock.acquire()
            break
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


# ---- how


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")


def _partials_of(path: Path) -> list[Path]:
    """What is being written, or was, in place of a file or folder."""
    found = path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}")
    return [partial for partial in found if _target_name(partial) == path.name]


def _target_name(partial: Path) -> str:
    return partial.name[1:].rsplit(".", 2)[0]


@contextlib.contextmanager
def _create_locked(partial: Path) -> Iterator[BinaryIO]:
    """A new file that nobody takes for one of a killed writer while it is open."""
    while True:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as stream:
            _try_lock(stream)
            if os.fstat(stream.fileno()).st_nlink:  # else: cleared in the instant before it was locked
                yield stream
                return


def _try_lock(stream: BinaryIO) -> bool:
    """False where another has it, or where the disk knows no locks: nobody clears anything there."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _clear(partial: Path) -> None:
    """Remove a file that a killed writer left."""
    with contextlib.suppress(OSError), partial.open("r+b") as stream:  # OSError: just gone, or a link to a folder
        if _try_lock(stream):
            partial.unlink()


def _settle(folder: Path) -> None:
    """Clear what killed writers of a folder left; where one had put the old folder away, its new one takes the place.

    The caller holds the folder's lock.
    """
    for partial in _partials_of(folder):
        if partial.is_symlink():  # of `write_link`
            continue
        lock = FileLock(partial / _LOCK, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):  # being written, or just gone
            continue
        if not folder.exists() and (partial / _NEW).exists() and (partial / _OLD).exists():
            os.rename(partial / _NEW, folder)
            _flush(folder.parent)
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


def _flush(path: Path) -> None:
    """Write a file or folder to the disk itself: no power cut undoes it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(folder: Path) -> None:
    mode = folder.stat().st_mode & 0o666  # as any program makes files; safetensors makes them for one user alone
    for path in (folder, *folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)
        _flush(path)
