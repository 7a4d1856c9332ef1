"""What the agent's loop tells while it runs: steps, the answer as it grows, and the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.records.schema import Turn
from serve.artifacts import Artifact


@dataclass(frozen=True)
class AgentStep:
    """One call: what the model wrote, what ran, and what came of it.

    Attributes:
        turn: the model's turn, word by word: thought, action and action input.
        tool: what it called the tool.
        tool_id: "" where there is no such tool.
        arguments: as the tool took them, media as artifact ids; {} where they were refused.
        observation: what the model was told.
        text: the tool's own words.
        artifact: the file that came out.
        error: None, "refused" (made-up tool, file or arguments: nothing ran), or the tool's error code.
        choices: (tool, probability), likeliest first; "" stands for an answer.
        seconds: of the tool; model_seconds of the turn.
    """

    turn: str
    tool: str
    tool_id: str
    arguments: dict[str, Any]
    observation: str
    text: str = ""
    artifact: Artifact | None = None
    error: str | None = None
    choices: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0
    model_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For the trace in a response; artifacts by id, name and path."""
        thought, _, _ = self.turn.partition("\n")
        return {
            "turn": self.turn,
            "thought": thought,
            "tool_id": self.tool_id,
            "tool": self.tool,
            "arguments": self.arguments,
            "observation": self.observation,
            "text": self.text,
            "artifact": None if self.artifact is None else describe_artifact(self.artifact),
            "error": self.error,
            "choices": [{"tool": tool, "probability": probability} for tool, probability in self.choices],
            "seconds": round(self.seconds, 4),
            "model_seconds": round(self.model_seconds, 4),
        }


@dataclass(frozen=True)
class AgentResult:
    """The end of the loop.

    Attributes:
        text: the answer.
        steps: the calls before it.
        stopped: "answer", or the limit that was reached: "steps", "seconds", "tokens"; "malformed" where a freely
            written turn was neither a call nor an answer (the text is then what stood there).
        prompt_tokens, completion_tokens: of all turns together.
        turns: the dialogue as the model wrote and read it, for scoring.
        cached_tokens: those of prompt_tokens that had been read before.
    """

    text: str
    steps: tuple[AgentStep, ...]
    stopped: Literal["answer", "steps", "seconds", "tokens", "malformed"]
    prompt_tokens: int
    completion_tokens: int
    turns: tuple[Turn, ...] = ()
    cached_tokens: int = 0

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return "stop" if self.stopped in ("answer", "malformed") else "length"

    def to_json(self) -> dict[str, Any]:
        return {"steps": [step.to_json() for step in self.steps], "stopped": self.stopped}


@dataclass(frozen=True)
class AnswerText:
    """The beginning of an answer that is being written: what of it is certain, from its first word on."""

    text: str


def describe_artifact(artifact: Artifact) -> dict[str, Any]:
    """An artifact in a response."""
    return {
        "id": artifact.id,
        "name": artifact.dialogue_name,
        "media_type": artifact.media_type,
        "n_bytes": artifact.n_bytes,
        "path": f"/v1/artifacts/{artifact.id}",
    }
