"""`demo`: the whole way through the house on one machine, then six questions to the served model over HTTP."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate_local
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.schema import Modality, ToolRecord
from ray_jobs import export, prepare
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.embed import job as embed
from ray_jobs.evaluate import job as evaluate
from ray_jobs.places import hide_secrets
from ray_jobs.serving import Question, ask, check_nobody_serves, serving, show_answers, wait_for_interrupt
from ray_jobs.train import job as train

STAGES = (("prepare", prepare), ("embed", embed), ("train", train), ("evaluate", evaluate), ("export", export))


def run(spec: RunSpec, keep: bool = False) -> dict[str, Any]:
    """Prepare, embed, train, evaluate, export, serve, ask.

    Args:
        spec: the run config; `ray_jobs/configs/demo.yaml`.
        keep: go on serving until interrupted.

    Raises:
        InputError: the Ray that RAY_ADDRESS names serves something already.
    """
    run_dir = locate_local(spec.run_dir)
    connect(spec.ray)
    check_nobody_serves()  # before the minutes of training, and again when it comes to serving
    if (run_dir / train.TRAIN_FILE).exists():
        print(f"{run_dir} holds an earlier demo: what is still valid there is not done again")
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, job in STAGES:
        print(f"\n=== {name} " + "=" * (90 - len(name)), flush=True)
        start = time.perf_counter()
        results[name] = job.run(spec)
        seconds[name] = round(time.perf_counter() - start, 1)
    print("\n=== serve " + "=" * 85, flush=True)
    start = time.perf_counter()
    corpus = Corpus.open(spec.corpus_dir)
    questions = choose_questions(list(corpus.records("test")), corpus.media_root)
    with serving(spec, Path(results["export"]["bundle"])) as url:
        answers = [ask(url, question) for question in questions]
        seconds["serve"] = round(time.perf_counter() - start, 1)
        show_answers(questions, answers)
        _show_end(spec, results, seconds)
        if keep:
            wait_for_interrupt(url)
    ray.shutdown()
    hits = [answer["tools"][0]["tool_id"] in q.valid_tool_ids for q, answer in zip(questions, answers, strict=True)]
    return {
        "seconds": seconds,
        "evaluation": results["evaluate"],
        "questions_answered": len(hits),
        "questions_right": sum(hits),
        "bundle": results["export"]["bundle"],
    }


def choose_questions(records: Sequence[ToolRecord], media_root: Location | None) -> list[Question]:
    """Six test questions, taken in corpus order: two pictures and two sounds or clips under the same words, a text, and
    one that no tool solves."""
    questions = []
    for modalities in ((Modality.IMAGE,), (Modality.AUDIO, Modality.VIDEO)):
        first, second = _find_pair([record for record in records if record.modality in modalities])
        for medium in (first, second):
            assert media_root is not None
            note = f"the words fit {len(first.candidate_tool_ids)} tools; the {medium.modality.value} decides"
            media = locate_local(media_root / medium.media_uri)
            questions.append(Question(first.instruction, media, medium.valid_tool_ids, note))
    text, unanswerable = (_find_text(records, is_unknown) for is_unknown in (False, True))
    questions.append(Question(text.instruction, None, text.valid_tool_ids, "the words decide"))
    questions.append(Question(unanswerable.instruction, None, unanswerable.valid_tool_ids, "no tool solves it"))
    return questions


def _find_pair(records: Sequence[ToolRecord]) -> tuple[ToolRecord, ToolRecord]:
    """Two ambiguous records whose words allow the same tools and whose media ask for different ones."""
    ambiguous = [record for record in records if record.is_ambiguous and record.candidate_tool_ids]
    for first in ambiguous:
        for second in ambiguous:
            same_words = set(first.candidate_tool_ids) == set(second.candidate_tool_ids)
            if same_words and not set(first.valid_tool_ids) & set(second.valid_tool_ids):
                return first, second
    raise InputError("the test split holds no two ambiguous questions with the same candidates and different answers.")


def _find_text(records: Sequence[ToolRecord], is_unknown: bool) -> ToolRecord:
    for record in records:
        if not record.has_media and (UNKNOWN_TOOL_ID in record.valid_tool_ids) == is_unknown:
            return record
    raise InputError(
        f"the test split holds no text question {'without' if is_unknown else 'with'} a tool that solves it."
    )


def _show_end(spec: RunSpec, results: dict[str, Any], seconds: dict[str, float]) -> None:
    evaluation = results["evaluate"]
    ambiguous, text = evaluation["ambiguous_media"], evaluation["unambiguous_text"]
    print("\n=== summary " + "=" * 83)
    print(f"held-out ambiguous questions with media ({ambiguous['n']}):")
    print(f"   accuracy {ambiguous['constrained']:.3f} under the catalogue, {ambiguous['free']:.3f} free;")
    print(
        f"   {ambiguous['shuffled_media']:.3f} with the media shuffled between questions "
        f"(guessing among the tools that the words allow: {ambiguous['candidate_chance']:.3f})"
    )
    print(f"held-out unambiguous text questions ({text['n']}): {text['constrained']:.3f} under the catalogue")
    print(f"seconds: {'  '.join(f'{name} {value:.0f}' for name, value in seconds.items())}")
    print(f"tables and plots: {spec.run_dir / 'evaluation' / 'report.md'}")
    print(
        f"MLflow: {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {hide_secrets(spec.tracking_uri)}"
    )
