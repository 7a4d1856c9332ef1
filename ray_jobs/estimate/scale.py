"""What more workers bring a training: step time, tokens a second, cost, and what holds it up, for 8 to 512 GPUs.

    python -m ray_jobs.estimate.scale --config llama2_7b train.zero_stage=3

A model on paper, of the same counts as `train --dry-run`; docs/scale.md says what is in it and what is left out.
Traffic: Rajbhandari et al. 2020 (arXiv 1910.02054), section 7, with the frozen part kept apart; its time is a ring's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_pipeline.errors import InputError
from ray_jobs.config import RunSpec, load_run_spec
from ray_jobs.estimate.corpus_sizes import load_corpus_sizes
from ray_jobs.estimate.cost import FP32_BYTES
from ray_jobs.estimate.dry_run import ASSUMED_UTILIZATION, PEAK_TFLOPS, estimate_step, measure_shape
from ray_jobs.train.inputs import build_plan

SIZES = (8, 16, 32, 64, 128, 256, 512)
MOMENTS_AND_WEIGHTS = 3  # float32 numbers of a trained parameter in a checkpoint
# assumed, with the reading and the way to the worker: packs are made from tokens in memory at 6.9 million a second, as
# measured here (docs/results.md)
DATA_TOKENS_PER_CPU_S = 1_000_000
DATA_CPUS_PER_GPU = 4  # assumed, of the 12 that a GPU of these nodes has
LINK_SHARE = 0.8  # assumed: of a link's nominal rate that a collective of large messages gets
STORAGE_BYTES_PER_S = 1e9  # assumed: of a shared file system to one node
STORAGE_TOTAL_BYTES_PER_S = 10e9  # assumed: to all of them together
START_S = 300.0  # assumed: a new node, its requirements installed, Ray and the imports


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind.

    Attributes:
        name: for people.
        workers_per_node: one for each GPU.
        flops_per_s: that a worker reaches.
        node_bytes_per_s: that a worker sends to another one of its node while it receives as much.
        network_bytes_per_s: likewise, a whole node to another one.
        data_tokens_per_s: that the CPUs of one worker make ready.
        storage_bytes_per_s: of the shared storage, to one node.
        storage_total_bytes_per_s: to all of them.
        start_s: until all workers run and begin to read weights.
        price_per_hour: of a node.
    """

    name: str
    workers_per_node: int
    flops_per_s: float
    node_bytes_per_s: float
    network_bytes_per_s: float
    data_tokens_per_s: float
    storage_bytes_per_s: float
    storage_total_bytes_per_s: float
    start_s: float
    price_per_hour: float


def _build_cluster(gpu: str, instance: str, link_gb: float, network_gbit: float, price: float) -> Cluster:
    return Cluster(
        name=f"{instance}, 8 x {gpu}",
        workers_per_node=8,
        flops_per_s=PEAK_TFLOPS[gpu][0] * 1e12 * ASSUMED_UTILIZATION,  # in 16 bits
        node_bytes_per_s=link_gb * 1e9 * LINK_SHARE,
        network_bytes_per_s=network_gbit / 8 * 1e9 * LINK_SHARE,
        data_tokens_per_s=DATA_TOKENS_PER_CPU_S * DATA_CPUS_PER_GPU,
        storage_bytes_per_s=STORAGE_BYTES_PER_S,
        storage_total_bytes_per_s=STORAGE_TOTAL_BYTES_PER_S,
        start_s=START_S,
        price_per_hour=price,
    )


# Links by NVIDIA's data sheets (half of what they add up for both ways), networks by AWS's pages of the instances.
# Prices are assumed: dollars that AWS listed for one hour on demand in 2024, and has changed since.
CLUSTERS = {
    "A100": _build_cluster("A100", "p4d.24xlarge", link_gb=300, network_gbit=400, price=32.77),
    "H100": _build_cluster("H100", "p5.48xlarge", link_gb=450, network_gbit=3200, price=98.32),
}


