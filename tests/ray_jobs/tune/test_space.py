"""What may be varied, what a sweep's trials are, and how they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec, config_names, load_run_spec
from ray_jobs.tune.job import list_trials
from ray_jobs.tune.space import Space, fingerprint_sweep, name_trial, parse_space


def build_spec(parameters: dict[str, Any], **tune: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "sweep", "tune": {"parameters": parameters, **tune}})


def build_space(parameters: dict[str, Any], **tune: Any) -> Space:
    return parse_space(build_spec(parameters, **tune))


def test_dotted_and_nested_names_are_the_same_and_values_are_those_of_the_config() -> None:
    dotted = build_space({"train.lr": ["1e-3", 0.001, 1], "model.lora_r": {"low": 4, "high": "64", "log": True}})
    nested = build_space({"train": {"lr": [0.001, 1.0]}, "model": {"lora_r": {"low": 4, "high": 64, "log": True}}})
    assert dotted == nested
    assert dotted.domains["train.lr"] == [0.001, 1.0]


def test_a_grid_has_every_combination_and_each_is_a_run_config() -> None:
    space = build_space({"train.epochs": [1, 2], "model.backbone": ["a/b", "c/d"]})
    trials = space.grid()
    assert [tuple(trial.values()) for trial in trials] == [(1, "a/b"), (1, "c/d"), (2, "a/b"), (2, "c/d")]
    spec = space.trial_spec(trials[-1])
    assert (spec.train.epochs, spec.model.backbone) == (2, "c/d")
    assert spec.corpus_dir == space.base.corpus_dir, "trials read the sweep's corpus"
    assert spec.tune.parameters == {}


def test_random_trials_are_all_different_within_the_ranges_and_more_of_them_begin_alike() -> None:
    parameters = {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.lora_r": {"low": 4, "high": 5},
        "train.layout": ["packed", "rows"],
    }
    space = build_space(parameters)
    trials = space.draw(seed=3, num_trials=20)
    assert len({name_trial(trial, "s") for trial in trials}) == 20
    assert all(1e-4 <= trial["train.lr"] <= 1e-2 and trial["model.lora_r"] in (4, 5) for trial in trials)
    assert sum(trial["train.lr"] < 1e-3 for trial in trials) in range(5, 16), "log: as many below the middle as above"
    assert space.draw(seed=3, num_trials=5) == trials[:5]
    assert space.draw(seed=4, num_trials=5) != trials[:5]
    assert len(build_space({"model.lora_r": {"low": 4, "high": 5}}).draw(0, 20)) == 2, "there are no more"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "tune.parameters is empty"),
        ({"train.learning_rate": [1]}, r"no setting 'train.learning_rate' to vary"),
        ({"train.epoch": [1]}, r"did you mean train.epochs\?"),
        ({"prepare.size": ["demo"]}, "no setting 'prepare.size'"),
        ({"train.workers": [1, 2]}, "train.workers must be the same for all trials"),
        ({"model.seed": [1, 2]}, "model.seed must be the same for all trials"),
        ({"train.lr": []}, "neither a list with values nor a range"),
        ({"train.lr": 1e-3}, "neither a list with values nor a range"),
        ({"train.lr": {"low": 1e-3}}, "neither a list with values nor a range"),
        ({"train.lr": [1e-3, -1]}, r"train.lr = -1 is not allowed .*greater than 0"),
        ({"train.lr": {"low": 0, "high": 1}}, r"train.lr = 0 is not allowed"),
        ({"train.weight_decay": {"low": 0, "high": 1, "log": True}}, "a range needs 0 < low < high"),
        ({"model.lora_dropout": {"low": 0.0, "high": 1.5}}, r"model.lora_dropout = 1.5 is not allowed"),
        ({"train.lr": {"low": 2, "high": 1}}, "a range needs low < high"),
        ({"model.adapter": {"low": "lora", "high": "dora"}}, "is not a range of numbers"),
        ({"model.adapter": ["lora", "prefix"]}, "model.adapter = 'prefix' is not allowed"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_space(parameters)
    assert "\n" not in str(caught.value)


def test_a_search_that_cannot_take_the_values_says_so() -> None:
    spec = build_spec({"train.lr": {"low": 1e-4, "high": 1e-3}})
    with pytest.raises(InputError, match=r"train\.lr is a range, which a grid cannot go through"):
        list_trials(spec, parse_space(spec))
    with pytest.raises(InputError, match="which Optuna cannot choose from"):
        build_space({"model.modules_to_save": [[], ["lm_head"]]}, search="optuna")


@pytest.mark.parametrize(
    ("search", "parameters", "message"),
    [
        (
            "grid",
            {"train.epochs": [1, 3], "train.projector_epochs": [0, 3]},
            r"train.epochs = 1, train.projector_epochs = 3 do not go together: .*=3 is more than train\.epochs=1",
        ),
        ("grid", {"model.dtype": ["float32", "float16"]}, r"model.dtype = 'float16' do not .* GPUs alone"),
        ("grid", {"train.sampler": ["uniform", "paper"]}, r"train.sampler = 'paper' do not .* set train\.layout=rows"),
        (
            "random",
            {"train.epochs": [2], "train.projector_epochs": {"low": 1, "high": 3}},
            r"train.epochs = 2, train.projector_epochs = 3 do not go together",
        ),
        (
            "optuna",
            {"train.epochs": {"low": 2, "high": 9}, "train.projector_epochs": {"low": 0, "high": 3}},
            r"train.epochs = 2, train.projector_epochs = 3 do not go together",
        ),
    ],
)
def test_values_that_cannot_be_trained_together_are_refused_beforehand(
    search: str, parameters: dict[str, Any], message: str
) -> None:
    spec = build_spec(parameters, search=search)
    with pytest.raises(InputError, match=message) as caught:
        list_trials(spec, parse_space(spec))
    assert "\n" not in str(caught.value)


def test_a_value_that_the_others_values_make_possible_is_not_refused() -> None:
    spec = build_spec({"train.epochs": [7, 9], "train.projector_epochs": [0, 6]})  # more than the default of epochs, 5
    trials = list_trials(spec, parse_space(spec))
    assert trials is not None
    assert len(trials) == 4


def test_names_say_the_values_and_tell_sweeps_and_values_apart() -> None:
    name = name_trial({"model.backbone": "some/where/llama 7b", "train.lr": 0.001}, "sweep-1")
    assert name.startswith("backbone-llama-7b_lr-0.001_")
    assert name_trial({"model.backbone": "else/where/llama 7b", "train.lr": 0.001}, "sweep-1") != name
    assert name_trial({"model.backbone": "some/where/llama 7b", "train.lr": 0.001}, "sweep-2") != name
    assert name_trial({"model.backbone": "some/where/llama 7b", "train.lr": 0.001}, "sweep-1", "other") != name
    long = name_trial({f"train.option_{i}": "value" * 9 for i in range(20)}, "s")
    assert len(long) < 100
    assert Path(long).name == long


def test_a_sweep_stays_itself_with_more_values_but_not_with_other_settings() -> None:
    def fingerprint(
        parameters: dict[str, Any],
        data_hash: str = "d",
        encoder_id: str = "e",
        media: tuple[str, ...] = ("a", "b"),
        **train: Any,
    ) -> str:
        space = parse_space(RunSpec.model_validate({"name": "s", "train": train, "tune": {"parameters": parameters}}))
        return fingerprint_sweep(space, data_hash, encoder_id, media)

    own = fingerprint({"train.lr": [1e-3]})
    assert fingerprint({"train.lr": [1e-3, 1e-2]}) == own
    assert fingerprint({"train.lr": [1e-3]}, lr=1e-4, workers=2) == own, "a varied setting's base and the cluster"
    assert fingerprint({"train.lr": [1e-3]}, epochs=2) != own
    assert fingerprint({"train.lr": [1e-3]}, data_hash="e") != own
    assert fingerprint({"train.lr": [1e-3]}, encoder_id="f") != own
    assert fingerprint({"train.lr": [1e-3]}, media=("b", "a")) == own
    assert fingerprint({"train.lr": [1e-3]}, media=("a", "b", "c")) != own, "a medium more has a vector"
    assert fingerprint({"train.lr": [1e-3], "model.lora_r": [4]}) != own


@pytest.mark.parametrize("config", [name for name in config_names() if name.startswith("sweep")])
def test_shipped_sweeps_are_valid(config: str) -> None:
    spec = load_run_spec(config, [])
    trials = list_trials(spec, parse_space(spec))
    assert trials is not None
    assert len(trials) >= 12
    assert len({name_trial(trial, "s") for trial in trials}) == len(trials)
