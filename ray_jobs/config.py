"""Run configs: typed sections, strict loading, `key.path=value` overrides.

Every default lives in the section that declares it; a YAML file holds only the differences. Unknown keys and values out
of range are errors, all of them reported in one message.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.corpus.build import PrepareOptions
from data_pipeline.errors import InputError
from data_pipeline.locations import AnyLocation, LocalPath, Location, locate_local
from data_pipeline.storage import cache_folder
from model.llm.config import ModelConfig

CONFIGS = Path(__file__).parent / "configs"

WorkerCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the run config: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbedOptions(Section):
    """The pass of every distinct medium through the frozen encoder (DESIGN idea 1)."""

    encoder: str = "imagebind_huge"  # a name that model.encoders.load_encoder knows, or a folder
    dtype: Literal["float16", "float32"] = "float16"  # of the stored vectors
    batch_size: int = Field(default=16, ge=1)  # media per encoder forward
    num_actors: int = Field(default=1, ge=1)  # encoder replicas
    num_gpus: float = Field(default=0, ge=0)  # per actor
    threads_per_actor: int = Field(default=1, ge=1)  # torch threads of a CPU actor


class TrainOptions(Section):
    """Ray Train and DeepSpeed. Defaults are MLLM-Tool's Table 4 for 7B models, but for the packed layout."""

    epochs: int = Field(default=5, ge=1)
    global_batch_size: int = Field(default=64, ge=1)  # question-answer rows per optimizer step, over all workers
    layout: Literal["packed", "rows"] = "packed"  # rows = the papers' way: one sequence for every answer
    pack_tokens: int = Field(default=2048, ge=16)  # token budget of one micro step of one worker
    micro_batch_size: int = Field(default=4, ge=1)  # rows per micro step of one worker; layout=rows only
    max_target_tokens: int = Field(default=512, ge=16)  # question + answer after the media slot; the question is cut
    lr: float = Field(default=5e-4, gt=0)  # peak
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.001, ge=0)
    warmup_steps: int = Field(default=10, ge=0)  # schedule=linear only; the reference derives its own
    schedule: Literal["linear", "reference"] = "linear"  # linear = the paper's; reference = the released code's
    sampler: Literal["uniform", "paper"] = "uniform"  # paper = MLLM-Tool's rotation of modalities; layout=rows only
    mixture: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict
    )  # source -> times that each of its records is seen in an epoch; 1 where not named
    lora_plus_ratio: float = Field(default=1.0, ge=1)  # LoRA+: learning rate of the B matrices over that of the others
    projector_epochs: int = Field(default=0, ge=0)  # two-stage schedule: so many first epochs train the projector alone
    max_grad_norm: float = Field(default=1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False  # optimizer state in CPU memory; zero_stage 1 to 3
    workers: WorkerCount | tuple[WorkerCount, WorkerCount] = 1  # one GPU each where use_gpu; [min, max] = elastic
    use_gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)
    max_failures: int = Field(default=3, ge=0)  # worker failures that Ray Train restarts from the last checkpoint
    checkpoint_every_steps: int | None = Field(default=None, ge=1)  # besides the checkpoint at the end of every epoch
    max_dialogue_tokens: int = Field(default=2048, ge=64)  # longer dialogues are left out and counted
    validation_questions: int = Field(default=512, ge=0)  # at most so many questions are decoded after each epoch
    validation_dialogues: int = Field(default=64, ge=0)  # likewise
    max_steps: int | None = Field(
        default=None, ge=1
    )  # stop early: for trials and smoke runs; the schedule keeps its length

    @property
    def max_workers(self) -> int:
        """Workers of a run that has all the machines it may use."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class EvaluateOptions(Section):
    """Decoding and scoring of the test split."""

    top_k: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)  # questions per forward
    num_actors: int = Field(default=1, ge=1)
    num_gpus: float = Field(default=0, ge=0)  # per actor
    free_max_new_tokens: int = Field(default=64, ge=8)
    turn_max_new_tokens: int = Field(default=128, ge=8)  # of one turn of a dialogue
    shuffle_seed: int = 0  # of the shuffled-media ablation
    max_questions: int | None = Field(default=None, ge=1)  # the first so many; None = all
    agent_url: str = "http://127.0.0.1:8000"  # evaluate_agent: of the service; TOOLMM_API_KEY holds its key
    agent_model: str = "toolmm-agent"  # as GET /v1/models of the service lists it
    agent_concurrency: int = Field(default=8, ge=1)  # dialogues at the same time


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
    """MLflow. `uri` None = SQLite in the run's folder."""

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
    prepare: PrepareOptions = PrepareOptions()
    embed: EmbedOptions = EmbedOptions()
    model: ModelConfig = ModelConfig()
    train: TrainOptions = TrainOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
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
                f"the run is in a bucket ({self.run_dir}), where MLflow's database cannot lie; set tracking.uri to a "
                "server, or to sqlite:// with a path on a disk."
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

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_run_spec(config: str | None, overrides: Sequence[str]) -> RunSpec:
    """Merge defaults, the file and the overrides, and check them all.

    Args:
        config: path of a YAML file, or the name of one in `ray_jobs/configs`; None for the defaults.
        overrides: `key.path=value`; values are read as YAML.

    Raises:
        InputError: names every unknown key with the valid ones, and every bad value.
    """
    tree = _read_yaml(_config_path(config)) if config else {}
    for override in overrides:
        _apply_override(tree, override)
    try:
        spec = RunSpec.model_validate(tree)
    except ValidationError as error:
        faults = "; ".join(_describe_fault(fault) for fault in error.errors())
        raise InputError(f"the run config has {error.error_count()} fault(s): {faults}") from error
    check_training(spec.model, spec.train)
    return spec


