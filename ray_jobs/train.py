"""`train`: Ray Train starts the workers, DeepSpeed shards the optimizer, Ray Data streams the packs.

`launch` runs in the driver: it opens the corpus, tokenises it, finds or opens the MLflow run and starts the workers of
`ray_jobs.train_loop`. Submitted again, it goes on from the last checkpoint of the same job.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from data_pipeline.corpus_files import Corpus
from data_pipeline.encoding import encode_question, longest_answer
from data_pipeline.errors import InputError
from data_pipeline.prompts import render_prompt, render_target
from data_pipeline.schema import CORPUS_SCHEMA, ToolRecord
from data_pipeline.stream import StepPlan, TokenizedSplit, tokenize_split
from model.backbone import load_tokenizer
from model.config import ModelConfig
from model.tiny import build_tiny_backbone
from ray_jobs.checkpoint import PARAMETERS_FILE
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.features import MediaVectors, load_media_vectors, split_usable
from ray_jobs.tracking import RunLogger, open_run
from ray_jobs.train_loop import SCORE_KEY, TrainJob, ValidationSet, train_loop_per_worker

TRAIN_FILE = "train.json"
# what may differ between a job and the job that continues it
NOT_IN_FINGERPRINT = {"workers", "use_gpu", "cpus_per_worker", "zero_stage", "max_failures", "max_steps"}


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
    """

    best_checkpoint: str
    last_checkpoint: str
    metrics: dict[str, Any]
    mlflow_run_id: str
    encoder_id: str
    model_config: dict[str, Any]
    data_hash: str
    max_target_tokens: int

    def save(self, run_dir: Path) -> None:
        partial = run_dir / (TRAIN_FILE + ".partial")
        partial.write_text(json.dumps(self.__dict__, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, run_dir / TRAIN_FILE)

    @classmethod
    def load(cls, run_dir: Path) -> TrainSummary:
        path = run_dir / TRAIN_FILE
        if not path.is_file():
            raise InputError(f"{path} is missing; run `train` first.")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); run `train` again, it goes on where it was.") from error

    def find_best_checkpoint(self) -> Path:
        """The folder of `best_checkpoint`; InputError where it is gone."""
        folder = Path(self.best_checkpoint)
        if not (folder / PARAMETERS_FILE).is_file():
            raise InputError(f"the checkpoint {folder} is gone or incomplete; run `train` again.")
        return folder

    def open_corpus(self, folder: Path) -> Corpus:
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
    summary = launch(spec)
    metrics = summary.metrics
    print(f"\nbest checkpoint   {summary.best_checkpoint}")
    for key, value in sorted(metrics.items()):
        print(f"{key:<44}{value:.4f}" if isinstance(value, float) else f"{key:<44}{value}")
    print(f"MLflow run        {summary.mlflow_run_id} at {spec.tracking_uri}")
    return {"best_checkpoint": summary.best_checkpoint, "mlflow_run_id": summary.mlflow_run_id, "metrics": metrics}


def launch(spec: RunSpec) -> TrainSummary:
    """Train, or go on training, and write `train.json`.

    Raises:
        InputError: no corpus, no vectors, or a backbone that cannot be loaded.
    """
    if not spec.train.use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed, once imported here, warns that it found none
    corpus = Corpus.open(spec.corpus_dir)
    records = {split: list(corpus.records(split)) for split in ("train", "val")}
    vectors = load_media_vectors(spec, corpus, records["train"] + records["val"])
    train_records, unusable = split_usable(records["train"], vectors)
    val_records, _ = split_usable(records["val"], vectors)
    if unusable:
        print(f"train: {len(unusable)} of {len(records['train'])} training questions are left out: no media vector")
    model_config = resolve_model(spec, corpus, records["train"], vectors)
    tokenizer = load_tokenizer(model_config.backbone)
    reserve_tokens = longest_answer(tokenizer, corpus.catalog.tool_ids)
    for has_media in (True, False):  # that a long question can be cut to fit is checked here, before any task needs it
        long_question = "? " * spec.train.max_target_tokens
        encode_question(tokenizer, long_question, has_media, (), spec.train.max_target_tokens, reserve_tokens)
    split = _tokenize(spec, train_records, tokenizer, vectors, reserve_tokens)
    validation = _build_validation(spec, val_records, tokenizer, vectors, reserve_tokens, corpus)

    fingerprint = compute_fingerprint(spec, model_config, corpus.data_hash)
    run_id = open_run(
        spec.tracking_uri,
        spec.tracking.experiment,
        f"{spec.name}-{fingerprint}",
        fingerprint,
        spec.model_dump(mode="json"),
    )
    tracker = RunLogger(spec.tracking_uri, run_id)
    profile = json.dumps(corpus.manifest.get("counts", {}))
    tracker.log_dataset(spec.prepare.source, corpus.path, corpus.data_hash, "train", profile)
    job = TrainJob(
        spec=spec.model_dump(mode="json"),
        model_config=model_config.model_dump(mode="json"),
        split=split,
        plan=StepPlan(
            seed=spec.seed,
            global_batch_size=spec.train.global_batch_size,
            layout=spec.train.layout,
            pack_tokens=spec.train.pack_tokens,
            micro_batch_size=spec.train.micro_batch_size,
            pad_id=tokenizer.pad_token_id or 0,
            # FlexAttention works on blocks of 128 tokens, and compiles anew for every other length
            pad_to_multiple=128 if spec.train.use_gpu else 1,
        ),
        validation=validation,
        tracking_uri=spec.tracking_uri,
        mlflow_run_id=run_id,
    )
    result = _fit(spec, job, f"train-{fingerprint}", tracker)
    best = result.get_best_checkpoint(SCORE_KEY, "max") or result.checkpoint
    best_metrics = next((m for checkpoint, m in result.best_checkpoints if checkpoint == best), result.metrics or {})
    summary = TrainSummary(
        best_checkpoint=best.path,
        last_checkpoint=result.checkpoint.path,
        metrics={key: value for key, value in best_metrics.items() if isinstance(value, int | float | str)},
        mlflow_run_id=run_id,
        encoder_id=vectors.encoder_id,
        model_config=model_config.model_dump(mode="json"),
        data_hash=corpus.data_hash,
        max_target_tokens=spec.train.max_target_tokens,
    )
    summary.save(spec.run_dir)
    return summary


