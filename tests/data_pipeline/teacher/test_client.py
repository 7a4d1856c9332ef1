"""Many requests to a server that is not always well."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, FastClock, Fault, render_answer

from data_pipeline.errors import InputError
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher, TeacherUsage
from data_pipeline.teacher.limiter import FIRST_WINDOW
from data_pipeline.teacher.options import TeacherOptions
from data_pipeline.teacher.requests import TeacherReply, TeacherRequest

REPO = Path(__file__).resolve().parents[3]
KEY = "sk-a-very-secret-key-0123456789"
Replies = dict[int, TeacherReply]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def make_requests(n_requests: int) -> list[TeacherRequest]:
    return [TeacherRequest((("user", f"q{number}"),), max_tokens=16) for number in range(n_requests)]


def ask(
    server: ChatServer, folder: Path, requests: Iterable[TeacherRequest], clock: FastClock | None = None, **options: Any
) -> tuple[Replies, TeacherUsage]:
    async def ask_them() -> tuple[Replies, TeacherUsage]:
        with ReplyCache(folder) as cache:
            teacher = Teacher(TeacherOptions(url=server.url, model="m", **options), cache, clock or FastClock())
            replies: Replies = {}
            async for number, reply in teacher.ask_all(requests):
                assert number not in replies
                replies[number] = reply
            assert teacher.is_budget_spent == teacher.usage.is_budget_spent
            return replies, teacher.usage

    return asyncio.run(ask_them())


def without_origin(replies: Replies) -> Replies:
    return {number: replace(replies[number], from_cache=False) for number in sorted(replies)}


def test_a_rerun_sends_nothing_and_gives_the_same(tmp_path: Path) -> None:
    requests = make_requests(100)
    with ChatServer() as server:
        first, usage = ask(server, tmp_path, requests, input_price=1, output_price=2)
        assert first[7] == TeacherReply("re: q7", "stop", 10, 20)
        assert usage == TeacherUsage(sent=100, prompt_tokens=1000, completion_tokens=2000, money=0.005)
        files = {path: path.read_bytes() for path in tmp_path.iterdir()}
        again, usage = ask(server, tmp_path, requests)
    assert usage == TeacherUsage(from_cache=100)
    assert again[7] == TeacherReply("re: q7", "stop", 10, 20, from_cache=True)
    assert without_origin(again) == without_origin(first)
    assert server.n_asked == 100
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_rerun_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer() as server:
        ask(server, tmp_path, make_requests(3))
        monkeypatch.delenv("OPENAI_API_KEY")
        assert len(ask(server, tmp_path, make_requests(3))[0]) == 3
        with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
            ask(server, tmp_path, make_requests(4))


PLANTED = [
    Fault(429, b"{}", {"retry-after": "2"}),
    Fault(429, b"{}", {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}),
    Fault(500, b"oops"),
    Fault(502),
    Fault(503, b"{}"),
    Fault(cut_bytes=3),
    Fault(body=b"<html>busy</html>"),
    Fault(body=b'{"error": {"message": "overloaded", "code": 529}}'),
    Fault(body=b'{"choices": []}'),
    Fault(body=b'{"choices": [{"message": {"content": "ha'),
]


def test_faults_cost_one_more_request_each_and_nothing_is_lost(tmp_path: Path) -> None:
    """Two of three requests go wrong at first, in every way; one is slow."""

    def plan(question: str, n_before: int) -> Fault | None:
        number = int(question[1:])
        if n_before:
            return None
        return Fault(is_hung=True) if number == 100 else PLANTED[number % 10] if number % 3 else None

    with ChatServer(plan) as server:
        replies, usage = ask(server, tmp_path, make_requests(200), timeout_s=5)
    assert {number: reply.text for number, reply in sorted(replies.items())} == {n: f"re: q{n}" for n in range(200)}
    assert server.asked == {f"q{number}": 2 if number % 3 or number == 100 else 1 for number in range(200)}
    assert (usage.sent, usage.retries, usage.failed) == (server.n_asked, server.n_asked - 200, 0)


@pytest.mark.parametrize("fault", [*PLANTED, Fault(is_hung=True)], ids=lambda fault: f"{fault.status}-{fault.body}")
def test_what_never_goes_well_becomes_an_error_and_the_others_go_on(fault: Fault, tmp_path: Path) -> None:
    with ChatServer(lambda question, n_before: fault if question == "q3" else None) as server:
        timeout_s = 2 if fault.is_hung else 60
        replies, usage = ask(server, tmp_path, make_requests(8), max_attempts=2, timeout_s=timeout_s)
        assert server.asked["q3"] >= 2
        assert server.n_asked - server.asked["q3"] == 7
    assert replies[3].error.startswith(f"No answer in {server.asked['q3']} attempts: ")
    assert replies[3].error.endswith(".")
    assert (replies[3].text, usage.failed) == ("", 1)
    assert [replies[number].text for number in (2, 4)] == ["re: q2", "re: q4"]
    assert len(ReplyCache(tmp_path)) == 7  # errors are not kept


def test_a_busy_server_costs_nobody_the_answer(tmp_path: Path) -> None:
    """It answers one request of eight: most are asked more often than max_attempts."""
    n_requests = 0

    def plan(question: str, n_before: int) -> Fault | None:
        nonlocal n_requests
        n_requests += 1
        return Fault(429, b"{}") if n_requests % 8 else None

    with ChatServer(plan) as server:
        replies, usage = ask(server, tmp_path, make_requests(20), max_attempts=8)
    assert sorted(reply.text for reply in replies.values()) == sorted(f"re: q{number}" for number in range(20))
    assert usage.retries >= 19 * 7


def test_one_refused_request_is_its_own_error_and_asked_once(tmp_path: Path) -> None:
    refusal = Fault(400, b'{"error": {"message": "too long"}}')
    requests = [*make_requests(5), make_requests(5)[2]]
    with ChatServer(lambda question, n_before: refusal if question == "q2" else None) as server:
        replies, usage = ask(server, tmp_path, requests, max_concurrency=1)
    assert replies[2].error == replies[5].error == "No answer at the first attempt: status 400 (too long)."
    assert (server.n_asked, usage.failed, len(replies)) == (5, 1, 6)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_ends_the_job_and_keeps_what_was_paid_for(status: int, tmp_path: Path) -> None:
    wrong = Fault(status, json.dumps({"error": {"message": f"key {KEY}"}}).encode())
    with ChatServer(lambda question, n_before: wrong if question == "q20" else None) as server:
        with pytest.raises(InputError, match=f"status {status}") as caught:
            ask(server, tmp_path, make_requests(1000), max_concurrency=8)
        assert KEY not in str(caught.value)
        assert 20 < server.n_asked < 40
        assert len(ReplyCache(tmp_path)) == server.n_asked - 1


def test_requests_that_are_alike_are_asked_once(tmp_path: Path) -> None:
    requests = make_requests(10) * 5
    with ChatServer() as server:
        replies, usage = ask(server, tmp_path, requests)
        assert server.n_asked == 10
        assert [replies[number].text for number in range(50)] == [f"re: q{number % 10}" for number in range(50)]
        assert (usage.sent, usage.from_cache) == (10, 40)
        ask(server, tmp_path, [replace(requests[0], sample=1)])
    assert server.n_asked == 11


def test_sixty_four_are_in_flight_and_no_more(tmp_path: Path) -> None:
    def plan(question: str, n_before: int) -> Fault | None:
        if int(question[1:]) >= 100:  # the window has opened
            server.wait_until(lambda: server.most_in_flight >= 64, 10)
        return None

    with ChatServer(plan) as server:
        replies, _ = ask(server, tmp_path, make_requests(400), timeout_s=60)
    assert server.most_in_flight == 64
    assert len(replies) == 400


def test_requests_are_drawn_as_they_are_needed(tmp_path: Path) -> None:
    n_drawn = 0

    def draw() -> Iterator[TeacherRequest]:
        nonlocal n_drawn
        for number in range(10**9):
            n_drawn += 1
            yield TeacherRequest((("user", f"q{number % 200}"),))

    async def ask_some(n_wanted: int) -> None:
        nonlocal n_drawn
        n_drawn = 0
        with ReplyCache(tmp_path) as cache:
            teacher = Teacher(TeacherOptions(url=server.url, model="m", max_concurrency=8), cache)
            async with aclosing(teacher.ask_all(draw())) as replies:
                n_given = 0
                async for _ in replies:
                    n_given += 1
                    assert n_drawn <= n_given + 2 * 8
                    if n_given == n_wanted:
                        break

    with ChatServer() as server:
        asyncio.run(ask_some(100))
        assert len(ReplyCache(tmp_path)) == server.n_asked  # what was in flight at the end is kept, too
        asyncio.run(ask_some(1000))  # mostly from the cache
    assert server.n_asked == 200


def test_a_limit_of_requests_holds_for_retries_too(tmp_path: Path) -> None:
    clock = FastClock()
    times_s: list[float] = []
    with ChatServer(lambda question, n_before: None if n_before else Fault(500)) as server:
        server.on_request = lambda: times_s.append(clock.now_s())
        ask(server, tmp_path, make_requests(100), clock, requests_per_minute=120)
    assert len(times_s) == 200
    assert max(sum(start <= time_s < start + 60 for time_s in times_s) for start in times_s) <= 130  # as they arrive
    assert clock.time_s >= 198 / 2


def test_a_spent_budget_ends_the_job_and_the_next_goes_on(tmp_path: Path) -> None:
    prices = {"input_price": 1e6, "output_price": 0.5e6, "budget": 1000}  # 20 for an answer
    requests = make_requests(200)
    n_answered = []
    with ChatServer() as server:
        for _ in range(4):
            replies, usage = ask(server, tmp_path, requests, max_concurrency=8, **prices)
            n_answered.append(len(replies))
            assert usage.money == usage.sent * 20
            assert usage.is_budget_spent == (usage.money >= 1000)
            assert not usage.is_budget_spent or 1000 <= usage.money < 1000 + 8 * 20
            assert len(ReplyCache(tmp_path)) == server.n_asked == len(replies)
        assert n_answered[0] < n_answered[1] < n_answered[2] <= 200 == n_answered[3]
        assert server.asked == {f"q{number}": 1 for number in range(200)}


def test_a_budget_holds_where_the_server_counts_nothing(tmp_path: Path) -> None:
    body = b'{"choices": [{"message": {"content": "12345678"}}]}'
    with ChatServer(lambda question, n_before: Fault(body=body)) as server:
        replies, usage = ask(server, tmp_path, make_requests(100), max_concurrency=2, output_price=1e6, budget=30)
    assert 10 <= len(replies) <= 12
    assert (usage.prompt_tokens, usage.completion_tokens, usage.is_budget_spent) == (0, 0, True)


def test_requests_that_wait_for_their_turn_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """With one request in an hour, the others would wait for days on the machine's clock."""

    async def ask_them() -> int:
        with ReplyCache(tmp_path) as cache:
            limits: dict[str, Any] = {"requests_per_minute": 1 / 60, "input_price": 1e6, "budget": 1}
            teacher = Teacher(TeacherOptions(url=server.url, model="m", **limits), cache)
            return len([reply async for reply in teacher.ask_all(make_requests(100))])

    with ChatServer() as server:
        assert asyncio.run(ask_them()) == 1


