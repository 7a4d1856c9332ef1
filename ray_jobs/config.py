"""Run configs: typed sections, strict loading, `key.path=value` overrides.

Every default lives in the section that declares it; a YAML file holds only the differences. Unknown keys and values out
of range are errors, all of them reported in one message.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from data_pipeline.corpus.build import PrepareOptions
from data_pipeline.errors import InputError
from data_pipeline.locations import AnyLocation, LocalPath, Location, locate_local
from data_pipeline.storage import cache_folder
from model.llm.config import ModelConfig
from ray_jobs.config_text import Written, apply_override, read_config
from ray_jobs.generate_options import GenerateOptions
from ray_jobs.places import expand_path, hide_secrets, make_absolute_uri
from ray_jobs.train_options import Section, TrainOptions, check_training

CONFIGS = Path(__file__).parent / "configs"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
NAMES_OR_FOLDERS = ("embed.encoder", "model.backbone")  # keys that may hold a path
AnyModel = TypeVar("AnyModel", bound=BaseModel)
_SHORT = reprlib.Repr()  # of values in messages
_SHORT.maxstring = _SHORT.maxother = 200


class AuditOptions(Section):
    """What `audit` looks at."""

    corpus: AnyLocation | None = None  # a folder that `prepare` wrote; None = the run's own


class EmbedOptions(Section):
    """The pass of every distinct medium through the frozen encoder (DESIGN idea 1)."""

    encoder: str = "imagebind_huge"  # a name that model.encoders.load_encoder knows, or a folder
    dtype: Literal["float16", "float32"] = "float16"  # of the stored vectors
    batch_size: int = Field(default=16, ge=1)  # media per encoder forward
    precision: Literal["float32", "bfloat16"] | None = None  # of the encoder; None = bfloat16 on GPUs, else float32
    num_actors: int = Field(default=1, ge=1)  # encoder replicas
    num_gpus: float = Field(default=0, ge=0)  # per actor
    node_resource: str | None = Field(default=None, min_length=1)  # a custom resource that actors take like a GPU
    threads_per_actor: int = Field(default=1, ge=1)  # torch threads of a CPU actor


class EvaluateOptions(Section):
    """Decoding and scoring of the test split."""

    top_k: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)  # questions per forward
    num_actors: int = Field(default=1, ge=1)
    num_gpus: float = Field(default=0, ge=0)  # per actor
    node_resource: str | None = Field(default=None, min_length=1)  # a custom resource that actors take like a GPU
    threads_per_actor: int = Field(default=1, ge=1)  # torch threads, and CPUs that an actor claims
    free_max_new_tokens: int = Field(default=64, ge=8)
    turn_max_new_tokens: int = Field(default=128, ge=8)  # of one turn of a dialogue
    shuffle_seed: int = 0  # of the shuffled-media ablation
    max_questions: int | None = Field(default=None, ge=1)  # a sample of so many, every kind its share; None = all
    agent_url: str = "http://127.0.0.1:8000"  # evaluate_agent: of the service; TOOLMM_API_KEY holds its key
    agent_model: str = "toolmm-agent"  # as GET /v1/models of the service lists it
    agent_concurrency: int = Field(default=8, ge=1)  # dialogues at the same time


class ExportOptions(Section):
    """The bundle."""

    adapter_dtype: Literal["float32", "bfloat16"] = "float32"  # of its weights on disk: bfloat16 halves what ships
    promote: Literal["if_better", "always"] = "if_better"  # which version MLflow's alias `champion` is given to


class TuneOptions(Section):
    """A sweep: many trainings over one corpus. `ray_jobs.tune.space` checks `parameters` before anything starts."""

    parameters: dict[str, Any] = Field(default_factory=dict)  # train.lr: a list of values, or {low, high, log}
    search: Literal["grid", "random", "optuna"] = "grid"  # grid = every combination of the lists
    num_trials: int = Field(default=16, ge=1)  # of search random and optuna
    scheduler: Literal["none", "asha"] = "none"  # asha = stop a trial that is behind others after as many epochs
    grace_epochs: int = Field(default=1, ge=1)  # asha: no trial is stopped before
    reduction_factor: float = Field(default=3, gt=1)  # asha: one in so many goes on at each of its halts
    max_concurrent: int | None = Field(default=None, ge=1)  # None = as many as fit; set: taken on trust (autoscaling)


class TrackingOptions(Section):
    """MLflow. `uri` None = what MLFLOW_TRACKING_URI says, as elsewhere, or else SQLite in the run's folder."""

    uri: str | None = None
    experiment: str = "toolmm"
    registered_model: str = "toolmm"


