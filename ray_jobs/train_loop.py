"""The training loop of one Ray Train worker."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint

from data_pipeline.prompts import render_target
from data_pipeline.schema import ToolRecord
from data_pipeline.stream import MicroStep, StepPlan, TokenizedSplit, stream_micro_steps
from model.config import ModelConfig
from model.decode import Prompt, greedy_tools
from model.metrics import SelectionScores, score_records
from model.mllm import ToolLLM, to_tensors
from model.trie import CatalogTrie
from ray_jobs.checkpoint import Cursor, load_cursor, load_moments, load_parameters, save_checkpoint
from ray_jobs.config import RunSpec
from ray_jobs.schedule import linear_lr
from ray_jobs.tracking import RunLogger

SCORE_KEY = "val/tool_accuracy"
PROGRESS_INTERVAL_S = 5.0


@dataclass(frozen=True)
class ValidationSet:
    """Held-out questions, encoded; `media` holds float32 [E] or None per question."""

    records: list[ToolRecord]
    prompt_ids: list[np.ndarray]
    media: list[np.ndarray | None]
    tool_ids: list[str]
    batch_size: int


@dataclass(frozen=True)
class TrainJob:
    """Everything that a worker needs; the large parts are references into the object store."""

    spec: dict[str, Any]
    model_config: dict[str, Any]
    split: TokenizedSplit
    plan: StepPlan
    validation: ValidationSet
    tracking_uri: str
    mlflow_run_id: str


@dataclass
class StepSums:
    """Sums of one optimizer step on this rank."""

    loss: float = 0.0
    hits: float = 0.0
    rows: int = 0
    wait_s: float = 0.0


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train from the last checkpoint (or from nothing) to the end; report once an epoch."""
    job: TrainJob = config["job"]
    spec = RunSpec.model_validate(job.spec)
    if not spec.train.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is first imported, which is below
    import deepspeed

    # Our own progress lines say it; warnings still come through.
    logging.disable(logging.INFO)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    from ray_jobs.zero import (
        deepspeed_config,
        disable_compiled_collectives,
        gather_training_state,
        named_trainables,
        restore_training_state,
    )

    if not spec.train.use_gpu:
        disable_compiled_collectives()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    total_steps = job.split.steps * spec.train.epochs
    end_step = min(total_steps, spec.train.max_steps or total_steps)

    # --- model, optimizer, and where we stand
    model_config = ModelConfig.model_validate(job.model_config)
    mllm = ToolLLM.build(model_config)
    cursor, moments = Cursor(0, 0, job.mlflow_run_id), None
    parameters: dict[str, torch.Tensor] = {}
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            cursor = load_cursor(Path(folder))
            parameters, moments = load_parameters(Path(folder)), load_moments(Path(folder))
        mllm.load_trainable_state_dict(parameters)
    trainables: Any = [parameter for _, parameter in named_trainables(mllm)]
    config_json = deepspeed_config(spec.train, model_config.dtype)
    engine: Any = deepspeed.initialize(model=mllm, model_parameters=trainables, config=config_json)[0]
    if moments is not None:
        restore_training_state(engine, parameters, moments, cursor.step)
    tracker = RunLogger(job.tracking_uri, job.mlflow_run_id, system_metrics=True) if rank == 0 else None
    progress = Progress(total_steps=total_steps, first_step=cursor.step, is_shown=rank == 0)

    # --- steps
    engine.train()
    sums, epoch_loss, started_step, lr = StepSums(), [], -1, 0.0
    stream = stream_micro_steps(job.split, job.plan, rank, world_size, cursor.step, end_step)
    for micro, wait_s in _timed(stream):
        step = micro.step
        if step != started_step:
            started_step = step
            torch.manual_seed(_dropout_seed(spec.seed, step, rank))
            lr = linear_lr(step, total_steps, spec.train.lr, spec.train.warmup_steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = lr
        output = engine(to_tensors(micro.batch, micro.media, engine.device))
        # DeepSpeed averages gradients over the ranks; the step's loss is a mean over all its answer tokens.
        engine.backward(output.loss_sum * (world_size / micro.step_weight))
        sums.loss += float(output.loss_sum.detach())
        sums.hits += float(output.n_correct)
        sums.rows += micro.batch.n_rows
        sums.wait_s += wait_s
        if not micro.is_last:
            continue
        engine.step()

        # --- account for the step
        metrics = _reduce(sums, micro, world_size, engine.device)
        metrics |= {"train/lr": lr, "train/grad_norm": float(engine.get_global_grad_norm() or 0.0)}
        sums = StepSums()
        if not math.isfinite(metrics["train/loss"]):
            raise FloatingPointError(f"the loss of step {step} is {metrics['train/loss']}: lower train.lr.")
        epoch_loss.append(metrics["train/loss"])
        metrics |= progress.update(step, metrics)
        if tracker:
            tracker.log_train_step(metrics, step)
        if (step + 1) % job.split.steps and step + 1 != end_step:
            continue

        # --- end of an epoch, or of the training
        epoch = -(-(step + 1) // job.split.steps)
        scores = validate(engine, mllm, job.validation, rank, world_size, lockstep=spec.train.zero_stage == 3)
        report = {"epoch": epoch, "step": step + 1, "train/epoch_loss": float(np.mean(epoch_loss))} | scores
        epoch_loss = []
        cursor = Cursor(step + 1, epoch, job.mlflow_run_id)
        state = gather_training_state(engine)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:
                report["checkpoint_bytes"] = save_checkpoint(Path(folder), *state, cursor)
                saved = Checkpoint.from_directory(folder)
            ray.train.report(report, checkpoint=saved)
        if tracker:
            tracker.log_metrics({key: value for key, value in report.items() if "/" in key}, step)
            progress.show_epoch(report)
        engine.train()
    if tracker:
        tracker.close()


def validate(
    engine: Any, mllm: ToolLLM, validation: ValidationSet, rank: int, world_size: int, lockstep: bool
) -> dict[str, float]:
    """Answer the held-out questions under the catalogue and score them; every rank returns the same.

    Args:
        engine: DeepSpeed's, for its device.
        mllm: the module that it trains.
        validation: the questions.
        rank, world_size: of this worker.
        lockstep: ZeRO-3 gathers weights in every forward pass, so all ranks must make the same passes: each answers all
            the questions. Otherwise they share them out.
    """
    if not validation.records:
        return {}
    mine = range(len(validation.records)) if lockstep else range(rank, len(validation.records), world_size)
    trie = CatalogTrie(validation.tool_ids, mllm.tokenizer)
    answers: dict[int, str] = {}
    with _gathered_head(mllm) if lockstep else nullcontext():
        for start in range(0, len(mine), validation.batch_size):
            chosen = mine[start : start + validation.batch_size]
            prompts = [Prompt(validation.prompt_ids[i], validation.media[i]) for i in chosen]
            for i, tool in zip(chosen, greedy_tools(mllm, prompts, trie), strict=True):
                answers[i] = render_target(tool.tool_id)
    if not lockstep and world_size > 1:
        gathered: list[Any] = [None] * world_size
        dist.all_gather_object(gathered, answers)
        answers = {i: answer for part in gathered for i, answer in part.items()}
    responses = [[answers[i]] for i in range(len(validation.records))]
    return _name_scores(score_records(validation.records, responses, validation.tool_ids))


def _name_scores(scores: SelectionScores) -> dict[str, float]:
    metrics = {SCORE_KEY: scores.groups["overall"].acc.value}
    for group, score in scores.groups.items():
        if group != "overall":
            metrics[f"{SCORE_KEY}/{group.replace(':', '_')}"] = score.acc.value
    return metrics


def _gathered_head(mllm: ToolLLM) -> Any:
    """Decoding reads rows of the head's weight directly; under ZeRO-3 it is there only while gathered."""
    import deepspeed

    causal_lm: Any = mllm.llm.get_base_model()
    head = causal_lm.get_output_embeddings()
    return deepspeed.zero.GatheredParameters(list(head.parameters()))


def _timed(stream: Iterator[MicroStep]) -> Iterator[tuple[MicroStep, float]]:
    """Each micro step with the seconds that the loop waited for it; the stream's own start, once a run, is left out."""
    wait_s, start = 0.0, 0.0
    while (micro := next(stream, None)) is not None:
        if start:
            wait_s = time.perf_counter() - start
        yield micro, wait_s
        start = time.perf_counter()


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Dropout is drawn anew from this at every step, so a resumed run draws what the first run would have."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _reduce(sums: StepSums, micro: MicroStep, world_size: int, device: torch.device) -> dict[str, float]:
    """The step's metrics over all ranks."""
    total = torch.tensor([sums.loss, sums.hits, sums.rows, sums.wait_s], dtype=torch.float64, device=device)
    if world_size > 1:
        dist.all_reduce(total)
    loss, hits, rows, wait_s = total.tolist()
    return {
        "train/loss": loss / micro.step_weight,
        "train/token_accuracy": hits / micro.step_weight,
        "train/rows": rows,
        "train/data_wait_s": wait_s / world_size,
    }


def _say(line: str) -> None:
    """Straight to stdout, which Ray shows in the driver: Ray Train's patched `print` would show each line twice."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Progress:
    """One dense line every few seconds: step, loss, token accuracy, samples/s, data wait, time left."""

    def __init__(self, total_steps: int, first_step: int, is_shown: bool) -> None:
        self._total_steps = total_steps
        self._is_shown = is_shown
        self._last_line = self._last_step_time = time.perf_counter()
        self._taken_s: list[float] = []
        self._rows = self._seconds = self._waited = 0.0
        if is_shown and first_step:
            _say(f"resuming at step {first_step} of {total_steps}")

    def update(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Take note of a finished step; returns its rates."""
        now = time.perf_counter()
        taken_s, self._last_step_time = now - self._last_step_time, now
        self._taken_s = [*self._taken_s[-49:], taken_s]
        self._rows += metrics["train/rows"]
        self._seconds += taken_s
        self._waited += metrics["train/data_wait_s"]
        rates = {
            "train/samples_per_s": metrics["train/rows"] / taken_s,
            "train/data_wait_frac": metrics["train/data_wait_s"] / taken_s,
        }
        if self._is_shown and (now - self._last_line >= PROGRESS_INTERVAL_S or step + 1 == self._total_steps):
            eta_s = float(np.median(self._taken_s)) * (self._total_steps - step - 1)
            _say(
                f"step={step + 1}/{self._total_steps} loss={metrics['train/loss']:.4f} "
                f"token_acc={metrics['train/token_accuracy']:.3f} lr={metrics['train/lr']:.2e} "
                f"samples/s={self._rows / self._seconds:.1f} data_wait={100 * self._waited / self._seconds:.1f}% "
                f"eta={eta_s:.0f}s"
            )
            self._last_line, self._rows, self._seconds, self._waited = now, 0.0, 0.0, 0.0
        return rates

    def show_epoch(self, report: dict[str, Any]) -> None:
        groups = ("", "/with_ambiguity", "/modality_text", "/modality_image", "/modality_audio", "/modality_video")
        shown = {
            f"val_acc{group.replace('/modality', '').replace('/', '_')}": report.get(SCORE_KEY + group)
            for group in groups
        }
        scores = " ".join(f"{name}={value:.3f}" for name, value in shown.items() if value is not None)
        _say(f"epoch={report['epoch']} mean_loss={report['train/epoch_loss']:.4f} {scores}")
        self._last_step_time = time.perf_counter()
