"""What the driver shows of what workers print: messages taken out of the lines, all other lines left to Ray."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs import worker_output
from ray_jobs.worker_output import told_to

JOB = "train-0123456789ab"


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A driver of its own, connected."""
    driver = worker_output._Driver()
    driver.is_connected = True
    monkeypatch.setattr(worker_output, "_driver", driver)
    return driver


def bring(*lines: str, is_err: bool = False) -> None:
    """Ray brings some lines of a worker."""
    batch = {"lines": list(lines), "pid": 17, "ip": "a", "localhost": "a", "is_err": is_err, "actor_name": "Worker"}
    worker_output._show_lines(batch)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a worker has just told."""
    return capsys.readouterr().out.splitlines()


def test_progress_goes_to_who_follows_and_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    worker_output.tell_progress(JOB, 3, 148, "steps", "loss=2.0")
    worker_output.tell_line(JOB, "epoch=1 mean_loss=3.1")
    worker_output.tell_end(JOB)
    lines = told(capsys)
    seen: list[tuple[Any, ...]] = []
    with told_to(lambda *progress: seen.append(progress)):
        bring(*lines)
    assert seen == [(3, 148, "steps", "loss=2.0")]
    assert capsys.readouterr().out == "epoch=1 mean_loss=3.1\n"


def test_a_jobs_lines_bear_its_name_where_no_one_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    for done in (3, 4):
        worker_output.tell_progress(JOB, done, 148, "steps", "loss=2.0")
    worker_output.tell_line(JOB, "epoch=1")
    bring(*told(capsys))
    assert capsys.readouterr().out.splitlines() == [f"{JOB}: 3/148 steps; loss=2.0", f"{JOB}: epoch=1"], (
        "of two within ten seconds one"
    )


def test_all_other_lines_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    bring("a real warning", worker_output.MARK + '["cut of', is_err=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a real warning" in captured.err
    assert "pid=17" in captured.err, "which worker it was"
    assert '["cut of' in captured.err


def test_the_end_is_waited_for_and_a_failure_is_not(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(driver.has_ended, "wait", waits.append)
    with told_to(lambda *progress: None):
        pass
    assert waits == [worker_output.PATIENCE_S]
    with pytest.raises(ZeroDivisionError), told_to(lambda *progress: None):
        raise ZeroDivisionError
    assert waits == [worker_output.PATIENCE_S]
    assert driver.show is None
