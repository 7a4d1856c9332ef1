"""A teacher over HTTP that follows its prompts: it reads tools and captions out of them and answers in form.

A share of its lines is spoilt in one of the ways of GPT4Tools' Table 5; it remembers which.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

_TOOL = re.compile(r"^\d+\. (?P<name>[^:\n]+): (?P<usage>.+)\. Arguments: (?P<arguments>.*)$", re.MULTILINE)
_CALL = re.compile(r"^\d+\. (?P<instruction>.*), \[(?P<tool>[^,]+), \"(?P<arguments>.*)\"\]$")
_CAPTION = re.compile(r"What it shows: (?P<caption>[^\n]*)")
_LISTED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
_OPENINGS = (
    "Could you kindly look at",
    "My boss asks about",
    "For tomorrow I need help with",
    "Nobody here solved",
    "Hm,",
)
KINDS = ("clean", "format", "arguments", "tool")


class ScriptedTeacher:
    """Counts what it is asked and what it spoils.

    Attributes:
        url: as an OpenAI client takes it.
        prompts: every prompt that it answered.
        schemas: of the answers that it was to give as JSON, and gave so.
        lines: line -> kind, of all that it wrote for tools.
        judge: prompt of a judge -> what it says.
        queries: prompt for queries -> what it writes.
        differences: prompt about the groups of tools -> what it says of the others.
        files: prompt about a file and the tools of a group -> for which of them it is right.
    """

    def __init__(self, noise_frac: float) -> None:
        self.url = ""
        self.prompts: list[str] = []
        self.schemas: list[dict[str, Any]] = []
        self.lines: dict[str, str] = {}
        self.judge: Callable[[str], str] = lambda prompt: "Yes."
        self.queries: Callable[[str], str] = self._write_queries
        self.differences: Callable[[str], str] = lambda prompt: answer_each(prompt, lambda _: "no")
        self.files: Callable[[str], str] = _choose_by_caption
        self._noise_frac = noise_frac
        self._lock = threading.Lock()

    def answer(self, prompt: str) -> str:
        rng = np.random.default_rng(list(prompt.encode()))
        with self._lock:
            self.prompts.append(prompt)
            if "Answer with one word, yes or no" in prompt:
                return self.judge(prompt)
            if "no tool is needed" in prompt:
                return "User: Thank you.\nAssistant: You are welcome.\nUser: Open it.png\nAssistant: No."
            if "different queries" in prompt:
                return self.queries(prompt)
            if "how it differs from that one" in prompt:
                return self.differences(prompt)
            if "right for what is attached" in prompt:
                return self.files(prompt)
            if "solves exactly that" in prompt:
                n_tools = len(re.findall(r"^\d+\. ", prompt, re.MULTILINE))
                return "\n".join(f"{n}: {'yes' if n == 1 else 'no'}" for n in range(1, n_tools + 1))
            caption = _CAPTION.search(prompt)
            assert caption is not None
            return "\n".join(
                self._write(found, caption["caption"], number, rng)
                for number, found in enumerate(_TOOL.finditer(prompt), start=1)
            )

    def answer_in_form(self, prompt: str, schema: dict[str, Any]) -> str:
        """The same answer as a server gives it that keeps to a schema."""
        lines = self.answer(prompt).splitlines()
        if "queries" in schema["properties"]:
            content: dict[str, Any] = {"queries": [line.partition(": ")[2] for line in lines]}
        else:
            found = [_CALL.match(line) for line in lines]
            rows = [each.groupdict() for each in found if each]
            content = {"instructions": [row | {"arguments": row["arguments"].split(", ")} for row in rows]}
        jsonschema.validate(content, schema)
        with self._lock:
            self.schemas.append(schema)
        return json.dumps(content)

    def _write_queries(self, prompt: str) -> str:
        """Twenty queries, of which one in each ten is spoilt; they repeat the description unless that is prohibited."""
        description, prohibited = prompt.rpartition("Description: ")[2].split("\nProhibited words: ")
        banned = {word.casefold() for word in prohibited.strip().split(", ")}
        words = " ".join(word for word in description.split() if word.strip(".,").casefold() not in banned)
        lines = []
        for number in range(1, 21):
            own = " ".join(f"item{len(self.prompts)}{letter}{number}" for letter in "abcdefgh")
            said = f"{_OPENINGS[number % len(_OPENINGS)]} {own}: {words}"
            if number % 10 == 0:
                said += " with that model of yours"
            lines.append(f"Query{number}: {said}")
            self.lines[lines[-1]] = "prohibited" if number % 10 == 0 else "clean"
        return "\n".join(lines)

    def _write(self, tool: re.Match[str], caption: str, number: int, rng: np.random.Generator) -> str:
        kind = str(rng.choice(KINDS[1:])) if rng.random() < self._noise_frac else "clean"
        names = tool["arguments"].split(", ")
        values = ["example.png" if name == "image_path" else "the dog" for name in names]
        words = f"Please {tool['usage'].removeprefix('to ')}: {caption.rstrip('.')}"
        name, comma = tool["name"], ","
        if kind == "format":
            comma = ""
        elif kind == "arguments":
            values = values[:-1]
        elif kind == "tool":
            name += " Now"
        line = f'{words}{comma} [{name}, "{", ".join(values)}"]'
        self.lines[line] = kind
        return f"{number}. {line}"


def answer_each(prompt: str, say: Callable[[str], str]) -> str:
    """A line for each of the numbered tools of a prompt, whose description is given to `say`."""
    return "\n".join(f"{number}: {say(words)}" for number, words in _LISTED.findall(prompt))


def _choose_by_caption(prompt: str) -> str:
    """Right is a tool of which the caption has a word that only it has."""
    caption = set(prompt.partition("What it is: ")[2].partition("\n")[0].strip(".").split())
    said = Counter(word for _, words in _LISTED.findall(prompt) for word in set(words.strip(".").split()))
    own = {word for word, n in said.items() if n == 1}
    return answer_each(prompt, lambda words: "yes" if caption & own & set(words.strip(".").split()) else "no")


@contextmanager
def scripted_teacher(noise_frac: float = 0.0) -> Iterator[ScriptedTeacher]:
    """One that listens on a free port of this machine."""
    teacher = ScriptedTeacher(noise_frac)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            form = body.get("response_format")
            text = teacher.answer_in_form(prompt, form["json_schema"]["schema"]) if form else teacher.answer(prompt)
            usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            reply: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            data = json.dumps(reply | {"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that wait; with 5 of them the rest is refused, and asked again

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    teacher.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield teacher
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_captions(folder: Path, captions: Iterable[str]) -> Path:
    """A file of captions, of the pictures 0.png, 1.png, ..."""
    rows = [{"image": f"{n}.png", "caption": caption} for n, caption in enumerate(captions)]
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question_settings(folder: Path, teacher: ScriptedTeacher, *more: str) -> list[str]:
    """Of `generate` for questions about a folder's `tools.jsonl`, into its `runs/q`."""
    server = f"generate.teacher={{url: {teacher.url}, model: scripted, api_key_env: ''}}"
    tools = f"generate.tools={folder / 'tools.jsonl'}"
    return [f"runs_dir={folder / 'runs'}", "name=q", "generate.recipe=questions", tools, server, *more]


def read_generated(folder: Path, file: str = "records.jsonl", name: str = "q") -> list[dict[str, Any]]:
    """The rows of a file that a run wrote."""
    text = (folder / "runs" / name / "generated" / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
