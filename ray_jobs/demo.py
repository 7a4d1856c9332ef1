"""`demo`: the whole way through the house on one machine, then six questions to the served model over HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from data_pipeline import storage
from data_pipeline.corpus.files import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate_local
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.schema import Modality, ToolRecord
from ray_jobs import export, prepare
from ray_jobs.config import RunSpec
from ray_jobs.embed import job as embed
from ray_jobs.evaluate import job as evaluate
from ray_jobs.places import hide_secrets
from ray_jobs.train import job as train

STAGES = (("prepare", prepare), ("embed", embed), ("train", train), ("evaluate", evaluate), ("export", export))
START_TIMEOUT_S = 180
TOP_K = 3


@dataclass(frozen=True)
class Question:
    """What the demo asks: some record's words with some record's medium, and the right answers to that."""

    instruction: str
    media: Path | None
    valid_tool_ids: tuple[str, ...]
    note: str


def run(spec: RunSpec, keep: bool = False) -> dict[str, Any]:
    """Prepare, embed, train, evaluate, export, serve, ask.

    Args:
        spec: the run config; `ray_jobs/configs/demo.yaml`.
        keep: go on serving until interrupted.
    """
    run_dir = locate_local(spec.run_dir)
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
        _show_answers(questions, answers)
        _show_end(spec, results, seconds)
        if keep:
            _wait(url)
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


@contextmanager
def serving(spec: RunSpec, bundle: Path) -> Iterator[str]:
    """Serve a bundle with Ray's own command until the block ends; yields the service's address."""
    port = _free_port()
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "toolmm",
                "route_prefix": "/",
                "import_path": "serve.app:build_app",
                "args": {"bundle": str(bundle)},
            }
        ],
    }
    config_path = spec.work_dir / "serve.yaml"
    storage.write_file(config_path, yaml.safe_dump(config, sort_keys=False))
    log_path = spec.work_dir / "serve.log"
    address = ray.get_runtime_context().gcs_address
    project = Path(__file__).resolve().parent.parent
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", "--app-dir", str(project), str(config_path)],
            env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"},
            cwd=project,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process, log_path)
        print(f"serving {bundle} at {url}", flush=True)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(url: str, question: Question) -> dict[str, Any]:
    """One request to `/v1/tools/select`."""
    body: dict[str, Any] = {"instruction": question.instruction, "k": TOP_K}
    if question.media is not None:
        body["media"] = {"data": base64.b64encode(question.media.read_bytes()).decode("ascii")}
    request = urllib.request.Request(
        f"{url}/v1/tools/select", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=10) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    raise RuntimeError(f"the service did not become healthy; the end of {log_path}:\n{tail}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _show_answers(questions: Sequence[Question], answers: Sequence[dict[str, Any]]) -> None:
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        medium = f"with {question.media.name}: " if question.media else ""
        print(f"\n{number}. “{question.instruction.strip()}”\n     {medium}{question.note}")
        for tool in answer["tools"][:TOP_K]:
            mark = "right" if tool["tool_id"] in question.valid_tool_ids else ""
            bar = "█" * round(20 * tool["probability"])
            print(f"     {tool['probability']:6.1%}  {bar:<20} {tool['tool_id']:<56}{mark}".rstrip())


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


def _wait(url: str) -> None:
    print(f"\nserving at {url} until you press Ctrl-C; try: python -m serve.client {url} 'Improve this picture' FILE")
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("stopping")
