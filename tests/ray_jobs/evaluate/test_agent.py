"""A dialogue put to an agent: what is sent, and how its trace becomes turns that the scorer can judge."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    render_answer,
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_image_note,
)
from data_pipeline.records.schema import Modality, ToolRecord, Turn
from model.scoring.dialogues import score_dialogues
from ray_jobs.evaluate.agent import AgentRun, ask_agent

TOOLS = [Tool("g/edges", name="Find Edges"), Tool("g/ask", name="Ask The Image")]
TOOL_IDS = {tool.call_name: tool.tool_id for tool in TOOLS}
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
            return {"id": name, "name": f"image/{name}.png"}
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
    assert agent.uploads == ["a cat on a mat", "picture"]
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
