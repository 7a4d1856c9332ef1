"""Prepare, train, evaluate, export, serve: on a small corpus of texts and a very small LLM.

Over Ray, DeepSpeed, MLflow and HTTP: the one such path that `make test` goes.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from ray import serve as ray_serve
from small_service import free_port
from small_training import VERBS, build_base, build_spec, history

from data_pipeline.batches.encoding import encode_question
from data_pipeline.corpus.files import Corpus
from model.decode.tools import Prompt, calibrate, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.bundle import load_bundle
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import UNCALIBRATED, Calibration
from ray_jobs import export, prepare
from ray_jobs.config import RunSpec
from ray_jobs.evaluate import job as evaluate
from ray_jobs.tracking.client import default_uri
from ray_jobs.train import job as train
from ray_jobs.train.checkpoint import load_cursor, load_moments, load_parameters
from serve.app import build_app

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

EPOCHS = 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build_base(tmp_path_factory.mktemp("train"), EPOCHS)


@pytest.fixture(scope="module")
def whole(base: list[str], ray_session: None) -> tuple[RunSpec, train.TrainSummary]:
    """Trained to the end on two workers under ZeRO-2, with a wide head."""
    spec = build_spec(base, "whole", "train.workers=2", "train.zero_stage=2", "train.wide=true")
    prepare.run(spec)
    result = train.run(spec)
    summary = train.TrainSummary.load(spec.run_dir)
    assert result["best_checkpoint"] == summary.best_checkpoint
    json.dumps(result, allow_nan=False)
    return spec, summary


@pytest.mark.slow
def test_a_worker_has_as_many_threads_as_cpus(base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever OMP_NUM_THREADS says where the command is given: here, as in the Makefile, it is 1."""

    def look(config: dict[str, Any]) -> None:
        import os

        import ray
        import torch as torch_there

        threads = [torch_there.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])]
        Path(ray.get(config["job"])).write_text(json.dumps(threads), encoding="utf-8")

    monkeypatch.setattr(train, "train_loop_per_worker", look)
    spec = build_spec(base, "threads", "train.cpus_per_worker=2")
    tracker = SimpleNamespace(finish=lambda *_: None)
    found: Any = tmp_path / "threads.json"
    train._fit(spec, found, "threads", tracker, [])  # pyright: ignore[reportArgumentType]
    assert json.loads(found.read_text(encoding="utf-8")) == [2, 2]


