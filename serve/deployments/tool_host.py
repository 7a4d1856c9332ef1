"""The deployment that runs tools: media out of the artifact store, the call under limits, the result back into it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve as ray_serve

from data_pipeline.errors import InputError
from data_pipeline.media.limits import MediaLimits
from serve.agent.tool_reply import MODEL_TOOLS, ToolReply
from serve.artifacts import open_artifacts
from serve.config import ServeArgs
from serve.http.schemas import RequestError
from serve.tools.all_tools import load_tools
from serve.tools.media import ToolLimits
from serve.tools.run import DEFAULT_LIMITS, Caller, ToolRunner
from serve.tools.spec import ToolError

THREADS = 4  # calls that one replica runs side by side; tools that run models take turns


def build_limits(args: ServeArgs) -> ToolLimits:
    """What a call may use: a tool takes every medium that the service takes, and every result of another tool."""
    media = MediaLimits(
        max_pixels=args.max_pixels,
        max_duration_s=args.max_duration_s,
        max_bytes=max(args.max_upload_bytes, DEFAULT_LIMITS.max_output_bytes),
    )
    return ToolLimits(media=media, timeout_s=args.tool_timeout_s, load_timeout_s=args.tool_load_timeout_s)


@ray_serve.deployment
class ToolHost:
    """Tools in processes of their own, which a replica keeps warm."""

    def __init__(self, args: ServeArgs) -> None:
        self._specs = load_tools(args.tool_models, args.tool_files)
        self._runner = ToolRunner()
        has_models = ray_serve.get_replica_context().deployment == MODEL_TOOLS
        self._runner.start(has_models, self._specs.values())
        self._store = open_artifacts(args)
        self._limits = build_limits(args)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tool")

    async def invoke(self, tool_id: str, arguments: Mapping[str, Any], caller: str) -> ToolReply:
        """Run a tool for a caller, on their artifacts: media arguments are ids of these. It ends when they leave."""
        loop, waiting = asyncio.get_running_loop(), Caller()
        call = loop.run_in_executor(self._threads, self._invoke_blocking, tool_id, arguments, caller, waiting)
        try:
            return await call
        except asyncio.CancelledError:
            waiting.leave()
            raise

    def _invoke_blocking(self, tool_id: str, arguments: Mapping[str, Any], caller: str, waiting: Caller) -> ToolReply:
        spec, store = self._specs[tool_id], self._store.of(caller)
        try:
            parsed = spec.parse(arguments)
            ids = [parsed[argument.name] for argument in spec.arguments if argument.is_media]
            media = {artifact_id: store.open(artifact_id)[1] for artifact_id in ids}
            output = self._runner.run(spec, parsed, media, self._limits, waiting)
            artifact = None
            if output.file is not None:
                artifact = store.put(output.file.data, output.file.media_type, spec.call_name)
        except ToolError as error:
            return ToolReply(error=error.code, message=error.message)
        except RequestError as error:  # an artifact that is gone or another's, or no room for one
            return ToolReply(error="bad_media" if error.status == 404 else "failed", message=error.message)
        except InputError as error:
            return ToolReply(error="bad_arguments", message=str(error))
        return ToolReply(output.text, artifact)

    def __del__(self) -> None:
        self._runner.close()
