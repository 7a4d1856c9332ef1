"""Dialogues whose tools are not yet offered; in the training split a few of them are offered the same tools.

What several dialogues are offered alike is read once in training (`data_pipeline.batches.families`), and as the same
tools answer different words there, the words decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.dialogue import render_dialogue_prompt
from data_pipeline.records.schema import Modality, ToolRecord, Turn

OFFERED_TO = 4  # dialogues of the training split that are offered the same tools


@dataclass(frozen=True)
class Draft:
    """One dialogue without its tools.

    Attributes:
        called: the tools that it calls.
        history: what was said before.
        words: the user's new words.
        turns: what follows.
        modality: of the medium that it is about.
        barred: ids of tools that must not be offered unless they are called: they may be right too.
    """

    called: tuple[Tool, ...]
    history: str
    words: str
    turns: tuple[Turn, ...]
    modality: Modality = Modality.IMAGE
    barred: frozenset[str] = frozenset()

    def offer(self, tools: Sequence[Tool], source: str, split: str) -> ToolRecord:
        """The record, still without its id, in which these tools are offered."""
        return ToolRecord(
            record_id="",
            source=source,
            modality=Modality.TEXT,
            instruction=render_dialogue_prompt(tools, self.history, self.words),
            valid_tool_ids=tuple(dict.fromkeys(tool.tool_id for tool in self.called)) or (UNKNOWN_TOOL_ID,),
            candidate_tool_ids=tuple(tool.tool_id for tool in tools),
            turns=self.turns,
            split=split,
        )


def group_drafts(drafts: Sequence[Draft], rng: np.random.Generator) -> Iterator[list[Draft]]:
    """Shuffle drafts into groups of `OFFERED_TO`, and some smaller ones, that one offer can serve."""
    waiting: list[list[Draft]] = []
    for number in rng.permutation(len(drafts)).tolist():
        draft = drafts[number]
        for place, group in enumerate(waiting):
            if all(_agree(draft, other) for other in group):
                group.append(draft)
                if len(group) == OFFERED_TO:
                    yield waiting.pop(place)
                break
        else:
            waiting.append([draft])
    yield from waiting


def list_called(drafts: Sequence[Draft]) -> list[Tool]:
    """Every tool that one of the drafts calls, once."""
    return list(dict.fromkeys(tool for draft in drafts for tool in draft.called))


def _agree(one: Draft, other: Draft) -> bool:
    """Whether neither asks the same nor may the other's tools be right for it too."""
    for draft, called in ((one, other.called), (other, one.called)):
        if any(tool.tool_id in draft.barred and tool not in draft.called for tool in called):
            return False
    return (one.history, one.words) != (other.history, other.words)
