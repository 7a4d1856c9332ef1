"""`evaluate`: decode the test split on Ray Data actors and score it as the papers do.

Four ways of answering stand side by side: under the catalogue (constrained), free, under the catalogue with the media
vectors permuted between questions (how much of the answer comes from the medium?), and two baselines without a model.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from data_pipeline.catalog import UNKNOWN_TOOL_ID
from data_pipeline.corpus_files import Corpus
from data_pipeline.encoding import encode_question, longest_answer
from data_pipeline.errors import InputError
from data_pipeline.prompts import render_target
from data_pipeline.schema import ToolRecord
from data_pipeline.stream import keep_order
from model.backbone import load_tokenizer
from model.baselines import knn_baseline, majority_baseline
from model.config import ModelConfig
from model.decode import Prompt, generate_free, top_k_tools
from model.metrics import SelectionScores, score_records
from model.mllm import ToolLLM
from model.score_tables import plot_scores, render_table
from model.trie import CatalogTrie
from ray_jobs.checkpoint import load_parameters
from ray_jobs.cluster import connect
from ray_jobs.config import EvaluateOptions, RunSpec
from ray_jobs.features import MediaVectors, load_media_vectors, split_usable
from ray_jobs.tracking import RunLogger
from ray_jobs.train import TrainSummary

MODES = ("constrained", "free", "shuffled_media")
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """Scores by way of answering: "constrained", "free", "shuffled_media", "majority", "knn"."""

    scores: dict[str, SelectionScores]
    summary: dict[str, Any]


class Decoder:
    """Ray Data actor: a built model that answers batches of questions in every mode."""

    def __init__(self, job: dict[str, Any]) -> None:
        options: EvaluateOptions = job["options"]
        self._options = options
        self._device = "cuda" if options.num_gpus else "cpu"
        self._mllm = ToolLLM.build(ModelConfig.model_validate(job["model_config"]))
        self._mllm.load_trainable_state_dict(load_parameters(Path(job["checkpoint"])))
        self._mllm.to(self._device).eval()
        tokenizer = self._mllm.tokenizer
        self._trie = CatalogTrie(job["tool_ids"], tokenizer)
        self._max_target_tokens, self._reserve_tokens = job["max_target_tokens"], job["reserve_tokens"]

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        prompts = [self._prompt(row, "media") for row in rows]
        shuffled = [self._prompt(row, "shuffled_media") for row in rows]
        options = self._options
        also = [UNKNOWN_TOOL_ID] if UNKNOWN_TOOL_ID in self._trie.tool_ids else []
        ranked = top_k_tools(self._mllm, prompts, options.top_k, self._trie, also=also)
        free = generate_free(self._mllm, prompts, max_new_tokens=options.free_max_new_tokens)
        ablated = top_k_tools(self._mllm, shuffled, 1, self._trie)
        return pa.table(
            {
                "position": batch["position"],
                "tool_ids": [[tool.tool_id for tool in ranking[: options.top_k]] for ranking in ranked],
                "probabilities": [[tool.probability for tool in ranking[: options.top_k]] for ranking in ranked],
                "p_unknown": [
                    next((tool.probability for tool in ranking if tool.tool_id == UNKNOWN_TOOL_ID), 0.0)
                    for ranking in ranked
                ],
                "free": [samples[0] for samples in free],
                "shuffled_media": [ranking[0].tool_id for ranking in ablated],
            }
        )

    def _prompt(self, row: dict[str, Any], media_column: str) -> Prompt:
        media = row[media_column]
        encoded = encode_question(
            self._mllm.tokenizer,
            row["instruction"],
            media is not None,
            (),
            self._max_target_tokens,
            self._reserve_tokens,
        )
        return Prompt(encoded.prompt_ids, None if media is None else np.array(media, dtype=np.float32))


def run(spec: RunSpec) -> dict[str, Any]:
    """The CLI's job: evaluate, print the tables, log them."""
    connect(spec.ray)
    evaluation = evaluate(spec)
    print((spec.run_dir / "evaluation" / "report.md").read_text(encoding="utf-8"))
    print(f"tables, plots and predictions: {spec.run_dir / 'evaluation'}")
    return evaluation.summary


def evaluate(spec: RunSpec) -> Evaluation:
    """Decode and score the test split; writes `evaluation/` in the run's folder and logs it to MLflow.

    Raises:
        InputError: no corpus, no trained model, or nothing to evaluate.
    """
    summary = TrainSummary.load(spec.run_dir)
    checkpoint = summary.find_best_checkpoint()
    corpus = summary.open_corpus(spec.corpus_dir)
    test_records = list(corpus.records("test"))
    train_records = list(corpus.records("train"))
    vectors = load_media_vectors(spec, corpus, train_records + test_records)
    records, unusable = split_usable(test_records, vectors)
    records = records[: spec.evaluate.max_questions]
    if not records:
        raise InputError(f"no question of the test split can be used: {len(unusable)} have no media vector.")
    start = time.perf_counter()
    decoded = _decode(spec, summary, checkpoint, corpus, records, vectors)
    seconds = time.perf_counter() - start
    scores = _score(corpus, train_records, records, vectors, decoded)
    folder = _replace_folder(spec.run_dir / "evaluation")
    result = _summarise(records, decoded, scores) | {
        "n_questions": len(records),
        "n_unusable": len(unusable),
        "decode_s": round(seconds, 2),
    }
    merged = corpus.manifest.get("merged_source_indexes", {})
    _write(folder, records, decoded, scores, result, merged)
    tracker = RunLogger(spec.tracking_uri, summary.mlflow_run_id)
    tracker.log_metrics(_metric_names(result))
    tracker.log_artifacts(folder, "evaluation")
    return Evaluation(scores, result)


