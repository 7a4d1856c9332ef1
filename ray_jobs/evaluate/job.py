"""`evaluate`: decode the test split on Ray Data actors and score it as the papers do: its tool questions as MLLM-Tool
does, its dialogues as GPT4Tools does, both if it holds both; and the retriever, where one was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any

from data_pipeline import storage
from data_pipeline.corpus.files import Corpus
from data_pipeline.corpus.sample import draw_records, sample_stream
from data_pipeline.errors import InputError
from data_pipeline.records.schema import SPLITS, ToolRecord
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.evaluate.actors import TrainedModel
from ray_jobs.evaluate.dialogues import DialogueEvaluation, evaluate_dialogues
from ray_jobs.evaluate.questions import QuestionEvaluation, evaluate_questions
from ray_jobs.evaluate.retrieval import RetrievalEvaluation, evaluate_retrieval
from ray_jobs.tracking.runs import RunLogger
from ray_jobs.train.features import MediaVectors, load_media_vectors
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.run_folder import prove_shared

FOLDER = "evaluation"  # in the run's folder
ANSWERS = "evaluation-answers"  # beside it, until all are there
REPORT_FILE = "report.md"
EVALUATION_FILE = "evaluation.json"
BASELINE_QUESTIONS = 50_000  # of training, at the most: a test question is compared with each of them


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, None where the test split holds nothing of the kind, and all numbers."""

    questions: QuestionEvaluation | None
    retrieval: RetrievalEvaluation | None
    dialogues: DialogueEvaluation | None
    summary: dict[str, Any]


def run(spec: RunSpec) -> dict[str, Any]:
    """The CLI's job: evaluate, print the tables, log them."""
    connect(spec.ray)
    prove_shared(spec.run_dir)
    evaluation = evaluate(spec)
    folder = storage.open_folder(spec.run_dir / FOLDER)
    print(storage.read_bytes(folder / REPORT_FILE).decode())
    print(f"tables, plots and predictions: {folder}")
    return evaluation.summary


def evaluate(spec: RunSpec) -> Evaluation:
    """Decode and score the test split; writes `evaluation/` in the run's folder and logs it to MLflow.

    Raises:
        InputError: no corpus, no trained model, or nothing to evaluate.
    """
    summary = TrainSummary.load(spec.run_dir)
    checkpoint = str(summary.find_best_checkpoint())
    model = TrainedModel(summary.model_config, checkpoint, spec.evaluate, (spec.run_dir / ANSWERS).absolute())
    corpus = summary.open_corpus(spec.corpus_dir)
    most, seed = spec.evaluate.max_questions, spec.seed
    vectors = load_media_vectors(spec, corpus, *SPLITS)
    train = read_training(corpus, seed)
    usable = sample_stream(lambda: vectors.questions(corpus, "test"), most, seed)
    test_dialogues = sample_stream(lambda: filter(attrgetter("is_dialogue"), corpus.records("test")), most, seed)
    positions, n_unusable = _number_questions(corpus, vectors)
    questions = retrieval = dialogues = None
    loss = spec.train.loss
    if usable and loss.retrieval:
        retrieval = evaluate_retrieval(
            model,
            [corpus.catalog[tool_id] for tool_id in corpus.catalog.selection_tool_ids],
            summary.max_target_tokens,
            train.answered_tool_ids,
            usable,
            vectors,
        )
    if usable and loss.names_tools:
        questions = evaluate_questions(
            model,
            corpus.catalog.selection_tool_ids,
            summary.max_target_tokens,
            train.questions,
            sample_stream(lambda: vectors.questions(corpus, "val"), spec.train.validation_questions, seed),
            usable,
            vectors,
            n_unusable,
            summary.wide,
        )
    if test_dialogues:
        max_tokens = spec.train.max_dialogue_tokens
        dialogues = evaluate_dialogues(
            model, test_dialogues, max_tokens, train.called_tool_ids, corpus.catalog, loss.retrieval > 0
        )
    if questions is None and retrieval is None and dialogues is None:
        raise InputError(
            f"nothing of the test split can be used: {n_unusable} questions have no media vector, "
            f"{len(test_dialogues)} dialogues are longer than train.max_dialogue_tokens = "
            f"{spec.train.max_dialogue_tokens}."
        )
    result = {"checkpoint": name_checkpoint(checkpoint)} | ({} if questions is None else questions.result)
    result |= {} if retrieval is None else {"retrieval": retrieval.result}
    result |= {} if dialogues is None else {"dialogues": dialogues.to_json()}
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new, storage.staged_locally(new) as local:
        if questions is not None:
            questions.write(local, positions, corpus.manifest.get("merged_source_indexes", {}), corpus.catalog)
        if dialogues is not None:
            dialogues.write(local)
        sections = [part.to_markdown() for part in (questions, retrieval, dialogues) if part is not None]
        storage.write_file(local / REPORT_FILE, "\n".join(["# Evaluation\n", *sections]))
        storage.write_file(local / EVALUATION_FILE, json.dumps(result, indent=2) + "\n")
    storage.remove_folder(model.answers_dir)
    tracker = RunLogger(spec.tracking_uri, summary.mlflow_run_id, spool_dir=spec.spool_dir)
    tracker.log_metrics(name_metrics(result))
    tracker.log_artifacts(storage.fetch_folder(folder), FOLDER)
    tracker.close()
    return Evaluation(questions, retrieval, dialogues, result)


@dataclass(frozen=True)
class TrainingSplit:
    """What evaluation needs of the training split.

    Attributes:
        questions: what the baselines learn from: all, or a sample of `BASELINE_QUESTIONS`.
        answered_tool_ids: tools that some question is answered with.
        called_tool_ids: tools that the dialogues call; `unknown` for those that call none.
    """

    questions: list[ToolRecord]
    answered_tool_ids: frozenset[str]
    called_tool_ids: frozenset[str]


def read_training(corpus: Corpus, seed: int) -> TrainingSplit:
    """Read the training split once, and hold a sample at the most."""
    answered, called = set[str](), set[str]()

    def read() -> Iterator[ToolRecord]:
        for record in corpus.records("train"):
            (called if record.is_dialogue else answered).update(record.valid_tool_ids)
            if not record.is_dialogue:
                yield record

    questions, n_questions = draw_records(read(), BASELINE_QUESTIONS, seed)
    if n_questions > len(questions):
        print(f"evaluate: the baselines learn from {len(questions):,} of {n_questions:,} training questions, a sample")
    return TrainingSplit(questions, frozenset(answered), frozenset(called))


def _number_questions(corpus: Corpus, vectors: MediaVectors) -> tuple[dict[str, int], int]:
    """Each test question's place by record id, and how many of them have no media vector."""
    positions: dict[str, int] = {}
    n_unusable = 0
    for record in corpus.records("test"):
        if not record.is_dialogue:
            positions[record.record_id] = len(positions)
            n_unusable += not vectors.has(record)
    return positions, n_unusable


def name_checkpoint(checkpoint: str) -> str:
    """Its job's folder and its own, which tell it from all others of a run."""
    return "/".join(PurePosixPath(checkpoint).parts[-2:])


def name_metrics(result: dict[str, Any], prefix: str = "eval") -> dict[str, float]:
    """Result -> MLflow metric names, such as eval/constrained/acc or eval/dialogues/seen/sr; counts on top are none."""
    flat: dict[str, float] = {}
    for key, value in result.items():
        name = f"{prefix}/{key.replace('@', '_at_')}"
        if isinstance(value, dict):
            flat |= name_metrics(value, name)
        elif isinstance(value, int | float) and prefix != "eval":
            flat[name] = float(value)
    return flat
