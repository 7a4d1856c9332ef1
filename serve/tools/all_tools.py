"""Every tool that the service can call, by its id."""

from __future__ import annotations

from serve.tools.audio import pitch, repair, rhythm, voice
from serve.tools.images import faces, light, noise, outlines, patterns, quality, reading, resolution
from serve.tools.spec import ToolSpec
from serve.tools.video import cuts, faults, motion

_MODULES = (
    outlines, noise, light, resolution, quality, reading, patterns, faces,
    pitch, rhythm, voice, repair,
    motion, cuts, faults,
)  # fmt: skip


def load_tools() -> dict[str, ToolSpec]:
    """Every tool by its id."""
    return {spec.tool_id: spec for module in _MODULES for spec in module.TOOLS}
