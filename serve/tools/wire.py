"""What passes between a replica and the processes that it shuts in: a JSON header and blocks of bytes over a socket.

No pickle: they decode foreign media, so what comes back from them is foreign too.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

_PREFIX = struct.Struct("<II")  # bytes of the header, number of blocks
_BLOCK = struct.Struct("<Q")
MAX_FAULT_CHARS = 1000
MAX_HEADER_BYTES = 8 * 2**20
MAX_BLOCKS = 16


class WireError(ConnectionError):
    """The other side is gone or sent what is not a message."""


def send_message(
    sock: socket.socket,
    header: dict[str, Any],
    blocks: Sequence[bytes | memoryview] = (),
    deadline: float | None = None,
) -> None:
    """Send one message.

    Args:
        sock: a connected stream socket.
        header: JSON values.
        blocks: raw bytes behind it.
        deadline: value of `time.monotonic` at which to give up; None = never.

    Raises:
        TimeoutError: the deadline has passed.
        WireError: the other side is gone.
    """
    encoded = json.dumps(header).encode()
    parts: list[bytes | memoryview] = [_PREFIX.pack(len(encoded), len(blocks)), encoded]
    for block in blocks:
        parts += [_BLOCK.pack(len(block)), block]
    try:
        for part in parts:
            _set_timeout(sock, deadline)
            sock.sendall(part)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WireError("the other side is gone") from error


def receive_message(
    sock: socket.socket,
    max_block_bytes: int,
    deadline: float | None = None,
    max_blocks: int = MAX_BLOCKS,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> tuple[dict[str, Any], list[bytearray]]:
    """Receive one message.

    Returns:
        the header and the blocks.

    Raises:
        TimeoutError: the deadline has passed.
        WireError: the other side is gone, or sent no message, a header over `max_header_bytes`, more than `max_blocks`
            or one over `max_block_bytes`.
    """
    header_bytes, n_blocks = _PREFIX.unpack(_receive_exactly(sock, _PREFIX.size, deadline))
    if header_bytes > max_header_bytes or n_blocks > max_blocks:
        raise WireError("a header is larger than allowed")
    try:
        header = json.loads(_receive_exactly(sock, header_bytes, deadline))
    except (ValueError, RecursionError) as error:
        raise WireError("a header is not JSON") from error
    if not isinstance(header, dict):
        raise WireError("a header is no object")
    blocks = []
    for _ in range(n_blocks):
        (size,) = _BLOCK.unpack(_receive_exactly(sock, _BLOCK.size, deadline))
        if size > max_block_bytes:
            raise WireError("a block is larger than allowed")
        blocks.append(_receive_exactly(sock, size, deadline))
    return header, blocks


def _set_timeout(sock: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def read_fault(message: object) -> str:
    """What the other side says went wrong, as one line of at most `MAX_FAULT_CHARS`."""
    return " ".join(str(message).split())[:MAX_FAULT_CHARS]


def _receive_exactly(sock: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        _set_timeout(sock, deadline)
        try:
            n_bytes = sock.recv_into(left)
        except ConnectionResetError as error:
            raise WireError("the other side is gone") from error
        if n_bytes == 0:
            raise WireError("the other side is gone")
        left = left[n_bytes:]
    return data
