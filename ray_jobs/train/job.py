"""`train`: Ray Train starts the workers, DeepSpeed shards the optimizer, Ray Data streams the packs.

`launch` runs in the driver: it opens the corpus, tokenises it, finds or opens the MLflow run and starts the workers of
`ray_jobs.train.loop`. Submitted again, it goes on from the last checkpoint of the same job.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.train import FailureConfig, LoggingConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal import constants as train_constants

from data_pipeline import storage
from data_pipeline.batches.plan import count_seen
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate
from model.llm.config import ModelConfig
from ray_jobs.cluster import connect, ray_storage, tagged, thread_env
from ray_jobs.config import RunSpec
from ray_jobs.faults import describe_mendable
from ray_jobs.places import hide_secrets
from ray_jobs.progress import Progress
from ray_jobs.tracking.client import check_uri
from ray_jobs.tracking.runs import RunLogger, open_run
from ray_jobs.train.checkpoint import PARAMETERS_FILE, CheckpointStore, load_cursor, load_metrics
from ray_jobs.train.failures import OUT_OF_MEMORY, describe_failure
from ray_jobs.train.inputs import TrainInputs, build_inputs
from ray_jobs.train.loop import TrainJob
from ray_jobs.train.run_folder import name_proof, only_one, prove_shared, shown_to_all
from ray_jobs.train.trainer import Trainer
from ray_jobs.train.validation import SCORE_KEY
from ray_jobs.train.wide import train_wide
from ray_jobs.train.worker import train_loop_per_worker
from ray_jobs.train_options import TrainOptions
from ray_jobs.worker_output import told_to

TRAIN_FILE = "train.json"
ADDRESS_VARIABLE = "RAY_ADDRESS"
# what may differ between a job and the job that continues it
NOT_IN_FINGERPRINT = {
    "workers",
    "use_gpu",
    "cpus_per_worker",
    "node_resource",
    "zero_stage",
    "offload_optimizer",
    "max_failures",
    "max_preemption_failures",
    "max_steps",
    "checkpoint_every_steps",
    "wide",  # is fitted beside what the workers train
}


@dataclass(frozen=True)
class TrainSummary:
    """What `train` leaves behind for `evaluate` and `export`; `train.json` in the run's folder.

    Attributes:
        best_checkpoint: folder with the best validation accuracy.
        last_checkpoint: folder to resume from.
        metrics: reported with the best checkpoint.
        mlflow_run_id: the run.
        encoder_id: what made the media vectors; "" for text only.
        model_config: `ModelConfig` as a mapping, backbone resolved.
        data_hash: of the corpus.
        max_target_tokens: bound of the encoding.
        encoder_name: by which `embed` loaded the encoder of `encoder_id`; "" where that was not noted.
        validation_set: `ValidationSet.compute_id`; "" of a training from before it was noted.
        n_validated: questions and dialogues in it.
        wide: file of the wide head; "" for none.
    """

    best_checkpoint: str
    last_checkpoint: str
    metrics: dict[str, Any]
    mlflow_run_id: str
    encoder_id: str
    model_config: dict[str, Any]
    data_hash: str
    max_target_tokens: int
    encoder_name: str = ""
    validation_set: str = ""
    n_validated: int = 0
    wide: str = ""

    def save(self, run_dir: Location) -> None:
        storage.write_file(run_dir / TRAIN_FILE, json.dumps(self.__dict__, indent=2) + "\n")

    @classmethod
    def load(cls, run_dir: Location) -> TrainSummary:
        path = run_dir / TRAIN_FILE
        if not storage.exists(path):
            raise InputError(f"{path} is missing; run `train` first.")
        try:
            return cls(**json.loads(storage.read_bytes(path)))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); run `train` again, it goes on where it was.") from error

    def find_best_checkpoint(self) -> Location:
        """The folder of `best_checkpoint`; InputError where it is gone."""
        folder = locate(self.best_checkpoint)
        if not storage.exists(storage.open_folder(folder) / PARAMETERS_FILE):
            raise InputError(f"the checkpoint {folder} is gone or incomplete; run `train` again.")
        return folder

    def open_corpus(self, folder: Location) -> Corpus:
        """The corpus at `folder`; InputError unless it is the one that was trained on."""
        corpus = Corpus.open(folder)
        if corpus.data_hash != self.data_hash:
            raise InputError(
                f"the corpus at {corpus.path} is not the one that the model was trained on; run `train` on it, or "
                "prepare the former one again."
            )
        return corpus


def run(spec: RunSpec) -> dict[str, Any]:
    """The CLI's job: train and show where everything is."""
    connect(spec.ray)
    with Progress("train") as progress:
        with told_to(progress.show):
            summary = launch(spec)
        progress.reach(load_cursor(locate(summary.last_checkpoint)).step)
    summary.save(spec.run_dir)
    metrics = summary.metrics
    print(f"\nbest checkpoint   {summary.best_checkpoint}")
    for key, value in sorted(metrics.items()):
        print(f"{key:<44}{value:.4f}" if isinstance(value, float) else f"{key:<44}{value}")
    print(f"MLflow run        {summary.mlflow_run_id} at {hide_secrets(spec.tracking_uri)}")
    return {"best_checkpoint": summary.best_checkpoint, "mlflow_run_id": summary.mlflow_run_id, "metrics": metrics}


