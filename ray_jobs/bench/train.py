"""Question-answer rows per second of training: our packed loop, our row-by-row mode, transformers.Trainer with PEFT.

All three train the same LoRA on the same backbone with the same rows, AdamW, gradient clipping and rows per optimizer
step, in one process with one thread: a tiny backbone in fp32, or a real one in bf16. Ours run as a worker of `train`
does (DeepSpeed, stage 0, and 2 in bf16) and build their batches inside the measured time; nothing is logged, evaluated
or saved. They take turns of a few optimizer steps, so that a machine that gets slower or faster meanwhile favours none.
The ratios are those of the thread's CPU seconds, from which other work on the machine takes nothing away; on an idle
one they are those of the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.batches.encoding import EncodedQuestion, encode_question
from data_pipeline.batches.packing import Layout, build_micro_batch
from data_pipeline.batches.steps import PlanIndex, deal_step, deal_step_rows, packing_statistics, plan_epoch
from data_pipeline.records.prompts import render_prompt, render_target
from model.llm.backbone import attach_adapter, load_backbone, load_tokenizer
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.train.inputs import CPU_SEQUENCE_TOKENS
from ray_jobs.train_options import TrainOptions

# right answers per distinct (medium, question) pair of ToolMMBench's test file (3/5 of it, all modalities in the
# benchmark's own mix) -> pairs; 72 % have several. The audio and video training files alone have fewer: 4.1 on average.
ANSWER_COUNTS = {1: 404, 2: 153, 3: 177, 4: 85, 5: 188, 6: 72, 7: 46, 8: 98, 9: 46, 10: 39, 11: 52, 12: 12, 13: 12}
ANSWER_COUNTS |= {14: 5, 15: 6, 16: 18, 18: 16, 21: 4}
WORDS_PER_QUESTION = (10, 17, 23, 31, 48)  # their percentiles 5, 25, 50, 75, 95
OWNERS = ("facebook", "google", "microsoft", "openai", "laion", "Helsinki-NLP", "asapp", "nvidia")
FAMILIES = ("wav2vec2", "whisper-large", "mms", "sew-tiny", "hubert-base", "bert", "vit", "detr")
TASKS = ("100k", "xlsr-53", "1b-all", "espeak-cv-ft", "superb-ks", "speech-commands", "audioset", "960h")
N_WORDS = 6000
GLOBAL_BATCH_SIZE = 64  # MLLM-Tool Table 4, 7B
PAPER_MICRO_BATCH_SIZE = 4
PACK_TOKENS = 384  # best on a CPU among 256, 384, 512, 1024: attention grows with its square, overhead with its number
TRAINER = "transformers.Trainer"
TURNS = 3
STEPS_PER_TURN = 3
REAL_TURNS = REAL_STEPS_PER_TURN = 1  # a row of 135 M parameters takes a third of a second
REAL_PACK_TOKENS = 1024


def run(turns: int = TURNS, steps_per_turn: int = STEPS_PER_TURN, backbone: str = "") -> dict[str, Any]:
    """Measure in a process of its own, print a table, and return the numbers.

    Args:
        turns: each loop's.
        steps_per_turn: optimizer steps of a turn that are measured; one before each turn is not.
        backbone: folder of a real one; "" makes a tiny one.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "ray_jobs.bench.train", str(turns), str(steps_per_turn), backbone]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    results = json.loads(output.splitlines()[-1])
    sizes = f"{results['rows_per_question']:.1f} rows a question, {results['rows_per_step']:.0f} rows a step"
    print(f"{sizes}, one thread, packs have {100 * results['packed_to_row_tokens']:.0f} % of the padded rows' tokens")
    title = f"training loop ({results['backbone']})"
    print(f"{title:<44}{'rows/s':>8}{'rows/CPU s':>12}{'packed is':>12}")
    packed = results["rows_per_cpu_s"]["packed"]
    for name, rate in results["rows_per_cpu_s"].items():
        print(f"{name:<44}{results['rows_per_s'][name]:>8.1f}{rate:>12.1f}{packed / rate:>10.2f} x")
    return results


@dataclass(frozen=True)
class BenchData:
    """Tokenised questions, their sizes, and the optimizer steps of an epoch."""

    questions: list[EncodedQuestion]
    index: PlanIndex
    steps: list[np.ndarray]
    pack_tokens: int = PACK_TOKENS
    sequence_tokens: int | None = None


