"""The replies that have been paid for, as the server sent them, by request key.

They lie in shards of JSON lines that only grow. `data_pipeline.storage` writes files whole or not at all; here every
line has to be on its way to the disk before the next request is sent. What a killed writer left of its last line is
ignored, and every writer starts a shard of its own, so none goes on behind such a line or in another's file, also
where several nodes share the folder. Where each key's line lies is kept in a database of this process's own on the
disk, which is made anew from the shards: memory does not grow with the replies.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from data_pipeline.errors import InputError

SUFFIX = ".jsonl"
FLUSH_EVERY = 256  # lines that a power cut may take; a killed process loses none

_LINE = re.compile(rb'\{"key": "([0-9a-f]{64})", "raw": ".*"\}\n', re.DOTALL)


class ReplyCache:
    """Replies by request key. For one writer: what another one writes meanwhile is seen by the next cache.

    Args:
        folder: on a disk; made with the first reply.

    Raises:
        InputError: `folder` is a file.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is no folder; replies are kept in one: name another.")
        self._folder = folder
        self._places = _Places()
        self._readers: dict[str, BinaryIO] = {}  # by name of the shard
        self._shard: BinaryIO | None = None
        self._n_unflushed = 0
        for shard in sorted(folder.glob(f"*{SUFFIX}")):
            self._places.add((key, shard.name, start, size) for key, start, size in _iterate_lines(shard))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return self._places.find(key) is not None

    def get(self, key: str) -> str | None:
        """The body of the server's response; None where it is not known.

        Raises:
            OSError: the shard cannot be read any more.
        """
        place = self._places.find(key)
        if place is None:
            return None
        shard, start, size = place
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._readers[shard] = (self._folder / shard).open("rb")
        line = os.pread(reader.fileno(), size, start)
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the disk lost a part of it: as if it had not been
            if (row := json.loads(line))["key"] == key:
                return str(row["raw"])
        self._places.remove(key)
        return None

    def put(self, key: str, raw: str) -> None:
        """Keep the body of a response. It survives the process when this returns.

        Raises:
            OSError: the disk is full, or the like.
        """
        line = (json.dumps({"key": key, "raw": raw}) + "\n").encode()
        if self._shard is None:
            self._shard = self._start_shard()
        start = self._shard.tell()
        try:
            n_written = self._shard.write(line)
            if n_written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        except OSError:
            shard, self._shard = self._shard, None  # nothing may follow half a line
            shard.close()
            raise
        self._places.add([(key, Path(self._shard.name).name, start, len(line))])
        self._n_unflushed += 1
        if self._n_unflushed >= FLUSH_EVERY:
            self._flush()

    def close(self) -> None:
        """Flush and close all files; the cache may be used again."""
        if self._shard is not None:
            self._flush()
            self._shard.close()
            self._shard = None
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start_shard(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in self._folder.glob(f"*{SUFFIX}"))
        while True:
            with contextlib.suppress(FileExistsError):  # another writer's
                return (self._folder / f"replies-{number:05d}{SUFFIX}").open("xb", buffering=0)
            number += 1

    def _flush(self) -> None:
        assert self._shard is not None
        os.fsync(self._shard.fileno())
        self._n_unflushed = 0


class _Places:
    """The shard, first byte and number of bytes of each key's line."""

    def __init__(self) -> None:
        # no name: SQLite's own temporary file, which goes with the process and of which 2 MB are in memory
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(
            "CREATE TABLE places (key BLOB PRIMARY KEY, shard TEXT, start INTEGER, size INTEGER) WITHOUT ROWID"
        )

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM places").fetchone()[0])

    def add(self, places: Iterable[tuple[str, str, int, int]]) -> None:
        rows = ((bytes.fromhex(key), *place) for key, *place in places)
        self._database.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", rows)

    def find(self, key: str) -> tuple[str, int, int] | None:
        found = self._database.execute("SELECT shard, start, size FROM places WHERE key = ?", (bytes.fromhex(key),))
        return found.fetchone()  # type: ignore[no-any-return]

    def remove(self, key: str) -> None:
        self._database.execute("DELETE FROM places WHERE key = ?", (bytes.fromhex(key),))


def _iterate_lines(shard: Path) -> Iterator[tuple[str, int, int]]:
    """(key, first byte, number of bytes) of every whole line; none is parsed before it is asked for."""
    start = 0
    with shard.open("rb") as stream:
        for line in stream:
            if found := _LINE.fullmatch(line):
                yield found[1].decode(), start, len(line)
            start += len(line)