class FollowOptions(Section):
    """What `follow` keeps: a link to the champion's bundle."""

    link: LocalPath | None = None  # None = champion in runs_dir
    every_s: float | None = Field(default=None, gt=0)  # look again and again; None = once


class RayOptions(Section):
    """How a local Ray is started; ignored where RAY_ADDRESS names a cluster, as inside `ray job submit`."""

    num_cpus: int | None = Field(default=None, ge=2)  # logical CPUs; None = at least 8, so that no job starves another


class RunSpec(Section):
    """Everything that one run is made of; saved beside each checkpoint and in the bundle."""

    name: str = Field(default="toolmm", pattern=r"^[A-Za-z0-9._-]+$")
    runs_dir: AnyLocation = Path("runs")  # on a cluster a shared folder or one in a bucket, s3://bucket/runs
    lake_dir: AnyLocation | None = None  # the feature lake may be shared by runs; None = inside the run's folder
    seed: int = 0
    generate: GenerateOptions = GenerateOptions()
    prepare: PrepareOptions = PrepareOptions()
    audit: AuditOptions = AuditOptions()
    embed: EmbedOptions = EmbedOptions()
    model: ModelConfig = ModelConfig()
    train: TrainOptions = TrainOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    export: ExportOptions = ExportOptions()
    tune: TuneOptions = TuneOptions()
    tracking: TrackingOptions = TrackingOptions()
    follow: FollowOptions = FollowOptions()
    ray: RayOptions = RayOptions()

    @property
    def run_dir(self) -> Location:
        return (self.runs_dir / self.name).absolute()

    @property
    def work_dir(self) -> Path:
        """For what has to be on a disk: the run's folder, or where that is in a bucket, one of this machine's user."""
        run_dir = self.run_dir
        if isinstance(run_dir, Path):
            return run_dir
        return cache_folder() / "runs" / run_dir.scheme / run_dir.key

    @property
    def corpus_dir(self) -> Location:
        return self.run_dir / "corpus"

    @property
    def tokens_dir(self) -> Location:
        """Splits as token ids, by content; trials of a sweep share them."""
        return self.run_dir / "tokens"

    @property
    def vectors_dir(self) -> Location:
        """The media vectors of the corpus as one file, by content; trials of a sweep and `evaluate` share it."""
        return self.run_dir / "vectors"

    @property
    def backbones_dir(self) -> Path:
        """Backbones converted from GGUF, which all runs here share."""
        runs_dir = self.runs_dir if isinstance(self.runs_dir, Path) else cache_folder()
        return (runs_dir / "backbones").absolute()

    @property
    def spool_dir(self) -> Path:
        """Metrics on their way to the tracking server, until it has them."""
        return self.work_dir / "spool"

    @property
    def lake_path(self) -> Location:
        return (self.lake_dir or self.run_dir / "lake").absolute()

    @property
    def tracking_uri(self) -> str:
        """Of MLflow; InputError for a run in a bucket, where no database can lie, that names none."""
        if self.tracking.uri is None and self.work_dir != self.run_dir:
            raise InputError(
                f"the run is in a bucket ({self.run_dir}), where MLflow's database cannot lie; set tracking.uri or "
                f"{TRACKING_VARIABLE} to a server, or to sqlite:// with a path on a disk."
            )
        return self.tracking.uri or f"sqlite:///{self.work_dir / 'mlflow.db'}"

    @property
    def champion_link(self) -> Path:
        """InputError where `follow.link` is not set and runs_dir is in a bucket, which knows no links."""
        if self.follow.link is None and not isinstance(self.runs_dir, Path):
            raise InputError(
                f"runs_dir {self.runs_dir} is in a bucket, which knows no links; set follow.link to a path on a disk."
            )
        return locate_local(self.follow.link or self.runs_dir / "champion").absolute()

    def describe(self) -> dict[str, Any]:
        """All settings as JSON for others to read: the password of a tracking server is not among them."""
        found = self.model_dump(mode="json")
        if self.tracking.uri is not None:
            found["tracking"]["uri"] = hide_secrets(self.tracking.uri)
        return found

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


SECTIONS = frozenset(name for name, key in RunSpec.model_fields.items() if hasattr(key.annotation, "model_fields"))


def load_run_spec(config: str | None, overrides: Sequence[str]) -> RunSpec:
    """Merge defaults, the file and the overrides, check them all, and settle where paths lead.

    Args:
        config: path of a YAML file, or the name of one in `ray_jobs/configs`; None for the defaults.
        overrides: `key.path=value`, see `ray_jobs.config_text`; of two for a key the later one counts.

    Raises:
        InputError: names every unknown key with the valid ones, and every bad value.
    """
    written = read_config(_config_path(config)) if config is not None else Written()
    for override in overrides:
        apply_override(written, override, SECTIONS)
    for key in SECTIONS & written.values.keys():
        if written.values[key] is None:  # a section whose keys are all left out
            written.values[key] = {}
    spec = _settle_places(_validate(written))
    check_training(spec.model, spec.train)
    return spec


