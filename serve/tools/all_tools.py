"""Every tool that the service can call, by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import InputError
from serve.tools import gpt4tools, toolmm_mini
from serve.tools.audio import pitch, repair, rhythm, voice
from serve.tools.images import faces, light, noise, outlines, patterns, quality, reading, resolution
from serve.tools.spec import ToolSpec
from serve.tools.tool_file import load_tool_file
from serve.tools.video import cuts, faults, motion

_MODULES = (
    outlines, noise, light, resolution, quality, reading, patterns, faces,
    pitch, rhythm, voice, repair,
    motion, cuts, faults,
    gpt4tools, toolmm_mini,
)  # fmt: skip


def load_tools(model_ids: Mapping[str, str] | None = None, files: Sequence[str | Path] = ()) -> dict[str, ToolSpec]:
    """Every tool by its id.

    Args:
        model_ids: tool id -> local folder or hub id, in place of the model that the tool has by default. Tools that
            run that tool's model beside their own get it too.
        files: Python files with tools of your own; every `ToolSpec` at their top level counts (docs/tools.md).

    Raises:
        InputError: an unknown tool in `model_ids`, one without a model, a file without tools, or an id that is taken.
    """
    tools = {spec.tool_id: spec for module in _MODULES for spec in module.TOOLS}
    for file in files:
        path = str(Path(file).resolve())
        added = [value for value in vars(load_tool_file(path)).values() if isinstance(value, ToolSpec)]
        if not added:
            raise InputError(f"{path} holds no ToolSpec; assign one to a name at the top level of the file.")
        for spec in added:
            if spec.tool_id in tools:
                raise InputError(f"tool id {spec.tool_id!r} of {path} is taken; rename the tool.")
            tools[spec.tool_id] = spec
    for tool_id, model_id in (model_ids or {}).items():
        if tool_id not in tools or tools[tool_id].method != "model":
            with_models = ", ".join(sorted(known for known, spec in tools.items() if spec.method == "model"))
            raise InputError(f"{tool_id!r} is no tool with a model; those with one are {with_models}.")
        tools[tool_id] = replace(tools[tool_id], model_id=model_id)
    return {
        tool_id: replace(spec, partner=tools[spec.partner.tool_id]) if spec.partner else spec
        for tool_id, spec in tools.items()
    }
