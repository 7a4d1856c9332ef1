"""The training benchmark: data like the released corpus', the same loss in all loops, and numbers from a real run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipeline.batches.steps import packing_statistics
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.bench import train as bench_train
from ray_jobs.bench.train import build_data, build_questions, build_trainer_rows, pad_right


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("bench_train") / "backbone"
    sizes = {"hidden_size": 32, "n_layers": 1, "n_heads": 2, "intermediate_size": 64}
    return ModelConfig(backbone=str(build_tiny_backbone(folder, build_questions()[1], **sizes)), encoder_dim=8)


def test_questions_are_like_the_released_ones(config: ModelConfig) -> None:
    """The shared part of ToolMMBench's test file: 4.57 rows a question, packs of 23 % of the padded rows' tokens."""
    questions, _ = build_questions()
    assert len({text for text, _ in questions}) == len(questions) == sum(bench_train.ANSWER_COUNTS.values())
    data = build_data(ToolLLM.build(config).tokenizer, questions)
    found = packing_statistics(data.steps, data.index, 1, bench_train.PACK_TOKENS, 4)
    assert found.rows / found.questions == pytest.approx(4.57, abs=0.01)
    assert found.packed_to_row_frac == pytest.approx(0.225, abs=0.02)
    assert len(build_questions(n_copies=2)[0]) == 2 * len(questions)


def test_all_loops_compute_the_same_loss(config: ModelConfig) -> None:
    """On the rows of one step: the mean over all answer tokens."""
    from data_pipeline.batches.packing import build_micro_batch

    mllm = ToolLLM.build(config).eval()
    data = build_data(mllm.tokenizer, build_questions()[0])
    step = data.steps[0][:6]
    no_media = np.full(len(data.questions), -1)
    pairs = np.array([(q, a) for q in step for a in range(len(data.questions[q].answers))])
    with torch.no_grad():
        ours = [
            mllm(to_tensors(build_micro_batch(data.questions, part, no_media), None, "cpu")) for part in (step, pairs)
        ]
        batch = pad_right(build_trainer_rows([data.questions[question] for question in step]))
        theirs = float(mllm.llm(**batch).loss)
    for output in ours:
        assert float(output.loss_sum / output.weight_sum) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_all_loops_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """One step of each; how much faster packs are is for an idle machine to say, `make bench`."""
    results = bench_train.run(turns=1, steps_per_turn=1)
    assert len(results["rows_per_s"]) == 5
    assert all(0 < rate < float("inf") for rate in results["rows_per_s"].values())
    rates = results["rows_per_cpu_s"]
    peers = [rate for name, rate in rates.items() if name.startswith("transformers.Trainer")]
    assert results["packed_over_best_trainer"] == rates["packed"] / max(peers)
    assert results["packed_to_row_tokens"] == pytest.approx(0.225, abs=0.02)
    assert "transformers.Trainer" in capsys.readouterr().out
