"""Counts over a corpus, as the manifest and the report hold them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipeline.corpus.facts import AMBIGUITIES, MODALITIES, Facts, number_columns, split_code
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.schema import SPLITS

_WORD = re.compile(r"[^\W\d_]{3,}")


def count_splits(facts: Facts) -> dict[str, dict[str, Any]]:
    """Questions of each split by kind; `rows` counts (question, right answer) pairs, as the papers count."""
    (files,), _ = number_columns(facts.read, "file")
    return {split: _count_split(facts, split, files) for split in SPLITS}


def _count_split(facts: Facts, split: str, all_files: np.ndarray) -> dict[str, Any]:
    is_in = facts.split == split_code(split)
    n_tools = facts.n_tools[is_in]
    first_tool = facts.tools[(facts.tool_ends - facts.n_tools)[is_in]]
    modality = np.bincount(facts.modality[is_in], minlength=len(MODALITIES)).tolist()
    rows = np.bincount(facts.modality[is_in], weights=n_tools, minlength=len(MODALITIES)).astype(int).tolist()
    ambiguity = np.bincount(facts.ambiguity[is_in], minlength=len(AMBIGUITIES)).tolist()
    files = all_files[is_in]
    return {
        "questions": int(is_in.sum()),
        "rows": int(n_tools.sum()),
        "by_modality": {kind.value: n for kind, n in zip(MODALITIES, modality, strict=True)},
        "rows_by_modality": {kind.value: n for kind, n in zip(MODALITIES, rows, strict=True)},
        "by_ambiguity_type": {kind.value: n for kind, n in zip(AMBIGUITIES, ambiguity, strict=True)},
        "one_to_one": int((n_tools == 1).sum()),
        "one_to_many": int((n_tools > 1).sum()),
        "unknown": int(((n_tools == 1) & (first_tool == _number_of(facts, UNKNOWN_TOOL_ID))).sum()),
        "distinct_media": len(np.unique(files[files >= 0])),
    }


def count_tools(facts: Facts, catalog: ToolCatalog) -> dict[str, int]:
    """How far the splits cover the catalogue."""
    used = {split: _find_used(facts, facts.split == split_code(split)) for split in SPLITS}
    return {
        "catalog": len(catalog),
        **{f"in_{split}": int(is_used.sum()) for split, is_used in used.items()},
        "in_test_but_not_in_train": int((used["test"] & ~used["train"]).sum()),
        "test_questions_without_a_seen_tool": int(
            ((facts.split == split_code("test")) & (_count_in(facts, used["train"]) == 0)).sum()
        ),
    }


def count_dialogues(facts: Facts) -> dict[str, dict[str, int]]:
    """The dialogues of each split by kind; {} for a corpus without dialogues.

    A tool is seen if a dialogue of the training split calls it; a dialogue with any other tool counts as unseen.
    """
    if not (facts.is_dialogue & (facts.split > 0)).any():
        return {}
    is_seen = _find_used(facts, facts.is_dialogue & (facts.split == split_code("train")))
    if (unknown := _number_of(facts, UNKNOWN_TOOL_ID)) >= 0:
        is_seen[unknown] = True
    has_seen_alone = (facts.n_calls > 0) & (_count_in(facts, ~is_seen) == 0)
    counts = {}
    for split in SPLITS:
        is_in = facts.is_dialogue & (facts.split == split_code(split))
        n_calls, n_seen = facts.n_calls[is_in], int((is_in & has_seen_alone).sum())
        counts[split] = {
            "dialogues": int(is_in.sum()),
            "single_call": int((n_calls == 1).sum()),
            "chain": int((n_calls > 1).sum()),
            "no_tool": int((n_calls == 0).sum()),
            "with_history": int(facts.has_history[is_in].sum()),
            "seen_tools": n_seen,
            "unseen_tools": int((n_calls > 0).sum()) - n_seen,
        }
    return counts


def count_answers(facts: Facts, split: str) -> dict[int, int]:
    """How many questions of a split have so many right answers."""
    numbers, counts = np.unique(facts.n_tools[facts.split == split_code(split)], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def count_per_tool(facts: Facts, split: str) -> list[int]:
    """Questions of a split for each tool that it asks for, the most first."""
    counts = np.bincount(facts.tools_of(facts.split == split_code(split)), minlength=1)
    return np.sort(counts[counts > 0])[::-1].tolist()


def tabulate_modalities(counts: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of MLLM-Tool's Table 3, with our validation split: training as rows and as questions, the others
    as questions, by modality.

    Args:
        counts: of `count_splits`.
    """
    kinds = list(counts["train"]["by_modality"])
    lines = (
        ("training, a row for each right answer", "train", "rows_by_modality"),
        ("training, distinct questions", "train", "by_modality"),
        ("validation, distinct questions", "val", "by_modality"),
        ("test, distinct questions", "test", "by_modality"),
    )
    return ["", *kinds], [[name, *(counts[split][group][kind] for kind in kinds)] for name, split, group in lines]


def count_topics(facts: Facts, catalog: ToolCatalog) -> dict[str, int]:
    """What the tools are for: their tasks where the catalogue tells them, else words of what is said of the tools.

    Returns:
        task or word -> questions that some tool with it is right for; the most first.
    """
    topics = count_tasks(facts, catalog) or count_words(facts, catalog)
    return dict(sorted(topics.items(), key=lambda topic: (-topic[1], topic[0])))


def count_tasks(facts: Facts, catalog: ToolCatalog) -> dict[str, int]:
    """Tasks (`Tool.coarse_functionality`), each with the pairs of a question and a right tool of it."""
    tasks: Counter[str] = Counter()
    for tool, n in _count_questions(facts, catalog):
        if tool.coarse_functionality:
            tasks[tool.coarse_functionality] += n
    return dict(tasks)


def count_words(facts: Facts, catalog: ToolCatalog) -> dict[str, int]:
    """The words that say what the tools are for, each with the questions that some tool with it is right for.

    They are those of a tool's description, or of its name behind the owner's where there is none.
    """
    words: Counter[str] = Counter()
    for tool, n in _count_questions(facts, catalog):
        text = tool.description or tool.tool_id.rpartition("/")[2]
        words.update(dict.fromkeys(_WORD.findall(text.casefold()), n))
    return dict(words)


def _count_questions(facts: Facts, catalog: ToolCatalog) -> Iterator[tuple[Tool, int]]:
    """The catalogue's tools that questions of any split ask for, with their number."""
    counts = np.bincount(facts.tools_of(facts.split > 0), minlength=len(facts.tool_ids)).tolist()
    for tool_id, n in zip(facts.tool_ids, counts, strict=True):
        if n and tool_id in catalog and tool_id != UNKNOWN_TOOL_ID:
            yield catalog[tool_id], n


def _number_of(facts: Facts, tool_id: str) -> int:
    return facts.tool_ids.index(tool_id) if tool_id in facts.tool_ids else -1


def _find_used(facts: Facts, is_chosen: np.ndarray) -> np.ndarray:
    """Mask of the tools that are right for some of these records."""
    is_used = np.zeros(len(facts.tool_ids), bool)
    is_used[facts.tools_of(is_chosen)] = True
    return is_used


def _count_in(facts: Facts, is_tool: np.ndarray) -> np.ndarray:
    """How many of these tools are right for each record."""
    counts = np.concatenate([[0], np.cumsum(is_tool[facts.tools], dtype=facts.tool_ends.dtype)])
    return np.diff(counts[facts.tool_ends], prepend=0)
