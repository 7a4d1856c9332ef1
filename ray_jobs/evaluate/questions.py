"""Evaluation of the test split's tool questions: decode them on Ray Data actors and score them as MLLM-Tool does.

Several ways of answering stand side by side: under the catalogue (constrained), free, under the catalogue with the
media vectors permuted between questions (how much of the answer comes from the medium?), and two baselines without a
model. Where there is a wide head, the first and the third are with it, and each half answers alone as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.markdown import render_table
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, ToolCatalog
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.metatool import MULTI as TWO_TOOLS
from model.decode.free import generate_free
from model.decode.tools import p_unknown, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.backbone import load_tokenizer
from model.scoring.baselines import knn_baseline, majority_baseline
from model.scoring.selection import SelectionScores, score_abstention, score_records
from model.scoring.tables import plot_scores, render_selection_csv, render_selection_markdown
from model.wide.head import WeightedHead, WideHead
from ray_jobs.evaluate.actors import TrainedModel
from ray_jobs.evaluate.calibration import describe_calibration, find_calibration, measure_calibration
from ray_jobs.evaluate.predictions import write_predictions
from ray_jobs.evaluate.prompts import PromptReader, QuestionJob, vector_column
from ray_jobs.evaluate.wide import find_weight
from ray_jobs.train.features import MediaVectors
from ray_jobs.train.wide import read_wide

MODES = ("constrained", "free", "shuffled_media")


@dataclass(frozen=True)
class QuestionEvaluation:
    """Questions that were decoded and scored.

    Attributes:
        records: the questions, N of them.
        decoded: what the actors gave for each.
        scores: by way of answering: "constrained", "free", "shuffled_media", "majority", "knn"; with a wide head also
            "language_model" and "wide".
        result: the numbers of the report and of the JSON.
    """

    records: list[ToolRecord]
    decoded: list[dict[str, Any]]
    scores: dict[str, SelectionScores]
    result: dict[str, Any]

    def write(
        self, folder: Path, positions: Mapping[str, int], merged: Mapping[str, Sequence[int]], catalog: ToolCatalog
    ) -> None:
        """Write predictions, tables and plots; arguments as of `write_predictions`."""
        write_predictions(folder, self.records, self.decoded, positions, merged, catalog)
        for mode in self.scores:
            storage.write_file(folder / f"{mode}.md", render_selection_markdown(self.scores[mode]))
            storage.write_file(folder / f"{mode}.csv", render_selection_csv(self.scores[mode]))
        for mode in ("constrained", "free"):
            plot_scores(self.scores[mode], folder / f"{mode}.png")

    def to_markdown(self) -> str:
        """The sections of the report."""
        return render_report(self.result, self.scores)


_ANSWERS = pa.schema(
    {
        "position": pa.int64(),
        "tool_ids": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float64()),
        "p_unknown": pa.float64(),
        "free": pa.string(),
        "shuffled_media": pa.string(),
        "language_model": pa.string(),
    }
)


class Decoder:
    """Ray Data actor: a built model that answers batches of questions in every mode, or gives their first answers."""

    def __init__(self, job: QuestionJob) -> None:
        self._options = job.model.options
        self._mllm = job.model.build()
        self._trie = ChoiceTrie(job.tool_ids, self._mllm.tokenizer)
        self._prompts = PromptReader(self._mllm.tokenizer, job)
        head = read_wide(job.wide)
        self._wide = None if head is None else WeightedHead(head, job.wide_weight)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        whole, first = ([row for row in rows if row["first_only"] == only] for only in (False, True))
        return pa.Table.from_pylist([*self._answer(whole), *self._answer_first(first)], schema=_ANSWERS)

    def _answer_first(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        prompts = [self._prompts.read(row) for row in rows]
        rankings = top_k_tools(self._mllm, prompts, 1, self._trie, wide=self._wide)
        for row, (tool, *_) in zip(rows, rankings, strict=True):
            yield {"position": row["position"], "tool_ids": [tool.tool_id], "probabilities": [tool.probability]}

    def _answer(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        prompts = [self._prompts.read(row) for row in rows]
        options, mllm, trie, wide = self._options, self._mllm, self._trie, self._wide
        also = [UNKNOWN_TOOL_ID] if UNKNOWN_TOOL_ID in trie.choices else []
        ranked = top_k_tools(mllm, prompts, options.top_k, trie, also=also, wide=wide)
        alone = ranked if wide is None else top_k_tools(mllm, prompts, 1, trie)
        free = generate_free(mllm, prompts, max_new_tokens=options.free_max_new_tokens)
        ablated = ranked
        if any(row["media"] is not None for row in rows):  # of text there is nothing to shuffle
            shuffled = [self._prompts.read(row, "shuffled_media") for row in rows]
            ablated = top_k_tools(mllm, shuffled, 1, trie, wide=wide)
        for row, ranking, samples, other, by_model in zip(rows, ranked, free, ablated, alone, strict=True):
            yield {
                "position": row["position"],
                "tool_ids": [tool.tool_id for tool in ranking[: options.top_k]],
                "probabilities": [tool.probability for tool in ranking[: options.top_k]],
                "p_unknown": p_unknown(ranking) or 0.0,
                "free": samples[0],
                "shuffled_media": other[0].tool_id,
                "language_model": by_model[0].tool_id,
            }


def evaluate_questions(
    model: TrainedModel,
    tool_ids: tuple[str, ...],
    max_target_tokens: int,
    train_records: Sequence[ToolRecord],
    val_records: Sequence[ToolRecord],
    records: list[ToolRecord],
    vectors: MediaVectors,
    n_unusable: int,
    wide: str = "",
) -> QuestionEvaluation:
    """Decode and score questions.

    Args:
        model: what answers.
        tool_ids: what a question may be answered with.
        max_target_tokens: see `encode_question`.
        train_records: questions that the baselines learn from.
        val_records: questions of the validation split that can be used; the calibration is fitted on them.
        records: questions of the test split that can be used, at least one.
        vectors: of the media of all.
        n_unusable: test questions that were left out for want of a media vector; reported.
        wide: where the training's wide head lies; "" where it has none.
    """
    start = time.perf_counter()
    load_tokenizer(model.model_config["backbone"])  # here, where a backbone that is gone can be told
    asked = [*records, *val_records]
    media = [vectors.get(record) for record in asked]
    permuted = permute_media(records, media[: len(records)], model.options.shuffle_seed)
    job = QuestionJob(model, tool_ids, max_target_tokens, wide)
    if wide and val_records:
        job = replace(job, wide_weight=find_weight(job, val_records, media[len(records) :]))
    answers = job.run(
        Decoder,
        asked,
        first_only=[i >= len(records) for i in range(len(asked))],
        media=vector_column(media),
        shuffled_media=vector_column([*permuted, *[None] * len(val_records)]),
    )
    decoded = answers[: len(records)]
    calibration = find_calibration(val_records, answers[len(records) :])
    seconds = time.perf_counter() - start
    scores = _score(tool_ids, train_records, records, vectors, decoded, read_wide(wide))
    result = _summarise(records, decoded, scores)
    if calibration is not None:
        result["calibration"] = measure_calibration(records, decoded, calibration, len(val_records))
    result |= {
        "n_questions": len(records),
        "n_unusable": n_unusable,
        "decode_s": round(seconds, 2),
    }
    if wide:
        result["wide_weight"] = job.wide_weight
    return QuestionEvaluation(records, decoded, scores, result)


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
    tool_ids: Sequence[str],
    train_records: Sequence[ToolRecord],
    records: Sequence[ToolRecord],
    vectors: MediaVectors,
    decoded: Sequence[dict[str, Any]],
    wide: WideHead | None,
) -> dict[str, SelectionScores]:
    responses = {
        "constrained": [[render_target(tool_id) for tool_id in row["tool_ids"]] for row in decoded],
        "free": [[row["free"]] for row in decoded],
        "shuffled_media": [[render_target(row["shuffled_media"])] for row in decoded],
        "majority": majority_baseline(train_records, records),
        "knn": knn_baseline(train_records, records, vectors.map_of([*train_records, *records]) or None),
    }
    if wide is not None:
        log_p = wide.log_probabilities([record.instruction for record in records], [vectors.get(r) for r in records])
        responses["language_model"] = [[render_target(row["language_model"])] for row in decoded]
        responses["wide"] = [[render_target(wide.tool_ids[tool])] for tool in log_p.argmax(axis=1)]
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
    pairs = [
        set(row["tool_ids"][:2]) == set(record.valid_tool_ids)
        for record, row in zip(records, decoded, strict=True)
        if record.source == TWO_TOOLS
    ]
    if pairs:  # MetaTool's multi-tool selection: both tools, and no other
        summary["two_tools"] = {"n": len(pairs), "acc": float(np.mean(pairs))}
    summary["abstention"] = score_abstention(abstained, unanswerable)
    return summary


def _overall(scores: SelectionScores) -> dict[str, float]:
    overall = scores.to_json()["overall"]
    return {key: float(value) for key, value in overall.items()}


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
        f"{result['n_questions']} test questions, {result['n_unusable']} more left out for want of a media vector. "
        "Figures in per cent.",
        "",
        render_table(header, rows),
        "",
        f"Guessing among the tools that the words of an ambiguous question allow: {percent(chance)} %.",
        f"Abstention (`unknown` ranked first): {abstention['n_abstained']} of {result['n_questions']}, where "
        f"{abstention['n_unknown']} should be; precision {percent(abstention['precision'])} %, "
        f"recall {percent(abstention['recall'])} %, F1 {percent(abstention['f1'])} %.",
        "",
        *_describe_weight(result.get("wide_weight")),
        *describe_calibration(result.get("calibration")),
        *_describe_pairs(result.get("two_tools")),
        "## Questions under the catalogue (hallucination is 0 by construction)",
        "",
        render_selection_markdown(scores["constrained"]),
        "",
        "## Questions, free decoding",
        "",
        render_selection_markdown(scores["free"]),
        "",
    ]
    return "\n".join(lines)


def _describe_weight(weight: float | None) -> list[str]:
    if weight is None:
        return []
    return [
        f"`constrained` is the language model and the wide head together, the head with {100 * weight:.0f} % of the "
        "weight, fitted on the validation split; `language_model` and `wide` are each alone.",
        "",
    ]


def _describe_pairs(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return []
    return [f"Queries for two tools (MetaTool): both ranked first in {100 * found['acc']:.1f} % of {found['n']}.", ""]
