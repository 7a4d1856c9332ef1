"""Which trials go on, which come next, how many at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec, TuneOptions, load_run_spec
from ray_jobs.train.validation import SCORE_KEY
from ray_jobs.train_options import TrainOptions
from ray_jobs.tune.search import (
    ListedTrials,
    OptunaTrials,
    SameScheduleHalving,
    TrialNeed,
    choose_concurrency,
    count_fitting,
)
from ray_jobs.tune.space import Space, identify, parse_space
from ray_jobs.tune.trials import TrialRecord

ASHA = TuneOptions(scheduler="asha", grace_epochs=1, reduction_factor=2)


def build_record(
    parameters: dict[str, Any], scores: list[float], planned: int, status: Any = "finished"
) -> TrialRecord:
    epochs = [{"epoch": i, "step": 10 * i, SCORE_KEY: score} for i, score in enumerate(scores, start=1)]
    return TrialRecord(identify(parameters), "s", parameters, planned, status=status, epochs=epochs)


def feed(scheduler: SameScheduleHalving, config: dict[str, Any], scores: list[float]) -> int:
    """Report the epochs of a trial; returns after how many it was stopped, 0 for never."""
    trial: Any = SimpleNamespace(config=config, trial_id=object())
    scheduler.on_trial_add(None, trial)
    for epoch, score in enumerate(scores, start=1):
        if scheduler.on_trial_result(None, trial, {"epoch": epoch, SCORE_KEY: score}) == TrialScheduler.STOP:
            return epoch
    return 0


def test_trials_behind_others_of_the_same_schedule_are_stopped() -> None:
    scheduler = SameScheduleHalving(ASHA, 8, [])
    assert feed(scheduler, {"train.lr": 1}, [0.5] * 8) == 0
    assert feed(scheduler, {"train.lr": 2}, [0.4] * 8) == 1
    assert feed(scheduler, {"train.lr": 3}, [0.6, 0.3, 0.3, 0.3]) == 2
    assert feed(scheduler, {"train.lr": 4}, [0.6] * 8) == 0


def test_trials_of_another_number_of_epochs_are_not_compared_and_the_last_epoch_is_never_cut() -> None:
    scheduler = SameScheduleHalving(ASHA, 8, [])
    assert feed(scheduler, {"train.epochs": 2}, [0.9, 0.9]) == 0
    assert feed(scheduler, {"train.epochs": 8}, [0.1] * 8) == 0, "a shorter schedule scores better after an epoch"
    assert feed(scheduler, {"train.epochs": 2, "train.lr": 1}, [0.95, 0.1]) == 0, "at its end there is nothing to save"
    assert feed(scheduler, {"train.epochs": 1}, [0.1]) == 0
    assert feed(scheduler, {"train.lr": 2}, [0.05]) == 1, "without train.epochs a trial has those of the config, 8"


def test_of_equal_scores_the_lower_loss_goes_on() -> None:
    scheduler = SameScheduleHalving(ASHA, 4, [])
    decisions = {}
    for lr, loss in ((1, 2.0), (2, 2.5), (3, 1.5)):
        trial: Any = SimpleNamespace(config={"train.lr": lr})
        scheduler.on_trial_add(None, trial)
        report = {"epoch": 1, SCORE_KEY: 0.1, "train/epoch_loss": loss}
        decisions[lr] = scheduler.on_trial_result(None, trial, report)
    assert decisions == {1: TrialScheduler.CONTINUE, 2: TrialScheduler.STOP, 3: TrialScheduler.CONTINUE}


def test_after_a_restart_trials_are_compared_with_those_before_it() -> None:
    known = [build_record({"train.lr": 1}, [0.5, 0.6, 0.7], 3), build_record({"train.lr": 2}, [0.5], 3, "running")]
    assert feed(SameScheduleHalving(ASHA, 3, known), {"train.lr": 3}, [0.4]) == 1
    assert feed(SameScheduleHalving(ASHA, 3, []), {"train.lr": 3}, [0.4]) == 0
    again = SameScheduleHalving(ASHA, 3, known)
    assert feed(again, {"train.lr": 2}, [0.3]) == 0, "the epoch that it reports again was judged before"


def test_a_report_without_a_score_ends_no_trial_and_is_compared_with_none() -> None:
    unscored = build_record({"train.lr": 1}, [], 8, "running")
    unscored.add_epoch({"epoch": 1, "step": 10})
    scheduler = SameScheduleHalving(ASHA, 8, [unscored])
    trial: Any = SimpleNamespace(config={"train.lr": 1})
    scheduler.on_trial_add(None, trial)
    for epoch in range(2, 9):
        assert scheduler.on_trial_result(None, trial, {"epoch": epoch}) == TrialScheduler.CONTINUE
    assert feed(scheduler, {"train.lr": 2}, [0.5] * 8) == 0
    assert feed(scheduler, {"train.lr": 3}, [0.4] * 8) == 1, "others are compared as ever"


def test_a_list_is_gone_through_once() -> None:
    search = ListedTrials([{"train.lr": 1}, {"train.lr": 2}])
    assert [search.suggest("a"), search.suggest("b"), search.suggest("c")] == [
        {"train.lr": 1},
        {"train.lr": 2},
        Searcher.FINISHED,
    ]


def build_space() -> Space:
    parameters = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.adapter": ["lora", "dora"]}
    return parse_space(RunSpec.model_validate({"tune": {"parameters": parameters, "search": "optuna"}}))


def score(parameters: dict[str, Any]) -> float:
    return -abs(parameters["train.lr"] - 0.05) + (parameters["model.adapter"] == "dora")


def end_trial(records: dict[str, TrialRecord], parameters: dict[str, Any], status: Any = "finished") -> None:
    """As the sweep's recorder does: a trial that has failed before keeps its number."""
    scores = [score(parameters), score(parameters) - 0.5]  # the last epoch is not the best
    record = build_record(parameters, scores, 2, status)
    known = records.get(record.name)
    record.number = known.number if known else len(records)
    records[record.name] = record


