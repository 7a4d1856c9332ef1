"""The files of the artifact store, in a local directory or behind an fsspec URI: written whole, listed, locked."""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.errors import InputError
from data_pipeline.locations import BUCKET_SCHEMES, filesystem_of, locate

ARTIFACT_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
DATA, META = ".data", ".json"  # what the names of an artifact's two files end in
_PARTIAL, _LOCK = ".partial", "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems have none


@dataclass(frozen=True)
class ListedFile:
    """`stem` + `suffix` is its name below the root."""

    stem: str
    suffix: str
    n_bytes: int


class ArtifactFiles:
    """The store's files by their names below its root. No other user of this machine may read them."""

    def __init__(self, uri: str) -> None:
        self._fs, root = _open_filesystem(uri)
        self._root = root.rstrip("/")
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._folders: set[str] = set()  # that are there
        self._fs.makedirs(self._root, exist_ok=True)
        if self.is_local:
            _keep_to_ourselves(self._root)

    def path(self, name: str) -> str:
        """The whole path of a name."""
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes:
        """The whole file, or `FileNotFoundError`."""
        return self._fs.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all."""
        folder = self.path(name).rpartition("/")[0]
        partial = self.path(f"{name}.{secrets.token_hex(4)}{_PARTIAL}")  # others may write the same
        if self.is_local:
            os.makedirs(folder, 0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(partial, flags, 0o600), "wb") as stream:
                stream.write(data)
        else:
            if folder not in self._folders:
                self._fs.makedirs(folder, exist_ok=True)
                self._folders.add(folder)
            self._fs.pipe_file(partial, data)
        self._fs.mv(partial, self.path(name))

    def exists(self, name: str) -> bool:
        """Whether it is there now."""
        return self._fs.exists(self.path(name))

    def age_s(self, name: str) -> float:
        """Seconds since it was written; 0 where it is not there."""
        try:
            return time.time() - self._fs.modified(self.path(name)).timestamp()
        except FileNotFoundError:
            return 0.0

    def delete(self, name: str) -> bool:
        """Whether it was there."""
        try:
            self._fs.rm_file(self.path(name))
        except FileNotFoundError:
            return False  # another replica was faster
        return True

    def list(self) -> list[ListedFile]:
        """Every file of an artifact; others are left alone."""
        self._fs.invalidate_cache()  # remote file systems remember listings
        found = []
        entries: Mapping[str, Any] = self._fs.find(self._root, detail=True)
        for path, entry in entries.items():
            stem, dot, suffix = path[len(self._root) + 1 :].partition(".")
            is_ours = dot + suffix in (DATA, META) or suffix.endswith(_PARTIAL)
            if is_ours and ARTIFACT_ID.fullmatch(posixpath.basename(stem)):
                found.append(ListedFile(stem, dot + suffix, entry["size"] or 0))
        return found

    @contextmanager
    def lock(self, *, exclusive: bool) -> Iterator[None]:
        """Keep what is put anew from being deleted as expired, by whichever process. Buckets have no locks: there, it
        may happen to what is put in the very moment between a look at its expiry and its end."""
        if not self.is_local:
            yield
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with open(os.open(self.path(_LOCK), flags, 0o600), "wb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            yield


def _keep_to_ourselves(folder: str) -> None:
    """Make it a folder of this user's alone; OSError where it is another's.

    Where anybody may make folders, as in the system's temporary one, another may have been faster: InputError then.
    """
    is_anybodys = os.stat(os.path.dirname(os.path.abspath(folder))).st_mode & stat.S_IWOTH
    found = os.lstat(folder)
    if is_anybodys and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid()):
        raise InputError(
            f"artifacts {folder!r} is another user's folder, or a link, in a place where anybody may put one; remove "
            "it, or name a folder of your own."
        )
    os.chmod(folder, 0o700)


def _open_filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a folder or URI, and the folder's name in it; InputError where it is not installed."""
    if uri.partition("://")[0] in BUCKET_SCHEMES:
        filesystem, root = filesystem_of(locate(uri))
        return ArrowFSWrapper(filesystem), root
    try:
        return url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"artifacts {uri!r}: its file system is not installed ({error}); give a folder, or a URI of "
            f"{', '.join(BUCKET_SCHEMES)} or of another file system of fsspec whose package is installed."
        ) from error