def resolve_model(spec: RunSpec, corpus: Corpus, train_records: list[ToolRecord], vectors: MediaVectors) -> ModelConfig:
    """Fill in what the corpus and the lake decide: the encoder's width, and the tiny backbone's folder."""
    changes: dict[str, Any] = {"encoder_dim": vectors.matrix.shape[1], "seed": spec.seed}
    if spec.model.backbone == "tiny":
        texts = [
            "".join(piece for piece in render_prompt(record.instruction, record.has_media) if piece)
            for record in train_records
        ]
        texts += [render_target(tool_id) for tool_id in corpus.catalog.tool_ids]
        changes["backbone"] = str(build_tiny_backbone(spec.run_dir / "backbone", texts, seed=spec.seed))
    return spec.model.model_copy(update=changes)


def compute_fingerprint(spec: RunSpec, model_config: ModelConfig, data_hash: str) -> str:
    """Names the job: same data, model, seed and training settings; another cluster shape is the same job."""
    content = {
        "data": data_hash,
        "model": model_config.model_dump(mode="json") | {"backbone": spec.model.backbone},
        "train": spec.train.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT),
        "seed": spec.seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _tokenize(
    spec: RunSpec, records: list[ToolRecord], tokenizer: Any, vectors: MediaVectors, reserve_tokens: int
) -> TokenizedSplit:
    import pyarrow as pa

    table = pa.Table.from_pylist([record.to_row() for record in records], schema=CORPUS_SCHEMA)
    return tokenize_split(
        ray.data.from_arrow(table),
        tokenizer,
        vectors.rows,
        vectors.matrix,
        spec.train.max_target_tokens,
        reserve_tokens,
        spec.train.global_batch_size,
    )


def _build_validation(
    spec: RunSpec,
    records: list[ToolRecord],
    tokenizer: Any,
    vectors: MediaVectors,
    reserve_tokens: int,
    corpus: Corpus,
) -> ValidationSet:
    records = records[: spec.train.validation_questions]
    encoded = [
        encode_question(
            tokenizer, record.instruction, record.has_media, (), spec.train.max_target_tokens, reserve_tokens
        )
        for record in records
    ]
    return ValidationSet(
        records=records,
        prompt_ids=[question.prompt_ids for question in encoded],
        media=[vectors.get(record) for record in records],
        tool_ids=list(corpus.catalog.tool_ids),
        batch_size=spec.evaluate.batch_size,
    )


def _fit(spec: RunSpec, job: TrainJob, name: str, tracker: RunLogger) -> Any:
    has_validation = bool(job.validation.records)
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if spec.train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.train.workers,
            use_gpu=spec.train.use_gpu,
            resources_per_worker={"CPU": spec.train.cpus_per_worker} | ({"GPU": 1} if spec.train.use_gpu else {}),
        ),
        run_config=RayRunConfig(
            name=name,
            storage_path=str(spec.run_dir / "checkpoints"),
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=spec.train.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,  # the best; Train keeps the last as well
                checkpoint_score_attribute=SCORE_KEY if has_validation else None,
            ),
        ),
    )
    try:
        result = trainer.fit()
    except BaseException:
        tracker.finish("FAILED")
        raise
    if result.error is not None:
        tracker.finish("FAILED")
        raise result.error
    tracker.finish()
    return result
