"""What a turn of a dialogue is written from, and what comes of it: plain data that needs no language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Turn

MEDIA_KINDS = ("image", "audio", "video")
# Of all known tools, those that lack their file have to be likelier than the others before it is asked for: on
# validation anything from 0.5 to 0.8 tells words that need a file from others about as well, and 0.5 misses fewest
# (docs/results.md).
MIN_LACKING_SHARE = 0.5
ANSWER = ""  # stands for an answer among the names of tools


class PromptTooLongError(InputError):
    """The prompt leaves no room for a turn; shorten its history."""


@dataclass(frozen=True)
class TurnArgument:
    """One argument of a tool, in the order in which the action input names them, separated by commas.

    Attributes:
        kind: a medium is one of the known files of its modality, a choice one of `choices`, a text is free.
        default: of a number, where none can be read; the bounds hold for it as well.
    """

    kind: Literal["image", "audio", "video", "choice", "number", "integer", "text"]
    choices: tuple[str, ...] = ()
    default: float = 0.0
    minimum: float = -1e9
    maximum: float = 1e9


@dataclass(frozen=True)
class TurnTool:
    """A tool that is offered: what the dialogue calls it, its arguments, and what it does, as on its card."""

    name: str
    arguments: tuple[TurnArgument, ...]
    description: str = ""


@dataclass(frozen=True)
class TurnRequest:
    """What one turn is written from; plain data.

    Attributes:
        prompt: of `render_dialogue_prompt`.
        turns: what came since: assistant and observation in turn, an observation last.
        tools: the offered ones; one that needs a file of a modality of which none is known cannot be called.
        files: the names that are known, such as "image/ab12.png": the part before the slash is the modality.
        fallback_text: stands where the model writes nothing (the user's words).
        may_call, may_answer: what the turn may be; where no tool can be called, it is an answer.
        max_answer_tokens: below the writer's own limit, or None.
        is_constrained: False = plain greedy decoding, whatever comes of it.
        lacking_share: probability, among the cards of all tools that are known, of those that take a file of a modality
            of which none is known; None where nobody has looked.
    """

    prompt: str
    turns: tuple[Turn, ...] = ()
    tools: tuple[TurnTool, ...] = ()
    files: tuple[str, ...] = ()
    fallback_text: str = "?"
    may_call: bool = True
    may_answer: bool = True
    max_answer_tokens: int | None = None
    is_constrained: bool = True
    lacking_share: float | None = None


@dataclass(frozen=True)
class TurnLimits:
    """Tokens of one text in a call, and of an answer."""

    max_text_tokens: int = 48
    max_answer_tokens: int = 256

    def __post_init__(self) -> None:
        if self.max_text_tokens < 1 or self.max_answer_tokens < 1:
            raise InputError(f"{self}: both limits must be at least 1 token.")


@dataclass(frozen=True)
class WrittenTurn:
    """A turn.

    Attributes:
        text: as `parse_turn` reads it: a call ends in TURN_STOP.
        prompt_tokens: tokens that stand before it.
        completion_tokens: tokens of the text as training spells it, an answer's end token included.
        choices: (name of a tool, or ANSWER; log probability), likeliest first; their probabilities sum to 1. Empty
            where decoding was free.
        cached_tokens: those of the prompt that had been read before, for an earlier turn.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    choices: tuple[tuple[str, float], ...] = ()
    cached_tokens: int = 0


@dataclass(eq=False, kw_only=True)
class RunningTurn:
    """A turn that is being written.

    Attributes:
        text: what of its answer is certain; "" as long as it may be a call.
        end: the turn, or what went wrong; None as long as it is under way.
    """

    text: str = ""
    end: WrittenTurn | Exception | None = None

    def result(self) -> WrittenTurn:
        """The turn, which has ended; raises what went wrong."""
        if isinstance(self.end, Exception):
            raise self.end
        assert self.end is not None
        return self.end