def test_an_error_of_the_caller_keeps_what_is_in_flight(tmp_path: Path) -> None:
    def draw() -> Iterator[TeacherRequest]:
        yield from make_requests(10)
        raise KeyError("mine")

    with ChatServer() as server:
        with pytest.raises(KeyError, match="mine"):
            ask(server, tmp_path, draw(), max_concurrency=4)
        assert len(ReplyCache(tmp_path)) == server.n_asked > 0


def test_an_answer_that_somebody_spoiled_is_asked_for_again(tmp_path: Path) -> None:
    (request,) = make_requests(1)
    with ReplyCache(tmp_path) as cache:
        cache.put(request.key("m"), '{"choices": []}')
    with ChatServer() as server:
        for _ in range(2):
            assert ask(server, tmp_path, [request])[0][0].text == "re: q0"
    assert server.n_asked == 1


@pytest.mark.parametrize("fault", [Fault(429, b"{}"), Fault(is_hung=True), Fault(500)], ids=["429", "hung", "500"])
def test_a_server_that_does_not_keep_up_is_asked_less_at_once(fault: Fault, tmp_path: Path) -> None:
    async def ask_one(url: str) -> int:
        with ReplyCache(tmp_path) as cache:
            teacher = Teacher(TeacherOptions(url=url, model="m", max_attempts=1, timeout_s=1), cache, FastClock())
            assert [reply.text async for _, reply in teacher.ask_all(make_requests(1))] == [""]
            return teacher._limiter.window

    with ChatServer(lambda question, n_before: fault) as server:
        assert asyncio.run(ask_one(server.url)) == (FIRST_WINDOW if fault.status == 500 else FIRST_WINDOW // 2)


def test_a_long_pause_is_told_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FastClock()
    busy = Fault(429, b"{}", {"retry-after": "90"})
    with ChatServer(lambda question, n_before: None if n_before else busy) as server:
        ask(server, tmp_path, make_requests(1), clock)
    assert clock.time_s == 90
    assert "paused_s=90 problem=status 429" in caplog.text


def test_who_is_interrupted_waits_for_nothing(tmp_path: Path) -> None:
    async def ask_them() -> None:
        with ReplyCache(tmp_path) as cache:
            teacher = Teacher(TeacherOptions(url=server.url, model="m"), cache)
            async for _ in teacher.ask_all(make_requests(10)):
                pass

    async def interrupt() -> None:
        asking = asyncio.create_task(ask_them())
        assert await asyncio.to_thread(server.wait_until, lambda: server.n_asked >= 4)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    with ChatServer(lambda question, n_before: Fault(is_hung=True)) as server:
        asyncio.run(interrupt())
        assert server.n_asked == 4  # as the window opens with, and they are still waiting


def test_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults = [Fault(500, KEY.encode()), Fault(400, KEY.encode()), Fault(body=render_answer(KEY))]
    with caplog.at_level(logging.DEBUG), ChatServer(lambda question, n_before: faults[int(question[1:]) % 3]) as server:
        replies, _ = ask(server, tmp_path, make_requests(9))
    assert [replies[number].text for number in (2, 5)] == ["[key]", "[key]"]
    shown = repr(replies) + caplog.text + "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert "status 500" in shown
    assert KEY not in shown


SCRIPT = """
import asyncio, sys
from pathlib import Path
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.options import TeacherOptions
from data_pipeline.teacher.requests import TeacherRequest

async def main(url, folder, n_requests):
    teacher = Teacher(TeacherOptions(url=url, model="m", max_concurrency=16), ReplyCache(Path(folder)))
    requests = [TeacherRequest((("user", f"q{number}"),), max_tokens=16) for number in range(int(n_requests))]
    async for _ in teacher.ask_all(requests):
        pass

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    requests = make_requests(400)
    with ChatServer() as server:
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        arguments = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "killed"), "400"]
        with subprocess.Popen(arguments, env=environment, cwd=tmp_path) as job:
            server.on_request = lambda: job.send_signal(signal.SIGKILL) if server.n_asked == 200 else None
            assert job.wait(120) == -signal.SIGKILL
        n_before = server.n_asked
        assert 200 <= n_before < 200 + 16
        n_kept = len(ReplyCache(tmp_path / "killed"))
        assert n_before - 16 <= n_kept < n_before
        server.on_request = lambda: None
        replies, usage = ask(server, tmp_path / "killed", requests)
        assert (usage.sent, usage.from_cache) == (400 - n_kept, n_kept)
        assert 400 <= server.n_asked <= 400 + 16
        whole, _ = ask(server, tmp_path / "whole", requests)
    assert without_origin(replies) == without_origin(whole)
