"""A goal is met on its own side of the bound."""

from __future__ import annotations

from serve.bench.goals import Goal, render_goals


def test_a_goal_is_met_at_its_bound_and_on_its_own_side() -> None:
    assert Goal("share", 0.9, 0.9, is_least=True).is_met
    assert not Goal("share", 0.89, 0.9, is_least=True).is_met
    assert Goal("ratio", 2.0, 2.0).is_met
    assert not Goal("ratio", 2.01, 2.0).is_met
    assert not Goal("ratio", float("nan"), 2.0).is_met, "nothing was measured"


def test_the_table_says_which_are_missed() -> None:
    met, missed = render_goals(
        [Goal("a", 0.95, 0.9, is_least=True), Goal("b", 3.5, 3.0, note="4 rounds")]
    ).splitlines()[2:]
    assert "≥ 0.90" in met
    assert "missed" not in met
    assert "≤ 3.00" in missed
    assert "missed" in missed
    assert "4 rounds" in missed
