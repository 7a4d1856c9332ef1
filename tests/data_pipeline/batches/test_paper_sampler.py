"""MLLM-Tool's rotation of modalities, against the reference sampler's own counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.batches.paper_sampler import ROTATION, PaperPlan
from data_pipeline.batches.plan import count_seen
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.errors import InputError


def plan_of(sizes: list[int], micro: int, workers: int, accumulation: int = 1, seed: int = 5) -> PaperPlan:
    """A plan over questions with three answers each (the last of a modality may have fewer): `sizes` counts rows."""
    n_rows, modalities = [], []
    for size, modality in zip(sizes, ROTATION, strict=False):
        own = [3] * (size // 3) + ([size % 3] if size % 3 else [])
        n_rows += own
        modalities += [modality] * len(own)
    rows = np.array(n_rows, dtype=np.int64)
    index = PlanIndex.apart(rows, rows * 5, np.full(int(rows.sum()), 9))
    return PaperPlan(index, modalities, seed, micro * workers * accumulation, micro, workers)


def oracle(shared_dir: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((shared_dir / f"oracle/schedule/{name}.json").read_text())["cases"]


def test_an_epoch_is_that_of_the_reference(shared_dir: Path) -> None:
    for case in oracle(shared_dir, "sampler_cases"):
        sizes, batch = case["dataset_sizes"], case["micro_batch_per_rank"] * case["world_size"]
        plan = plan_of(sizes, case["micro_batch_per_rank"], case["world_size"])
        n_steps = case["micro_steps_per_epoch_per_rank"]
        assert plan.micro_steps_per_epoch == n_steps == plan.total_steps(1)
        assert plan.full_batches == case["full_batches_per_pass_of_each_dataset"]
        assert plan.dropped_rows == case["dropped_tail_per_pass"]
        rotation = case["dataset_of_each_micro_step"]
        if isinstance(rotation, str):
            assert rotation == "t mod number_of_datasets"
            rotation = [t % len(sizes) for t in range(n_steps)]
        drawn: Counter[int] = Counter()
        for t in range(n_steps):
            modality, rows = plan.micro_step_rows(t)
            assert ROTATION.index(modality) == rotation[t]
            assert rows.shape == (batch, 2)
            drawn[rotation[t]] += len(rows)
        assert [drawn[n] for n in range(len(sizes))] == case["records_drawn_per_epoch_over_all_ranks"]


def test_the_run_is_as_long_as_the_reference_s(shared_dir: Path) -> None:
    for case in oracle(shared_dir, "step_counts"):
        plan = plan_of(case["dataset_sizes"], case["micro"], case["world_size"], case["accumulation"])
        assert plan.accumulation == case["accumulation"]
        assert plan.total_steps(case["epochs"]) == case["optimizer_updates_from_micro_steps"]
        assert plan.total_steps(case["epochs"]) == case["total_steps_given_to_scheduler"]
        assert plan.micro_steps_per_epoch * case["epochs"] == case["progress_bar_length"]
        assert plan.epoch_ends(case["epochs"])[-1] == plan.total_steps(case["epochs"])


def test_a_pass_holds_every_row_at_most_once_and_the_next_is_shuffled_anew() -> None:
    plan = plan_of([40, 7, 23, 64], 2, 2)
    image = [plan.micro_step_rows(4 * draw + 2)[1].tolist() for draw in range(16)]  # 5 full batches in a pass
    passes = [[tuple(row) for batch in image[start : start + 5] for row in batch] for start in (0, 5, 10)]
    for one in passes:
        assert len(set(one)) == len(one) == 20
    assert passes[0] != passes[1] != passes[2]
    text = {tuple(row) for draw in range(16) for row in plan.micro_step_rows(4 * draw + 3)[1].tolist()}
    assert len(text) == 64, "the largest set is seen whole"
    second = plan.micro_step_rows(plan.micro_steps_per_epoch + 2)[1].tolist()
    assert second not in image, "an epoch begins with a new shuffle"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_step_is_the_same_at_any_world_size_and_from_any_start(world_size: int) -> None:
    """4 workers by config, 2 micro steps of 3 x 4 rows a step: eight micro batches."""
    plan = plan_of([40, 13, 23, 64], 3, 4, accumulation=2)
    for step in (0, 1, 17, 11):
        ranks = [plan.micro_batches(step, rank, world_size) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        dealt = [batches[m] for m in range(len(ranks[0])) for batches in ranks]
        batches = [batch.tolist() for batch in dealt if len(batch)]
        whole = np.concatenate([plan.micro_step_rows(2 * step + turn)[1] for turn in range(2)])
        assert batches == whole.reshape(8, 3, 2).tolist()
        assert plan.step_weight(step).tokens == len(batches), "each micro batch weighs the same"
        again = plan_of([40, 13, 23, 64], 3, 4, accumulation=2)
        assert again.micro_batches(step, 0, world_size)[-1].tolist() == ranks[0][-1].tolist()
    if world_size == 4:
        _, rows = plan.micro_step_rows(1)
        found = [plan.micro_batches(0, rank, 4)[1].tolist() for rank in range(4)]
        assert found == rows.reshape(4, 3, 2).tolist(), "rank r takes the r-th part, as in the reference"


def test_small_sets_are_seen_more_often() -> None:
    plan = plan_of([40, 7, 23, 64], 1, 4)
    index = PlanIndex.apart(
        np.array([3] * 13 + [1] + [3] * 2 + [1] + [3] * 7 + [2] + [3] * 21 + [1]), *[np.zeros(0)] * 2
    )
    groups = ["audio"] * 14 + ["video"] * 3 + ["image"] * 8 + ["text"] * 22
    assert count_seen(plan, index, groups, 2) == pytest.approx(
        {"audio": 2 * 64 / 40, "video": 2 * 64 / 7, "image": 2 * 64 / 23, "text": 2.0}
    )
    plan = plan_of([10, 7, 5], 2, 1, accumulation=4)  # 15 micro steps an epoch; the last of three epochs is cut by one
    drawn = [plan.micro_step_rows(t)[1] for t in range(plan.total_steps(3) * 4)]
    assert len(drawn) == 44
    assert plan.rows_seen(3).tolist() == np.bincount(np.concatenate(drawn)[:, 0], minlength=9).tolist()


def test_epochs_may_end_within_a_step() -> None:
    plan = plan_of([10, 10], 5, 1, accumulation=3)  # 4 micro steps an epoch
    assert (plan.epoch_ends(5), plan.total_steps(5)) == ([1, 2, 4, 5, 6], 6)
    with pytest.raises(InputError, match="do not fill one optimizer step of 5"):
        plan_of([10, 10], 5, 1, accumulation=5).total_steps(1)


def test_modalities_without_rows_are_left_out_of_the_rotation() -> None:
    rows = np.ones(9, dtype=np.int64)
    plan = PaperPlan(PlanIndex.apart(rows, rows, rows), ["text"] * 4 + ["image"] * 5, 0, 2, 2, 1)
    assert plan.modalities == ("image", "text")
    assert [plan.micro_step_rows(t)[0] for t in range(4)] == ["image", "text", "image", "text"]


def test_what_the_reference_cannot_do_is_refused() -> None:
    rows = np.ones(9, dtype=np.int64)
    index, groups = PlanIndex.apart(rows, rows, rows), ["text"] * 4 + ["image"] * 5
    with pytest.raises(InputError, match="4 rows of modality text, fewer than the 5 of one micro step"):
        PaperPlan(index, groups, 0, 5, 5, 1)
    with pytest.raises(InputError, match=r"global_batch_size is 6, which .* = 2 x 2 = 4 does not divide"):
        PaperPlan(index, groups, 0, 6, 2, 2)
