"""Replies on a disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.teacher.cache import ReplyCache


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_ten_thousand_replies_come_back_as_they_were(tmp_path: Path) -> None:
    raws = {key_of(number): f'{{"n": {number}, "text": "Zeile\\n ü 😀 \\u2028 "}}' * 5 for number in range(10_000)}
    with ReplyCache(tmp_path / "new" / "cache") as cache:
        for key, raw in raws.items():
            cache.put(key, raw)
        assert cache.get(key_of(3)) == raws[key_of(3)]
    with ReplyCache(tmp_path / "new" / "cache") as cache:
        assert len(cache) == 10_000
        assert {key: cache.get(key) for key in raws} == raws
        assert cache.get("0" * 64) is None
        assert "0" * 64 not in cache
        assert key_of(1) in cache


def test_a_reply_is_there_without_closing(tmp_path: Path) -> None:
    writer = ReplyCache(tmp_path)
    writer.put(key_of(1), "one")
    with ReplyCache(tmp_path) as reader:
        assert reader.get(key_of(1)) == "one"
    writer.close()


def test_every_torn_last_line_is_ignored(tmp_path: Path) -> None:
    with ReplyCache(tmp_path) as cache:
        cache.put(key_of(1), "one")
        cache.put(key_of(2), 'two "} ')
    (shard,) = tmp_path.iterdir()
    whole = shard.read_bytes()
    n_first = whole.index(b"\n") + 1
    for n_bytes in range(n_first, len(whole)):
        shard.write_bytes(whole[:n_bytes])
        with ReplyCache(tmp_path) as cache:
            assert (cache.get(key_of(1)), cache.get(key_of(2)), len(cache)) == ("one", None, 1)


def test_a_writer_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    with ReplyCache(tmp_path) as cache:
        cache.put(key_of(1), "one")
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes() + b'{"key": "12')
    with ReplyCache(tmp_path) as cache:
        cache.put(key_of(2), "two")
    with ReplyCache(tmp_path) as cache:
        assert [cache.get(key_of(number)) for number in (1, 2)] == ["one", "two"]


def test_a_line_that_the_disk_spoiled_is_no_reply(tmp_path: Path) -> None:
    with ReplyCache(tmp_path) as cache:
        cache.put(key_of(1), "o\tne")
        cache.put(key_of(2), "two")
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes().replace(b"o\\tne", b"o\\\0ne"))
    with ReplyCache(tmp_path) as cache:
        assert cache.get(key_of(1)) is None
        assert key_of(1) not in cache
        assert cache.get(key_of(2)) == "two"


def test_two_writers_have_files_of_their_own(tmp_path: Path) -> None:
    with ReplyCache(tmp_path) as first, ReplyCache(tmp_path) as second:
        for number in range(10):
            (first, second)[number % 2].put(key_of(number), str(number))
    assert len(ReplyCache(tmp_path)) == 10


def test_nothing_follows_a_line_that_the_disk_had_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReplyCache(tmp_path) as cache:
        cache.put(key_of(1), "one")
        shard = cache._shard
        assert shard is not None

        class Full:
            name = shard.name

            def tell(self) -> int:
                return shard.tell()

            def write(self, line: bytes) -> int:
                return shard.write(line[:10]) or 0

            def close(self) -> None:
                shard.close()

        monkeypatch.setattr(cache, "_shard", Full())
        with pytest.raises(OSError, match="No space"):
            cache.put(key_of(2), "two")
        assert key_of(2) not in cache
        cache.put(key_of(3), "three")
    with ReplyCache(tmp_path) as cache:
        assert [cache.get(key_of(number)) for number in (1, 2, 3)] == ["one", None, "three"]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "none") as cache:
        assert cache.get(key_of(1)) is None
    assert not (tmp_path / "none").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is no folder"):
        ReplyCache(tmp_path / "file")


def test_the_files_are_flushed_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with ReplyCache(tmp_path) as cache:
        for number in range(600):
            cache.put(key_of(number), "x")
    assert len(flushed) == 3