def launch(spec: RunSpec, parent_run_id: str | None = None, callbacks: Sequence[UserCallback] = ()) -> TrainSummary:
    """Train, or go on training.

    Args:
        spec: the run config.
        parent_run_id: MLflow run that this one is nested in.
        callbacks: Ray Train's; a sweep hears of each epoch through one.

    Raises:
        InputError: no corpus, no vectors, a backbone that cannot be loaded, a node that does not see the run's folder,
            or the job is under way already.
    """
    if not spec.train.use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed, once imported here, warns that it found none
    check_uri(spec.tracking_uri)  # before hours of tokenising
    prove_shared(spec.run_dir)
    corpus = Corpus.open(spec.corpus_dir)
    inputs = build_inputs(spec, corpus)
    fingerprint = compute_fingerprint(
        spec, inputs.model_config, corpus.data_hash, inputs.encoder_id, inputs.split.index
    )
    with only_one(spec.run_dir, f"train-{fingerprint}"):
        return _train(spec, corpus, inputs, fingerprint, parent_run_id, callbacks)


def _train(
    spec: RunSpec,
    corpus: Corpus,
    inputs: TrainInputs,
    fingerprint: str,
    parent_run_id: str | None,
    callbacks: Sequence[UserCallback],
) -> TrainSummary:
    run_id = open_run(
        spec.tracking_uri,
        spec.tracking.experiment,
        f"{spec.name}-{fingerprint}",
        fingerprint,
        spec.describe(),
        parent_run_id=parent_run_id,
    )
    tracker = RunLogger(spec.tracking_uri, run_id, spool_dir=spec.spool_dir)
    profile = json.dumps(corpus.manifest.get("counts", {}))
    tracker.log_dataset(spec.prepare.source, corpus.path, corpus.data_hash, "train", profile)
    _show_seen(inputs, spec, tracker)
    store = CheckpointStore(spec.run_dir / "checkpoints" / f"train-{fingerprint}", SCORE_KEY)
    job = TrainJob(
        spec=spec.model_dump(mode="json"),
        model_config=inputs.model_config.model_dump(mode="json"),
        questions=inputs.questions,
        plan=ray.put(inputs.plan),
        form=inputs.form,
        epoch_ends=inputs.plan.epoch_ends(spec.train.epochs),
        validation=inputs.validation,
        checkpoints=store.folder,
        seen_by_all=name_proof(spec.run_dir),
        tracking_uri=spec.tracking_uri,
        mlflow_run_id=run_id,
    )
    with shown_to_all(job.seen_by_all):
        _fit(spec, job, f"train-{fingerprint}", tracker, callbacks)
    wide = str(train_wide(spec, corpus)) if spec.train.wide else ""
    best, last = store.find_best(), store.find_last()
    assert best is not None
    assert last is not None
    return TrainSummary(
        best_checkpoint=str(best),
        last_checkpoint=str(last),
        metrics={key: value for key, value in load_metrics(best).items() if isinstance(value, int | float | str)},
        mlflow_run_id=run_id,
        encoder_id=inputs.encoder_id,
        model_config=inputs.model_config.model_dump(mode="json"),
        data_hash=corpus.data_hash,
        max_target_tokens=spec.train.max_target_tokens,
        encoder_name=inputs.encoder_name,
        validation_set=inputs.validation.compute_id(),
        n_validated=inputs.validation.n_questions,
        wide=wide,
    )