def test_training_learns_and_logs_each_step_once(whole: tuple[RunSpec, train.TrainSummary]) -> None:
    spec, summary = whole
    losses = history(spec, summary.mlflow_run_id, "train/loss")
    assert len(losses) % EPOCHS == 0
    assert list(losses) == list(range(len(losses)))
    assert losses[len(losses) - 1] < 0.1 * losses[0]
    steps_per_epoch = len(losses) // EPOCHS
    accuracy = history(spec, summary.mlflow_run_id, "val/tool_accuracy")
    assert list(accuracy) == [steps_per_epoch * epoch - 1 for epoch in range(1, EPOCHS + 1)]
    assert max(accuracy.values()) == summary.metrics["val/score"] > 0.7
    run = MlflowClient(spec.tracking_uri).get_run(summary.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.workers"] == "2"
    assert {"train/lr", "train/grad_norm", "train/samples_per_s", "train/data_wait_frac"} < run.data.metrics.keys()
    (dataset,) = run.inputs.dataset_inputs
    assert Corpus.open(spec.corpus_dir).data_hash.startswith(dataset.dataset.digest)


def test_checkpoint_holds_what_was_trained_and_nothing_else(whole: tuple[RunSpec, train.TrainSummary]) -> None:
    spec, summary = whole
    folder = Path(summary.last_checkpoint)
    mllm = ToolLLM.build(ModelConfig.model_validate(summary.model_config))
    parameters, moments = load_parameters(folder), load_moments(folder)
    assert set(parameters) == set(mllm.trainable_names())
    assert len(moments) == 2 * len(parameters)
    fp32_bytes = 4 * sum(value.numel() for value in parameters.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 3 * fp32_bytes < size < 3.2 * fp32_bytes
    cursor = load_cursor(folder)
    assert (cursor.epoch, cursor.mlflow_run_id) == (EPOCHS, summary.mlflow_run_id)
    assert cursor.step == len(history(spec, summary.mlflow_run_id, "train/loss"))
    fresh = mllm.trainable_state_dict()
    assert all(not torch.equal(parameters[name], fresh[name]) for name in fresh if "projector" not in name)


@pytest.fixture(scope="module")
def exported(whole: tuple[RunSpec, train.TrainSummary]) -> tuple[RunSpec, dict[str, Any], dict[str, Any]]:
    spec, _ = whole
    return spec, evaluate.run(spec), export.run(spec)


def test_evaluation_scores_every_way_of_answering(
    exported: tuple[RunSpec, dict[str, Any], dict[str, Any]], whole: tuple[RunSpec, train.TrainSummary]
) -> None:
    spec, result, _ = exported
    json.dumps(result, allow_nan=False)
    n_questions = Corpus.open(spec.corpus_dir).table("test").num_rows
    assert result["n_questions"] == result["constrained"]["n"] == n_questions > 5
    assert result["constrained"]["hallu"] == 0
    assert result["constrained"]["format_acc"] == 1
    assert result["shuffled_media"]["acc"] == result["constrained"]["acc"], "there are no media to shuffle"
    assert result["constrained"]["recall@3"] >= result["constrained"]["acc"] > 0.7
    assert result["wide"]["acc"] > 0.7, "the verb tells, alone as well"
    assert result["language_model"]["acc"] > 0.7
    folder = spec.run_dir / "evaluation"
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == n_questions
    assert all(len(row["responses"]) == 3 and sum(row["probabilities"]) <= 1 + 1e-5 for row in predictions)
    metrics = MlflowClient(spec.tracking_uri).get_run(whole[1].mlflow_run_id).data.metrics
    assert metrics["eval/constrained/acc"] == pytest.approx(result["constrained"]["acc"])


def test_bundle_is_registered_as_champion_and_loads_without_unpickling(
    exported: tuple[RunSpec, dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, evaluation, result = exported
    bundle = load_bundle(result["bundle"])
    assert bundle.revision == result["revision"]
    assert bundle.info.metrics["evaluation"]["constrained"] == evaluation["constrained"]
    fitted = evaluation["calibration"]
    assert bundle.info.calibration == Calibration(fitted["slope"], fitted["offset"]) != UNCALIBRATED
    assert bundle.info.data_hash == Corpus.open(spec.corpus_dir).data_hash
    client = MlflowClient(spec.tracking_uri)
    champion = client.get_model_version_by_alias("toolmm", "champion")
    assert str(champion.version) == result["model_version"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr("cloudpickle.load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with default_uri(spec.tracking_uri):
        model = mlflow.pyfunc.load_model("models:/toolmm@champion")
    frame = pd.DataFrame(
        {"instruction": [f"please {verb} this poem" for verb in VERBS], "modality": "text", "media": None}
    )
    answers = model.predict(frame)
    assert list(answers.columns) == ["tool_id", "probability"]
    assert set(answers["tool_id"]) <= set(bundle.catalog.tool_ids)
    hits = sum(answers["tool_id"] == list(VERBS.values()))
    assert hits >= 6
    assert answers["probability"].between(0, 1).all()
    (stored,) = {path.parent for path in (spec.run_dir / "mlartifacts").rglob("MLmodel")}
    assert list(stored.rglob("bundle.json")), "the bundle travels with the registered model"
    assert not [path for path in stored.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]


def test_the_bundle_answers_over_http(exported: tuple[RunSpec, dict[str, Any], dict[str, Any]]) -> None:
    """Ray Serve gives the tools that evaluation found in the same questions, with probabilities calibrated as it
    found."""
    spec, _, result = exported
    bundle = load_bundle(result["bundle"])
    mllm = bundle.build_mllm()
    trie = ChoiceTrie(bundle.catalog.selection_tool_ids, mllm.tokenizer)
    rows = (spec.run_dir / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    evaluated = [json.loads(row) for row in rows]
    records = list(Corpus.open(spec.corpus_dir).records("test"))
    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        ray_serve.run(build_app({"bundle": result["bundle"]}), name="small-path")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for record, said in zip(records, evaluated, strict=True):
                prompt_ids = encode_question(mllm.tokenizer, record.instruction, False, ()).prompt_ids
                [plain] = top_k_tools(mllm, [Prompt(prompt_ids, None, record.instruction)], 3, trie, wide=bundle.wide)
                [alone] = top_k_tools(mllm, [Prompt(prompt_ids)], 3, trie)
                assert alone != plain, "the wide head counts"
                assert [tool.probability for tool in plain] == pytest.approx(said["probabilities"], abs=1e-5)
                assert all(tool.tool_id in words for tool, words in zip(plain, said["responses"], strict=True))
                expected = calibrate(plain, bundle.info.calibration)
                answer = client.post("/v1/tools/select", json={"instruction": record.instruction, "k": 3})
                assert answer.status_code == 200, answer.text
                found = answer.json()["tools"]
                assert [tool["tool_id"] for tool in found[:1]] == [tool.tool_id for tool in expected[:1]]
                p = [tool["probability"] for tool in found]
                assert p == pytest.approx([tool.probability for tool in expected], abs=1e-5)
    finally:
        ray_serve.shutdown()
