"""What passes between an ingress and the two deployments that run tools."""

from __future__ import annotations

from dataclasses import dataclass

from serve.artifacts import Artifact
from serve.tools.spec import ErrorCode, ToolError

# the two deployments: of tools that run a model, and of all others
MODEL_TOOLS, LOCAL_TOOLS = "ModelTools", "LocalTools"


@dataclass(frozen=True)
class ToolResult:
    """What a tool gave: words, and the artifact that its file became."""

    text: str = ""
    artifact: Artifact | None = None


@dataclass(frozen=True)
class ToolReply:
    """What comes back from a replica; an error is told in words, since exceptions lose their fields on the way.

    Attributes:
        text, artifact: the result.
        error: the code of a `ToolError`, or None.
        message: its sentence.
    """

    text: str = ""
    artifact: Artifact | None = None
    error: ErrorCode | None = None
    message: str = ""

    def unpack(self) -> ToolResult:
        """The result; `ToolError` where there is none."""
        if self.error is not None:
            raise ToolError(self.error, self.message)
        return ToolResult(self.text, self.artifact)
