"""Every tool that the service can call, by its id."""

from __future__ import annotations

from collections.abc import Iterable

from serve.tools.images import outlines
from serve.tools.spec import ToolSpec

_MODULES = (outlines,)


def load_tools() -> dict[str, ToolSpec]:
    return {spec.tool_id: spec for module in _MODULES for spec in module.TOOLS}
