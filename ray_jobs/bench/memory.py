"""Peak memory of a training worker: over three epochs, and with ten times the corpus.

The worker is an actor that does what one of `train` does: it streams micro steps that Ray Data builds ahead and trains
under DeepSpeed. Its peak resident memory is read anew for every epoch; it includes what it maps of the object store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from data_pipeline import storage
from data_pipeline.batches.encoding import longest_answer
from data_pipeline.batches.plan import TrainingPlan, UniformPlan
from data_pipeline.batches.stream import BatchForm, stream_micro_steps
from data_pipeline.batches.token_shards import TokenForm, tokenize_shards
from data_pipeline.batches.tokenized import StoredQuestions, select_questions
from data_pipeline.batches.vector_table import VectorFile
from data_pipeline.records.schema import CORPUS_SCHEMA, Modality, ToolRecord
from model.llm.backbone import load_tokenizer
from model.llm.config import ModelConfig
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.bench.train import GLOBAL_BATCH_SIZE, PACK_TOKENS, build_questions

EPOCHS = 3
TIMES = 10  # how much larger the larger corpus is
EMBED_DIM = 64


def run(epochs: int = EPOCHS, times: int = TIMES) -> dict[str, Any]:
    """Measure, print a table, and return the numbers. Needs a Ray that is connected.

    Args:
        epochs: of the smaller corpus; of the larger one as many steps as these have.
        times: size of the larger corpus over that of the smaller one.

    Returns:
        peak_mib by corpus and part (of `epochs` parts), growth over the epochs, ratio of the larger to the smaller.
    """
    with tempfile.TemporaryDirectory(prefix="bench_memory_") as name:
        small, texts = build_questions()
        backbone = build_tiny_backbone(
            Path(name) / "backbone", texts, hidden_size=64, n_layers=2, n_heads=2, intermediate_size=128
        )
        config = ModelConfig(backbone=str(backbone), encoder_dim=EMBED_DIM)
        large = build_questions(n_copies=times)[0]
        peaks, n_steps = {}, 0
        for label, questions in (("corpus", small), (f"{times} times the corpus", large)):
            stored, plan = _plan(questions, backbone, Path(name) / label)
            n_steps = n_steps or plan.epoch_ends(1)[0]
            worker = ray.remote(_Worker).options(num_cpus=1).remote(config.model_dump(mode="json"))
            peaks[label] = ray.get(worker.train.remote(stored, [ray.put(plan)], n_steps, epochs))
            del worker  # ends the actor
    print(f"{'peak memory of a worker, MiB':<32}" + "".join(f"{f'epoch {n + 1}':>10}" for n in range(epochs)))
    for label, values in peaks.items():
        print(f"{label:<32}" + "".join(f"{value:>10.1f}" for value in values))
    first, second = peaks.values()
    growth, ratio = max(first) / first[0], max(second) / max(first)
    print(f"over {epochs} epochs {100 * (growth - 1):+.1f} %; with {times} times the corpus {100 * (ratio - 1):+.1f} %")
    return {"peak_mib": peaks, "epochs_over_first": growth, "large_over_small": ratio, "steps_per_epoch": n_steps}


def _plan(
    questions: Sequence[tuple[str, list[str]]], backbone: Path, folder: Path
) -> tuple[StoredQuestions, UniformPlan]:
    records = [
        ToolRecord(f"bench-{number}", "bench", Modality.TEXT, text, tuple(tools))
        for number, (text, tools) in enumerate(questions)
    ]
    shard = folder / "records.parquet"
    with storage.writing_file(shard) as stream:
        pq.write_table(pa.Table.from_pylist([record.to_row() for record in records], schema=CORPUS_SCHEMA), stream)
    tokenizer = load_tokenizer(str(backbone))
    tool_ids = tuple(sorted({tool for _, tools in questions for tool in tools}))
    form = TokenForm(tokenizer, 512, longest_answer(tokenizer, tool_ids), 2048, tool_ids)
    shards = tokenize_shards(folder / "tokens", [(shard, len(records))], storage.hash_file(shard), form)
    split, stored = select_questions(shards, [], VectorFile(None, 0, EMBED_DIM, "float32"))
    plan = UniformPlan(split.index, split.loss_weight, split.is_dialogue, 0, GLOBAL_BATCH_SIZE, "packed", PACK_TOKENS)
    return stored, plan


class _Worker:
    """One rank, in a process of its own."""

    def __init__(self, model_config: dict[str, Any]) -> None:
        import os

        os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": "0"}
        import deepspeed

        from model.llm.tool_llm import ToolLLM
        from ray_jobs.train.zero import disable_compiled_collectives, start_engine
        from ray_jobs.train_options import TrainOptions

        disable_compiled_collectives()
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, rank=0, world_size=1)
        self._engine = start_engine(ToolLLM.build(ModelConfig.model_validate(model_config)), TrainOptions())

    def train(
        self, questions: StoredQuestions, plan: list[ray.ObjectRef[TrainingPlan]], steps_per_part: int, parts: int
    ) -> list[float]:
        """Peak resident memory in MiB of each part of the training."""
        from model.llm.tool_llm import to_tensors

        engine = self._engine
        engine.train()
        peaks: list[float] = []
        for micro in stream_micro_steps(questions, plan[0], BatchForm("packed"), 0, 1, 0, steps_per_part * parts):
            output = engine(to_tensors(micro.batch, micro.media, engine.device))
            engine.backward(output.loss_sum / micro.step_weight)
            if not micro.is_last:
                continue
            engine.step()
            if (micro.step + 1) % steps_per_part == 0:
                peaks.append(take_peak_mib())
        return peaks


def take_peak_mib() -> float:
    """The process's peak resident memory since it was last asked for (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): sets the peak back to the present size
    return kib / 1024
