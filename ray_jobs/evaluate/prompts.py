"""Questions on their way to actors: a table of them, and its rows as prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.batches.encoding import encode_question, longest_answer
from data_pipeline.records.schema import ToolRecord
from model.decode.tools import Prompt
from model.wide.head import EQUAL_WEIGHT
from ray_jobs.evaluate.actors import TrainedModel, decode_on_actors

_VECTOR = pa.list_(pa.float32())


@dataclass(frozen=True)
class QuestionJob:
    """What actors need that answer questions.

    Attributes:
        model: what answers.
        tool_ids: what a question may be answered with.
        max_target_tokens: see `encode_question`.
        wide: where a wide head lies that answers with it; "" for none.
        wide_weight: how much it counts.
    """

    model: TrainedModel
    tool_ids: tuple[str, ...]
    max_target_tokens: int
    wide: str = ""
    wide_weight: float = EQUAL_WEIGHT

    def run(
        self,
        actor: type,
        records: Sequence[ToolRecord],
        first_only: Sequence[bool],
        **columns: pa.Array | list[Any],
    ) -> list[dict[str, Any]]:
        """What actors of a class, built from this job, say of each question, in order; see `decode_on_actors`.

        Args:
            actor: gets "position", "instruction", "first_only" and the columns.
            records: the questions.
            first_only: of which nothing but the first answer is wanted.
            columns: further ones.
        """
        instructions = [record.instruction for record in records]
        position = pa.array(range(len(records)), pa.int64())
        table = pa.table({"position": position, "instruction": instructions, "first_only": first_only, **columns})
        # what is answered alike, and questions of like length, side by side: less padding in a batch
        table = table.take(np.lexsort(([len(words) for words in instructions], first_only)))
        return decode_on_actors(actor, self, table, self.model, "questions")


def vector_column(vectors: Sequence[np.ndarray | None]) -> pa.Array:
    """Media vectors float32 [E] as a column; null where a question has none."""
    return pa.array(vectors, _VECTOR)


class PromptReader:
    """Makes prompts as training had them, with room for the longest answer."""

    def __init__(self, tokenizer: Any, job: QuestionJob) -> None:
        self._tokenizer = tokenizer
        self._max_target_tokens = job.max_target_tokens
        self._reserve_tokens = longest_answer(tokenizer, job.tool_ids)

    def read(self, row: dict[str, Any], media_column: str = "media") -> Prompt:
        media = row[media_column]
        encoded = encode_question(
            self._tokenizer, row["instruction"], media is not None, (), self._max_target_tokens, self._reserve_tokens
        )
        vector = None if media is None else np.array(media, dtype=np.float32)
        return Prompt(encoded.prompt_ids, vector, row["instruction"])