def check_training(model: ModelConfig, train: TrainOptions) -> None:
    """Refuse, before any worker starts, what DeepSpeed and the adapters cannot do together.

    Raises:
        InputError: says which two settings do not go together, and what to set instead.
    """
    if train.zero_stage == 0 and train.offload_optimizer:
        raise InputError(
            "train.offload_optimizer=true needs a sharded optimizer, but train.zero_stage is 0; set it to 1, 2 or 3."
        )
    if train.zero_stage == 0 and model.dtype == "bfloat16":
        # DeepSpeed's unsharded bf16 optimizer takes a step when it is built, so a resumed run would not go on exactly.
        raise InputError("model.dtype=bfloat16 does not train exactly under train.zero_stage=0; set it to 1, 2 or 3.")
    if model.quantize != "none" and train.zero_stage == 3:
        raise InputError(
            f"model.quantize={model.quantize} does not go with train.zero_stage=3, which cannot shard packed 4-bit "
            "weights; set train.zero_stage to 2 (the frozen weights are small then), or model.quantize to none."
        )
    if model.quantize != "none" and not train.use_gpu:
        raise InputError(f"model.quantize={model.quantize} needs CUDA; set train.use_gpu=true or model.quantize=none.")


def config_names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _config_path(config: str) -> Path:
    for candidate in (locate_local(config), CONFIGS / f"{config}.yaml"):
        if candidate.is_file():
            return candidate
    raise InputError(f"no run config {config!r}: give the path of a YAML file or one of {', '.join(config_names())}.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; give a YAML file saved as UTF-8.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold a mapping of config keys, not a {type(tree).__name__}.")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise InputError(f"override {override!r} is not of the form key.path=value, for example train.epochs=3.")
    *parents, leaf = path.split(".")
    for key in parents:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise InputError(f"override {override!r}: {key!r} is a value, not a section.")
        tree = child
    try:
        tree[leaf] = yaml.load(text, Loader=_NumberLoader)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: the value is not valid YAML.") from error


class _NumberLoader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-4 as a string; people who set learning rates mean a number."""


_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _describe_fault(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    path = ".".join(location)
    if fault["type"] != "extra_forbidden":
        return f"{path} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
    section: Any = RunSpec
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    valid = sorted(section.model_fields)
    close = difflib.get_close_matches(location[-1], valid, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown key {path!r}{hint}; valid keys there are {', '.join(valid)}"