@dataclass(frozen=True)
class Work:
    """A training, whatever it runs on.

    Attributes:
        epochs: of it.
        epoch_tokens: processed in one, padding included.
        epoch_rows: question-answer pairs in one.
        batch_rows: of an optimizer step, as configured.
        pack_tokens: of a micro step that is full.
        flops_per_token: forward and backward.
        frozen_bytes, trained: of the model; the trained part in parameters.
        number_bytes: of a gradient, or of a trained weight, that is sent.
        zero_stage: see `count_traffic`.
        checkpoints: in one epoch.
    """

    epochs: int
    epoch_tokens: float
    epoch_rows: float
    batch_rows: float
    pack_tokens: int
    flops_per_token: float
    frozen_bytes: float
    trained: int
    number_bytes: int
    zero_stage: int
    checkpoints: float

    @classmethod
    def measure(cls, spec: RunSpec) -> Work:
        """Count a run's.

        Raises:
            InputError: as `run_dry`.
        """
        *_, size = measure_shape(spec)
        sizes = load_corpus_sizes(spec)
        plan = build_plan(spec, sizes.split)
        step = estimate_step(spec, size, sizes, plan)
        steps = plan.total_steps(spec.train.epochs) / spec.train.epochs
        every = spec.train.checkpoint_every_steps
        rows_tokens = spec.train.micro_batch_size * step.tokens / step.rows
        return cls(
            epochs=spec.train.epochs,
            epoch_tokens=step.tokens * steps,
            epoch_rows=step.rows * steps,
            batch_rows=step.rows,
            pack_tokens=spec.train.pack_tokens if spec.train.layout == "packed" else round(rows_tokens),
            flops_per_token=step.flops / step.tokens,
            frozen_bytes=size.frozen_bytes,
            trained=size.trainable,
            number_bytes=size.trainable_number_bytes,
            zero_stage=spec.train.zero_stage,
            checkpoints=1 + (steps // every if every else 0),
        )


@dataclass(frozen=True)
class Prediction:
    """A training on so many workers; seconds, dollars.

    Attributes:
        workers, nodes: that it runs on.
        batch_rows: of an optimizer step.
        epoch_steps: optimizer steps in an epoch.
        compute_s: of a step, of each worker.
        traffic_s: that a step waits for other workers, beyond what is sent while it computes.
        data_s: in which a step's tokens are made ready, while another one is taken; it waits where that is longer.
        step_s: all of it.
        tokens_per_s: of all workers.
        checkpoint_s: of an epoch.
        start_s: before the first step.
        epoch_s: steps and checkpoints.
        epoch_cost, cost: of an epoch, and of all of them with the start.
        shares: of the whole training's time, by what it goes to.
    """

    workers: int
    nodes: int
    batch_rows: float
    epoch_steps: float
    compute_s: float
    traffic_s: float
    data_s: float
    step_s: float
    tokens_per_s: float
    checkpoint_s: float
    start_s: float
    epoch_s: float
    epoch_cost: float
    cost: float
    shares: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """What takes most of the time."""
        return max(self.shares, key=lambda name: self.shares[name])


def predict(cluster: Cluster, work: Work, workers: int) -> Prediction:
    """What a training takes on so many workers.

    An optimizer step has the configured rows, or where these do not fill a pack for each worker, as many as do.
    """
    nodes = -(-workers // cluster.workers_per_node)
    tokens_per_row = work.epoch_tokens / work.epoch_rows
    step_tokens = max(work.batch_rows * tokens_per_row, workers * work.pack_tokens)  # of all workers
    own_tokens = step_tokens / workers
    steps = work.epoch_tokens / step_tokens
    compute_s = own_tokens * work.flops_per_token / cluster.flops_per_s
    sent_s = count_traffic(work, workers, math.ceil(own_tokens / work.pack_tokens)) / _bandwidth(cluster, workers)
    # weights are gathered ahead of the layer that needs them; the little that other stages send counts whole
    traffic_s = max(0.0, sent_s - compute_s) if work.zero_stage == 3 else sent_s
    data_s = own_tokens / cluster.data_tokens_per_s
    step_s = max(compute_s + traffic_s, data_s)
    written = work.trained * FP32_BYTES * MOMENTS_AND_WEIGHTS
    checkpoint_s = work.checkpoints * written / cluster.storage_bytes_per_s
    read_s = work.frozen_bytes / min(cluster.storage_bytes_per_s, cluster.storage_total_bytes_per_s / nodes)
    start_s = cluster.start_s + read_s
    epoch_s = steps * step_s + checkpoint_s
    whole_s = start_s + work.epochs * epoch_s
    all_steps = work.epochs * steps
    seconds = {
        "compute": all_steps * compute_s,
        "ZeRO traffic": all_steps * traffic_s,
        "data": all_steps * (step_s - compute_s - traffic_s),
        "checkpoints": work.epochs * checkpoint_s,
        "start-up": start_s,
    }
    price_per_s = nodes * cluster.price_per_hour / 3600
    return Prediction(
        workers=workers,
        nodes=nodes,
        batch_rows=step_tokens / tokens_per_row,
        epoch_steps=steps,
        compute_s=compute_s,
        traffic_s=traffic_s,
        data_s=data_s,
        step_s=step_s,
        tokens_per_s=step_tokens / step_s,
        checkpoint_s=checkpoint_s,
        start_s=start_s,
        epoch_s=epoch_s,
        epoch_cost=epoch_s * price_per_s,
        cost=whole_s * price_per_s,
        shares={name: value / whole_s for name, value in seconds.items()},
    )


def count_traffic(work: Work, workers: int, micro_steps: int) -> float:
    """Bytes that one worker sends in an optimizer step, and receives.

    Gradients, of what is trained alone, are reduced after every micro step: to all workers in stage 0, else to the one
    that keeps their moments, which sends the new weights to all after the step. Stage 3 gathers all weights, frozen
    ones included, forward and backward.
    """
    trained_bytes = work.trained * work.number_bytes
    if work.zero_stage == 0:
        sent = micro_steps * 2 * trained_bytes
    elif work.zero_stage < 3:
        sent = micro_steps * trained_bytes + trained_bytes
    else:
        sent = micro_steps * (trained_bytes + 2 * (work.frozen_bytes + trained_bytes))
    return sent * (workers - 1) / workers


def run(spec: RunSpec, gpu: str, rows: int | None = None) -> dict[str, Any]:
    """Print a table by number of GPUs, and return its numbers.

    Args:
        spec: of the training.
        gpu: kind of the nodes, of `CLUSTERS`.
        rows: in an epoch, of a corpus like the config's; None for as many as that has.

    Raises:
        InputError: as `run_dry`.
    """
    cluster, work = CLUSTERS[gpu], Work.measure(spec)
    if rows is not None:
        work = replace(work, epoch_rows=rows, epoch_tokens=rows * work.epoch_tokens / work.epoch_rows)
    predictions = [predict(cluster, work, workers) for workers in SIZES]
    tokens = work.batch_rows * work.epoch_tokens / work.epoch_rows
    print(f"{spec.name} on {cluster.name} a node, ZeRO-{work.zero_stage}: {work.epoch_rows:,.0f} rows an epoch")
    print(
        f"{work.batch_rows:.0f} rows a step have {tokens:,.0f} tokens, {tokens / work.pack_tokens:.1f} packs: for more "
        "workers the batch is made larger"
    )
    print(
        f"\n{'GPUs':>5}{'rows':>8}{'steps':>8}{'s a':>9}{'s of':>9}{'tokens':>12}{'min an':>9}{'$ an':>9}{'$ with':>9}"
    )
    print(
        f"{'':>5}{'a step':>8}{'an epoch':>9}{'step':>8}{'traffic':>9}{'a second':>12}{'epoch':>9}{'epoch':>9}"
        f"{'start':>9}  most of the time"
    )
    for row in predictions:
        print(
            f"{row.workers:>5}{row.batch_rows:>9,.0f}{row.epoch_steps:>11,.1f}{row.step_s:>9.3f}{row.traffic_s:>9.3f}"
            f"{row.tokens_per_s:>12,.0f}{row.epoch_s / 60:>10.2f}{row.epoch_cost:>10.2f}{row.cost:>10.2f}"
            f"  {row.bottleneck} {row.shares[row.bottleneck]:.0%}"
        )
    print("\nassumed: utilisation, links' share, storage, start and prices; see docs/scale.md")
    return {
        "config": spec.name,
        "cluster": asdict(cluster),
        "work": asdict(work),
        "sizes": [asdict(row) | {"bottleneck": row.bottleneck} for row in predictions],
    }


def _bandwidth(cluster: Cluster, workers: int) -> float:
    """Of a ring through all workers: as much as its narrowest link carries."""
    if workers <= cluster.workers_per_node:
        return cluster.node_bytes_per_s
    return min(cluster.node_bytes_per_s, cluster.network_bytes_per_s)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.estimate.scale", description="What a training takes on 8 to 512 GPUs."
    )
    parser.add_argument("--config", help="YAML file, or the name of one in ray_jobs/configs")
    parser.add_argument("--gpu", choices=sorted(CLUSTERS), default="A100", help="kind of the nodes")
    parser.add_argument("--rows", type=int, help="in an epoch, if the corpus has others than the config's")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for example train.zero_stage=3")
    args = parser.parse_intermixed_args(argv)
    try:
        run(load_run_spec(args.config, args.overrides), args.gpu, args.rows)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
