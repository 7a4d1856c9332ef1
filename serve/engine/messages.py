"""What passes between the deployments that rank tools: questions, encoded media and rankings. HTTP's bodies lie apart,
in `serve/http/schemas.py`; what tools answer, in `serve/agent/tool_reply.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.records.catalog import Tool, ToolCatalog
from model.llm.bundle import Bundle

TOOLS_AT_ONCE = (
    8  # of a caller's own that are read with their question; more are read ahead of it, which takes its time
)


@dataclass(frozen=True)
class EncodedMedium:
    """What the encoder deployment answers.

    Attributes:
        modality: "image", "audio" or "video".
        vector: [E] float32.
        cached: whether the vector came from the replica's memory.
    """

    modality: str
    vector: np.ndarray
    cached: bool


@dataclass(frozen=True)
class SelectQuery:
    """What the predictor deployment is asked.

    Attributes:
        model: its name.
        instruction: the question's words.
        vector: [E] float32, or None without a medium.
        k: how many tools are wanted.
        tools: a caller's own tools, to choose among; None = the model's catalogue.
        takes: the medium that a tool of the catalogue must take, unless it does not say; "" = whatever it takes.
    """

    model: str
    instruction: str
    vector: np.ndarray | None
    k: int
    tools: tuple[Tool, ...] | None = None
    takes: str = ""


@dataclass(frozen=True)
class Ranking:
    """What the predictor deployment answers.

    Attributes:
        tools: (tool, probability), likeliest first: the k best, then `unknown` where it is not among them. Of a
            caller's own tools only the id is known.
        revision: of the bundle that answered.
        is_instruction_cut: whether the end of the words was left out because they exceed the model's prompt.
        n_prompt_tokens: that the model read.
        n_answer_tokens: of the likeliest tool's name.
    """

    tools: list[tuple[Tool, float]]
    revision: str
    is_instruction_cut: bool = False
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0


@dataclass(frozen=True)
class PartQuery:
    """What the predictor is asked: which part of the user's words is the value of an argument.

    Attributes:
        prompt: what stands before the value (`render_argument`).
        parts: that it may be, without line breaks or repeated spaces; at least one.
    """

    prompt: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class RankedParts:
    """Its answer.

    Attributes:
        parts: (part, probability), likeliest first; none where the prompt is too long for the model.
        n_prompt_tokens: that the model read.
        n_cached_tokens: that it had read before, of these.
    """

    parts: list[tuple[str, float]]
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0


@dataclass(frozen=True)
class JsonQuery:
    """What the predictor is asked: an answer in JSON.

    Attributes:
        prompt: what stands before it (`render_json`).
        grammar: what it must fit, of `build_grammar`.
        max_tokens: of the answer.
    """

    prompt: str
    grammar: str
    max_tokens: int


@dataclass(frozen=True)
class ServedModel:
    """A model as the predictor serves it now.

    Attributes:
        name: what clients call it.
        catalog: the tools that it was trained on.
        revision: of its bundle.
        writes_dialogues: whether it was trained on dialogues, and so can be asked as an agent.
        finds_cards: whether it tells tools that it does not know by their descriptions.
    """

    name: str
    catalog: ToolCatalog
    revision: str
    writes_dialogues: bool = True
    finds_cards: bool = False

    @classmethod
    def of(cls, name: str, bundle: Bundle) -> ServedModel:
        return cls(name, bundle.catalog, bundle.revision, bundle.info.writes_dialogues, bundle.finds_cards)
