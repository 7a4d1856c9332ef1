"""Generated calls, tried out by the tools themselves.

The tools belong to the service, which knows nothing of jobs and is known by none (docs/architecture.md): they run in
its own process, `python -m serve.agent.trial`, and what passes is JSON Lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.instruct.cases import Case
from data_pipeline.records.dialogue import ToolCall, find_files, parse_turns, read_turns
from data_pipeline.records.schema import OBSERVATION
from ray_jobs.progress import Progress

Chain = Mapping[str, Any]  # a line of `serve.agent.trial`

STAND_IN = "ok, on a rendered picture"  # the call works; the picture that it was written for is not at hand
_MEDIA_FAULT = "failed: bad_media"  # a stand-in that does not suit the tool says nothing of the call


def build_chain(case: Case, tool_ids: Mapping[str, str], picture: Path) -> list[Chain]:
    """The calls of a dialogue as `serve.agent.trial` takes them, one chain; [] where there are none to try.

    Args:
        case: of a row that has no fault. It calls files by short names, so equal calls of several rows are one.
        tool_ids: call name -> id.
        picture: what stands behind every file that is known before the first call.
    """
    turns = parse_turns(case.answer)
    seen = [turn.text.strip() for turn in turns if turn.role == OBSERVATION]
    steps = [step for step in read_turns(turns) if isinstance(step, ToolCall)]
    if not steps:
        return []
    results = [*(next(iter(find_files(text)), "") for text in seen), *[""] * len(steps)]
    calls = [
        {"tool": tool_ids.get(step.name, step.name), "input": step.arguments, "result": result}
        for step, result in zip(steps, results, strict=False)
    ]
    files = find_files(case.situation + case.words)
    return [{"files": dict.fromkeys(files, str(picture)), "calls": calls}]


def try_out(chains: Sequence[Sequence[Chain]], tool_files: Sequence[Path], stand_in: str) -> list[str]:
    """The `check_call` of each row: what failed, else what went well, else why nothing was tried; "" for no chain.

    Args:
        chains: of each row, lines of `serve.agent.trial`.
        tool_files: Python files with tools of one's own (docs/tools.md).
        stand_in: the path that stands for pictures that are not at hand; "" = there is none.

    Raises:
        InputError: the tools refuse to start, such as for a file that holds none.
    """
    asked = [chain for own in chains for chain in own]
    verdicts = iter(_run(asked, tool_files) if asked else ())
    columns = []
    for own in chains:
        words = [_describe(chain, next(verdicts), stand_in) for chain in own]
        columns.append(min(words, key=_rank, default=""))
    return columns


def _describe(chain: Chain, verdict: Mapping[str, str], stand_in: str) -> str:
    column = verdict["verdict"] + (f": {verdict['why']}" if verdict["why"] else "")
    if not stand_in or stand_in not in chain["files"].values():
        return column
    if column.startswith(_MEDIA_FAULT):
        return "not tried: the picture is not at hand, and a rendered one does not suit the tool"
    return STAND_IN if column == "ok" else column


def _rank(column: str) -> int:
    return 0 if column.startswith("failed") else 1 if column.startswith("ok") else 2


def _run(chains: Sequence[Chain], tool_files: Sequence[Path]) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "serve.agent.trial", *map(str, tool_files)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as faults,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=faults, env=environment, text=True
        ) as process,
        Progress("generate") as progress,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(process.stdin, chains))
        feeder.start()
        verdicts = []
        for line in process.stdout:
            verdicts.append(json.loads(line))
            progress.show(len(verdicts), len(chains), "calls tried")
        feeder.join()
        if process.wait() or len(verdicts) < len(chains):
            faults.seek(0)
            said = faults.read().strip().splitlines() or ["its process ended"]
            raise InputError(f"the calls could not be tried out ({said[-1].removeprefix('error: ')}); mend that first.")
    return verdicts


def _feed(stream: Any, chains: Sequence[Chain]) -> None:
    try:
        with stream:
            for chain in chains:
                stream.write(json.dumps(chain) + "\n")
    except BrokenPipeError:  # it ended early, and has said why
        pass
