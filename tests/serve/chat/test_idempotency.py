"""A call that bears a key is made once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from stand_in_service import Method, World

from serve.agent.tool_reply import ToolReply
from serve.chat import idempotency
from serve.chat.idempotency import MAX_RUNNING, IdempotentCalls
from serve.http.access import KEYS_VARIABLE
from serve.http.schemas import RequestError
from serve.tools.spec import ToolError

EDGES = "/v1/tools/local/detect-edges"


class Counter:
    """A call that gives how often it was made, or fails; None makes it wait until it is let go."""

    def __init__(self, *errors: Exception | None) -> None:
        self.n_calls = 0
        self.errors = list(errors)
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> int:
        self.n_calls += 1
        error = self.errors.pop(0) if self.errors else None
        await self.may_end.wait()
        if error is not None:
            raise error
        return self.n_calls


def test_the_same_key_gets_the_first_answer_also_while_it_is_under_way() -> None:
    async def run() -> None:
        calls, call = IdempotentCalls(ttl_s=100), Counter()
        call.may_end.clear()
        waiting = [asyncio.create_task(calls.once("ada", key, [1], call)) for key in ("k", '"k"', "k")]
        await asyncio.sleep(0)
        call.may_end.set()
        assert await asyncio.gather(*waiting) == [1, 1, 1]
        assert await calls.once("ada", "k", [1], call) == 1
        assert await calls.once("bob", "k", [2], call) == 2, "keys are their caller's"
        assert await calls.once("ada", "other", [1], call) == 3
        assert [await calls.once("ada", None, [1], call) for _ in range(2)] == [4, 5]
        with pytest.raises(RequestError, match="with another request before") as refused:
            await calls.once("ada", "k", [2], call)
        assert refused.value.status == 422

    asyncio.run(run())


def test_a_call_goes_on_when_its_client_has_gone_and_ends_with_the_service() -> None:
    async def run() -> None:
        calls, call, endless = IdempotentCalls(ttl_s=100), Counter(), Counter()
        call.may_end.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(calls.once("ada", "k", [], call), 0.01)
        call.may_end.set()
        assert await calls.once("ada", "k", [], call) == 1
        endless.may_end.clear()
        async with calls.run():
            left = asyncio.create_task(calls.once("ada", "endless", [], endless))
            await asyncio.sleep(0)
        assert (await asyncio.gather(left, return_exceptions=True))[0].__class__ is asyncio.CancelledError

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (ToolError("interrupted", "It died."), True),
        (ToolError("failed", "It failed."), True),
        (TimeoutError(), True),
        (ToolError("weights_not_available", "They are not there."), False),
        (ToolError("bad_media", "There is no such artifact."), False),
        (RequestError("Too many.", 429), False),
    ],
)
def test_a_failure_is_kept_unless_nothing_was_done(error: Exception, is_kept: bool) -> None:
    async def run() -> None:
        calls, call = IdempotentCalls(ttl_s=100), Counter(error)
        with pytest.raises(type(error)):
            await calls.once("ada", "k", [], call)
        if is_kept:
            with pytest.raises(type(error)):
                await calls.once("ada", "k", [], call)
        else:
            assert await calls.once("ada", "k", [], call) == 2
        assert call.n_calls == (1 if is_kept else 2)

    asyncio.run(run())


def test_keys_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEPT", 2)

    async def run() -> None:
        now = 0.0
        calls, call, endless = IdempotentCalls(ttl_s=100, clock=lambda: now), Counter(), Counter()
        assert [await calls.once("ada", key, [], call) for key in "aba"] == [1, 2, 1]
        now = 101.0
        assert await calls.once("ada", "a", [], call) == 3
        assert [await calls.once("ada", key, [], call) for key in "ca"] == [4, 3]
        assert [await calls.once("ada", key, [], call) for key in "dca"] == [5, 4, 6], "the oldest goes first"
        endless.may_end.clear()
        async with calls.run():
            under_way = [asyncio.create_task(calls.once("ada", f"{i}", [], endless)) for i in range(MAX_RUNNING)]
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="16 of your calls"):
                await calls.once("ada", "one more", [], call)
            assert await calls.once("bob", "k", [], call) == 7
        await asyncio.gather(*under_way, return_exceptions=True)

    asyncio.run(run())


def test_over_http_a_tool_runs_once_and_a_job_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"ada": "a-key-of-the-tests-1", "bob": "a-key-of-the-tests-2"}
    monkeypatch.setenv(KEYS_VARIABLE, ",".join(f"{name}:{key}" for name, key in keys.items()))
    made: list[str] = []

    def invoke(tool_id: str, arguments: dict[str, Any], caller: str) -> ToolReply:
        made.append(caller)
        return ToolReply(f"call {len(made)}")

    with World(tools=SimpleNamespace(invoke=Method(invoke))).client as client:

        def ask(name: str, route: str, key: str, **arguments: Any) -> Any:
            headers = {"Authorization": f"Bearer {keys[name]}", "Idempotency-Key": key}
            return client.post(f"{EDGES}/{route}", json={"arguments": arguments}, headers=headers)

        answers = [ask("ada", "invoke", "one", low=1, high=2), ask("ada", "invoke", "one", high=2, low=1)]
        assert [answer.json()["text"] for answer in answers] == ["call 1", "call 1"]
        assert ask("bob", "invoke", "one").json()["text"] == "call 2"
        jobs = [ask("ada", "jobs", "two") for _ in range(2)]
        assert [job.status_code for job in jobs] == [202, 202]
        assert jobs[0].json()["id"] == jobs[1].json()["id"]
        assert jobs[1].headers["location"] == f"/v1/jobs/{jobs[0].json()['id']}"
        for route, key, status, code in (
            ("invoke", "two", 422, "idempotency_key_reused"),  # it was another route's
            ("jobs", "one", 422, "idempotency_key_reused"),
            ("invoke", "", 400, "bad_idempotency_key"),
            ("jobs", "x" * 256, 400, "bad_idempotency_key"),
        ):
            refused = ask("ada", route, key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert made == ["ada", "bob", "ada"]


def test_several_ingress_replicas_take_no_keys() -> None:
    world = World(ingress_replicas=2)
    refused = world.client.post(f"{EDGES}/invoke", json={}, headers={"Idempotency-Key": "one"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "idempotency_not_kept")
