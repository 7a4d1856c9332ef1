"""A lock in a bucket: a lease, which its holder renews, and which others may take once it has not for a minute.

A bucket has no locks, and pyarrow offers none of its servers' conditional writes. But what is written is seen by the
next listing. So whoever wants a lease writes a claim, an object of its own beside the name, and then looks: of two at
once the later one sees the other's, or both see each other's, and withdraw, to try again at another moment. The age of
a claim is told by the server's clock alone, against a claim that was written just now.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from data_pipeline import bucket
from data_pipeline.errors import InputError
from data_pipeline.locations import BucketPath, filesystem_of

BEAT_S = 10.0
EXPIRES_S = 60.0  # six beats: a busy server or a short outage of the network costs nobody a lease
_ASKS, _HOLDS = "asks", "holds"
_AGAIN_S = 2.0  # at most, until a claim that was withdrawn is made again
log = logging.getLogger(__name__)


class HeldError(Exception):
    """Somebody holds the lease and renews it; the message says who."""


@contextlib.contextmanager
def holding(name: BucketPath, holder: str, lost: Callable[[], None]) -> Iterator[None]:
    """Hold the lease of a name while the block lasts.

    Where the last holder was killed, this waits until its lease has expired; where it is alive, until it is renewed.

    Args:
        name: of what is held; it need not be there. Claims are objects beside it.
        holder: whose claim it is, for people.
        lost: called once, from another thread, if the lease was not renewed for so long that another took it.

    Raises:
        HeldError: another holds it.
        InputError: the bucket cannot be used.
    """
    claim = name.parent / f"{name.name}-{uuid.uuid4().hex}"
    _acquire(name, claim, holder)
    ends = threading.Event()
    beats = threading.Thread(target=_renew, args=(claim, holder, ends, lost), daemon=True, name=f"lease of {name.name}")
    beats.start()
    try:
        yield
    finally:
        ends.set()
        beats.join()
        bucket.delete_file(claim)


def _acquire(name: BucketPath, claim: BucketPath, holder: str) -> None:
    first_seen: dict[str, int] = {}  # claim -> its time in ns, of those that hold
    while True:
        _write(claim, _ASKS, holder)
        try:
            claims = _list_claims(name)
            now_ns = claims.pop(claim.name, 0)
            alive = {other: time_ns for other, time_ns in claims.items() if time_ns > now_ns - int(EXPIRES_S * 1e9)}
            if now_ns and not alive:
                _write(claim, _HOLDS, holder)
                for other in claims:
                    bucket.delete_file(name.parent / other)
                return
        except BaseException:
            bucket.delete_file(claim)
            raise
        bucket.delete_file(claim)
        for other, time_ns in alive.items():
            state, who = _read(name.parent / other)
            if state != _HOLDS:
                continue
            if other not in first_seen:
                log.warning(f"{who} may still hold {name}; waiting up to {EXPIRES_S:.0f} s to see whether it is alive")
            if first_seen.setdefault(other, time_ns) != time_ns:
                raise HeldError(who)
        time.sleep(random.uniform(0.1, _AGAIN_S))


def _renew(claim: BucketPath, holder: str, ends: threading.Event, lost: Callable[[], None]) -> None:
    while not ends.wait(BEAT_S):
        with contextlib.suppress(InputError):  # the server is away for a while
            try:
                bucket.require_file(claim)
            except FileNotFoundError:
                lost()
                return
            _write(claim, _HOLDS, holder)


def _list_claims(name: BucketPath) -> dict[str, int]:
    """Claim -> the time in ns at which it was last written, by the server's clock."""
    return {
        info.base_name: info.mtime_ns
        for info in bucket.children_of(name.parent)
        if info.base_name.startswith(f"{name.name}-")
    }


def _write(claim: BucketPath, state: str, holder: str) -> None:
    with bucket.uploading(claim) as stream:
        stream.write(json.dumps([state, holder]).encode())


def _read(claim: BucketPath) -> tuple[str, str]:
    """State and holder; empty where it was withdrawn meanwhile."""
    filesystem, key = filesystem_of(claim)
    try:
        with bucket.naming(claim), filesystem.open_input_file(key) as stream:
            state, holder = json.loads(stream.read())
            return state, holder
    except FileNotFoundError:
        return "", ""
