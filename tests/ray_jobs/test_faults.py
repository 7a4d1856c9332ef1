"""What a user can mend, found in the exceptions that Ray carried over from workers."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from data_pipeline.errors import InputError, MediaError
from ray_jobs.faults import MENDS, describe_mendable, find_input_error


def in_worker(cause: Exception) -> RayTaskError:
    """What `ray.get` raises where a task raised `cause`."""
    return RayTaskError("task", f"Traceback\n{cause}", cause, proctitle="ray::task", pid=1, ip="127.0.0.1")


def test_input_errors_are_found_wherever_ray_puts_them() -> None:
    cause = MediaError("bad medium")
    chained = RuntimeError("outer")
    chained.__cause__ = in_worker(cause).as_instanceof_cause()
    carriers: list[BaseException] = [
        cause,
        in_worker(cause),
        in_worker(cause).as_instanceof_cause(),
        in_worker(in_worker(cause)).as_instanceof_cause(),
        chained,
        WorkerGroupError("m", {0: in_worker(cause)}),
        ControllerError(in_worker(cause)),
        in_worker(WorkerGroupError("m", {0: ValueError("x"), 1: cause})),
    ]
    for carrier in carriers:
        assert find_input_error(carrier) is cause, repr(carrier)
    others: list[BaseException] = [
        ValueError("x"),
        in_worker(ValueError("x")),
        TrainingFailedError("x"),
        WorkerGroupError("m", {0: ValueError("x")}),
    ]
    for other in others:
        assert find_input_error(other) is None


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_input_error(first) is None


def raised(action: str, path: Path) -> OSError:
    """What the operating system says to that."""
    try:
        if action == "make":
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_text("x" * 100_000, encoding="utf-8")
    except OSError as error:
        return pickle.loads(pickle.dumps(error))  # noqa: S301  (as Ray carries it)
    raise AssertionError(f"{path} can be had")


@pytest.mark.parametrize("carry", [lambda error: error, in_worker, lambda error: WorkerGroupError("m", {0: error})])
def test_what_the_operating_system_refuses_is_a_sentence(tmp_path: Path, carry: type) -> None:
    file = tmp_path / "runs"
    file.write_text("", encoding="utf-8")
    cases = {
        raised("make", file): f"{file}: file exists; a file is where a folder is expected; ",
        raised("make", file / "demo"): f"{file}/demo: not a directory; a file is where a folder is expected; ",
        raised("write", tmp_path): f"{tmp_path}: is a directory; a folder is where a file is expected; ",
        raised("write", tmp_path / ("x" * 300)): f"{tmp_path}/{'x' * 300}: file name too long; give it a shorter name",
        OSError(errno.ENOSPC, "x", "/runs/a"): "/runs/a: no space left on device; make room there, ",
        raised("write", Path("/dev/full")): "no space left on device; make room there, ",
        PermissionError(errno.EACCES, "x", "/runs"): "/runs: permission denied; give this user the right to it, ",
        OSError(errno.EROFS, "x", "/runs"): "/runs: read-only file system; name a place that can be written to",
    }
    for error, sentence in cases.items():
        said = describe_mendable(carry(error))
        assert said is not None, repr(error)
        assert said.startswith(sentence)
        assert said.endswith(".")
        assert "\n" not in said


def test_an_input_error_comes_first_and_a_bug_stays_a_bug(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "x", "/runs")
    both = WorkerGroupError("m", {0: full, 1: InputError("the disk of /runs is full; free some.\nRay's advice")})
    assert describe_mendable(both) == "the disk of /runs is full; free some."
    tmp_path.joinpath("a").mkdir()
    bugs = [
        ValueError("x"),
        FileNotFoundError(errno.ENOENT, "x", "/runs/a"),
        FileExistsError(errno.EEXIST, "x", str(tmp_path / "a")),  # a folder that was to be made anew
        PermissionError(errno.EPERM, "x"),  # of a process or a port
        ConnectionError(errno.ECONNREFUSED, "x"),
    ]
    in_handling = KeyError("x")
    in_handling.__context__ = full
    for bug in [*bugs, in_handling]:
        assert describe_mendable(bug) is None, repr(bug)
    assert all(os.strerror(number) for number in MENDS)
