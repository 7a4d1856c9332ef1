"""`evaluate_agent`: GPT4Tools' evaluation of a service, not of a model: every dialogue of the test split goes to the
served agent over HTTP, which decodes under constraints and runs the tools.

Files that a dialogue knows are uploaded first; in the trace that comes back their ids become the record's names again,
and so do the files that tools made, in the order of the record's observations. Then the scorer judges the turns.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.corpus.files import Corpus
from data_pipeline.corpus.sample import sample_records
from data_pipeline.errors import InputError
from data_pipeline.loopback import open_url
from data_pipeline.records.dialogue import (
    FILE_NAME,
    DialoguePrompt,
    find_files,
    parse_dialogue_prompt,
    parse_offered_tools,
    read_observations,
    rename_files,
    render_answer,
)
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS, render_media, seeded_generator
from model.scoring.dialogues import called_tool_ids, score_dialogues
from ray_jobs.config import RunSpec
from ray_jobs.evaluate.dialogues import DialogueEvaluation
from ray_jobs.progress import Progress

API_KEY = "TOOLMM_API_KEY"  # environment variable with the key of a service that wants one
FOLDER = "evaluation_agent"
TIMEOUT_S = 300


@dataclass(frozen=True)
class AgentRun:
    """What the agent did with one dialogue.

    Attributes:
        texts: its turns under the record's file names, at most as many as the record has.
        executed: calls that a tool was asked to run, whether it gave a result or failed.
        refused: calls that were not run: a made-up tool or file, or arguments that the tool does not take.
        failed: (tool id, error) of the executed ones without a result, such as where weights are missing.
        faults: executed calls of a tool that was not offered, or with a file that does not exist; there must be none.
    """

    texts: list[str]
    executed: int
    refused: int
    failed: list[tuple[str, str]]
    faults: list[str]


def run(spec: RunSpec) -> dict[str, Any]:
    """Ask, score, print the table; writes `evaluation_agent/` in the run's folder.

    Raises:
        InputError: no corpus or no dialogue in it, or the service does not answer or refuses.
    """
    corpus = Corpus.open(spec.corpus_dir)
    dialogues = [record for record in corpus.records("test") if record.is_dialogue]
    records = sample_records(dialogues, spec.evaluate.max_questions, spec.seed)
    if not records:
        raise InputError(f"the test split of {spec.corpus_dir} holds no dialogue; prepare a source that has some.")
    tool_ids = {tool.call_name: tool.tool_id for tool in corpus.catalog}
    service = _Service(spec.evaluate.agent_url)
    start = time.perf_counter()
    runs: list[AgentRun] = []
    ask = partial(ask_agent, service.call, spec.evaluate.agent_model, tool_ids=tool_ids)
    with ThreadPoolExecutor(spec.evaluate.agent_concurrency) as threads, Progress("evaluate") as progress:
        progress.show(0, len(records), "dialogues")
        for found in threads.map(ask, records):
            runs.append(found)
            progress.show(len(runs), len(records), "dialogues")
    seconds = time.perf_counter() - start
    scores = score_dialogues(records, [found.texts for found in runs], called_tool_ids(corpus.records("train")))
    evaluation = DialogueEvaluation(records, scores, 0, seconds)
    folder = spec.run_dir / FOLDER
    evaluation.write(folder)
    executed, refused = sum(found.executed for found in runs), sum(found.refused for found in runs)
    failed = Counter(failure for found in runs for failure in found.failed)
    faults = [fault for found in runs for fault in found.faults]
    print(evaluation.to_markdown())
    print(f"calls: {executed} executed, {failed.total()} of them without a result, {refused} refused")
    for (tool_id, error), n in failed.most_common():
        print(f"  {n:>3} x {error:<24}{tool_id}")
    print("\n".join([f"executed with a tool or a file that does not exist: {len(faults)}", *faults]))
    counts = {"executed": executed, "failed": failed.total(), "refused": refused, "faults": len(faults)}
    return {**evaluation.to_json(), **counts}


def ask_agent(
    call: Callable[..., dict[str, Any]], model: str, record: ToolRecord, tool_ids: Mapping[str, str]
) -> AgentRun:
    """Put one dialogue to the agent.

    Args:
        call: (path, JSON body) or (path, file=(name, data)) -> the answer; a path alone asks for what is there.
        model: its name, the agent's suffix included.
        record: a dialogue.
        tool_ids: what dialogues call a tool -> its id.
    """
    prompt = parse_dialogue_prompt(record.instruction)
    said = " ".join([*(words for exchange in prompt.exchanges for words in exchange), prompt.new_input])
    names = dict.fromkeys([*prompt.files, *find_files(said)])
    uploads = {name: _upload(call, i, name, prompt.files.get(name, _modality(name))) for i, name in enumerate(names)}
    offered = [tool_ids[name] for name in parse_offered_tools(record.instruction)]
    answer = call(
        "/v1/chat/completions",
        {
            "model": model,
            "messages": _build_messages(prompt, uploads),
            "tools": [{"type": "function", "function": {"name": tool_id}} for tool_id in offered],
        },
    )
    own_names = {upload["name"]: name for name, upload in uploads.items()}
    known = {upload["id"] for upload in uploads.values()}
    return _read_trace(call, record, answer, own_names, known, offered)


def _build_messages(prompt: DialoguePrompt, uploads: dict[str, Any]) -> list[dict[str, Any]]:
    """The dialogue as a chat: known files come with the first message, the words name them as the service does."""
    media = [_build_part(_modality(name), f"artifact:{uploads[name]['id']}") for name in prompt.files]
    messages: list[dict[str, Any]] = []
    for human, reply in prompt.exchanges:
        messages += [{"role": "user", "content": human}, {"role": "assistant", "content": reply}]
    messages.append({"role": "user", "content": prompt.new_input})
    names = {name: upload["name"] for name, upload in uploads.items()}
    for message in messages:
        message["content"] = rename_files(message["content"], names)
    if media:
        messages[0]["content"] = [*media, {"type": "text", "text": messages[0]["content"]}]
    return messages


def _read_trace(
    call: Callable[..., dict[str, Any]],
    record: ToolRecord,
    answer: dict[str, Any],
    names: dict[str, str],
    known_ids: set[str],
    offered: Sequence[str],
) -> AgentRun:
    observations = read_observations(record.turns)
    texts: list[str] = []
    executed = refused = 0
    failed: list[tuple[str, str]] = []
    faults: list[str] = []
    for i, step in enumerate(answer["agent"]["steps"]):
        texts.append(rename_files(step["turn"], names))
        if step["error"] == "refused":
            refused += 1
            continue
        executed += 1
        if step["error"] is not None:
            failed.append((step["tool_id"], step["error"]))
        if step["tool_id"] not in offered:
            faults.append(f"{record.record_id}: {step['tool_id']!r} was not offered")
        texts_given = [value for value in step["arguments"].values() if value not in known_ids]
        strangers = [
            name
            for name in find_files(step["turn"])
            if PurePosixPath(name).stem not in known_ids and not any(name in str(text) for text in texts_given)
        ]
        faults += [f"{record.record_id}: {name!r} is a file that nobody gave" for name in strangers]
        made = step["artifact"]
        if made is not None:
            call(made["path"])  # it must be there
            known_ids.add(made["id"])
            expected = FILE_NAME.search(observations[i]) if i < len(observations) else None
            names[made["name"]] = expected[0] if expected else made["name"]
    texts.append(render_answer(rename_files(answer["choices"][0]["message"]["content"], names)))
    return AgentRun(texts[: len(observations) + 1], executed, refused, failed, faults)


def _modality(name: str) -> Modality:
    return Modality(name.partition("/")[0])


def _build_part(modality: Modality, address: str) -> dict[str, Any]:
    """A medium as a part of a message."""
    if modality is Modality.AUDIO:
        return {"type": "input_audio", "input_audio": {"data": address}}
    kind = "video_url" if modality is Modality.VIDEO else "image_url"
    return {"type": kind, kind: {"url": address}}


def _upload(call: Callable[..., dict[str, Any]], i: int, name: str, description: str) -> dict[str, Any]:
    """A file of the name's kind under that description; what it shows does not matter, the model reads words alone."""
    modality = _modality(name)
    kind = MEDIA_KINDS[modality][i % len(MEDIA_KINDS[modality])]
    data = render_media(modality, kind, seeded_generator("evaluate_agent", i))
    return call("/v1/artifacts", file=(description, data))