def compute_fingerprint(
    spec: RunSpec, model_config: ModelConfig, data_hash: str, encoder_id: str, index: PlanIndex
) -> str:
    """Names the job: same data, model, seed and training settings; another cluster shape is the same job.

    Args:
        spec: the run config.
        model_config: with the backbone resolved.
        data_hash: of the corpus.
        encoder_id: what made the media vectors; another encoder's are other data.
        index: sizes of the questions that can be used, in tokens: another tokenizer's, or without a medium, are others.
    """
    train = spec.train.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT)
    if spec.train.sampler == "paper":  # its micro batches are cut for a number of workers
        train["workers"] = spec.train.max_workers
    content = {
        "data": data_hash,
        "encoder": encoder_id,
        "questions": _hash_sizes(index),
        "model": model_config.model_dump(mode="json") | {"backbone": spec.model.backbone},
        "train": train,
        "seed": spec.seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def scale(train: TrainOptions) -> ScalingConfig:
    """How many workers a training asks Ray for, and what each of them takes of a node."""
    return ScalingConfig(
        num_workers=train.workers,  # a pair is Ray's elastic training
        use_gpu=train.use_gpu,
        resources_per_worker={"CPU": train.cpus_per_worker}
        | ({"GPU": 1} if train.use_gpu else {})
        | tagged(train.node_resource, 1),
    )


def _hash_sizes(index: PlanIndex) -> str:
    digest = hashlib.sha256(index.n_rows.astype(np.int64).tobytes())
    digest.update(index.row_tokens.astype(np.int64).tobytes())  # whatever they are kept as: a job keeps its name
    return digest.hexdigest()


def _show_seen(inputs: TrainInputs, spec: RunSpec, tracker: RunLogger) -> None:
    """How often each modality's rows are seen over the whole training: the samplers differ most in that."""
    seen = count_seen(inputs.plan, inputs.split.index, inputs.split.modalities, spec.train.epochs)
    print("rows are seen     " + ", ".join(f"{modality} {times:.1f} x" for modality, times in seen.items()))
    tracker.log_train_step({f"data/times_seen/{modality}": times for modality, times in seen.items()}, 0)


def _lost(what: str, checkpoint: Location | None, spec: RunSpec) -> InputError:
    """What is said once a training has lost processes more often than it may."""
    intact = (
        f"{checkpoint} is intact and the same command goes on from it" if checkpoint else "no checkpoint is there yet"
    )
    amount = f"pack_tokens={spec.train.pack_tokens}"
    if spec.train.layout == "rows":
        amount = f"micro_batch_size={spec.train.micro_batch_size}"
    mend = f"lower train.{amount}, raise train.zero_stage, run less beside it, or take nodes with more memory"
    if OUT_OF_MEMORY not in what:  # perhaps it was that all the same: the system kills processes too, and says nothing
        mend = f"raise it, or, where memory was short, {mend}"
    return InputError(f"{what}, and train.max_failures={spec.train.max_failures} is used up; {intact}; {mend}.")


@contextmanager
def _named_cluster() -> Iterator[None]:
    """Tell this cluster's address to what Ray Train starts.

    The workers of a job that is killed hold a placement group that Train's cleaner removes once the state API says that
    their controller is gone. Without an address it asks the Ray of the machine, and fails where there are two.
    """
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = ray.get_runtime_context().gcs_address
    train_constants.ENV_VARS_TO_PROPAGATE.add(ADDRESS_VARIABLE)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


def _fit(spec: RunSpec, job: TrainJob, name: str, tracker: RunLogger, callbacks: Sequence[UserCallback]) -> None:
    trainer = Trainer(
        train_loop_per_worker,
        train_loop_config={"job": ray.put(job)},
        torch_config=TorchConfig(backend="nccl" if spec.train.use_gpu else "gloo"),
        scaling_config=scale(spec.train),
        run_config=RayRunConfig(
            name=name,
            # Ray gets metrics only. Its own record of checkpoints is one file, rewritten in place: a kill while it is
            # written would end the job for good. `ray_jobs.train.checkpoint` keeps ours.
            **ray_storage(spec.run_dir),
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(
                max_failures=spec.train.max_failures, max_preemption_failures=spec.train.max_preemption_failures
            ),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": thread_env(spec.train.cpus_per_worker)},
        ),
    )
    try:
        with _named_cluster():
            result = trainer.fit()
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if describe_mendable(error) is None and (what := describe_failure(error)) is not None:
            raise _lost(what, CheckpointStore(job.checkpoints, SCORE_KEY).find_last(), spec) from error
        raise
    if result.error is not None:
        tracker.finish("FAILED")
        raise result.error
    tracker.finish()
