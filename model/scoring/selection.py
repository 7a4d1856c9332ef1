"""MLLM-Tool's tool-selection metrics (section 5 of the paper). The one scorer: files of predictions, validation
epochs, sweep trials and live traffic all go through `score_selection`.

The reference repository has no code for these metrics; the conventions are in `SELECTION_RULE`, and every table prints
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from model.scoring.intervals import Estimate, estimate_mean, estimate_proportion

SELECTION_RULE = (
    "answer = the response's first line, stripped; well-formed = all of it is {'api_name': NAME}, NAME without white "
    "space or any of { } [ ] , ' \" (white space around NAME is allowed); right names are a set of stripped names. "
    "Acc = named tool is right; Format Acc = well-formed; Hallu = well-formed, but the name is not in the catalogue, "
    "so a malformed answer is wrong and never a hallucination; these three use the first response. "
    "Recall@K = share of the right names among the K responses."
)

_ANSWER = re.compile(r"\{'api_name':\s*([^\s{}\[\],'\"]+)\s*\}")


def parse_answer(response: str) -> str | None:
    """The tool that a raw model response names, or None where the answer is malformed (see `SELECTION_RULE`)."""
    match = _ANSWER.fullmatch(response.split("\n", 1)[0].strip())
    return match.group(1) if match else None


@dataclass(frozen=True)
class GoldItem:
    """What a question's answer is compared with, and the subsets that it belongs to.

    Attributes:
        valid_tool_ids: the right names, stripped; not empty.
        modality: of the question's medium.
        ambiguity_type: why the words alone do not decide.
        is_ambiguous: the released flag `ifambiguity`, or derived from the type.
        is_one_to_many: the released flag `onetomulti`, or derived from the number of right names.
    """

    valid_tool_ids: frozenset[str]
    modality: Modality
    ambiguity_type: AmbiguityType
    is_ambiguous: bool
    is_one_to_many: bool

    @classmethod
    def from_record(cls, record: ToolRecord) -> GoldItem:
        valid_tool_ids = frozenset(tool_id.strip() for tool_id in record.valid_tool_ids)
        return cls(
            valid_tool_ids=valid_tool_ids,
            modality=record.modality,
            ambiguity_type=record.ambiguity_type,
            is_ambiguous=record.is_ambiguous,
            is_one_to_many=len(valid_tool_ids) > 1,
        )


@dataclass(frozen=True)
class GroupScore:
    """One row of the tables: `n` questions; fractions with their 95 % intervals."""

    n: int
    acc: Estimate
    hallu: Estimate
    format_acc: Estimate
    recall: Estimate


@dataclass(frozen=True)
class SelectionScores:
    """Scores by group, in the order of the paper's tables, and per question.

    Attributes:
        k: responses per question.
        groups: "overall", "ambiguity:1" to "ambiguity:5" and "ambiguity:none", "with_ambiguity", "without_ambiguity",
            "modality:*", "one_to_one", "one_to_many"; a group without questions is left out.
        catalog_size: number of different names that count as existing.
        parsed: per question, the first response's tool or None.
        acc, hallu, format_acc, recall: per question, float64 [N], in question order.
    """

    k: int
    groups: dict[str, GroupScore]
    catalog_size: int
    parsed: list[str | None]
    acc: np.ndarray
    hallu: np.ndarray
    format_acc: np.ndarray
    recall: np.ndarray

    def to_json(self) -> dict[str, dict[str, float]]:
        """Group -> n, acc, hallu, format_acc, recall@K, as fractions."""
        return {
            name: {
                "n": group.n,
                "acc": group.acc.value,
                "hallu": group.hallu.value,
                "format_acc": group.format_acc.value,
                f"recall@{self.k}": group.recall.value,
            }
            for name, group in self.groups.items()
        }

    def items(self) -> list[dict[str, Any]]:
        """Per question: parsed, acc, hallu, format, recall."""
        return [
            {"parsed": parsed, "acc": float(acc), "hallu": float(hallu), "format": float(form), "recall": float(recall)}
            for parsed, acc, hallu, form, recall in zip(
                self.parsed, self.acc, self.hallu, self.format_acc, self.recall, strict=True
            )
        ]


def score_selection(
    gold: Sequence[GoldItem], responses: Sequence[Sequence[str]], catalog_ids: Iterable[str]
) -> SelectionScores:
    """Score raw responses (MLLM-Tool section 5, equations 1 and 2 and the recall formula).

    Args:
        gold: N questions, N > 0.
        responses: N lists of K > 0 raw responses each.
        catalog_ids: every name that exists; white space around a name is dropped.

    Raises:
        InputError: no questions, or not exactly K responses for each.
    """
    if not gold:
        raise InputError("there is no question to score; give at least one gold record.")
    if len(responses) != len(gold):
        raise InputError(f"{len(responses)} lists of responses for {len(gold)} questions; give one list per question.")
    k = len(responses[0])
    for position, samples in enumerate(responses):
        if isinstance(samples, str) or len(samples) != k or k == 0:
            found = "a bare string" if isinstance(samples, str) else f"{len(samples)} responses"
            raise InputError(
                f"question {position} has {found} where question 0 has {k}; give every question the same number K >= 1."
            )

    catalog = frozenset(tool_id.strip() for tool_id in catalog_ids)
    first: list[str | None] = []
    acc, hallu, format_acc, recall = np.zeros((4, len(gold)))
    seen: dict[str, str | None] = {}  # model responses repeat a lot: parse each string once
    for position, (item, samples) in enumerate(zip(gold, responses, strict=True)):
        named = []
        for response in samples:
            if response not in seen:
                seen[response] = parse_answer(response)
            named.append(seen[response])
        answer = named[0]
        first.append(answer)
        acc[position] = answer in item.valid_tool_ids
        format_acc[position] = answer is not None
        hallu[position] = answer is not None and answer not in catalog
        recall[position] = len(item.valid_tool_ids.intersection(named)) / len(item.valid_tool_ids)

    groups = {
        name: GroupScore(
            n=int(mask.sum()),
            acc=estimate_proportion(acc[mask]),
            hallu=estimate_proportion(hallu[mask]),
            format_acc=estimate_proportion(format_acc[mask]),
            recall=estimate_mean(recall[mask]),
        )
        for name, mask in _group_masks(gold).items()
        if mask.any()
    }
    return SelectionScores(k, groups, len(catalog), first, acc, hallu, format_acc, recall)


def score_records(
    records: Sequence[ToolRecord], responses: Sequence[Sequence[str]], catalog_ids: Iterable[str]
) -> SelectionScores:
    """`score_selection` for corpus records."""
    return score_selection([GoldItem.from_record(record) for record in records], responses, catalog_ids)


def score_abstention(abstained: np.ndarray, unanswerable: np.ndarray) -> dict[str, int | float | None]:
    """How well `unknown` was answered where no tool fits, and only there.

    Args:
        abstained: [Q] bool: `unknown` came first.
        unanswerable: [Q] bool: `unknown` is right.

    Returns:
        {"n_unknown", "n_abstained", "precision", "recall", "f1"}; a share of nothing is None.
    """
    hits, n_abstained, n_unknown = (int(mask.sum()) for mask in (abstained & unanswerable, abstained, unanswerable))
    return {
        "n_unknown": n_unknown,
        "n_abstained": n_abstained,
        "precision": hits / n_abstained if n_abstained else None,
        "recall": hits / n_unknown if n_unknown else None,
        "f1": 2 * hits / (n_abstained + n_unknown) if n_unknown else None,
    }


def _group_masks(gold: Sequence[GoldItem]) -> dict[str, np.ndarray]:
    """Group name -> bool [N]."""
    modality = np.array([item.modality.value for item in gold])
    ambiguity = np.array([item.ambiguity_type.value for item in gold])
    is_ambiguous = np.array([item.is_ambiguous for item in gold])
    is_one_to_many = np.array([item.is_one_to_many for item in gold])
    masks = {"overall": np.ones(len(gold), dtype=bool)}
    codes = {kind: str(code) for code, kind in enumerate(AmbiguityType, start=1)} | {AmbiguityType.NONE: "none"}
    for kind, code in codes.items():
        masks[f"ambiguity:{code}"] = ambiguity == kind.value
    masks["with_ambiguity"] = is_ambiguous
    masks["without_ambiguity"] = ~is_ambiguous
    for kind in Modality:
        masks[f"modality:{kind.value}"] = modality == kind.value
    masks["one_to_one"] = ~is_one_to_many
    masks["one_to_many"] = is_one_to_many
    return masks
