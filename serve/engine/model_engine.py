"""What a predictor replica asks of whatever runs its language model: in this process, or on a server elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from model.decode.json_text import WrittenJson
from model.decode.turn_types import TurnRequest, WrittenTurn
from model.llm.bundle import Bundle
from serve.engine.choices import Question
from serve.engine.messages import JsonQuery, PartQuery, RankedParts, Ranking


class EngineUnavailableError(Exception):
    """What runs the language model does not answer, or not as it should; the words are for the log."""


class ModelEngine(Protocol):
    """One backbone with the adapters of all bundles, each under its catalogue: it can name no other tool.

    Whatever the engine is, the answers are those of `LocalEngine`, up to the rounding of the arithmetic.

    Attributes:
        tokenizer: of the backbone.
    """

    tokenizer: Any

    @property
    def largest_batch(self) -> int:
        """Questions that were under way together at most, since the start."""
        ...

    def longest_answer(self, name: str) -> int:
        """Tokens of the longest answer that names one of a model's tools: so much room must a prompt leave."""
        ...

    def warm_up(self, questions: Sequence[Question]) -> None:
        """Answer these before the replica is called ready; it blocks."""
        ...

    async def answer(self, question: Question) -> Ranking:
        """Rank the catalogue's tools, or a caller's own and `unknown` where the catalogue has it.

        Raises:
            InputError: one of a caller's tools cannot be told from another's beginning.
            EngineUnavailableError: the engine does not answer.
        """
        ...

    async def rank_parts(self, name: str, queries: Sequence[PartQuery]) -> list[RankedParts]:
        """Rank the parts of the user's words that an argument may be, by the model of a name.

        Raises:
            EngineUnavailableError: the engine does not answer.
        """
        ...

    def write_json(self, query: JsonQuery) -> AsyncGenerator[str | WrittenJson, None]:
        """Write an answer in JSON by the backbone without an adapter; leaving the iteration ends the work.

        Yields:
            its text so far after each pass, and at last the answer.

        Raises:
            InputError: none can be written by the schema, or by this engine, or the prompt is too long.
        """
        ...

    def write(self, name: str, request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        """Write one turn of a dialogue by the model of a name; leaving the iteration ends the work.

        Yields:
            what of its answer is certain, whenever that has grown, and at last the turn.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
            EngineUnavailableError: the engine does not answer.
        """
        ...

    async def take_over(self, name: str, bundle: Bundle, adopt: Callable[[], Question]) -> None:
        """Put a bundle in a model's place; where it does not fit, everything is as before.

        Args:
            name: of the model.
            bundle: takes the place.
            adopt: called once the bundle is in its place, before anybody is answered by it; gives a question for an
                engine that has to warm up.

        Raises:
            InputError: the bundle does not fit.
        """
        ...
