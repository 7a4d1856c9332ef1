"""The outbox: in order, nothing lost, nobody waits; whatever the server, the process or the disk does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ray_jobs.tracking.outbox
from ray_jobs.places import hide_secrets
from ray_jobs.tracking.outbox import Entry, Outbox


class Server:
    """Takes at most three entries a call; away while `is_away`."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.calls: list[int] = []
        self.is_away = threading.Event()

    def deliver(self, entries: Sequence[Entry]) -> int:
        if self.is_away.is_set():
            raise ConnectionError("no route to http://me:secret@host")
        part = [entry["n"] for entry in entries[:3]]
        self.taken += part
        self.calls.append(len(part))
        return len(part)


@pytest.fixture
def server() -> Server:
    return Server()


def build(server: Server, spool_dir: Path | None = None, name: str = "run") -> Outbox:
    return Outbox(name, server.deliver, (ConnectionError,), spool_dir, "the server at http://me:secret@host")


def put(outbox: Outbox, numbers: range) -> None:
    for n in numbers:
        outbox.put({"n": n})


def wait_for(condition: Any) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_entries_travel_together_and_urgent_ones_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = build(server)
    put(outbox, range(5))
    time.sleep(0.1)
    assert server.taken == []
    outbox.put({"n": 5}, urgent=True)
    wait_for(lambda: server.taken == list(range(6)))
    assert server.calls == [3, 3]
    monkeypatch.setattr(ray_jobs.tracking.outbox, "SEND_INTERVAL_S", 0.05)
    put(outbox, range(6, 8))
    wait_for(lambda: server.taken == list(range(8)))
    assert outbox.close(1) == []
    with pytest.raises(ValueError, match="closed"):
        outbox.put({"n": 9})


def test_what_waits_during_an_outage_is_sent_after_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_jobs.tracking.outbox, "FIRST_BACKOFF_S", 0.01)
    outbox = build(server, tmp_path)
    put(outbox, range(2))
    assert outbox.flush(5)
    server.is_away.set()
    begun_s = time.perf_counter()
    put(outbox, range(2, 1000))
    assert time.perf_counter() - begun_s < 1
    assert not outbox.flush(0.1)
    server.is_away.clear()
    assert outbox.flush(5)
    assert server.taken == list(range(1000))
    messages = [record.getMessage() for record in caplog.records]
    assert ["does not take" in message for message in messages] == [True, False], "said once"
    assert "is back after" in messages[1]
    assert "secret" not in caplog.text
    outbox.close(1)
    assert list(tmp_path.iterdir()) == []


def _log_and_die(spool_dir: Path) -> None:
    away = Server()
    away.is_away.set()
    put(build(away, spool_dir), range(100))
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_outbox_of_the_name_sends_what_a_killed_process_left(server: Server, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_log_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    left.write_bytes(left.read_bytes() + b'{"n": 1')  # half a line
    other, outbox = build(server, tmp_path, "other"), build(server, tmp_path)
    assert other.adopt() == []
    assert [entry["n"] for entry in outbox.adopt()] == list(range(100))
    put(outbox, range(100, 103))
    assert build(server, tmp_path).adopt() == [], "its owner lives"
    assert outbox.close(5) == []
    assert server.taken == list(range(103))


def test_a_closed_outbox_leaves_what_was_not_taken(server: Server, tmp_path: Path) -> None:
    server.is_away.set()
    outbox = build(server, tmp_path)
    put(outbox, range(3))
    assert [entry["n"] for entry in outbox.close(0.05)] == [0, 1, 2]
    server.is_away.clear()
    again = build(server, tmp_path)
    again.adopt()
    assert again.close(5) == []
    assert server.taken == [0, 1, 2]


def test_the_spool_does_not_grow_with_what_has_been_delivered(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs.tracking.outbox, "MAX_DELIVERED_LINES", 50)
    outbox = build(server, tmp_path)
    put(outbox, range(100))
    first, sizes = outbox.spool_path, []
    deliver = server.deliver

    def measure(entries: Sequence[Entry]) -> int:
        assert outbox.spool_path is not None
        sizes.append(outbox.spool_path.read_bytes().count(b"\n"))
        return deliver(entries)

    monkeypatch.setattr(outbox, "_deliver", measure)
    assert outbox.flush(5)
    assert sizes[0] == 100
    assert min(sizes) < 50, "shortened while entries wait"
    assert outbox.spool_path != first
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


def test_a_full_disk_is_told_and_costs_nothing_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = build(server, tmp_path)
    write, free_bytes = os.write, 20

    def write_some(descriptor: int, data: bytes) -> int:
        nonlocal free_bytes
        if not free_bytes:
            raise OSError(28, "No space left on device")
        n = write(descriptor, data[:free_bytes])
        free_bytes -= n
        return n

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        put(outbox, range(5))
    put(outbox, range(5, 7))
    assert caplog.text.count("No space left") == 1
    assert outbox.spool_path is not None
    lines = outbox.spool_path.read_text().splitlines()
    assert lines[-2:] == ['{"n": 5}', '{"n": 6}'], "half a line spoils no other"
    assert outbox.close(5) == []
    assert server.taken == list(range(7))


def test_secrets_are_hidden() -> None:
    assert (
        hide_secrets("postgresql://u:p@h/db and sqlite:////tmp/a@b") == "postgresql://***@h/db and sqlite:////tmp/a@b"
    )