def test_optuna_learns_from_scores_also_from_before_a_restart() -> None:
    space, records = build_space(), {}
    search = OptunaTrials(space, 0, 12, records)
    for i in range(12):
        parameters = search.suggest(str(i))
        assert space.trial_spec(parameters).train.lr == parameters["train.lr"]
        end_trial(records, parameters, "finished" if i else "failed")
        search.on_trial_complete(str(i), {SCORE_KEY: score(parameters)} if i else None, error=not i)
    assert search.suggest("13") == Searcher.FINISHED
    assert len(records) == 12

    first = next(iter(records.values()))
    again = OptunaTrials(space, 0, 20, records)
    assert again.suggest("a") == first.parameters, "what has failed is tried again"
    later = [again.suggest(f"b{i}") for i in range(8)]
    assert again.suggest("c") == Searcher.FINISHED
    assert not {identify(parameters) for parameters in later} & records.keys()
    assert sum(parameters["model.adapter"] == "dora" for parameters in later) >= 6


def test_optuna_proposes_the_same_to_a_sweep_that_is_started_again_after_each_trial() -> None:
    """Whatever becomes of the trials; the last but one is still under way when the last is proposed."""
    space, n_trials = build_space(), 14
    ends = {1: "failed", 4: "stopped", 7: "failed", 12: "running"}

    def end(records: dict[str, TrialRecord], parameters: dict[str, Any], i: int) -> None:
        end_trial(records, parameters, ends.get(i, "finished"))
        if i == 2:
            records[identify(parameters)].epochs = []  # it reported no score

    live: dict[str, TrialRecord] = {}
    search = OptunaTrials(space, 3, n_trials, live)
    for i in range(n_trials):
        end(live, search.suggest(str(i)), i)

    restarted: dict[str, TrialRecord] = {}
    for i in range(n_trials):
        loaded = dict(sorted(restarted.items()))  # folders come in the order of their names
        search = OptunaTrials(space, 3, n_trials, loaded)
        left = [record.parameters for record in restarted.values() if not record.is_over]
        assert [search.suggest("again") for _ in left] == left
        end(restarted, search.suggest("new"), i)
    assert list(restarted) == list(live)
    assert len(live) == n_trials


def test_optuna_ends_when_the_space_is_used_up() -> None:
    space = parse_space(RunSpec.model_validate({"tune": {"parameters": {"model.lora_r": [4, 8]}, "search": "optuna"}}))
    search = OptunaTrials(space, 0, 5, {})
    assert sorted(search.suggest(str(i))["model.lora_r"] for i in range(2)) == [4, 8]
    assert search.suggest("2") == Searcher.FINISHED


def test_trials_at_a_time_leave_room_for_drivers_workers_and_data() -> None:
    need = TrialNeed(workers=2, cpus_per_worker=1, gpus_per_worker=0)
    assert need.cpus == 1 + 2 * (1 + 1)
    assert count_fitting(need, [{"CPU": 5}]) == 0, "one CPU is left for short tasks"
    assert count_fitting(need, [{"CPU": 6}]) == 1
    assert count_fitting(need, [{"CPU": 6}, {"CPU": 5}]) == 2
    assert count_fitting(TrialNeed(1, 4, 0), [{"CPU": 3}] * 10) == 0, "a worker must fit on one node"
    gpu = TrialNeed(workers=4, cpus_per_worker=8, gpus_per_worker=1)
    nodes = [{"CPU": 32}, {"CPU": 48, "GPU": 4}, {"CPU": 48, "GPU": 4}]
    assert count_fitting(gpu, nodes) == 2
    assert count_fitting(gpu, [{"CPU": 32}, {"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}]) == 1, "CPUs beside GPUs"


def test_concurrency_is_that_of_the_cluster_or_as_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_concurrency(TrainOptions(), None, [{"CPU": 8}]) == 2
    assert choose_concurrency(TrainOptions(workers=(1, 4)), None, [{"CPU": 8}]) == 1, "elastic: one of its fewest fits"
    with pytest.raises(InputError, match=r"one trial needs 6 logical CPUs and 2 GPU\(s\).*nodes have 16 CPU"):
        choose_concurrency(TrainOptions(workers=2, use_gpu=True), None, [{"CPU": 16, "GPU": 1}])
    assert choose_concurrency(TrainOptions(), 1, [{"CPU": 8}]) == 1
    assert capsys.readouterr().out == ""


def test_where_the_cluster_grows_a_sweep_is_not_refused_and_says_what_it_waits_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = load_run_spec("sweep_paper", [])
    head_and_data_node = [{}, {"CPU": 16}]  # of deploy/kuberay/sweep.yaml, before any trial asks for GPUs
    assert choose_concurrency(spec.train, spec.tune.max_concurrent, head_and_data_node) == 2
    said = capsys.readouterr().out
    assert said.startswith(
        "waiting until the cluster has grown (tune.max_concurrent=2): one trial needs 10 logical CPUs"
    )
    assert "and 4 GPU(s)" in said
    assert said.endswith("the nodes have 0 CPU(s) and 0 GPU(s), 16 CPU(s) and 0 GPU(s)\n")
    with pytest.raises(InputError, match=r"one trial needs 10 logical CPUs and 4 GPU\(s\)"):
        choose_concurrency(spec.train, None, head_and_data_node)
