"""Scores of dialogues: GPT4Tools' metrics by kind of dialogue, and how many turns are faulty."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import ToolCall, count_calls, parse_offered_tools, parse_turn, read_observations
from data_pipeline.records.schema import ToolRecord, Turn
from model.scoring.gpt4tools import GPT4TOOLS_RULE, ItemScore, estimate_means, score_gpt4tools
from model.scoring.intervals import Estimate, estimate_proportion

DIALOGUE_RULE = (
    f"{GPT4TOOLS_RULE} The response is the model's turns with the record's own observations between them. A dialogue "
    "is unseen if it calls a tool that no training dialogue calls. Malformed = turns that are neither a call nor an "
    "answer, invented = turns that call a tool which the prompt does not offer; both of all turns written."
)
PAPER_NAMES = {"thought": "sr_t", "action": "sr_act", "args": "sr_args", "acc": "sr", "iou": "iou"}


@dataclass(frozen=True)
class DialogueGroup:
    """`n` dialogues in which the model wrote `n_turns` turns.

    Attributes:
        n: dialogues.
        n_turns: turns that the model wrote.
        means: "sr_t", "sr_act", "sr_args", "sr", "iou" over dialogues.
        malformed: share of the turns that do not follow the protocol.
        invented: share of the turns that call a tool which was not offered.
    """

    n: int
    n_turns: int
    means: dict[str, Estimate]
    malformed: Estimate
    invented: Estimate

    def to_json(self) -> dict[str, float]:
        """Counts, and the fractions without their intervals."""
        return {
            "n": self.n,
            "turns": self.n_turns,
            **{name: estimate.value for name, estimate in self.means.items()},
            "malformed_frac": self.malformed.value,
            "invented_frac": self.invented.value,
        }


@dataclass(frozen=True)
class DialogueScores:
    """Scores by group: "all", "seen", "unseen", "single", "chain", "no_tool"; one without dialogues is left out.
    Dialogues of several sources are grouped by them too: "source:gpt4tools", and "source:gpt4tools/seen", ".../unseen".

    Attributes:
        groups: see above.
        responses: per dialogue the whole response that was scored.
        items: per dialogue its five values.
    """

    groups: dict[str, DialogueGroup]
    responses: list[str]
    items: list[ItemScore]

    def to_json(self) -> dict[str, dict[str, float]]:
        """Group -> n, turns, sr_t, sr_act, sr_args, sr, iou, malformed_frac, invented_frac."""
        return {name: group.to_json() for name, group in self.groups.items()}

    def headline(self) -> dict[str, float]:
        """The group "all"."""
        return self.groups["all"].to_json()


def score_dialogues(
    records: Sequence[ToolRecord], responses_turns: Sequence[Sequence[str]], seen_tool_ids: Collection[str]
) -> DialogueScores:
    """Score dialogues that were answered turn by turn.

    Args:
        records: N dialogues, N > 0.
        responses_turns: the turns that the model wrote in each, at least one and at most as many as the record has.
        seen_tool_ids: the tools that training dialogues call.

    Raises:
        InputError: no dialogues, not one response for each, or a malformed record.
    """
    if not records:
        raise InputError("there is no dialogue to score; give at least one.")
    if len(responses_turns) != len(records):
        raise InputError(f"{len(responses_turns)} responses for {len(records)} dialogues; give one for each.")
    responses = [join_turns(record.turns, texts) for record, texts in zip(records, responses_turns, strict=True)]
    gold: dict[str | int, str] = {record.record_id: join_gold(record.turns) for record in records}
    by_id = dict(zip(gold, responses, strict=True))
    items = list(score_gpt4tools(gold, by_id).items.values())
    faults = [_find_faults(record, texts) for record, texts in zip(records, responses_turns, strict=True)]
    groups = {}
    for name, members in _group_members(records, seen_tool_ids).items():
        if not members:
            continue
        malformed, invented = np.concatenate([faults[member] for member in members], axis=1)  # [turns] each
        means = estimate_means([items[member] for member in members])
        groups[name] = DialogueGroup(
            n=len(members),
            n_turns=len(malformed),
            means={PAPER_NAMES[metric]: estimate for metric, estimate in means.items()},
            malformed=estimate_proportion(malformed),
            invented=estimate_proportion(invented),
        )
    return DialogueScores(groups, responses, items)


def called_tool_ids(records: Iterable[ToolRecord]) -> frozenset[str]:
    """The tools that the dialogues among the records call; `unknown` for those that call none."""
    return frozenset(tool_id for record in records if record.is_dialogue for tool_id in record.valid_tool_ids)


def join_gold(turns: Sequence[Turn]) -> str:
    """The released `output`: all turns of a record."""
    return "".join(turn.text for turn in turns)


def join_turns(gold_turns: Sequence[Turn], texts: Sequence[str]) -> str:
    """The response as one text: the model's turns with the record's observations between them."""
    pieces = [texts[0]]
    for observation, text in zip(read_observations(gold_turns), texts[1:], strict=False):
        pieces += [observation, text]
    return "".join(pieces)


def _group_members(records: Sequence[ToolRecord], seen_tool_ids: Collection[str]) -> dict[str, list[int]]:
    """Group name -> positions of its dialogues."""
    members: dict[str, list[int]] = {name: [] for name in ("all", "seen", "unseen", "single", "chain", "no_tool")}
    has_sources = len({record.source for record in records}) > 1
    for position, record in enumerate(records):
        n_calls = count_calls(record.turns)
        is_seen = n_calls == 0 or all(tool_id in seen_tool_ids for tool_id in record.valid_tool_ids)
        members["all"].append(position)
        members["seen" if is_seen else "unseen"].append(position)
        members["no_tool" if n_calls == 0 else "single" if n_calls == 1 else "chain"].append(position)
        if has_sources:
            source = f"source:{record.source}"
            for name in (source, f"{source}/{'seen' if is_seen else 'unseen'}"):
                members.setdefault(name, []).append(position)
    return members


def _find_faults(record: ToolRecord, texts: Sequence[str]) -> np.ndarray:
    """Flags of the turns, float64 [2, turns]: malformed, and a call of a tool that was not offered."""
    offered = parse_offered_tools(record.instruction)
    turns = [parse_turn(text) for text in texts]
    return np.array(
        [
            [turn is None for turn in turns],
            [isinstance(turn, ToolCall) and turn.name not in offered for turn in turns],
        ],
        dtype=np.float64,
    )
