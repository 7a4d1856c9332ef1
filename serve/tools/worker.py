"""The process in which tools run: `python -m serve.tools.worker {fork|resident} FD CACHE_BYTES`; started by `run.py`.

"fork" has everything imported and forks for each call: a call starts in milliseconds, in a clean process with a time
and a memory limit of its own, and its memory goes back when it ends. "resident" runs calls one after another itself and
keeps the models that they load. Both end when the replica that started them does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from data_pipeline.errors import InputError, MediaError
from data_pipeline.media.limits import MediaLimits
from serve.tools.media import ToolLimits, decode_media
from serve.tools.spec import ToolError, ToolOutput
from serve.tools.tool_file import load_tool_file
from serve.tools.wire import WireError, receive_message, send_message

MAX_CONTROL_BYTES = 8192


def _find_function(call: dict[str, Any]) -> Callable[..., ToolOutput]:
    if call["module"].startswith("serve.tools."):
        found: Any = importlib.import_module(call["module"])
    else:
        found = load_tool_file(call["file"])
    for part in call["qualname"].split("."):
        found = getattr(found, part)
    return found


def _answer(sock: socket.socket, models: Any) -> None:
    """Receive one call, do it and send what came of it."""
    call, blocks = receive_message(sock, max_block_bytes=2**40)
    limits: ToolLimits = _limits(call["limits"])
    blobs = iter(blocks)
    try:
        arguments = {
            name: decode_media(kind, next(blobs), limits) if kind else value for name, kind, value in call["arguments"]
        }
        function = _find_function(call)
        leading = (models, *call["model_ids"]) if call["model_ids"] else ()
        output = function(*leading, **arguments)
        _check_output(output, limits)
    except ToolError as error:
        reply = {"code": error.code, "message": error.message}
    except MediaError as error:
        reply = {"code": "bad_media", "message": str(error)}
    except InputError as error:
        reply = {"code": "bad_arguments", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a tool raises, its caller gets one sentence and the log the rest
        if _is_out_of_memory(error):
            reply = {
                "code": "out_of_memory",
                "message": "it needed more memory than a call may use; give it smaller media.",
            }
        else:
            traceback.print_exc()
            reply = {"code": "failed", "message": f"it failed on this input ({type(error).__name__})."}
    else:
        file = output.file
        reply = {"text": output.text, "media_type": file.media_type if file else None}
        send_message(sock, reply | _cache_counts(models), [file.data] if file else [])
        return
    send_message(sock, reply | _cache_counts(models))


def _cache_counts(models: Any) -> dict[str, Any]:
    return {} if models is None else {"cache": models.counts()}


def _limits(fields: dict[str, Any]) -> ToolLimits:
    others = {name: value for name, value in fields.items() if name != "media"}
    return ToolLimits(media=MediaLimits(**fields["media"]), **others)


def _check_output(output: Any, limits: ToolLimits) -> None:
    if not isinstance(output, ToolOutput):
        raise ToolError("failed", f"its function returned {type(output).__name__}; it has to return a ToolOutput.")
    n_bytes = len(output.file.data) if output.file else 0
    if n_bytes > limits.max_output_bytes or len(output.text) > limits.max_output_chars:
        raise ToolError(
            "failed",
            f"its result has {n_bytes:,} bytes and {len(output.text):,} characters; at most "
            f"{limits.max_output_bytes:,} and {limits.max_output_chars:,} are allowed, so give it smaller media.",
        )


def _is_out_of_memory(error: Exception) -> bool:
    no_memory = isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem
    return isinstance(error, MemoryError) or no_memory or "bad_alloc" in str(error)


def _limit_this_process(timeout_s: float, memory_mb: int) -> None:
    """Bind the forked child.

    Address space and not resident memory: the kernel refuses the very allocation that is too large, so NumPy, OpenCV
    and FFmpeg report it, where a watcher of resident memory would come too late for one large allocation and could only
    kill. The limit lies `memory_mb` above what the idle process has mapped, for shared libraries count as address
    space; libraries run on one thread here, so stacks and arenas of threads do not eat into it.
    """
    os.setsid()  # one group with whatever the tool starts, such as Tesseract
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(timeout_s) + 2)  # ends the process even where the replica is no longer there to kill it
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _fork(control: socket.socket, sock: socket.socket, request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        control.close()
        _limit_this_process(request["timeout_s"], request["memory_mb"])
        with contextlib.suppress(WireError):
            _answer(sock, None)
        status = 0
    finally:
        os._exit(status)  # without the parent's exit handlers


def main(mode: str, fd: int, cache_bytes: int) -> None:
    """Serve calls until the replica closes its end of the control socket."""
    control = socket.socket(fileno=fd)
    cv2.setNumThreads(1)
    if mode == "fork":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
        from serve.tools import all_tools  # noqa: F401 - so that no child has to import the libraries

        models = None
    else:
        import torch  # noqa: F401 - they take seconds, for which no call shall pay
        import transformers  # noqa: F401

        from serve.tools.models import ModelCache

        models = ModelCache(cache_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the replica decides when to end
    while True:
        message, fds, _, _ = socket.recv_fds(control, MAX_CONTROL_BYTES, 1)
        if not message:
            return
        request = json.loads(message)
        with socket.socket(fileno=fds[0]) as sock:
            if request["file"] is not None:
                # a broken file is reported by the call itself
                with contextlib.suppress(Exception):
                    load_tool_file(request["file"])
            if mode == "fork":
                control.send(json.dumps({"pid": _fork(control, sock, request)}).encode())
            else:
                control.send(json.dumps({"pid": os.getpid()}).encode())
                signal.alarm(math.ceil(request["timeout_s"]) + 2)
                with contextlib.suppress(WireError):
                    _answer(sock, models)
                signal.alarm(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
