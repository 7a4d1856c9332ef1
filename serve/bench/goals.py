"""A measured value beside its goal, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.markdown import render_table


@dataclass(frozen=True)
class Goal:
    """One ratio and the bound that it is to keep.

    Attributes:
        name: what is compared with what.
        value: what was measured.
        bound: what it should reach, or keep below.
        is_least: whether the bound is the least that is wanted; else it is the most.
        note: what came out beside it, in words.
    """

    name: str
    value: float
    bound: float
    is_least: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool:
        return self.value >= self.bound if self.is_least else self.value <= self.bound

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "bound": self.bound, "is_met": self.is_met}


def render_goals(goals: Sequence[Goal]) -> str:
    """The table: a line for each goal."""
    rows = [
        [
            goal.name,
            f"{goal.value:.2f}",
            f"{'≥' if goal.is_least else '≤'} {goal.bound:.2f}",
            "met" if goal.is_met else "missed",
            goal.note,
        ]
        for goal in goals
    ]
    return render_table(["measured", "value", "goal", "", "in this run"], rows)
