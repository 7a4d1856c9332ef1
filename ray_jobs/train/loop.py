"""The training loop of one Ray Train worker."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.execution.context import get_train_context

from data_pipeline.batches.stream import BatchForm, MicroStep, stream_micro_steps
from data_pipeline.batches.tokenized import StoredQuestions
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from model.llm.backbone import is_slow_in
from model.llm.config import ModelConfig
from model.llm.tool_llm import to_tensors
from ray_jobs.config import RunSpec
from ray_jobs.tracking.runs import RunLogger
from ray_jobs.train.checkpoint import CheckpointStore, Cursor, load_cursor, load_metrics, load_moments, load_parameters
from ray_jobs.train.progress import StepProgress
from ray_jobs.train.run_folder import check_shared
from ray_jobs.train.schedule import learning_rate
from ray_jobs.train.validation import SCORE_KEY, ValidationSet, validate
from ray_jobs.worker_output import tell_line


@dataclass(frozen=True)
class TrainJob:
    """Everything that a worker needs; the large parts are references into the object store.

    Attributes:
        spec: the RunSpec as a mapping.
        model_config: the ModelConfig as a mapping, backbone resolved.
        questions: the training split as token ids.
        plan: reference to the `TrainingPlan`.
        form: how a micro step becomes arrays.
        epoch_ends: number of steps after which each epoch is complete.
        validation: what is answered after each epoch.
        checkpoints: folder of the job's checkpoints, on a file system that all workers share.
        seen_by_all: a file in the run's folder that proves that they do.
        tracking_uri: of MLflow.
        mlflow_run_id: the run.
    """

    spec: dict[str, Any]
    model_config: dict[str, Any]
    questions: StoredQuestions
    plan: Any
    form: BatchForm
    epoch_ends: list[int]
    validation: ValidationSet
    checkpoints: Location
    seen_by_all: Location
    tracking_uri: str
    mlflow_run_id: str


@dataclass
class StepSums:
    """Sums of one optimizer step on this rank: loss, what was hit of what there was, rows, seconds of waiting."""

    loss: float = 0.0
    hits: float = 0.0
    targets: float = 0.0
    chosen: float = 0.0
    choices: float = 0.0
    found: float = 0.0
    asked: float = 0.0
    rows: float = 0.0
    wait_s: float = 0.0
    leaving: float = 0.0  # ranks whose Ray says that a node is about to be taken


def run_training(job: TrainJob) -> None:
    """Train from the last checkpoint (or from nothing) to the end.

    Raises:
        InputError: what would fail again if it were tried again, a divergence among it.
    """
    spec = RunSpec.model_validate(job.spec)
    check_shared(job.seen_by_all)
    if not spec.train.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is first imported, which is below

    # Our own progress lines say it; warnings still come through. What Ray Data fails with is raised, and shown then.
    logging.disable(logging.INFO)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    from ray_jobs.train.partitioned import build_model
    from ray_jobs.train.zero import (
        MIN_LOSS_SCALE,
        disable_compiled_collectives,
        find_loss_scale,
        gather_training_state,
        has_skipped,
        restore_loss_scaler,
        restore_training_state,
        save_loss_scaler,
        set_learning_rates,
        start_engine,
    )

    if not spec.train.use_gpu:
        disable_compiled_collectives()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    total_steps = job.epoch_ends[-1]
    end_step = min(total_steps, spec.train.max_steps or total_steps)
    projector_steps = job.epoch_ends[spec.train.projector_epochs - 1] if spec.train.projector_epochs else 0

    # --- model, optimizer, and where we stand
    model_config = ModelConfig.model_validate(job.model_config)
    mllm = build_model(model_config, spec.train)
    store = CheckpointStore(job.checkpoints, SCORE_KEY)
    if rank == 0:
        store.check_space(sum(parameter.numel() for parameter in mllm.parameters() if parameter.requires_grad))
    last: Location | None = broadcast_from_rank_zero(store.find_last() if rank == 0 else None)
    cursor = load_cursor(last) if last else Cursor(0, 0, job.mlflow_run_id)
    parameters = load_parameters(last) if last else {}
    if last:
        mllm.load_trainable_state_dict(parameters)
    engine = start_engine(mllm, spec.train)
    if last:
        restore_training_state(engine, parameters, load_moments(last), cursor.step - cursor.skipped_steps)
        restore_loss_scaler(engine, cursor.loss_scaler)
        if "train/epoch_loss" in (reported := load_metrics(last)):
            ray.train.report(reported)  # again: at the end of an epoch its report may have been on its way at the kill
    del parameters
    tracker = None
    if rank == 0:
        tracker = RunLogger(job.tracking_uri, job.mlflow_run_id, system_metrics=True, spool_dir=spec.spool_dir)
        if is_slow_in(model_config.dtype, engine.device.type):
            what = f"this processor has no {model_config.dtype}; with model.dtype=float32 it goes far faster"
            tell_line(job.checkpoints.name, what)
    progress = StepProgress(job.checkpoints.name, end_step, cursor.step, is_shown=rank == 0)

    # --- steps
    engine.train()
    sums, started_step, lr, is_saved_for_leaving = StepSums(), -1, 0.0, False
    stream = stream_micro_steps(job.questions, job.plan, job.form, rank, world_size, cursor.step, end_step)
    for micro, wait_s in _timed(stream):
        step = micro.step
        if step != started_step:
            started_step = step
            torch.manual_seed(_dropout_seed(spec.seed, step, rank))
            lr = learning_rate(spec.train, step, total_steps)
            set_learning_rates(engine, lr, adapter_open=step >= projector_steps)
        output = engine(to_tensors(micro.batch, micro.media, engine.device, micro.retrieval))
        # DeepSpeed averages gradients over the ranks; the step's loss is a mean over all its answer tokens.
        engine.backward(output.loss_sum * (world_size / micro.step_weight))
        sums.loss += float(output.loss_sum.detach())
        sums.hits += float(output.n_correct)
        sums.targets += float(output.weight_sum)
        sums.chosen += float(output.n_chosen)
        sums.choices += float(output.n_choices)
        sums.found += float(output.n_found)
        sums.asked += float(output.n_asked)
        sums.rows += micro.batch.n_rows
        sums.wait_s += wait_s
        if not micro.is_last:
            continue
        scale = find_loss_scale(engine)
        engine.step()

        # --- account for the step
        sums.leaving = float(_is_node_leaving())
        summed = _reduce(sums, world_size, engine.device)
        metrics = _describe(summed, micro, world_size)
        metrics["train/lr"] = lr
        is_skipped = has_skipped(engine)
        cursor = replace(cursor, skipped_steps=cursor.skipped_steps + is_skipped)
        if scale is not None:
            metrics |= {"train/loss_scale": scale, "train/skipped_steps": float(cursor.skipped_steps)}
        is_lost = is_skipped and scale is not None and scale <= MIN_LOSS_SCALE  # no smaller scale would save them
        grad_norm = engine.get_global_grad_norm()
        if grad_norm is not None and (is_lost or not is_skipped):  # ZeRO-0 does not say
            metrics["train/grad_norm"] = float(grad_norm)
        sums = StepSums()
        for name in ("loss", "grad_norm"):  # DeepSpeed skips an update whose gradients overflow, and says nothing
            if not math.isfinite(metrics.get(f"train/{name}", 0.0)):
                if tracker:
                    tracker.log_train_step(metrics, step)
                    tracker.close()
                what = f"the {name} of step {step} is {metrics[f'train/{name}']}"
                raise _diverged(what, step - cursor.skipped_steps, lr, spec)
        cursor = replace(
            cursor,
            step=step + 1,
            epoch_loss_sum=cursor.epoch_loss_sum + metrics["train/loss"],
            epoch_steps=cursor.epoch_steps + 1,
        )
        metrics |= progress.update(step, metrics)
        if tracker:
            tracker.log_train_step(metrics, step)

        # --- end of an epoch, or of the training
        is_epoch_end = cursor.step in job.epoch_ends
        report: dict[str, Any] = {"step": cursor.step, "epoch": cursor.epoch + is_epoch_end}
        if is_epoch_end or cursor.step == end_step:
            report["train/epoch_loss"] = cursor.epoch_loss_sum / cursor.epoch_steps
            progress.start_validation()
            try:
                report |= validate(mllm, job.validation, rank, world_size, is_parted=spec.train.zero_stage == 3)
            except FloatingPointError as error:
                raise _diverged(f"after step {step} {error}", cursor.step - cursor.skipped_steps, lr, spec) from error
            engine.train()
            if tracker:
                tracker.log_train_step({key: value for key, value in report.items() if "/" in key}, step)
                progress.show_epoch(report)
            ray.train.report(report)
        elif summed.leaving and not is_saved_for_leaving:  # the node's last minutes: nothing that was done is lost
            is_saved_for_leaving = True
            if rank == 0:
                tell_line(job.checkpoints.name, f"a node is about to be taken: checkpoint of step {cursor.step}")
        elif cursor.step % (spec.train.checkpoint_every_steps or end_step):
            continue
        if is_epoch_end:
            cursor = replace(cursor, epoch=cursor.epoch + 1, epoch_loss_sum=0.0, epoch_steps=0)

        # --- checkpoint: gathered by all, written by one, and no one goes on before it is there
        state = gather_training_state(engine)
        if rank == 0:
            store.save(*state, replace(cursor, loss_scaler=save_loss_scaler(engine)), report)
        if world_size > 1:
            dist.barrier()
        progress.resume_clock()
    if tracker:
        tracker.close()
    progress.end()


def _diverged(what: str, updates: int, lr: float, spec: RunSpec) -> InputError:
    """What is not finite, and how to mend it. The same steps would lead there again, so nothing is tried again.

    Args:
        what: is not finite.
        updates: of the weights, before that.
        lr: of that step.
        spec: the run config.
    """
    train = spec.train
    if updates <= 0:
        why = "before any weight has changed: the backbone's weights or the media vectors are bad"
        mend = "check model.backbone and model.dtype, and run `embed` again"
    else:
        why = f"the training has diverged, at a learning rate of {lr:.3g}, and would again with these settings"
        mend = f"lower train.lr={train.lr:g} or train.max_grad_norm={train.max_grad_norm:g}"
        if train.schedule == "linear":
            mend += f", or raise train.warmup_steps={train.warmup_steps}"
    if spec.model.dtype == "float16":
        mend += ", or take model.dtype=float32, as float16 ends at 65,504"
    return InputError(f"{what}: {why}; {mend}.")


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


def _is_node_leaving() -> bool:
    """Whether Ray has told this worker that a node of the job will be taken. `ray.train.get_preemption_info` would ask
    the other workers as well, by way of an actor, at every step; the sums go through all ranks anyway."""
    return get_train_context().preemption_context.preemption_info is not None


def _reduce(sums: StepSums, world_size: int, device: torch.device) -> StepSums:
    """Over all ranks."""
    total = torch.tensor(astuple(sums), dtype=torch.float64, device=device)
    if world_size > 1:
        dist.all_reduce(total)
    return StepSums(*total.tolist())


def _describe(summed: StepSums, micro: MicroStep, world_size: int) -> dict[str, float]:
    """The step's metrics."""
    metrics = {
        "train/loss": summed.loss / micro.step_weight,
        "train/rows": summed.rows,
        "train/data_wait_s": summed.wait_s / world_size,
    }
    if summed.targets:
        metrics["train/token_accuracy"] = summed.hits / summed.targets
    if summed.choices:
        metrics["train/choice_accuracy"] = summed.chosen / summed.choices
    if summed.asked:
        metrics["train/retrieval_accuracy"] = summed.found / summed.asked
    return metrics