def _decode(
    spec: RunSpec,
    summary: TrainSummary,
    checkpoint: Path,
    corpus: Corpus,
    records: Sequence[ToolRecord],
    vectors: MediaVectors,
) -> list[dict[str, Any]]:
    """One row per record, in order."""
    tokenizer = load_tokenizer(summary.model_config["backbone"])  # here, where a backbone that is gone can be told
    media = [vectors.get(record) for record in records]
    permuted = permute_media(records, media, spec.evaluate.shuffle_seed)
    vector_type = pa.list_(pa.float32())
    table = pa.table(
        {
            "position": pa.array(range(len(records)), pa.int64()),
            "instruction": [record.instruction for record in records],
            "media": pa.array(media, vector_type),
            "shuffled_media": pa.array(permuted, vector_type),
        }
    )
    # questions of like length side by side: less padding in a batch
    table = table.take(np.argsort([len(record.instruction) for record in records], kind="stable"))
    job = {
        "options": spec.evaluate,
        "model_config": summary.model_config,
        "checkpoint": str(checkpoint),
        "tool_ids": list(corpus.catalog.tool_ids),
        "max_target_tokens": summary.max_target_tokens,
        "reserve_tokens": longest_answer(tokenizer, corpus.catalog.tool_ids),
    }
    keep_order(ray.data.DataContext.get_current())
    options = spec.evaluate
    dataset = ray.data.from_arrow(table).repartition(max(1, -(-len(records) // options.batch_size)))
    decoded = dataset.map_batches(
        Decoder,
        fn_constructor_args=(job,),
        batch_size=options.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.num_actors),
        num_cpus=1,
        num_gpus=options.num_gpus,
    )
    rows: list[dict[str, Any]] = []
    start = last = time.perf_counter()
    blocks: Any = decoded.iter_batches(batch_size=None, batch_format="pyarrow")
    for block in blocks:
        rows += block.to_pylist()
        now = time.perf_counter()
        if now - last > 5 or len(rows) == len(records):
            rate = len(rows) / (now - start)
            print(f"decoded {len(rows)}/{len(records)} questions, {rate:.1f}/s", flush=True)
            last = now
    return sorted(rows, key=lambda row: row["position"])


def permute_media(
    records: Sequence[ToolRecord], media: Sequence[np.ndarray | None], seed: int
) -> list[np.ndarray | None]:
    """Give each question the medium of another question of its modality, drawn at random."""
    permuted = list(media)
    generator = np.random.default_rng(seed)
    for modality in sorted({record.modality for record in records if record.has_media}):
        positions = [i for i, record in enumerate(records) if record.modality is modality]
        for target, origin in zip(positions, generator.permutation(positions), strict=True):
            permuted[target] = media[origin]
    return permuted


def _score(
    corpus: Corpus,
    train_records: Sequence[ToolRecord],
    records: Sequence[ToolRecord],
    vectors: MediaVectors,
    decoded: Sequence[dict[str, Any]],
) -> dict[str, SelectionScores]:
    responses = {
        "constrained": [[render_target(tool_id) for tool_id in row["tool_ids"]] for row in decoded],
        "free": [[row["free"]] for row in decoded],
        "shuffled_media": [[render_target(row["shuffled_media"])] for row in decoded],
        "majority": majority_baseline(train_records, records),
        "knn": knn_baseline(
            train_records, records, {sha256: vectors.matrix[row] for sha256, row in vectors.rows.items()} or None
        ),
    }
    tool_ids = corpus.catalog.tool_ids
    return {mode: score_records(records, answers, tool_ids) for mode, answers in responses.items()}


def compute_candidate_chance(records: Sequence[ToolRecord]) -> float | None:
    """Accuracy of guessing among the tools that the words allow; None where the source does not say which."""
    shares = [
        len(set(record.valid_tool_ids) & set(record.candidate_tool_ids)) / len(record.candidate_tool_ids)
        for record in records
        if record.candidate_tool_ids
    ]
    return float(np.mean(shares)) if shares else None


def _summarise(
    records: Sequence[ToolRecord], decoded: Sequence[dict[str, Any]], scores: dict[str, SelectionScores]
) -> dict[str, Any]:
    ambiguous = np.array([record.is_ambiguous and record.has_media for record in records])
    plain_text = np.array([not record.is_ambiguous and not record.has_media for record in records])
    unanswerable = np.array([UNKNOWN_TOOL_ID in record.valid_tool_ids for record in records])
    abstained = np.array([row["tool_ids"][0] == UNKNOWN_TOOL_ID for row in decoded])
    summary: dict[str, Any] = {mode: _overall(score) for mode, score in scores.items()}
    if ambiguous.any():
        summary["ambiguous_media"] = {
            "n": int(ambiguous.sum()),
            **{mode: float(score.acc[ambiguous].mean()) for mode, score in scores.items()},
            "candidate_chance": compute_candidate_chance([r for r, hit in zip(records, ambiguous, strict=True) if hit]),
        }
    if plain_text.any():
        summary["unambiguous_text"] = {
            "n": int(plain_text.sum()),
            **{mode: float(score.acc[plain_text].mean()) for mode, score in scores.items()},
        }
    summary["abstention"] = {
        "n_unknown": int(unanswerable.sum()),
        "n_abstained": int(abstained.sum()),
        "precision": float(unanswerable[abstained].mean()) if abstained.any() else None,
        "recall": float(abstained[unanswerable].mean()) if unanswerable.any() else None,
    }
    return summary


def _overall(scores: SelectionScores) -> dict[str, float]:
    overall = scores.to_json()["overall"]
    return {key: float(value) for key, value in overall.items()}


def _metric_names(result: dict[str, Any]) -> dict[str, float]:
    """Result -> MLflow metric names, such as eval/constrained/acc."""
    flat = {}
    for group, values in result.items():
        if isinstance(values, dict):
            for key, value in values.items():
                if isinstance(value, int | float):
                    flat[f"eval/{group}/{key.replace('@', '_at_')}"] = float(value)
    return flat


def _write(
    folder: Path,
    records: Sequence[ToolRecord],
    decoded: Sequence[dict[str, Any]],
    scores: dict[str, SelectionScores],
    result: dict[str, Any],
    merged: dict[str, list[int]],
) -> None:
    """Predictions, tables and plots. `merged`: other positions of the released test file with a record's question."""
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for position, (record, row) in enumerate(zip(records, decoded, strict=True)):
            index = position if record.source_index is None else record.source_index
            line = {
                "record_id": record.record_id,
                "responses": [render_target(tool_id) for tool_id in row["tool_ids"]],
                "probabilities": [round(p, 6) for p in row["probabilities"]],
                "p_unknown": round(row["p_unknown"], 6),
                "free_response": row["free"],
                "shuffled_media_response": render_target(row["shuffled_media"]),
            }
            for number in (index, *merged.get(str(index), ())):
                file.write(json.dumps({"index": number} | line, ensure_ascii=False) + "\n")
    for mode in (*MODES, "majority", "knn"):
        (folder / f"{mode}.md").write_text(scores[mode].to_markdown(), encoding="utf-8")
        (folder / f"{mode}.csv").write_text(scores[mode].to_csv(), encoding="utf-8")
    for mode in ("constrained", "free"):
        plot_scores(scores[mode], folder / f"{mode}.png")
    (folder / "report.md").write_text(render_report(result, scores), encoding="utf-8")
    (folder / EVALUATION_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def render_report(result: dict[str, Any], scores: dict[str, SelectionScores]) -> str:
    """The comparison of all ways of answering, then the paper's tables for constrained and free decoding."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    rows = [
        [
            mode,
            *(percent(result[mode][key]) for key in ("acc", "hallu", "format_acc")),
            percent(result.get("ambiguous_media", {}).get(mode)),
            percent(result.get("unambiguous_text", {}).get(mode)),
        ]
        for mode in scores
    ]
    header = ["answers", "Acc", "Hallu", "Format Acc", "ambiguous + media Acc", "unambiguous text Acc"]
    chance = result.get("ambiguous_media", {}).get("candidate_chance")
    abstention = result["abstention"]
    lines = [
        "# Evaluation",
        "",
        f"{result['n_questions']} test questions, {result['n_unusable']} more left out for want of a media vector. "
        "Figures in per cent.",
        "",
        render_table(header, rows),
        "",
        f"Guessing among the tools that the words of an ambiguous question allow: {percent(chance)} %.",
        f"Abstention (`unknown` ranked first): {abstention['n_abstained']} of {result['n_questions']}, where "
        f"{abstention['n_unknown']} should be; precision {percent(abstention['precision'])} %, "
        f"recall {percent(abstention['recall'])} %.",
        "",
        "## Under the catalogue (hallucination is 0 by construction)",
        "",
        scores["constrained"].to_markdown(),
        "",
        "## Free decoding",
        "",
        scores["free"].to_markdown(),
        "",
    ]
    return "\n".join(lines)


def _replace_folder(folder: Path) -> Path:
    """An empty folder of that name; results of an earlier evaluation go."""
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        os.replace(folder, old)
        shutil.rmtree(old)
    folder.mkdir(parents=True)
    return folder
