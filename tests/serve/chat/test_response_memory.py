"""What is remembered of responses: for whom, how long, how many."""

from __future__ import annotations

from serve.chat.response_memory import RememberedResponse, ResponseMemory
from serve.chat.response_schemas import ResponseObject


def response(response_id: str) -> RememberedResponse:
    found = ResponseObject(
        id=response_id,
        created_at=0,
        status="completed",
        instructions=None,
        max_output_tokens=None,
        metadata={},
        model="demo",
        output=[],
        parallel_tool_calls=True,
        previous_response_id=None,
        store=True,
        temperature=None,
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=None,
    )
    return RememberedResponse(found, ())


def test_a_response_is_its_callers_alone() -> None:
    memory = ResponseMemory(9, 60)
    memory.put("ada", response("a"))
    assert memory.find("ada", "a") == response("a")
    assert memory.find("bob", "a") is None
    assert memory.find("", "b") is None
    assert not memory.forget("bob", "a")
    assert memory.forget("ada", "a")
    assert memory.find("ada", "a") is None


def test_time_and_number_are_bounded() -> None:
    now = [0.0]
    memory = ResponseMemory(2, 60, clock=lambda: now[0])
    for name in ("a", "b", "c"):
        memory.put("ada", response(name))
        now[0] += 10
    assert [name for name in ("a", "b", "c") if memory.find("ada", name)] == ["b", "c"]
    now[0] = 75
    assert [name for name in ("b", "c") if memory.find("ada", name)] == ["c"]
    now[0] = 80
    assert memory.find("ada", "c") is None


def test_who_keeps_most_makes_room() -> None:
    memory = ResponseMemory(4, 60)
    memory.put("bob", response("b"))
    for i in range(9):
        memory.put("ada", response(f"a{i}"))
    assert memory.find("bob", "b") == response("b"), "nobody else's many push it out"
    assert [i for i in range(9) if memory.find("ada", f"a{i}")] == [6, 7, 8]
