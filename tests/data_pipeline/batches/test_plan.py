"""The uniform plan of a training, and mixtures of sources."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.batches.plan import UniformPlan, count_seen, mixture_repeats
from data_pipeline.batches.steps import PlanIndex, deal_step, deal_step_rows, plan_epoch
from data_pipeline.errors import InputError


def index_of(n_questions: int, seed: int = 0) -> PlanIndex:
    rng = np.random.default_rng(seed)
    n_rows = rng.integers(1, 6, n_questions)
    return PlanIndex.apart(n_rows, n_rows * 10, np.full(int(n_rows.sum()), 8))


def test_a_plan_goes_through_the_epochs_at_any_world_size() -> None:
    index = index_of(200)
    weight = np.arange(200, dtype=np.float64)
    is_dialogue = np.arange(200) % 3 == 0
    plan = UniformPlan(index, weight, is_dialogue, 3, 32, pack_tokens=300)
    by_rows = UniformPlan(index, weight, is_dialogue, 3, 32, layout="rows", micro_batch_size=4)
    per_epoch = len(plan_epoch(index, 3, 0, 32))
    assert plan.total_steps(3) == 3 * per_epoch
    assert plan.epoch_ends(3) == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    assert not plan.averages_micro_batches
    for step in (per_epoch + 2, 0, 2 * per_epoch - 1):
        questions = plan_epoch(index, 3, step // per_epoch, 32)[step % per_epoch]
        selection = questions[questions % 3 > 0]
        n_selected = len(selection)
        answers = index.n_rows[selection].sum()
        assert plan.step_weight(step) == (weight[questions].sum(), answers, n_selected, n_selected)
        for world_size in (1, 2):
            for rank in range(world_size):
                found, expected = (
                    plan.micro_batches(step, rank, world_size),
                    deal_step(questions, index, world_size, 300),
                )
                assert [pack.tolist() for pack in found] == [pack.tolist() for pack in expected[rank]]
                rows = deal_step_rows(questions, index, world_size, 4)[rank]
                assert [r.tolist() for r in by_rows.micro_batches(step, rank, world_size)] == [r.tolist() for r in rows]


def test_a_mixture_of_ones_is_today_s_plan() -> None:
    index = index_of(50)
    plain, mixed = plan_epoch(index, 1, 4, 16), plan_epoch(index, 1, 4, 16, np.ones(50))
    assert [step.tolist() for step in mixed] == [step.tolist() for step in plain]


def test_a_mixture_holds_every_epoch_and_evenly_over_epochs() -> None:
    """10 questions of weight 0, 31 of 0.35, 40 of 1, 21 of 2.5."""
    repeats = np.repeat([0.0, 0.35, 1.0, 2.5], [10, 31, 40, 21])
    index = index_of(102)
    times = []
    for epoch in range(20):
        steps = plan_epoch(index, 7, epoch, 20, repeats)
        assert len(steps) == round(float(repeats @ index.n_rows) / 20), "as many steps in every epoch"
        count = np.bincount(np.concatenate(steps), minlength=102)
        assert [int(part.sum()) for part in np.split(count, [10, 41, 81])] == [0, round(0.35 * 31), 40, round(2.5 * 21)]
        assert set(count[10:41]) == {0, 1}
        assert set(count[81:]) == {2, 3}
        times.append(count)
    seen = np.sum(times, axis=0)
    assert np.ptp(seen[10:41]) <= 1, "no question is left behind the others of its weight"
    assert np.ptp(seen[81:]) <= 1
    assert times[0].tolist() != times[1].tolist() != times[2].tolist()
    plan = UniformPlan(index, np.ones(102), np.zeros(102, bool), 7, 20, repeats=repeats)
    assert plan.rows_seen(20).tolist() == (seen * index.n_rows).tolist()
    groups = np.repeat(["none", "some", "once", "often"], [10, 31, 40, 21])
    found = count_seen(plan, index, groups.tolist(), 20)
    assert found == pytest.approx({"none": 0, "once": 20, "some": 20 * 0.35, "often": 20 * 2.5}, rel=0.03)


def test_a_mixture_names_sources() -> None:
    sources = ["mini", "mini", "dialogues"]
    assert mixture_repeats(sources, {"mini": 0.5}).tolist() == [0.5, 0.5, 1.0]  # pyright: ignore[reportOptionalMemberAccess]
    assert mixture_repeats(sources, {}) is None
    assert mixture_repeats(sources, {"mini": 1}) is None
    with pytest.raises(InputError, match="names gpt4tools, but the training questions come from dialogues, mini"):
        mixture_repeats(sources, {"gpt4tools": 2})
    with pytest.raises(InputError, match="none is left"):
        UniformPlan(
            index_of(3),
            np.ones(3),
            np.zeros(3, bool),
            0,
            8,
            repeats=mixture_repeats(sources, {"mini": 0, "dialogues": 0}),
        )
