"""Training under the trie's losses and the retriever's, over Ray, DeepSpeed and MLflow, and its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_training import build_base, build_spec, history

from data_pipeline.corpus.files import Corpus
from ray_jobs import prepare
from ray_jobs.config import RunSpec
from ray_jobs.evaluate import job as evaluate
from ray_jobs.train import job as train
from ray_jobs.train.checkpoint import load_cursor

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build_base(tmp_path_factory.mktemp("losses"), epochs=16)


def test_a_broken_run_goes_on_elsewhere_as_if_nothing_had_happened(base: list[str]) -> None:
    """Under the trie's losses: an epoch on two workers under ZeRO-3, then one on one under ZeRO-2; the other run was on
    one without ZeRO all the time."""

    def go_on(name: str, end_epoch: int, workers: int, zero_stage: int) -> tuple[RunSpec, train.TrainSummary]:
        shape = (f"train.workers={workers}", f"train.zero_stage={zero_stage}")
        spec = build_spec(base, name, *shape, "train.loss={tokens: 0.5, answers: 1, answer_set: 0.5}")
        prepare.run(spec)
        n_questions = Corpus.open(spec.corpus_dir).table("train").num_rows
        end_step = end_epoch * -(-n_questions // spec.train.global_batch_size)
        until = spec.model_copy(update={"train": spec.train.model_copy(update={"max_steps": end_step})})
        summary = train.launch(until)
        cursor = load_cursor(Path(summary.last_checkpoint))
        assert (cursor.step, cursor.epoch) == (end_step, end_epoch)
        return spec, summary

    whole_spec, whole = go_on("whole", 2, 1, 0)
    _, begun = go_on("broken", 1, 2, 3)
    spec, broken = go_on("broken", 2, 1, 2)
    assert broken.mlflow_run_id == begun.mlflow_run_id, "one run, as if nothing had happened"
    losses = history(spec, broken.mlflow_run_id, "train/loss")
    assert list(losses) == list(range(len(losses)))
    assert len(history(spec, broken.mlflow_run_id, "train/choice_accuracy")) == len(losses) > 8
    # one rank adds in another order than two, and each step multiplies what that changes
    for key, rel in (("train/loss", 1e-4), ("train/lr", 1e-6), ("val/tool_accuracy", 1e-6)):
        expected = history(whole_spec, whole.mlflow_run_id, key)
        assert expected, key
        assert history(spec, broken.mlflow_run_id, key) == pytest.approx(expected, rel=rel), key


@pytest.fixture(scope="module")
def found(base: list[str]) -> tuple[RunSpec, train.TrainSummary, dict[str, float]]:
    """Trained to name tools and to find their cards; two of the eight tools are held out."""
    spec = build_spec(
        base,
        "cards",
        "prepare.unseen_tools=0.25",
        "train.loss={tokens: 0, answers: 1, retrieval: 1, retrieval_cards: 6}",
    )
    prepare.run(spec)
    train.run(spec)
    return spec, train.TrainSummary.load(spec.run_dir), evaluate.run(spec)


def test_what_is_learnt_under_the_trie_is_decoded(
    found: tuple[RunSpec, train.TrainSummary, dict[str, float]],
) -> None:
    spec, summary, _ = found
    accuracy = history(spec, summary.mlflow_run_id, "train/choice_accuracy")
    values = list(accuracy.values())
    assert np.mean(values[-10:]) > max(0.5, np.mean(values[:10]) + 0.05)  # two tasks are much for so small a model
    assert not history(spec, summary.mlflow_run_id, "train/token_accuracy"), "no other token is trained on"
    lines = Path(spec.run_dir / "evaluation" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert all(sum(row["probabilities"]) <= 1 + 1e-6 for row in predictions)


def test_the_retriever_is_validated_and_scored_on_seen_and_unseen_tools(
    found: tuple[RunSpec, train.TrainSummary, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    spec, summary, _ = found
    retrieval = json.loads((spec.run_dir / "evaluation" / "evaluation.json").read_bytes())["retrieval"]
    groups = retrieval["retriever"]
    assert retrieval["n_cards"] == 9  # and "unknown"
    assert groups["all"]["n"] == groups["seen"]["n"] + groups["unseen"]["n"]
    assert groups["unseen"]["n"] == 16
    assert groups["seen"]["acc"] >= 0.4
    assert groups["seen"]["acc"] == groups["seen"]["recall@1"] <= groups["seen"]["recall@5"]
    assert set(retrieval["tf-idf"]) == {"all", "seen", "unseen"}
    assert summary.metrics["val/retrieval_accuracy"] > 0.4
    assert summary.metrics["val/score"] == pytest.approx(
        (summary.metrics["val/retrieval_accuracy"] + summary.metrics["val/tool_accuracy"]) / 2
    )
    report = (spec.run_dir / "evaluation" / "report.md").read_text()
    assert "## Retrieval among the cards of 9 tools" in report
    assert (retrieval["offered_tokens"], retrieval["tokens_saved"]) == (retrieval["all_tokens"], 0), "nine are offered"
    assert "Tokens saved: the 9 nearest cards" in report
