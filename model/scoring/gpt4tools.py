"""GPT4Tools' success rates and IoU, as its released evaluator computes them.

Reference: AILab-CVC/GPT4Tools, `eval/evaluate_result.py` at commit 643faa8. Its oddities are kept, because published
numbers hang on them: image names are not compared, BLEU-1 has tiny constants, superfluous actions do not lower the IoU,
a no-tool item can have IoU 1 with SR 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from data_pipeline.errors import InputError
from model.scoring.intervals import Estimate, estimate_mean, estimate_proportion

GPT4TOOLS_RULE = (
    "the released evaluator's: lists are compared by position and divided by the longer one's length; arguments are "
    "split at commas; an image argument needs some .png, whatever its name; a text argument scores its BLEU-1; a "
    "closing thought No after the last action is free; SR = SR_t and SR_act are 1 and SR_args >= 0.5; a no-tool item "
    "needs a first thought No and 'AI: ', and its answer text is not compared."
)

_THOUGHT = re.compile(r"Thought: Do I need to use a tool\? (.*)")
_ACTION = re.compile(r"Action: (.*)")
_ARGUMENTS = re.compile(r"Action Input: (.*)")
_MIN_ARGS_SCORE = 0.5


@dataclass(frozen=True)
class ItemScore:
    """The five values of one item, fractions; `acc` is 0 or 1 (the paper's SR)."""

    thought: float
    action: float
    args: float
    acc: float
    iou: float


METRIC_NAMES = tuple(ItemScore.__dataclass_fields__)


@dataclass(frozen=True)
class Gpt4ToolsScores:
    """`items`: id -> its five values, in gold order; `means`: metric name -> mean with its 95 % interval."""

    items: dict[str | int, ItemScore]
    means: dict[str, Estimate]

    def to_json(self) -> dict[str, float]:
        """thought, action, args, acc, iou as fractions, and `items`, their number."""
        return {name: estimate.value for name, estimate in self.means.items()} | {"items": len(self.items)}


def compute_bleu1(gold: str, predicted: str) -> float:
    """BLEU-1 with the constants of pycocoevalcap 1.2: an exact match is just below 1, an empty prediction is 0."""
    gold_words, predicted_words = gold.split(), predicted.split()
    n_correct = (Counter(gold_words) & Counter(predicted_words)).total()  # clipped matches
    score = (n_correct + 1e-15) / (len(predicted_words) + 1e-9)
    length_ratio = (len(predicted_words) + 1e-15) / (len(gold_words) + 1e-9)
    if length_ratio < 1:
        score *= math.exp(1 - 1 / length_ratio)
    return score


def score_item(gold: str, response: str) -> ItemScore:
    """Score one response.

    Args:
        gold: the released `output`.
        response: what the model wrote after the instruction; white space around it is dropped, as in the reference.

    Raises:
        InputError: the gold text has a different number of actions and action inputs.
    """
    response = response.strip()
    if "Action:" in gold and "Action Input:" in gold:
        return _score_tool_item(gold, response)
    return _score_no_tool_item(gold, response)


def score_gpt4tools(gold: Mapping[str | int, str], responses: Mapping[str | int, str]) -> Gpt4ToolsScores:
    """Score every item of `gold` (id -> released output) with `responses` (id -> raw text; the same ids).

    Raises:
        InputError: no items, ids that do not match, or a malformed gold text.
    """
    if not gold:
        raise InputError("there is no GPT4Tools item to score; give at least one gold item.")
    if gold.keys() != responses.keys():
        odd = sorted(gold.keys() ^ responses.keys(), key=str)
        raise InputError(
            f"{len(odd)} ids are in only one of gold and predictions, the first is {odd[0]!r}; "
            "give one prediction per item."
        )
    items = {}
    for item_id, output in gold.items():
        try:
            items[item_id] = score_item(output, responses[item_id])
        except InputError as error:
            raise InputError(f"gold item {item_id!r}: {error}") from error
    return Gpt4ToolsScores(items, estimate_means(list(items.values())))


def estimate_means(items: Sequence[ItemScore]) -> dict[str, Estimate]:
    """Metric name -> mean over the items (at least one) with its 95 % interval."""
    columns = np.array([astuple(item) for item in items]).T  # [5, N]
    means = {name: estimate_mean(column) for name, column in zip(METRIC_NAMES, columns, strict=True)}
    means["acc"] = estimate_proportion(columns[METRIC_NAMES.index("acc")])
    return means


def _find(pattern: re.Pattern[str], text: str) -> list[str]:
    return [found.strip() for found in pattern.findall(text)]


def _compare(gold: Sequence[str], predicted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Scores by position and a flag where gold has an entry; both float64 [max(len)]."""
    scores, is_gold = np.zeros((2, max(len(gold), len(predicted))))
    for position, (right, answer) in enumerate(zip(gold, predicted, strict=False)):
        scores[position] = right == answer
    is_gold[: len(gold)] = 1.0
    return scores, is_gold


def _compare_arguments(gold: Sequence[str], predicted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `_compare`, with a graded score per action."""
    scores, is_gold = np.zeros((2, max(len(gold), len(predicted))))
    for position, (right, answer) in enumerate(zip(gold, predicted, strict=False)):
        scores[position] = _score_arguments(right.split(","), answer.split(","))
    is_gold[: len(gold)] = 1.0
    return scores, is_gold


def _score_arguments(gold: list[str], predicted: list[str]) -> float:
    if len(gold) != len(predicted):
        return 0.0
    scores = []
    for right, answer in zip(gold, predicted, strict=True):
        if ".png" not in right:
            scores.append(compute_bleu1(right, answer))
        elif ".png" in answer:
            scores.append(1.0)
        else:
            return 0.0  # an image argument without an image spoils the whole action
    return float(np.mean(scores))


def _mean(scores: np.ndarray) -> float:
    """0 where neither side has an entry; the reference would give NaN there and spoil every mean."""
    return float(np.mean(scores)) if len(scores) else 0.0


def _compute_iou(scores: np.ndarray, is_gold: np.ndarray) -> float:
    return float(np.sum(scores * is_gold) / max(np.sum(np.maximum(scores, is_gold)), 1.0))


def _score_tool_item(gold: str, response: str) -> ItemScore:
    gold_actions, gold_arguments = _find(_ACTION, gold), _find(_ARGUMENTS, gold)
    if len(gold_actions) != len(gold_arguments):
        raise InputError(
            f"{len(gold_actions)} lines 'Action: ...' and {len(gold_arguments)} lines 'Action Input: ...' in the gold "
            "text; give each action one input."
        )
    actions, arguments, thoughts = _find(_ACTION, response), _find(_ARGUMENTS, response), _find(_THOUGHT, response)
    if len(thoughts) == len(actions) + 1 and thoughts[-1] == "No":
        thoughts.pop()
    thought_scores, thought_is_gold = _compare(_find(_THOUGHT, gold)[: len(gold_actions)], thoughts)
    action_scores, action_is_gold = _compare(gold_actions, actions)
    argument_scores, argument_is_gold = _compare_arguments(gold_arguments, arguments)
    iou = _compute_iou(
        np.concatenate([thought_scores, action_scores, argument_scores]),
        np.concatenate([thought_is_gold, action_is_gold, argument_is_gold]),
    )
    thought, action, args = _mean(thought_scores), _mean(action_scores), _mean(argument_scores)
    is_success = thought >= 1.0 and action >= 1.0 and args >= _MIN_ARGS_SCORE
    return ItemScore(thought, action, args, float(is_success), iou)


def _score_no_tool_item(gold: str, response: str) -> ItemScore:
    thoughts = _find(_THOUGHT, response)
    scores, is_gold = _compare(_find(_THOUGHT, gold), thoughts)
    iou = _compute_iou(scores, is_gold)
    is_answer = bool(thoughts) and thoughts[0] == "No" and "AI: " in response
    thought = _mean(scores) if is_answer else 0.0
    success = float(thought >= 1.0)
    return ItemScore(thought, success, success, success, iou)
