"""The process in which tools run; `launch.py` shuts it in and starts it, `run.py` asks it.

One kind has everything imported and forks for each call (`fork_server.py`), into a process with limits of its own, shut
in by `sandbox/confine.py`. The other runs calls one after another itself and keeps the models that they load. Both end
when the replica that started them does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import cv2

from data_pipeline.errors import InputError, MediaError
from data_pipeline.media.limits import MediaLimits
from serve.tools.fork_server import GRACE_S, MAX_CONTROL_BYTES, ForkedCall, ForkServer, limit_memory
from serve.tools.media import ToolLimits, decode_media
from serve.tools.sandbox.confine import Mechanisms, enter_call
from serve.tools.spec import ToolError, ToolOutput
from serve.tools.tool_file import load_tool_file
from serve.tools.wire import WireError, receive_message, send_message

LOOK_S = 0.1  # between two looks whether somebody waits


def _find_function(call: dict[str, Any]) -> Callable[..., ToolOutput]:
    if call["module"].startswith("serve.tools."):
        found: Any = importlib.import_module(call["module"])
    else:
        found = load_tool_file(call["file"])
    for part in call["qualname"].split("."):
        found = getattr(found, part)
    return found


class CallLine:
    """The line to who waits for the call under way: it is told when weights load, and looked at while networks run."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self._next_look_s = 0.0

    def tell_loading(self, is_loading: bool) -> None:
        """Say that weights begin to load, or that they have ended to."""
        if self.sock is not None:
            send_message(self.sock, {"is_loading": is_loading})

    def check(self, *_: Any) -> None:
        """End the call where nobody waits for it any more: a hook before the forward pass of every module."""
        now = time.monotonic()
        if self.sock is None or now < self._next_look_s:
            return
        self._next_look_s = now + LOOK_S
        if select.select([self.sock], [], [], 0)[0]:  # what there was to read is read, so this is its end
            raise ToolError("interrupted", "nobody waits for it any more.")


def _answer(sock: socket.socket, models: Any) -> None:
    """Receive one call, do it and send what came of it."""
    call, blocks = receive_message(sock, max_block_bytes=2**40)
    limits: ToolLimits = _limits(call["limits"])
    blobs = map(bytes, blocks)
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


def serve_forking(fd: int, mechanisms: Mechanisms, folder: str, users: range, *, has_network: bool) -> None:
    """Run each call in a process of its own, until the replica closes its end of the control socket.

    Args:
        fd: the control socket.
        mechanisms: that shut calls in.
        folder: what each call finds its private folder at.
        users: numbers for users of their own.
        has_network: whether these tools may use the network.
    """
    cv2.setNumThreads(1)
    from serve.tools import all_tools  # noqa: F401 - so that no child has to import the libraries

    def run(call: ForkedCall) -> None:
        limit_memory(call.request["memory_mb"])
        enter_call(mechanisms, call.user, call.folder, call.request["readable"], has_network=has_network)
        with contextlib.suppress(WireError):
            _answer(call.sock, None)

    ForkServer(socket.socket(fileno=fd), mechanisms, folder, users, run).serve()


def serve_models(fd: int, cache_bytes: int) -> None:
    """Run the calls of tools with models here, one after another; `cache_bytes` are for models that stay loaded."""
    control = socket.socket(fileno=fd)
    cv2.setNumThreads(1)
    import torch  # they take seconds, for which no call shall pay
    import transformers  # noqa: F401

    from serve.tools.models import ModelCache

    line = CallLine()
    models = ModelCache(cache_bytes, line.tell_loading)
    torch.nn.modules.module.register_module_forward_pre_hook(line.check)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, MAX_CONTROL_BYTES, 1)
        if not message:
            return
        request = json.loads(message)
        with socket.socket(fileno=fds[0]) as sock:
            control.send(b"{}")
            alarm = threading.Timer(request["timeout_s"] + GRACE_S, os._exit, (1,))
            alarm.daemon = True
            alarm.start()
            line.sock = sock
            with contextlib.suppress(WireError):
                _answer(sock, models)
            line.sock = None
            alarm.cancel()
