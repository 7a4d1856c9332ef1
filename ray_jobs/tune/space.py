"""What a sweep varies: settings of the run config, each a list of values or a range; checked before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec, TuneOptions
from ray_jobs.train.job import NOT_IN_FINGERPRINT
from ray_jobs.train_options import Section, check_training

SECTIONS = ("train", "model")  # of what makes another training of the same corpus
# but not: what leaves the training the same, what scores are compared on, what the run's own seed and lake overwrite
FIXED = {
    "train": NOT_IN_FINGERPRINT | {"validation_questions", "validation_dialogues"},
    "model": {"seed", "encoder_dim"},
}
RANGE_KEYS = {"low", "high", "log"}
MAX_DRAWS = 1000  # for a trial that differs from all others
MAX_NAME_CHARS = 80

Value = Any  # of a setting: what YAML holds
Parameters = dict[str, Value]  # dotted path -> value


@dataclass(frozen=True)
class ValueRange:
    """A number between two others, both included; whole where the setting is."""

    low: float
    high: float
    is_log: bool
    is_whole: bool


Domain = list[Value] | ValueRange


@dataclass(frozen=True)
class Space:
    """The settings that a sweep varies.

    Attributes:
        base: what all trials share; without its section `tune`.
        domains: dotted path -> values or range, in the order of the config.
    """

    base: RunSpec
    domains: dict[str, Domain]

    def trial_spec(self, parameters: Mapping[str, Value]) -> RunSpec:
        """The run config of a trial.

        It has the sweep's name: corpus, feature lake, tiny backbone and tracking database are those of the sweep's
        folder, and checkpoints are kept apart by the fingerprint of the training.

        Raises:
            InputError: a value that the setting does not take.
        """
        tree = self.base.model_dump(mode="json")
        for path, value in parameters.items():
            section, key = path.split(".")
            tree[section][key] = value
        try:
            return RunSpec.model_validate(tree)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise InputError(
                f"tune.parameters: {_show(parameters)} is not allowed ({where}: {fault['msg'].lower()}); "
                "give values that the setting takes."
            ) from error

    def holds(self, parameters: Mapping[str, Value]) -> bool:
        """Whether a trial of these values, which may be from an earlier form of the sweep, could be drawn now."""
        return all(
            domain.low <= parameters[path] <= domain.high
            if isinstance(domain, ValueRange)
            else parameters[path] in domain
            for path, domain in self.domains.items()
        )

    def grid(self) -> list[Parameters]:
        """Every combination, the last setting varying fastest."""
        lists = [domain for domain in self.domains.values() if not isinstance(domain, ValueRange)]
        if len(lists) < len(self.domains):
            path = next(path for path, domain in self.domains.items() if isinstance(domain, ValueRange))
            raise InputError(
                f"tune.parameters: {path} is a range, which a grid cannot go through; give a list of values, or set "
                "tune.search=random or tune.search=optuna."
            )
        return [dict(zip(self.domains, values, strict=True)) for values in itertools.product(*lists)]

    def corners(self) -> Iterator[Parameters]:
        """Every combination of the lists' values and the ranges' ends: between two ends nothing else goes together."""
        ends = [
            [domain.low, domain.high] if isinstance(domain, ValueRange) else domain for domain in self.domains.values()
        ]
        return (dict(zip(self.domains, values, strict=True)) for values in itertools.product(*ends))

    def draw(self, seed: int, num_trials: int) -> list[Parameters]:
        """That many different combinations at random; fewer where there are no more."""
        rng = np.random.default_rng(seed)
        drawn: dict[str, Parameters] = {}
        for _ in range(MAX_DRAWS * num_trials):
            if len(drawn) == num_trials:
                break
            parameters = {path: _draw_value(domain, rng) for path, domain in self.domains.items()}
            drawn.setdefault(identify(parameters), parameters)
        return list(drawn.values())


def parse_space(spec: RunSpec) -> Space:
    """Check `tune.parameters`: names, and every value by itself, a range at both ends.

    Raises:
        InputError: names the first setting that is wrong, and what is allowed.
    """
    base = spec.model_copy(update={"tune": TuneOptions()})
    space = Space(base, {})
    settings = dict(_flatten(spec.tune.parameters))
    if not settings:
        raise InputError(
            "tune.parameters is empty; name the settings to vary, for example {train.lr: [1e-4, 1e-3]}, or take a "
            "config that has them, such as sweep_demo."
        )
    domains = {}
    for path, given in settings.items():
        _check_path(path)
        domains[path] = _parse_domain(space, path, given)
    space = Space(base, domains)
    if spec.tune.search == "optuna":
        _check_plain(domains)
    return space


def check_all(space: Space, trials: Iterable[Parameters]) -> None:
    """Refuse values that cannot be trained together.

    Raises:
        InputError: names the first trial that has such, and says why.
    """
    for parameters in trials:
        spec = space.trial_spec(parameters)
        try:
            check_training(spec.model, spec.train)
        except InputError as error:
            raise InputError(f"tune.parameters: {_show(parameters)} do not go together: {error}") from error


def identify(parameters: Mapping[str, Value]) -> str:
    """The same for equal values of the same settings."""
    return json.dumps(dict(parameters), sort_keys=True)


def name_trial(parameters: Mapping[str, Value], sweep: str, tokenizer: str = "") -> str:
    """A folder's name that says the values, unique by a digest of what else decides what the trial trains.

    Args:
        parameters: the exact values.
        sweep: its fingerprint.
        tokenizer: hash of that of the trial's backbone; a backbone can be another one under the same name.
    """
    words = [f"{path.split('.')[-1]}-{_shorten(value)}" for path, value in parameters.items()]
    digest = hashlib.sha256(f"{sweep} {tokenizer} {identify(parameters)}".encode()).hexdigest()[:8]
    return f"{'_'.join(words)[:MAX_NAME_CHARS]}_{digest}"


def fingerprint_sweep(space: Space, data_hash: str, encoder_id: str, media: Iterable[str]) -> str:
    """Names the sweep: same data, vectors, shared and varied settings; other values and more trials go on in it.

    Args:
        space: the settings.
        data_hash: of the corpus.
        encoder_id: what made the media vectors.
        media: sha256 of those that have a vector: a question whose medium has none is left out.
    """
    base = space.base.model_dump(mode="json", include={"name", "model", "train", "seed"})
    for key in NOT_IN_FINGERPRINT:
        del base["train"][key]
    for path in space.domains:
        section, key = path.split(".")
        del base[section][key]
    content = {
        "data": data_hash,
        "encoder": encoder_id,
        "media": sorted(media),
        "base": base,
        "varied": sorted(space.domains),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`train: {lr: [...]}` and `train.lr: [...]` are the same; a mapping of a range's keys is a range."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        is_range = isinstance(value, dict) and ("." in path or set(value) & RANGE_KEYS)
        if isinstance(value, dict) and not is_range:
            yield from _flatten(value, path + ".")
        else:
            yield path, value


def _check_path(path: str) -> None:
    section, _, key = path.partition(".")
    valid = {
        f"{name}.{field}"
        for name in SECTIONS
        for field in RunSpec.model_fields[name].annotation.model_fields  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        if field not in FIXED[name]
    }
    if path in valid:
        return
    if section in FIXED and key in FIXED[section]:
        raise InputError(
            f"tune.parameters: {path} must be the same for all trials; set it outside tune, and vary settings that "
            "change what is trained."
        )
    close = difflib.get_close_matches(path, sorted(valid), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise InputError(
        f"tune.parameters: there is no setting {path!r} to vary{hint}; it must be one of {', '.join(sorted(valid))}."
    )


def _parse_domain(space: Space, path: str, given: Any) -> Domain:
    if isinstance(given, list) and given:
        values = [_canonical(space, path, value) for value in given]
        return [value for i, value in enumerate(values) if value not in values[:i]]
    if isinstance(given, dict) and {"low", "high"} <= set(given) <= RANGE_KEYS:
        low, high = (_canonical(space, path, given[key]) for key in ("low", "high"))
        is_log = given.get("log", False)
        are_numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
        if not are_numbers or not isinstance(is_log, bool):
            raise InputError(f"tune.parameters: {path} = {given!r} is not a range of numbers; give a list of values.")
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (is_log and low <= 0):
            bound = "0 < low < high" if is_log else "low < high"
            raise InputError(f"tune.parameters: {path} has low {low} and high {high}; a range needs {bound}.")
        return ValueRange(low, high, is_log, is_whole=isinstance(low, int) and isinstance(high, int))
    raise InputError(
        f"tune.parameters: {path} = {given!r} is neither a list with values nor a range; give [1, 2] or "
        "{low: 1, high: 2, log: false}."
    )


def _canonical(space: Space, path: str, value: Any) -> Value:
    """The value as the run config holds it: 1e-3 and 0.001, or "4" and 4, are one."""
    section, key = path.split(".")
    checked: Section = getattr(space.trial_spec({path: value}), section)
    return checked.model_dump(mode="json")[key]


def _check_plain(domains: Mapping[str, Domain]) -> None:
    for path, domain in domains.items():
        if not isinstance(domain, ValueRange) and any(isinstance(value, list | dict) for value in domain):
            raise InputError(
                f"tune.parameters: {path} has values that are lists, which Optuna cannot choose from; set "
                "tune.search=grid or tune.search=random."
            )


def _draw_value(domain: Domain, rng: np.random.Generator) -> Value:
    if not isinstance(domain, ValueRange):
        return domain[int(rng.integers(len(domain)))]
    low, high = (math.log(domain.low), math.log(domain.high)) if domain.is_log else (domain.low, domain.high)
    if domain.is_whole and not domain.is_log:
        return int(rng.integers(int(low), int(high) + 1))
    value = float(rng.uniform(low, high))
    value = math.exp(value) if domain.is_log else value
    return shorten_number(round(value) if domain.is_whole else value, domain)


def shorten_number(value: Value, domain: Domain) -> Value:
    """A number from within a range has six digits, which is what tables can show."""
    if not isinstance(domain, ValueRange) or domain.is_whole:
        return value
    return min(max(float(f"{value:.6g}"), domain.low), domain.high)


def _show(parameters: Mapping[str, Value]) -> str:
    return ", ".join(f"{path} = {value!r}" for path, value in parameters.items())


def _shorten(value: Value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-")[:24]
