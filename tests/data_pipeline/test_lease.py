"""A lease in a bucket, against a real S3 HTTP server: one holder at a time, and none for ever."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from data_pipeline import bucket as bucket_module
from data_pipeline import lease
from data_pipeline.lease import HeldError, holding
from data_pipeline.locations import BucketPath, locate

BEAT_S, EXPIRES_S = 1.0, 3.0  # a server tells times in whole seconds


@pytest.fixture
def name(bucket: str, monkeypatch: pytest.MonkeyPatch) -> BucketPath:
    """Of what is held, in an empty bucket."""
    monkeypatch.setattr(lease, "BEAT_S", BEAT_S)
    monkeypatch.setattr(lease, "EXPIRES_S", EXPIRES_S)
    monkeypatch.setattr(lease, "_AGAIN_S", 0.3)
    location = locate(f"{bucket}/runs/mine/.train.running")
    assert isinstance(location, BucketPath)
    return location


def never() -> None:
    raise AssertionError("the lease was lost")


def list_claims(name: BucketPath) -> list[str]:
    return [info.base_name for info in bucket_module.children_of(name.parent)]


def test_a_second_holder_is_refused_while_the_first_one_lives(name: BucketPath) -> None:
    with holding(name, "the first", never):
        start = time.monotonic()
        with pytest.raises(HeldError, match=r"^the first$"), holding(name, "the second", never):
            raise AssertionError("two at a time")
        assert time.monotonic() - start < EXPIRES_S, "a living holder is told by its next beat"
        with holding(name.parent / ".tune.running", "another job", never):
            pass
        time.sleep(EXPIRES_S + BEAT_S)
        assert len(list_claims(name)) == 1
        with pytest.raises(HeldError), holding(name, "the second", never):
            raise AssertionError("it was renewed")
    assert list_claims(name) == []
    with holding(name, "the second", never):
        pass


def test_what_a_killed_holder_left_expires(name: BucketPath, caplog: pytest.LogCaptureFixture) -> None:
    killed = name.parent / f"{name.name}-0"
    lease._write(killed, lease._HOLDS, "process 7 on node-1")
    with caplog.at_level(logging.WARNING), holding(name, "the next", never):
        assert killed.name not in list_claims(name)
    assert [record.message for record in caplog.records if record.name == lease.__name__] == [
        f"process 7 on node-1 may still hold {name}; waiting up to 3 s to see whether it is alive"
    ]


def test_of_many_at_once_one_holds_at_a_time(name: BucketPath) -> None:
    inside, most, refused = [0], [0], []

    def contend(number: int) -> None:
        try:
            with holding(name, f"number {number}", never):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(2 * BEAT_S)
                inside[0] -= 1
        except HeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert len(refused) < 4
    assert list_claims(name) == []


def test_a_holder_whose_lease_was_taken_hears_of_it(name: BucketPath) -> None:
    lost = threading.Event()
    with holding(name, "asleep", lost.set):
        (claim,) = list_claims(name)
        bucket_module.delete_file(name.parent / claim)  # as one who found it expired does
        assert lost.wait(10)
        assert list_claims(name) == [], "it is not claimed anew"
