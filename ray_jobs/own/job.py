"""`own`: questions from a teacher for one's own tools, a corpus, a trained model, a bundle, a service that is asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate_local
from data_pipeline.records.schema import ToolRecord
from ray_jobs import export, prepare
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.embed import job as embed
from ray_jobs.evaluate import job as evaluate
from ray_jobs.generate import job as generate
from ray_jobs.generate.asking import FOLDER
from ray_jobs.own.teacher import template_teacher
from ray_jobs.serving import Question, ask, check_nobody_serves, serving, show_answers, wait_for_interrupt
from ray_jobs.train import job as train

RECORDS_FILE = "records.jsonl"  # that `generate` writes, beside the catalogue
N_ASKED = 3  # test questions, each for another tool


def run(spec: RunSpec, words: str | None = None, keep: bool = False) -> dict[str, Any]:
    """Generate, prepare, embed where there are media, train, evaluate, export, serve, ask.

    Args:
        spec: the run config; `generate.tools` names the catalogue, `generate.teacher` None = the template teacher.
        words: to ask the served model, before test questions.
        keep: go on serving until interrupted.

    Raises:
        InputError: the tools or the teacher cannot be used, or the Ray that RAY_ADDRESS names serves something already.
    """
    spec = settle(spec)
    connect(spec.ray)
    check_nobody_serves()  # before anything is paid for, and again when it comes to serving
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with _teaching(spec) as taught:
        _run_stage("generate", generate, taught, results, seconds)
    for name, job in (("prepare", prepare), ("embed", embed), ("train", train), ("evaluate", evaluate)):
        if name != "embed" or spec.generate.media is not None:
            _run_stage(name, job, spec, results, seconds)
    _run_stage("export", export, spec, results, seconds)
    _show_heading("serve")
    start = time.perf_counter()
    corpus = Corpus.open(spec.corpus_dir)
    questions = choose_questions(list(corpus.records("test")), corpus.media_root)
    if words is not None:
        questions.insert(0, Question(words, None, (), "your own words"))
    bundle = results["export"]["bundle"]
    with serving(spec, Path(bundle)) as url:
        answers = [ask(url, question) for question in questions]
        seconds["serve"] = round(time.perf_counter() - start, 1)
        show_answers(questions, answers)
        _show_end(spec, results["evaluate"], seconds, bundle)
        if keep:
            wait_for_interrupt(url)
    ray.shutdown()
    return {
        "seconds": seconds,
        "generated": results["generate"],
        "evaluation": results["evaluate"],
        "answers": [
            {"question": question.instruction, "right": list(question.valid_tool_ids), "tools": answer["tools"]}
            for question, answer in zip(questions, answers, strict=True)
        ],
        "bundle": bundle,
    }


def settle(spec: RunSpec) -> RunSpec:
    """The config with a corpus of what is generated for the tools.

    Files of the names `groups.jsonl` and `media.jsonl` beside the tools belong to them, and so do the media.

    Raises:
        InputError: there are no tools, or the config asks for other data than questions.
    """
    if spec.generate.recipe != "questions" or spec.generate.tools is None:
        raise InputError(
            "`own` asks for questions about your tools: take --config own_smollm2 or own_tiny, and "
            "generate.tools=FOLDER/tools.jsonl with a line for each tool."
        )
    beside = {name: spec.generate.tools.with_name(f"{name}.jsonl") for name in ("groups", "media")}
    found = {name: path for name, path in beside.items() if path.is_file() and getattr(spec.generate, name) is None}
    generated = spec.generate.model_copy(update=found)
    source: dict[str, Any] = {"source": "jsonl", "path": locate_local(spec.run_dir) / FOLDER / RECORDS_FILE}
    if generated.media is not None and spec.prepare.media_root is None:
        source["media_root"] = generated.media.parent
    return spec.model_copy(update={"generate": generated, "prepare": spec.prepare.model_copy(update=source)})


def choose_questions(records: Sequence[ToolRecord], media_root: Location | None) -> list[Question]:
    """The first test questions that ask for different tools, at most `N_ASKED`."""
    questions: list[Question] = []
    answered: set[str] = set()
    for record in records:
        if len(questions) < N_ASKED and answered.isdisjoint(record.valid_tool_ids):
            answered |= set(record.valid_tool_ids)
            media = locate_local(media_root / record.media_uri) if media_root and record.has_media else None
            note = "a test question, which training has not seen"
            questions.append(Question(record.instruction, media, record.valid_tool_ids, note))
    return questions


@contextmanager
def _teaching(spec: RunSpec) -> Iterator[RunSpec]:
    """The config with a teacher that answers while the block runs."""
    if spec.generate.teacher is not None:
        yield spec
        return
    print(
        "no teacher is named: questions are made of templates and your descriptions, by no language model", flush=True
    )
    with template_teacher() as teacher:
        yield spec.model_copy(update={"generate": spec.generate.model_copy(update={"teacher": teacher})})


def _run_stage(name: str, job: Any, spec: RunSpec, results: dict[str, Any], seconds: dict[str, float]) -> None:
    _show_heading(name)
    start = time.perf_counter()
    results[name] = job.run(spec)
    seconds[name] = round(time.perf_counter() - start, 1)


def _show_heading(name: str) -> None:
    print(f"\n=== {name} " + "=" * (90 - len(name)), flush=True)


def _show_end(spec: RunSpec, evaluation: dict[str, Any], seconds: dict[str, float], bundle: str) -> None:
    _show_heading("summary")
    if "constrained" in evaluation:  # a model that only finds cards names no tool
        n, ours, nearest = evaluation["n_questions"], evaluation["constrained"]["acc"], evaluation["knn"]["acc"]
        print(f"{n} test questions: accuracy {ours:.3f}; with the tool of the nearest training question {nearest:.3f}")
    print(f"seconds: {'  '.join(f'{name} {value:.0f}' for name, value in seconds.items())}")
    print(f"questions that were written, and why some were left out: {spec.run_dir / FOLDER / 'report.md'}")
    print(f"serve it again: {sys.executable} -m serve bundle={bundle} --open")
