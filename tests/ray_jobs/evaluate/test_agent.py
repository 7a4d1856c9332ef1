"""A dialogue put to an agent: what is sent, and how its trace becomes turns that the scorer can judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    render_answer,
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_file_note,
    render_image_note,
)
from data_pipeline.records.schema import Modality, ToolRecord, Turn
from model.scoring.dialogues import score_dialogues
from ray_jobs.evaluate.agent import AgentRun, ask_agent

TOOLS = [Tool("g/edges", name="Find Edges"), Tool("g/ask", name="Ask The Image")]
TOOL_IDS = {tool.call_name: tool.tool_id for tool in TOOLS}
_FILES = {"image": "image/a.png", "audio": "audio/b.wav", "video": "video/c.mp4"}
HISTORY = "\n".join(
    [
        render_image_note("image/first.png", "a cat on a mat"),
        render_exchange("Show image/first.png larger.", "It is image/large.png."),
    ]
)
RECORD = ToolRecord(
    record_id="r1",
    source="test",
    modality=Modality.TEXT,
    instruction=render_dialogue_prompt(TOOLS, HISTORY, "Find the edges of image/first.png, and what are they?"),
    valid_tool_ids=("g/edges", "g/ask"),
    turns=(
        Turn("assistant", render_call("Find Edges", "image/first.png")),
        Turn("observation", " image/edges.png\n"),
        Turn("assistant", render_call("Ask The Image", "image/edges.png, what is it")),
        Turn("observation", " a cat\n"),
        Turn("assistant", render_answer("See image/edges.png.")),
    ),
)


_KINDS = {  # what a file begins with -> its kind, as a service tells it
    b"\x89PNG": ("image", "png"),
    b"\xff\xd8": ("image", "png"),
    b"RIFF": ("audio", "wav"),
    b"ftyp": ("video", "mp4"),
}


class _Agent:
    """Answers with a trace; the ids of uploads are u0, u1, ... and m0, m1, ... those of what tools made."""

    def __init__(self, steps: list[dict[str, Any]], answer: str) -> None:
        self._answer = {"agent": {"steps": steps}, "choices": [{"message": {"content": answer}}]}
        self.uploads: list[str] = []
        self.asked: list[str] = []
        self.request: dict[str, Any] = {}

    def __call__(self, path: str, body: Any = None, file: tuple[str, bytes] | None = None) -> dict[str, Any]:
        self.asked.append(path)
        if file is not None:
            self.uploads.append(file[0])
            name = f"u{len(self.uploads) - 1}"
            medium, suffix = next(kind for magic, kind in _KINDS.items() if magic in file[1][:12])
            return {"id": name, "name": f"{medium}/{name}.{suffix}"}
        if body is not None:
            self.request = body
            return self._answer
        return {}


def _step(tool: str, text: str, made: str = "", error: str | None = None) -> dict[str, Any]:
    artifact = {"id": made, "name": f"image/{made}.png", "path": f"/v1/artifacts/{made}"} if made else None
    return {
        "turn": render_call(tool, text),
        "tool_id": TOOL_IDS.get(tool, ""),
        "error": error,
        "artifact": artifact,
        "arguments": {},
    }


def _run(*steps: dict[str, Any], answer: str = "See image/m0.png.") -> tuple[AgentRun, _Agent]:
    agent = _Agent(list(steps), answer)
    return ask_agent(agent, "toolmm-agent", RECORD, TOOL_IDS), agent


def test_a_right_dialogue_scores_full_marks() -> None:
    run, agent = _run(
        _step("Find Edges", "image/u0.png", made="m0"), _step("Ask The Image", "image/m0.png, what is it")
    )
    assert agent.uploads == ["a cat on a mat", "image"]
    assert "/v1/artifacts/m0" in agent.asked
    assert agent.request["tools"] == [
        {"type": "function", "function": {"name": tool_id}} for tool_id in ("g/edges", "g/ask")
    ]
    first, reply, last = agent.request["messages"]
    assert first["content"] == [
        {"type": "image_url", "image_url": {"url": "artifact:u0"}},
        {"type": "text", "text": "Show image/u0.png larger."},
    ]
    assert reply == {"role": "assistant", "content": "It is image/u1.png."}
    assert last == {"role": "user", "content": "Find the edges of image/u0.png, and what are they?"}
    assert run.texts == [turn.text for turn in RECORD.turns if turn.role == "assistant"]
    assert (run.executed, run.refused, run.failed, run.faults) == (2, 0, [], [])
    scores = score_dialogues([RECORD], [run.texts], {"g/edges", "g/ask"}).headline()
    assert [scores[name] for name in ("sr", "sr_act", "sr_args")] == pytest.approx([1, 1, 1])


def test_sounds_and_videos_are_put_to_it_too() -> None:
    notes = [render_file_note(medium, name, f"my {medium}") for medium, name in _FILES.items()]
    record = replace(
        RECORD, instruction=render_dialogue_prompt(TOOLS, "\n".join(notes), f"Hear {_FILES['audio']} first.")
    )
    agent = _Agent([_step("Find Edges", "audio/u1.wav"), _step("Find Edges", "video/u7.mp4")], "It is video/u2.mp4.")
    run = ask_agent(agent, "toolmm-agent", record, TOOL_IDS)
    assert agent.uploads == ["my image", "my audio", "my video"]
    (message,) = agent.request["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": "artifact:u0"}},
        {"type": "input_audio", "input_audio": {"data": "artifact:u1"}},
        {"type": "video_url", "video_url": {"url": "artifact:u2"}},
        {"type": "text", "text": "Hear audio/u1.wav first."},
    ]
    assert run.texts[0] == render_call("Find Edges", _FILES["audio"])
    assert run.texts[-1] == render_answer(f"It is {_FILES['video']}.")
    assert run.faults == ["r1: 'video/u7.mp4' is a file that nobody gave"]


def test_what_went_wrong_is_counted() -> None:
    run, _ = _run(
        _step("Find Edges", "image/u0.png", error="weights_not_available"),
        _step("Make Coffee", "image/u0.png", error="refused"),
        _step("Ask The Image", "image/nobody.png, what"),
        _step("Find Edges", "image/u1.png", made="m0"),
    )
    assert len(run.texts) == 3, "no more turns than the record has"
    assert (run.executed, run.refused, run.failed) == (3, 1, [("g/edges", "weights_not_available")])
    assert run.faults == ["r1: 'image/nobody.png' is a file that nobody gave"]
    unoffered, _ = _run({**_step("Find Edges", "image/u0.png"), "tool_id": "g/other"})
    assert unoffered.faults == ["r1: 'g/other' was not offered"]


def test_a_name_in_the_words_for_a_tool_is_no_file_that_it_opens() -> None:
    asked = _step("Ask The Image", "image/u0.png, is it like image/other.png")
    run, _ = _run({**asked, "arguments": {"image": "u0", "text": "is it like image/other.png"}})
    assert run.faults == []
