"""`train --dry-run`: what a training will take, without weights, network, Ray or a GPU.

The formulas and their sources are in `ray_jobs.estimate.cost`; what is assumed instead of known is printed as such.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from data_pipeline.batches.plan import TrainingPlan, count_seen
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from ray_jobs.config import RunSpec
from ray_jobs.estimate.corpus_sizes import CorpusSizes, find_backbone, load_corpus_sizes
from ray_jobs.estimate.cost import (
    ModelSize,
    StateBytes,
    compute_activation_bytes,
    compute_export_bytes,
    compute_flops,
    compute_start_bytes,
    compute_state_bytes,
)
from ray_jobs.estimate.shapes import load_shape
from ray_jobs.estimate.speed import MicroStep, count_parallel, measure_training_flops
from ray_jobs.train.inputs import CPU_SEQUENCE_TOKENS, GPU_BLOCK_TOKENS, build_plan, length_multiple
from ray_jobs.train_options import MAX_BUCKET

GIB = 2**30
GPU_BUCKETS = (0, 1, 2, 1)  # by ZeRO stage; stage 2 fills one while it sends the other
SAMPLED_STEPS = 16  # whose tokens are counted
CARD_TOKENS = 32  # of a tool card, about
PUBLISHED_DTYPE = torch.float16  # of the papers' backbones' files
ASSUMED_UTILIZATION = 0.4  # of a GPU's peak
ASSUMED_GPU = "A100"  # of cluster.yaml's gpu_train nodes
ENCODER_WIDTHS = {"imagebind_huge": 1024, "tiny_imagebind": 128}
# Dense peaks by the vendors' data sheets, TFLOP/s in 16 bits and float32; the first name in the device's name counts.
PEAK_TFLOPS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "A40": (149.7, 37.4),
    "L4": (121.0, 30.3),
    "A10G": (70.0, 35.0),
    "RTX 4090": (165.2, 82.6),
    "V100": (125.0, 15.7),  # float16
    "T4": (65.0, 8.1),  # float16
}


@dataclass(frozen=True)
class StepCost:
    """Means over sampled optimizer steps, over all workers.

    Attributes:
        tokens: processed, padding included.
        rows: question-answer pairs.
        micro_steps: of one worker.
        flops: forward and backward.
        largest: tokens and loss positions of the largest micro step that may come.
    """

    tokens: float
    rows: float
    micro_steps: float
    flops: float
    largest: tuple[int, int]


@dataclass(frozen=True)
class WorkerNeed:
    """What one worker of a training takes; bytes.

    Attributes:
        step: in its largest micro step, of a GPU where it has one.
        host: of the node's memory, at its peak: while weights are loaded or later.
        mapped: of the node's memory for the backbone's files, once for all workers there; the system takes it back.
        n_trained: parameters.
    """

    step: float
    host: float
    mapped: float
    n_trained: int


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """Print and return what the training of `spec` will take.

    Raises:
        InputError: a backbone or a source that nothing is known of, or settings that do not go together.
    """
    config, shape, shape_origin, size = measure_shape(spec)
    sizes = load_corpus_sizes(spec)
    plan = build_plan(spec, sizes.split)
    step = estimate_step(spec, size, sizes, plan)
    report = {
        "config": spec.name,
        "backbone": spec.model.backbone,
        "shape": shape_origin,
        "parameters": size.trainable + size.frozen,
        "trainable": size.trainable,
        "workers": spec.train.max_workers,
        "zero_stage": spec.train.zero_stage,
        "memory_gib": _memory_table(spec, size, step),
        "start_gib": _memory_at_start(spec, size, shape),
        "export_gib": compute_export_bytes(size, spec.export.adapter_dtype != "float32") / GIB,
        "corpus": sizes.origin,
        "corpus_is_assumed": sizes.is_assumed,
        "questions": len(sizes.split.index),
        "rows": sizes.split.index.total_rows,
        "seen": count_seen(plan, sizes.split.index, sizes.split.modalities, spec.train.epochs),
        "steps_per_epoch": plan.total_steps(spec.train.epochs) / spec.train.epochs,
        "steps": plan.total_steps(spec.train.epochs),
        "tokens_per_step": step.tokens,
        "rows_per_step": step.rows,
        "micro_steps_per_step": step.micro_steps,
        "flops_per_step": step.flops,
    }
    flops = report["steps"] * step.flops
    report |= (
        _time_on_gpus(spec, flops) if spec.train.use_gpu else _time_on_cpus(spec, config, shape, sizes, step, flops)
    )
    _print_report(spec, report)
    return report


def estimate_worker(spec: RunSpec) -> WorkerNeed:
    """What one worker takes.

    Raises:
        InputError: as `run_dry`.
    """
    _, shape, _, size = measure_shape(spec)
    sizes = load_corpus_sizes(spec)
    step = estimate_step(spec, size, sizes, build_plan(spec, sizes.split))
    states = _memory_table(spec, size, step)[str(spec.train.zero_stage)]
    start = _memory_at_start(spec, size, shape)
    host = max(start["worker"], states["cpu_optimizer"] if spec.train.use_gpu else states["total"])
    return WorkerNeed(states["total"] * GIB, host * GIB, start["mapped"] * GIB, size.trainable)


def measure_shape(spec: RunSpec) -> tuple[ModelConfig, PretrainedConfig, str, ModelSize]:
    """The model's config, the backbone's, where that comes from, and sizes."""
    encoder_dim = ENCODER_WIDTHS.get(spec.embed.encoder, spec.model.encoder_dim)
    shape, origin = load_shape(find_backbone(spec))
    config = spec.model.model_copy(update={"encoder_dim": encoder_dim})
    # a model writes its dtype into the config that it is built from
    size = ModelSize.measure(ToolLLM.sketch(config, copy.deepcopy(shape)), spec.train.use_gpu)
    return config, shape, origin, size


def estimate_step(spec: RunSpec, size: ModelSize, sizes: CorpusSizes, plan: TrainingPlan) -> StepCost:
    """Count the tokens and operations of steps that are spread evenly over the training."""
    train, index = spec.train, sizes.split.index
    row_starts = np.cumsum(index.n_rows) - index.n_rows
    pad = length_multiple(spec)
    losses_per_row = sizes.split.loss_weight / index.n_rows
    total = plan.total_steps(train.epochs)
    steps = np.unique(np.linspace(0, total - 1, SAMPLED_STEPS).astype(int)).tolist()
    tokens = rows = micro_steps = flops = 0.0
    longest = int(index.row_tokens.max())
    for step in steps:
        for rank in range(train.max_workers):
            for batch in plan.micro_batches(step, rank, train.max_workers):
                if train.layout == "rows":
                    lengths = index.row_tokens[row_starts[batch[:, 0]] + batch[:, 1]]
                    width = _round_up(int(lengths.max(initial=1)), pad)
                    n_tokens, n_rows = width * max(1, len(batch)), len(batch)
                    n_losses = int(losses_per_row[batch[:, 0]].sum())
                    pairs = max(1, len(batch)) * width**2 / 2  # a causal kernel skips the other half
                else:
                    cards = train.loss.retrieval_cards if train.loss.retrieval else 0
                    trees = np.concatenate([index.n_tokens[batch], np.full(cards, CARD_TOKENS)])
                    n_tokens = _round_up(max(1, index.count_tokens(batch) + cards * CARD_TOKENS), pad)
                    n_rows = int(index.n_rows[batch].sum())
                    n_losses = int(sizes.loss_tokens[batch].sum())
                    pairs = _packed_pairs(spec, trees, n_tokens)
                tokens, rows, micro_steps = tokens + n_tokens, rows + n_rows, micro_steps + 1
                flops += compute_flops(
                    size, n_tokens, _round_up(n_losses, pad), pairs, spec.model.gradient_checkpointing
                )
    if train.layout == "rows":
        largest = train.micro_batch_size * _round_up(longest, pad)
        losses = int(train.micro_batch_size * losses_per_row.max())
    else:
        largest = _round_up(max(train.pack_tokens, int(index.n_tokens.max())), pad)
        losses = int(largest * sizes.loss_tokens.sum() / index.n_tokens.sum())
    return StepCost(
        tokens / len(steps),
        rows / len(steps),
        micro_steps / len(steps) / train.max_workers,
        flops / len(steps),
        (largest, _round_up(losses, pad)),
    )


def _packed_pairs(spec: RunSpec, trees: np.ndarray, n_tokens: int) -> float:
    """(query, key) pairs of one layer: FlexAttention computes the blocks that a question touches, SDPA all of them.

    On CPUs the questions lie in sequences side by side.
    """
    if _uses_flex(spec):
        return float((trees * (trees / 2 + GPU_BLOCK_TOKENS)).sum())
    width = n_tokens if spec.train.use_gpu else min(n_tokens, max(CPU_SEQUENCE_TOKENS, int(trees.max(initial=1))))
    return float(n_tokens) * width


def _uses_flex(spec: RunSpec) -> bool:
    return spec.model.attention == "flex_attention" or (spec.model.attention == "auto" and spec.train.use_gpu)


def _memory_table(spec: RunSpec, size: ModelSize, step: StepCost) -> dict[str, dict[str, float]]:
    """GiB of one worker by ZeRO stage: states, buckets, activations as configured and with the other choice, total."""
    n_tokens, n_losses = step.largest
    mask_bytes = 0
    if spec.train.layout == "packed" and not _uses_flex(spec):
        mask_bytes = n_tokens**2 * size.number_bytes
    kept, recomputed = (
        compute_activation_bytes(size, n_tokens, n_losses, checkpointing, mask_bytes) for checkpointing in (False, True)
    )
    activations = recomputed if spec.model.gradient_checkpointing else kept
    table = {}
    for stage in range(4):
        bucket = min(size.trainable, MAX_BUCKET) * size.number_bytes  # on a GPU it is there for good
        buckets = GPU_BUCKETS[stage] * bucket if spec.train.use_gpu else 0
        states: StateBytes = compute_state_bytes(size, stage, spec.train.max_workers, spec.train.offload_optimizer)
        table[str(stage)] = {
            "weights": states.weights / GIB,
            "gradients": states.gradients / GIB,
            "optimizer": states.optimizer / GIB,
            "buckets": buckets / GIB,
            "activations": activations / GIB,
            "total": (states.weights + states.gradients + states.optimizer + buckets + activations) / GIB,
            "cpu_optimizer": states.offloaded / GIB,
            "activations_kept": kept / GIB,
            "activations_recomputed": recomputed / GIB,
        }
    return table


def _memory_at_start(spec: RunSpec, size: ModelSize, shape: PretrainedConfig) -> dict[str, float]:
    """GiB of CPU memory while weights are loaded: of a worker, of the files once a node, of a node with all workers."""
    in_files = getattr(torch, str(shape.dtype).removeprefix("torch."), PUBLISHED_DTYPE)
    start = compute_start_bytes(
        size,
        spec.train.zero_stage,
        spec.train.max_workers,
        in_files.itemsize,
        is_cast=in_files is not getattr(torch, spec.model.dtype),
        is_whole=bool(spec.model.modules_to_save),
    )
    node = spec.train.max_workers * start.own + start.mapped
    return {"worker": start.own / GIB, "mapped": start.mapped / GIB, "node": node / GIB}


def _time_on_gpus(spec: RunSpec, flops: float) -> dict[str, Any]:
    """Hours of the whole training: operations / (peak x utilisation); reading, validation and checkpoints apart."""
    workers, has_gpu = spec.train.max_workers, torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_gpu else ASSUMED_GPU
    peaks = next((peaks for key, peaks in PEAK_TFLOPS.items() if key in name), None)
    speed = None
    if peaks is not None:
        speed = peaks[1 if spec.model.dtype == "float32" else 0] * 1e12 * workers * ASSUMED_UTILIZATION
    return {
        "device": f"{workers} x {name}" + ("" if has_gpu else " (assumed: no GPU here)"),
        "speed": f"at {ASSUMED_UTILIZATION:.0%} of the peak (assumed)",
        "flops_per_s": speed,
        "hours": None if speed is None else flops / speed / 3600,
    }


def _time_on_cpus(
    spec: RunSpec, config: ModelConfig, shape: PretrainedConfig, sizes: CorpusSizes, step: StepCost, flops: float
) -> dict[str, Any]:
    """The same on this machine's CPUs, by passes of the model that are timed here."""
    threads, index = max(1, int(spec.train.cpus_per_worker)), sizes.split.index
    parallel = count_parallel(spec.train.max_workers, threads)
    micro_step = MicroStep(
        tokens=step.tokens / step.micro_steps / spec.train.max_workers,
        question_tokens=float(index.n_tokens.mean()),
        answers=float(index.n_rows.mean()),
        answer_tokens=float(sizes.loss_tokens.sum() / index.n_rows.sum()),
    )
    speed = parallel * measure_training_flops(config, shape, micro_step, threads, parallel)
    return {
        "device": f"this machine's CPU: {parallel} worker(s) at a time, {threads} thread(s) each",
        "speed": f"at {speed / 1e9:,.0f} GFLOP/s, measured here in {config.dtype}",
        "flops_per_s": speed,
        "hours": flops / speed / 3600,
    }


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _print_report(spec: RunSpec, report: dict[str, Any]) -> None:
    total, trainable = report["parameters"], report["trainable"]
    print(f"\ndry run of {spec.name}: nothing is loaded, nothing is trained")
    print(f"backbone         {report['backbone']} ({report['shape']}), {spec.model.dtype}")
    print(f"parameters       {total:,}, trained {trainable:,} ({100 * trainable / total:.2f} %)")
    print(f"\nGiB per worker   {report['workers']} worker(s); {'weights':>9}{'gradients':>11}{'optimizer':>11}", end="")
    print(f"{'buckets':>9}{'activations':>13}{'total':>9}")
    for stage, row in report["memory_gib"].items():
        mark = "  <- this config" if int(stage) == spec.train.zero_stage else ""
        print(f"  ZeRO-{stage:<22}{row['weights']:>9.2f}{row['gradients']:>11.3f}{row['optimizer']:>11.3f}", end="")
        print(f"{row['buckets']:>9.2f}", end="")
        print(f"{row['activations']:>13.2f}{row['total']:>9.2f}{mark}")
    row = report["memory_gib"]["0"]
    what = (
        f"{spec.train.pack_tokens} tokens" if spec.train.layout == "packed" else f"{spec.train.micro_batch_size} rows"
    )
    chosen = "recomputed" if spec.model.gradient_checkpointing else "kept"
    print(f"  activations of {what}: {row['activations_kept']:.2f} kept, ", end="")
    print(f"{row['activations_recomputed']:.2f} recomputed; this config: {chosen}")
    print("  on top: CUDA context, fragmentation, the layer that ZeRO-3 has gathered")
    start = report["start_gib"]
    print(
        f"\nCPU memory       at start {start['worker']:.2f} GiB a worker, {start['mapped']:.2f} of files once a node; ",
        end="",
    )
    print(f"{start['node']:.2f} with {report['workers']} worker(s) on one")
    print(f"                 exporting {report['export_gib']:.3f} GiB; libraries on top, 0.8 GiB a process")
    print(f"\ncorpus           {report['questions']:,} questions, {report['rows']:,} rows ({report['corpus']})")
    seen = ", ".join(f"{modality} {times:.1f}" for modality, times in report["seen"].items())
    print(f"times seen       {seen} ({spec.train.epochs} epochs, sampler={spec.train.sampler})")
    print(f"steps            {report['steps_per_epoch']:,.1f} an epoch, {report['steps']:,} in all")
    print(
        f"tokens per step  {report['tokens_per_step']:,.0f} (padding included), {report['rows_per_step']:.1f} rows, ",
        end="",
    )
    print(f"{report['micro_steps_per_step']:.1f} micro steps of each worker")
    print(f"operations       {report['flops_per_step'] / 1e12:,.2f} TFLOP a step")
    hours = report["hours"]
    known = "unknown: no peak known of this device" if hours is None else _show_hours(hours)
    print(f"estimated time   {known} on {report['device']}, {report['speed']}")
    print(
        "formulas         states: Rajbhandari et al. 2020; activations: Korthikanti et al. 2022; operations: Kaplan\n"
        "                 et al. 2020, Hoffmann et al. 2022; all in ray_jobs/estimate/cost.py"
    )


def _show_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
