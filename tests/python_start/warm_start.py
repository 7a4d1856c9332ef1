"""Python for Ray's workers, imported once: a process that has the large packages forks those that Ray would start.

A worker of a training spends some six seconds of a core on importing torch, transformers, DeepSpeed and Ray, and the
tests start hundreds of them. Ray starts a worker by `py_executable` of its runtime environment, which is here

    python -S -I warm_start.py SOCKET default_worker.py …

which hands its arguments, environment and files to the process that listens at SOCKET, and ends. What is forked goes on
as if Python had been started with them. Whatever has been read from the environment while importing must be the same:
where such a variable differs, and where nobody listens, Python is started as usual.
"""

from __future__ import annotations

import os
import socket
import sys

# read by packages while they are imported, and set for a job, a worker or an actor rather than for all of them
READ_WHILE_IMPORTING = ("PYTHONPATH", "OMP_NUM_THREADS", "DS_ACCELERATOR", "HF_HUB_OFFLINE")
PACKAGES = (
    *("torch.distributed.tensor", "transformers.models.llama.modeling_llama", "peft", "deepspeed.runtime.engine"),
    *("deepspeed.runtime.zero.muon.muon_optimizer", "mlflow.store.tracking.sqlalchemy_store"),  # a second each, late
    *("mlflow.tracking", "sqlalchemy", "pandas", "scipy.stats", "pyarrow.dataset", "pyarrow.fs", "av", "cv2"),
    *("aiohttp", "grpc", "fastapi", "uvicorn", "mcp", "model.llm.backbone", "data_pipeline.corpus.files"),
)
MAX_BYTES = 1 << 20


def start(address: str, arguments: list[str]) -> None:
    """Have Python started with `arguments` by who listens at `address`, or become it."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(address)
            import json

            asked = json.dumps([arguments, dict(os.environ), os.getcwd(), os.nice(0)]).encode()
            socket.send_fds(client, [asked], [0, 1, 2])
            if client.recv(1) == b"y":
                return
    except OSError:
        pass
    os.execv(sys.executable, [sys.executable, *arguments])


def serve(address: str) -> None:
    """Import what workers need, then fork one for each request, until standard input ends."""
    import contextlib
    import gc
    import importlib
    import json
    import select
    import signal

    for name in PACKAGES:
        importlib.import_module(name)
    assert "ray" not in sys.modules, "it reads the worker's job from the environment while it is imported"
    gc.collect()
    gc.freeze()
    fixed = {name: os.environ.get(name) for name in READ_WHILE_IMPORTING}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            may_fork, files = False, []
            with listener.accept()[0] as client, contextlib.suppress(ConnectionError):  # it was killed while it asked
                message, files, *_ = socket.recv_fds(client, MAX_BYTES, 3)
                if message:
                    arguments, environment, folder, niceness = json.loads(message)
                    fits = all(environment.get(name) == value for name, value in fixed.items())
                    fits = fits and not find_threads()
                    client.send(b"y" if fits else b"n")
                    may_fork = fits
            if may_fork and os.fork() == 0:
                listener.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(folder)
                os.nice(niceness - os.nice(0))
                for file in files:
                    os.close(file)
                return run(arguments)
            for file in files:
                os.close(file)


def find_threads() -> list[str]:
    """Names of this process's other threads: a lock that one of them holds stays locked in a fork. jemalloc's frees."""
    import contextlib

    names = []
    for task in set(os.listdir("/proc/self/task")) - {str(os.getpid())}:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/comm", encoding="utf-8") as file:
            names.append(file.read().strip())
    return [name for name in names if name != "jemalloc_bg_thd"]


def run(arguments: list[str]) -> None:
    """What Python does when it is started with these: options that matter here, then a script."""
    import types

    while arguments[0].startswith("-"):
        assert arguments[0] == "-u", arguments
        arguments = arguments[1:]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)
    script = arguments[0]
    sys.argv = arguments
    sys.path[0] = os.path.dirname(script)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = script
    with open(script, encoding="utf-8") as file:
        code = compile(file.read(), script, "exec")
    exec(code, main.__dict__)


if __name__ == "__main__":
    if sys.argv[2:]:
        start(sys.argv[1], sys.argv[2:])
    else:
        serve(sys.argv[1])