class _OurLoop:
    """Our loop in one of its layouts, under DeepSpeed as `train_loop` drives it."""

    def __init__(self, data: BenchData, config: ModelConfig, layout: Layout, micro_batch_size: int) -> None:
        from ray_jobs.train.zero import start_engine

        self._data, self._layout, self._micro_batch_size = data, layout, micro_batch_size
        options = TrainOptions(zero_stage=0 if config.dtype == "float32" else 2, layout=layout)
        self._engine = start_engine(ToolLLM.build(config), options)
        self._engine.train()
        self._next_step = 0

    def run_steps(self, n_steps: int) -> tuple[int, float, float]:
        """Rows, seconds and CPU seconds of so many optimizer steps, after one that is not counted."""
        self._run_step()
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        rows = sum(self._run_step() for _ in range(n_steps))
        return rows, time.perf_counter() - start_s, time.process_time() - start_cpu_s

    def _run_step(self) -> int:
        data, engine = self._data, self._engine
        step = data.steps[self._next_step % len(data.steps)]
        self._next_step += 1
        if self._layout == "packed":
            parts = deal_step(step, data.index, 1, data.pack_tokens)[0]
        else:
            parts = deal_step_rows(step, data.index, 1, self._micro_batch_size)[0]
        weight = float(sum(sum(map(len, data.questions[question].answers)) for question in step))
        no_media = np.full(len(data.questions), -1)
        rows = 0
        for part in parts:
            batch = build_micro_batch(data.questions, part, no_media, sequence_tokens=data.sequence_tokens)
            output = engine(to_tensors(batch, None, engine.device))
            engine.backward(output.loss_sum / weight)
            rows += batch.n_rows
        engine.step()
        return rows


class _TrainerLoop:
    """transformers.Trainer over the same rows; every row is a sequence, padded on the right."""

    def __init__(self, data: BenchData, config: ModelConfig, micro_batch_size: int, folder: Path) -> None:
        self._rows = build_trainer_rows(data.questions)
        self._folder, self._micro_batch_size = folder, micro_batch_size
        self._model: Any = attach_adapter(load_backbone(config)[0], config)
        self._turn = 0

    def run_steps(self, n_steps: int) -> tuple[int, float, float]:
        """Rows, seconds and CPU seconds of so many optimizer steps, after one that is not counted."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        ends: list[tuple[float, float]] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append((time.perf_counter(), time.process_time()))

        options = TrainOptions()
        self._turn += 1
        arguments = TrainingArguments(
            output_dir=str(self._folder),
            use_cpu=True,
            per_device_train_batch_size=self._micro_batch_size,
            gradient_accumulation_steps=GLOBAL_BATCH_SIZE // self._micro_batch_size,
            max_steps=n_steps + 1,
            optim="adamw_torch",
            learning_rate=options.lr,
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=self._turn,
        )
        trainer: Any = Trainer(
            model=self._model, args=arguments, train_dataset=self._rows, data_collator=pad_right, callbacks=[Clock()]
        )
        trainer.train()
        assert trainer.accelerator.distributed_type == "NO", "the peer must not pay for our process group"
        (start_s, start_cpu_s), (end_s, end_cpu_s) = ends[0], ends[-1]
        return GLOBAL_BATCH_SIZE * n_steps, end_s - start_s, end_cpu_s - start_cpu_s


def build_trainer_rows(questions: Sequence[EncodedQuestion]) -> list[dict[str, torch.Tensor]]:
    """input_ids and labels of every row, int64 [T]; the prompt bears no loss."""
    rows = []
    for question in questions:
        no_loss = np.full(len(question.prompt_ids), -100)
        for answer in question.answers:
            arrays = {"input_ids": (question.prompt_ids, answer), "labels": (no_loss, answer)}
            rows.append(
                {key: torch.from_numpy(np.concatenate(parts).astype(np.int64)) for key, parts in arrays.items()}
            )
    return rows


def pad_right(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, all int64 [B, T]."""
    length = max(len(row["input_ids"]) for row in rows)

    def stack(key: str, fill: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(row[key], (0, length - len(row[key])), value=fill) for row in rows])

    mask = torch.stack([torch.arange(length) < len(row["input_ids"]) for row in rows])
    return {"input_ids": stack("input_ids", 0), "attention_mask": mask.long(), "labels": stack("labels", -100)}


