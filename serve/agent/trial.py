"""Try out calls that others wrote: `python -m serve.agent.trial [TOOL_FILE ...]`, JSON Lines in, JSON Lines out.

A line of the input is a chain of calls on files of this machine::

    {"files": {"image/1.png": "/data/dog.png"},
     "calls": [{"tool": "gpt4tools/edge-detection-on-image", "input": "image/1.png", "result": "image/2.png"}]}

`input` is what a dialogue gives (its values in order, separated by commas), `result` the name under which the next call
finds what came out. Without `input` the tool gets the file, if that is all it needs. A line of the
output, in the same order, is ``{"verdict": "ok" | "failed" | "not tried", "why": "..."}``.

Tools run as in the service, each in a process of its own under limits. Those with a model, on another's server or with
side effects are not tried.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from data_pipeline.errors import InputError, MediaError
from serve.agent.tools import read_arguments
from serve.artifacts import Artifact
from serve.tools.all_tools import load_tools
from serve.tools.media import ToolLimits, decode_media
from serve.tools.run import run_tool
from serve.tools.spec import ToolError, ToolOutput, ToolSpec

LIMITS = ToolLimits(timeout_s=20.0, memory_mb=2048)
N_AT_A_TIME = 2  # calls side by side; each is a process
_AHEAD = 64  # lines that are read before their turn

Verdict = Literal["ok", "failed", "not tried"]


@dataclass(frozen=True)
class Trial:
    """What came of a chain of calls, and why in a sentence where it is not "ok"."""

    verdict: Verdict
    why: str = ""


class Trials:
    """Tries chains out, equal ones once."""

    def __init__(self, tools: Mapping[str, ToolSpec], limits: ToolLimits = LIMITS) -> None:
        self._tools = tools
        self._limits = limits
        self._known: dict[str, Trial] = {}
        self._lock = threading.Lock()

    def attempt(self, chain: Mapping[str, Any]) -> Trial:
        """One line of the input.

        Raises:
            InputError: a file cannot be read, or the line has not the form.
        """
        key = json.dumps(chain, sort_keys=True)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = self._attempt(chain)
            with self._lock:
                self._known[key] = known
        return known

    def _attempt(self, chain: Mapping[str, Any]) -> Trial:
        specs: list[ToolSpec] = []
        for call in chain["calls"]:
            spec = self._tools.get(call["tool"])
            if reason := _find_obstacle(spec, "input" in call):
                return Trial("not tried", reason)
            assert spec is not None  # that would have been an obstacle
            specs.append(spec)
        try:
            media = {name: Path(path).read_bytes() for name, path in chain["files"].items()}
        except OSError as error:
            raise InputError(f"a file for a trial cannot be read ({error}); correct the path.") from error
        for spec, call in zip(specs, chain["calls"], strict=True):
            try:
                output = run_tool(spec, _read_values(spec, call.get("input"), media), media, self._limits)
                fault = _find_fault(spec, output, self._limits)
            except InputError as error:
                return Trial("failed", f"bad_arguments: {error}")
            except ToolError as error:
                return Trial("failed", f"{error.code}: {error.message}")
            if fault:
                return Trial("failed", f"result: {spec.call_name} {fault}")
            if output.file is not None and call.get("result"):
                media[call["result"]] = output.file.data
        return Trial("ok")


def _find_obstacle(spec: ToolSpec | None, has_input: bool) -> str:
    """Why a tool is not tried; "" = it is."""
    if spec is None:
        return "the tool does not run here"
    needed = [argument.is_media for argument in spec.arguments if argument.default is None]
    if not has_input and needed != [True]:
        return "it takes more, or less, than a file"
    if spec.method in ("model", "remote"):
        return "it runs a model" if spec.method == "model" else "it runs on another's server"
    return "it changes something outside of the service" if spec.has_side_effects else ""


def _read_values(spec: ToolSpec, text: str | None, media: Mapping[str, bytes]) -> dict[str, Any]:
    """Argument name -> value, media by their names."""
    if text is not None:
        files = {name: Artifact(name, "", name.partition("/")[0], 0, "", 0.0, 0.0) for name in media}
        return read_arguments(spec, text, files)
    (wanted,) = (argument for argument in spec.arguments if argument.default is None)
    return spec.parse({wanted.name: next(iter(media), "")})


def _find_fault(spec: ToolSpec, output: ToolOutput, limits: ToolLimits) -> str:
    """What is wrong with a result: it is of another kind than the tool says, or no file of that kind."""
    if spec.result == "text":
        return "" if output.text.strip() else "gave no words"
    if output.file is None:
        return f"gave no {spec.result}"
    if output.file.media_type.partition("/")[0] != spec.result:
        return f"gave {output.file.media_type} and no {spec.result}"
    try:
        decode_media(spec.result, output.file.data, limits)
    except MediaError as error:
        return f"gave a file that cannot be read: {error}"
    return ""


def attempt_all(lines: TextIO, trials: Trials) -> Iterator[Trial]:
    """The trials of all lines, in order, some at a time."""
    with ThreadPoolExecutor(N_AT_A_TIME) as pool:
        waiting = []
        for line in lines:
            waiting.append(pool.submit(trials.attempt, json.loads(line)))
            if len(waiting) >= _AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def main(argv: Sequence[str], source: TextIO, sink: TextIO) -> int:
    """Exit codes: 0 done, 2 bad input, in one sentence on stderr."""
    try:
        trials = Trials(load_tools(files=argv))
        for trial in attempt_all(source, trials):
            sink.write(json.dumps({"verdict": trial.verdict, "why": trial.why}) + "\n")
            sink.flush()
    except (InputError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], sys.stdin, sys.stdout))