def config_names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _config_path(config: str) -> Path:
    for candidate in (locate_local(config), CONFIGS / f"{config}.yaml"):
        if candidate.exists() and not candidate.is_dir():
            return candidate
    fault = f"{config!r} is a folder" if config and Path(config).is_dir() else f"no run config {config!r}"
    raise InputError(f"{fault}: give the path of a YAML file or one of {', '.join(config_names())}.")


def _validate(written: Written) -> RunSpec:
    try:
        return RunSpec.model_validate(written.values)
    except ValidationError as error:
        if _restore_texts(written, error):
            return _validate(written)
        faults: dict[str, list[str]] = {}  # what is wrong, by key; each type of a choice has its own complaint
        for fault in error.errors():
            what, why = _describe_fault(fault, written.values)
            faults.setdefault(what, []).append(why)
        said = "; ".join(what + " or ".join(reasons) for what, reasons in faults.items())
        raise InputError(f"the run config has {len(faults)} fault(s): {said}") from error


def _restore_texts(written: Written, error: ValidationError) -> bool:
    """Where a text is wanted and YAML sees a number, as in name=2024, take what stands there; says whether it did."""
    is_changed = False
    for fault in error.errors():
        if fault["type"] in ("string_type", "path_type") and isinstance(fault["input"], bool | int | float):
            values: Any = written.values
            texts: Any = written.texts
            *parents, leaf = fault["loc"]
            if leaf == "[key]":  # it is not the value that is none
                continue
            for key in parents:
                values, texts = values[key], texts[key]
            values[leaf] = texts[leaf]
            is_changed = True
    return is_changed


def _describe_fault(fault: Any, tree: Any) -> tuple[str, str]:
    """The key and its value, and what is wrong there."""
    location: list[Any] = []
    for part in fault["loc"]:  # of a choice between types pydantic names the type as well
        is_there = part in tree if isinstance(tree, dict) else isinstance(tree, list) and part in range(len(tree))
        if not is_there:
            break
        location.append(part)
        tree = tree[part]
    path = ".".join(map(str, location))
    if fault["type"] != "extra_forbidden":
        message = fault["msg"][0].lower() + fault["msg"][1:]
        message = re.sub(r" or instance of \w+$", ": it is a section of keys", message)
        return f"{path} = {_SHORT.repr(tree)}: ", message
    section: Any = RunSpec
    for part in location[:-1]:
        section = section if isinstance(part, int) else _model_in(section.model_fields[part].annotation)
    valid = sorted(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), valid, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    if "." in str(location[-1]):
        hint = " (in a file, sections are written as mappings)"
    return f"unknown key {path!r}", f"{hint}; valid keys there are {', '.join(valid)}"


def _model_in(annotation: Any) -> Any:
    """The model that a field holds, or a list of."""
    return next((argument for argument in get_args(annotation) if hasattr(argument, "model_fields")), annotation)


def _settle_places(spec: RunSpec) -> RunSpec:
    """Expand `~` and variables in all paths, and make the tracking URI absolute."""
    spec = _expand_paths(spec, "")
    changes: dict[str, Any] = {}
    uri = (os.environ.get(TRACKING_VARIABLE, "") if spec.tracking.uri is None else spec.tracking.uri).strip()
    if uri or spec.tracking.uri is not None:
        changes["tracking"] = spec.tracking.model_copy(update={"uri": make_absolute_uri(uri)})
    backbones = spec.tune.parameters.get("model.backbone")
    if isinstance(backbones, list):
        expanded = [expand_path(one, "model.backbone") if isinstance(one, str) else one for one in backbones]
        parameters = spec.tune.parameters | {"model.backbone": expanded}
        changes["tune"] = spec.tune.model_copy(update={"parameters": parameters})
    return spec.model_copy(update=changes)


def _expand_paths(section: AnyModel, prefix: str) -> AnyModel:
    changes: dict[str, Any] = {}
    for name, value in section:
        key = prefix + name
        if isinstance(value, Path):
            changes[name] = Path(expand_path(str(value), key))
        elif key in NAMES_OR_FOLDERS:
            changes[name] = expand_path(value, key)
        elif isinstance(value, BaseModel):
            changes[name] = _expand_paths(value, f"{key}.")
        elif isinstance(value, list):
            changes[name] = [_expand_paths(one, f"{key}.") if isinstance(one, BaseModel) else one for one in value]
    return section.model_copy(update=changes)
