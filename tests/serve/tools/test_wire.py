"""Messages between a replica and its tools' processes: whole, or refused."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from serve.tools.wire import MAX_BLOCKS, MAX_HEADER_BYTES, WireError, receive_message, send_message

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_as_it_was_sent(pair: Pair) -> None:
    header, blocks = {"words": "naïve ünits", "numbers": [1, 2.5, None]}, [b"", b"\0\xff" * 500_000]
    sender = threading.Thread(target=send_message, args=(pair[0], header, blocks))  # more than a socket holds
    sender.start()
    assert receive_message(pair[1], 10**6) == (header, blocks)
    sender.join()
    send_message(pair[1], {"answer": 1})
    assert receive_message(pair[0], 0) == ({"answer": 1}, [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<II", MAX_HEADER_BYTES + 1, 0), "header is larger"),
        (struct.pack("<II", 2, MAX_BLOCKS + 1) + b"{}", "header is larger"),
        (struct.pack("<II", 2, 0) + b"{]", "not JSON"),
        (struct.pack("<II", 2, 0) + b"\xff\xfe", "not JSON"),
        (struct.pack("<II", 2, 1) + b"{}" + struct.pack("<Q", 101), "block is larger"),
        (struct.pack("<II", 2, 1) + b"{}" + struct.pack("<Q", 50) + b"x" * 49, "gone"),
        (b"", "gone"),
    ],
)
def test_what_is_no_message_is_refused_before_its_bytes_are_waited_for(pair: Pair, data: bytes, words: str) -> None:
    pair[0].sendall(data)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(WireError, match=words):
        receive_message(pair[1], 100)


def test_a_side_that_has_gone_is_told(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(WireError, match="gone"):
        send_message(pair[0], {}, [b"x" * 10**6])


def test_a_deadline_holds_for_the_whole_message(pair: Pair) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):  # nobody reads
        send_message(pair[0], {}, [b"x" * 10**8], deadline=start + 0.1)
    pair[1].sendall(b"\0")
    with pytest.raises(TimeoutError):  # the rest never comes
        receive_message(pair[0], 100, deadline=time.monotonic() + 0.1)
    with pytest.raises(TimeoutError):  # already over
        receive_message(pair[0], 100, deadline=start)
    assert time.monotonic() - start < 5
