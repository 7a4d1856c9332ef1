"""How much a wide head counts beside the language model: fitted on the validation split, before the test is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.records.schema import ToolRecord
from model.decode.pool import Decision, compute_shares, fit_weight
from model.decode.tools import ToolSearch
from model.decode.trie import ChoiceTrie
from ray_jobs.evaluate.prompts import PromptReader, QuestionJob, vector_column
from ray_jobs.train.wide import read_wide

_NUMBERS = pa.list_(pa.float64())
_DECISION = pa.struct({"choices": _NUMBERS, "shares": _NUMBERS, "taken": pa.int64()})
_DECISIONS = pa.schema({"position": pa.int64(), "answers": pa.list_(pa.list_(_DECISION))})


class DecisionReader:
    """Ray Data actor: what both halves think at each decision on the way to a question's right answers."""

    def __init__(self, job: QuestionJob) -> None:
        self._mllm = job.model.build()
        self._trie = ChoiceTrie(job.tool_ids, self._mllm.tokenizer)
        self._prompts = PromptReader(self._mllm.tokenizer, job)
        self._head = read_wide(job.wide)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(list(map(self._read, batch.to_pylist())), schema=_DECISIONS)

    def _read(self, row: dict[str, Any]) -> dict[str, Any]:
        assert self._head is not None
        prompt = self._prompts.read(row)
        search = ToolSearch(self._mllm, self._trie, also=row["right"])
        search.add([prompt], 1)
        search.run()
        opened, (shares,) = search.rows[0].opened, compute_shares(self._head, self._trie, [prompt])
        return {
            "position": row["position"],
            "answers": [list(self._follow(tool_id, opened, shares)) for tool_id in row["right"]],
        }

    def _follow(self, tool_id: str, opened: dict[int, np.ndarray], shares: np.ndarray) -> Iterator[dict[str, Any]]:
        taken = self._trie.choices_of(tool_id).taken
        for node, place in zip(self._trie.ancestors(tool_id), taken.tolist(), strict=True):
            children = self._trie.children(node)
            yield {"choices": opened[node], "shares": shares[children.start : children.stop], "taken": place}


def find_weight(job: QuestionJob, records: Sequence[ToolRecord], media: Sequence[np.ndarray | None]) -> float:
    """The weight with which the right answers are likeliest, of a job that has a wide head.

    Args:
        job: its weight counts for nothing.
        records: of the validation split, at least one.
        media: their vectors.
    """
    rows = job.run(
        DecisionReader,
        records,
        first_only=[True] * len(records),
        media=vector_column(media),
        right=[list(record.valid_tool_ids) for record in records],
    )
    return fit_weight(
        [
            [
                [Decision(np.array(d["choices"]), np.array(d["shares"]), d["taken"]) for d in answer]
                for answer in row["answers"]
            ]
            for row in rows
        ]
    )