class _Service:
    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(
                f"evaluate.agent_url is {url!r}; give the service's address, such as http://127.0.0.1:8000."
            )
        self._url = url.rstrip("/")

    def call(self, path: str, body: Any = None, file: tuple[str, bytes] | None = None) -> dict[str, Any]:
        """Ask; JSON or {} for anything else. InputError where the service refuses or is not there."""
        headers = {"Authorization": f"Bearer {os.environ[API_KEY]}"} if os.environ.get(API_KEY) else {}
        data = None
        if file is not None:
            data, headers["Content-Type"] = _encode_form(*file)
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            with open_url(urllib.request.Request(self._url + path, data, headers), TIMEOUT_S) as response:
                is_json = response.headers.get_content_type() == "application/json"
                return json.load(response) if is_json else {}
        except urllib.error.HTTPError as error:
            message = error.read(2000).decode("utf-8", "replace")
            raise InputError(f"{self._url}{path} answered {error.code}: {message}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            raise InputError(f"no answer from {self._url} ({error}); start the service there first.") from error


def _encode_form(name: str, data: bytes) -> tuple[bytes, str]:
    """A multipart form with one file."""
    boundary = "toolmm-boundary-7d1f"
    quoted = re.sub(r'["\r\n\\/]', " ", name)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
    body = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"