def build_questions(
    seed: int = 0, n_copies: int = 1, words: Sequence[str] = ()
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Questions with as many right tools as those of ToolMMBench have; no two alike.

    Args:
        seed: of what is drawn.
        n_copies: how many times as many.
        words: to draw from, `N_WORDS` of them; () makes some up.

    Returns:
        (question, tool ids) pairs; all texts, for the tokenizer.
    """
    rng = np.random.default_rng(seed)
    letters = np.array(list("aeiobcdfgklmnprst"))
    words = words or ["".join(rng.choice(letters, rng.integers(2, 11))) for _ in range(N_WORDS)]
    commonness = 1 / np.arange(1, N_WORDS + 1) ** 0.8  # prompts of 65 tokens; the real ones have 71
    commonness /= commonness.sum()
    tools = [f"{owner}/{family}-{task}" for owner in OWNERS for family in FAMILIES for task in TASKS]
    counts = np.repeat(list(ANSWER_COUNTS), list(ANSWER_COUNTS.values()))
    questions = []
    for count in np.tile(counts, n_copies):
        n_words = round(float(np.interp(rng.random(), (0.05, 0.25, 0.5, 0.75, 0.95), WORDS_PER_QUESTION)))
        text = " ".join(rng.choice(words, n_words, p=commonness))
        questions.append((text, [str(tool) for tool in rng.choice(tools, count, replace=False)]))
    texts = ["".join(filter(None, render_prompt(text, False))) for text, _ in questions]
    texts += [render_target(tool) for _, tools in questions for tool in tools]
    return questions, texts


def build_data(tokenizer: Any, questions: list[tuple[str, list[str]]], **sizes: Any) -> BenchData:
    """`sizes` are `BenchData.pack_tokens` and `sequence_tokens`."""
    encoded = [encode_question(tokenizer, text, False, tools) for text, tools in questions]
    index = PlanIndex.from_questions(encoded)
    return BenchData(encoded, index, plan_epoch(index, 0, 0, GLOBAL_BATCH_SIZE), **sizes)


def list_words(tokenizer: Any) -> list[str]:
    """`N_WORDS` words of two tokens each, so that questions have about as many tokens as real ones."""
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    known = [text[1:] for text in texts if text[:1] == " " and text[1:].isalpha() and text.isascii()]
    return [f"{first} {second}" for first, second in zip(known[::2], known[1::2], strict=False)][:N_WORDS]


def _measure(turns: int, steps_per_turn: int, backbone: str) -> dict[str, Any]:
    """All loops in this process."""
    import deepspeed

    from ray_jobs.train.zero import disable_compiled_collectives

    torch.set_num_threads(1)
    disable_compiled_collectives()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": "0"}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, rank=0, world_size=1)
    with tempfile.TemporaryDirectory(prefix="bench_train_") as name:
        folder = Path(name)
        if backbone:
            config = ModelConfig(
                backbone=backbone, encoder_dim=64, dtype="bfloat16", lora_r=8, lora_alpha=16, lora_target="all-linear"
            )
            tokenizer = load_tokenizer(backbone)
            questions, _ = build_questions(words=list_words(tokenizer))
            data = build_data(tokenizer, questions, pack_tokens=REAL_PACK_TOKENS, sequence_tokens=CPU_SEQUENCE_TOKENS)
        else:
            questions, texts = build_questions()
            config = ModelConfig(backbone=str(build_tiny_backbone(folder / "backbone", texts)), encoder_dim=64)
            data = build_data(load_tokenizer(config.backbone), questions)
        small, large = PAPER_MICRO_BATCH_SIZE, 4 * PAPER_MICRO_BATCH_SIZE
        loops: dict[str, Any] = {
            "packed": _OurLoop(data, config, "packed", small),
            f"rows, micro batch {small}": _OurLoop(data, config, "rows", small),
            f"rows, micro batch {large}": _OurLoop(data, config, "rows", large),
            f"{TRAINER}, micro batch {small}": _TrainerLoop(data, config, small, folder / "trainer"),
            f"{TRAINER}, micro batch {large}": _TrainerLoop(data, config, large, folder / "trainer"),
        }
        for variable in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):  # DeepSpeed's; Trainer would wrap its model in DDP
            os.environ.pop(variable, None)
        totals = {name: np.zeros(3) for name in loops}
        for _ in range(turns):
            for name, loop in loops.items():
                totals[name] += loop.run_steps(steps_per_turn)
    rates = {name: float(rows / cpu_s) for name, (rows, _, cpu_s) in totals.items()}
    peers = {kind: [rate for name, rate in rates.items() if name.startswith(kind)] for kind in ("rows", TRAINER)}
    packing = packing_statistics(data.steps, data.index, 1, data.pack_tokens, small)
    return {
        "backbone": Path(backbone).name or "tiny",
        "rows_per_s": {name: float(rows / seconds) for name, (rows, seconds, _) in totals.items()},
        "rows_per_cpu_s": rates,
        "packed_over_rows": rates["packed"] / peers["rows"][0],
        "packed_over_best_rows": rates["packed"] / max(peers["rows"]),
        "packed_over_trainer": rates["packed"] / peers[TRAINER][0],
        "packed_over_best_trainer": rates["packed"] / max(peers[TRAINER]),
        "rows_per_question": data.index.total_rows / len(data.index),
        "rows_per_step": data.index.total_rows / len(data.steps),
        "packed_to_row_tokens": packing.packed_to_row_frac,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
