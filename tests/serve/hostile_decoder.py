"""A decoder that hostile media have taken over, in the place of the real one: what it does, the medium's bytes say."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import MediaError
from serve.decoding import launch

SHAPE = (3, 224, 224)
_is_poisoned = False


def attacks_on(parent: int, secret: str) -> dict[str, Callable[[], object]]:
    """What no decoder may."""
    return {
        "socket": lambda: socket.socket(socket.AF_INET),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "environ": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "memory": lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY),
        "own environ": lambda: os.environ["TOOLMM_TEST_KEY"],
        "environ as started": lambda: 1 / (b"TOOLMM_TEST_KEY" in Path("/proc/self/environ").read_bytes()),
        "read": lambda: Path(secret).read_text(),
        "read by a program": lambda: subprocess.run(["cat", secret], check=True),
        "write": lambda: Path(secret).with_name("new").touch(),
        "write a temporary file": tempfile.TemporaryFile,
        "write here": lambda: Path("new").touch(),
        "write code": lambda: Path(launch.__file__).open("a"),
        "write to memory": lambda: os.write(os.memfd_create("new"), b"x"),
        "delete": lambda: os.unlink(secret),
        "write below /dev": lambda: Path("/dev/shm/toolmm-new").touch(),
        "kill": lambda: os.kill(parent, 0),
    }


def succeeds(work: Callable[[], object]) -> bool:
    try:
        work()
    except Exception:  # noqa: BLE001 - an attack that fails in any way has failed
        return False
    return True


def load(modality: str, data: bytes, recipe: str, *, limits: Any) -> Any:
    import numpy as np

    global _is_poisoned
    what, _, rest = data.decode().partition(" ")
    if _is_poisoned or what == "crash":
        ctypes.string_at(0)
    match what:
        case "hang":
            time.sleep(1000)
        case "hog":
            return bytearray(2**36)
        case "nest":  # FFmpeg's word for it, as the loaders pass it on
            raise MediaError("damaged") from MemoryError()
        case "bug":
            raise KeyError("x")
        case "poison":
            _is_poisoned = True
        case "shape":
            return np.zeros((3, 224, 225), np.float32)
        case "dtype":
            return np.zeros(SHAPE, np.float64)
        case "number":
            return np.full(SHAPE, np.nan, np.float32)
        case "talk":
            raise MediaError("a\nb" + "c" * 5000)
        case "pid":
            raise MediaError(str(os.stat("/proc/self").st_ino))
        case "limits":
            names = ("CPU", "FSIZE", "NPROC", "CORE")
            told = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}
            raise MediaError(json.dumps(told))
        case "attack":
            parent, _, secret = rest.partition(" ")
            attacks = attacks_on(int(parent), secret)
            raise MediaError(json.dumps([name for name, work in attacks.items() if succeeds(work)]))
    return np.zeros(SHAPE, np.float32)


if __name__ == "__main__":
    enter_worker = launch.enter_worker

    def enter_and_take_over(*args: Any, **more: Any) -> None:
        enter_worker(*args, **more)  # by a process with one thread
        from serve.decoding import worker

        worker.load_media = load  # pyright: ignore[reportAttributeAccessIssue]

    launch.enter_worker = enter_and_take_over
    launch.main(int(sys.argv[1]), sys.argv[2])
