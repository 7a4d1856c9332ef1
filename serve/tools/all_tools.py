"""Every tool that the service can call, by its id."""

from __future__ import annotations

from serve.tools.images import faces, light, noise, outlines, patterns, quality, reading, resolution
from serve.tools.spec import ToolSpec

_MODULES = (outlines, noise, light, resolution, quality, reading, patterns, faces)


def load_tools() -> dict[str, ToolSpec]:
    """Every tool by its id."""
    return {spec.tool_id: spec for module in _MODULES for spec in module.TOOLS}
