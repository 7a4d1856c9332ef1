"""Tools as a dialogue sees them: a line of the prompt, the shape of the action input, and its values read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import render_usage
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS
from model.decode.turn_types import TurnArgument, TurnTool
from serve.artifacts import Artifact
from serve.tools.spec import Argument, ToolSpec

_TRAINED = {tool.tool_id: tool for tool in GPT4TOOLS_TOOLS}
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def dialogue_arguments(spec: ToolSpec) -> tuple[Argument, ...]:
    """The arguments that a dialogue gives, in order: GPT4Tools' tools take there what they cannot do without."""
    return tuple(argument for argument in spec.arguments if not spec.name or argument.default is None)


def build_dialogue_tool(spec: ToolSpec, known: Tool | None = None) -> Tool:
    """The tool as a dialogue's prompt offers it, in the words of training where it was there.

    Args:
        spec: the tool.
        known: its entry in the model's catalogue.
    """
    known = known or _TRAINED.get(spec.tool_id)
    if known is not None and known.usage and known.call_name == spec.call_name:
        return known
    description = known.description if known is not None and known.description else spec.description
    usage = spec.usage or render_usage(description, [argument.name for argument in dialogue_arguments(spec)])
    return Tool(spec.tool_id, description, name=spec.name, usage=usage)


def read_arguments(spec: ToolSpec, text: str, files: Mapping[str, Artifact]) -> dict[str, Any]:
    """An action input as the tool's arguments, media as artifact ids.

    Args:
        spec: the tool.
        text: values separated by commas; the last one may hold commas itself.
        files: the names that are known.

    Raises:
        InputError: too few values, a file that nobody gave, or a value that the tool does not take; worded for the
            model.
    """
    wanted = dialogue_arguments(spec)
    values = [value.strip() for value in text.split(",", max(0, len(wanted) - 1))] if text.strip() else []
    if len(values) != len(wanted):
        names = ", ".join(argument.name for argument in wanted)
        raise InputError(f"{spec.call_name} takes {len(wanted)} values: {names}.")
    arguments: dict[str, Any] = {}
    for argument, value in zip(wanted, values, strict=True):
        if argument.is_media:
            artifact = files.get(value)
            if artifact is None:
                raise InputError(f"There is no file named {value[:80]}; the files are {', '.join(files) or 'none'}.")
            arguments[argument.name] = artifact.id
        elif argument.kind == "text":
            arguments[argument.name] = value
        else:
            found = _NUMBER.fullmatch(value)
            number: Any = float(value) if found else value
            is_whole = found and argument.kind == "integer" and number == number // 1 and abs(number) < 2**53
            arguments[argument.name] = int(number) if is_whole else number
    return spec.parse(arguments)


def find_input(spec: ToolSpec) -> str:
    """The modality of the first file that a dialogue's call needs; "text" where it needs none."""
    return next((argument.kind for argument in dialogue_arguments(spec) if argument.is_media), "text")


def build_turn_tool(spec: ToolSpec, description: str) -> TurnTool:
    """The tool as `model.decode.turn` takes it, with what it does as `build_dialogue_tool` words it."""
    return TurnTool(spec.call_name, tuple(map(_turn_argument, dialogue_arguments(spec))), description)


def _turn_argument(argument: Argument) -> TurnArgument:
    if argument.is_media:
        return TurnArgument(argument.kind)  # pyright: ignore[reportArgumentType]
    if argument.choices:
        return TurnArgument("choice", choices=argument.choices)
    if argument.kind == "text":
        return TurnArgument("text")
    low = -1e9 if argument.minimum is None else argument.minimum
    high = 1e9 if argument.maximum is None else argument.maximum
    default = float(argument.default) if isinstance(argument.default, int | float) else 0.0
    return TurnArgument("integer" if argument.kind == "integer" else "number", (), default, low, high)
