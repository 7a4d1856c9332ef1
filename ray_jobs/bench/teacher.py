"""How near to a chat server's own pace the teacher's client comes, beside the HTTP processor of `ray.data.llm`.

The server answers every request after the same time, in a process of its own, and itself tells the time from the first
request's arrival to the last answer: what either side needs to start is in no number.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data_pipeline.loopback import open_url
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.options import TeacherOptions
from data_pipeline.teacher.requests import TeacherRequest

REPLY_S = 0.1
IN_FLIGHT = 64  # at most
N_REQUESTS = 6400  # ten seconds at the ideal rate
# settings of the peer -> requests. An actor awaits one reply after the other in each of at most four batches.
PEERS: dict[str, tuple[dict[str, Any], int]] = {
    "as it comes": ({}, 256),
    "16 actors, batches of 4": (
        {"concurrency": (16, 16), "batch_size": 4, "http_request_stage": {"num_cpus": 0.25}},
        1280,
    ),
}


def run(n_requests: int = N_REQUESTS) -> dict[str, Any]:
    """Measure requests per second of the client and, where Ray runs, of the peer; print a table.

    Args:
        n_requests: that the client sends; the peer's are in `PEERS`.

    Returns:
        ideal, client and the peers, each as requests_per_s and the most that were in flight; ratios.
    """
    ideal = IN_FLIGHT / REPLY_S
    with _serving() as url:
        rates = {"client": _ask_with_client(url, n_requests)}
        for name, (settings, n) in PEERS.items():
            rates[name] = _ask_with_peer(url, n, settings)
    ours = rates["client"]["requests_per_s"]
    print(f"{'':44}{'requests/s':>11}{'in flight':>11}{'ours is':>10}")
    title = f"ideal: {IN_FLIGHT} in flight, {REPLY_S:g} s a reply"
    print(f"{title:<44}{ideal:>11.0f}{IN_FLIGHT:>11}{ours / ideal:>9.2f}×")
    print(f"{'client of `generate`':<44}{ours:>11.1f}{rates['client']['most_in_flight']:>11.0f}")
    for name in PEERS:
        rate, most = rates[name]["requests_per_s"], rates[name]["most_in_flight"]
        print(f"{f'ray.data.llm, {name}':<44}{rate:>11.1f}{most:>11.0f}{ours / rate:>9.1f}×")
    return {
        "ideal_requests_per_s": ideal,
        **rates,
        "share_of_ideal": ours / ideal,
        "ratios": {name: ours / rates[name]["requests_per_s"] for name in PEERS},
    }


def _ask_with_client(url: str, n: int) -> dict[str, float]:
    options = TeacherOptions(url=f"{url}/v1", model="m", api_key_env="", max_concurrency=IN_FLIGHT)
    started_s = time.process_time()

    async def ask(teacher: Teacher) -> int:
        requests = (TeacherRequest((("user", f"Question {number}"),)) for number in range(n))
        return sum([not reply.error async for _, reply in teacher.ask_all(requests)])

    with tempfile.TemporaryDirectory(prefix="bench_teacher_") as folder, ReplyCache(Path(folder)) as cache:
        n_answered = asyncio.run(ask(Teacher(options, cache)))
    if n_answered != n:
        raise RuntimeError(f"{n - n_answered} of {n} requests had no answer")
    return _read_window(url) | {"cpu_ms_a_request": 1000 * (time.process_time() - started_s) / n}


def _ask_with_peer(url: str, n: int, settings: dict[str, Any]) -> dict[str, float]:
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    processor = build_processor(
        HttpRequestProcessorConfig(url=f"{url}/v1/chat/completions", **settings),
        preprocess=lambda row: {
            "payload": {"model": "m", "messages": [{"role": "user", "content": f"Question {row['id']}"}]}
        },
        postprocess=lambda row: {"text": row["http_response"]["choices"][0]["message"]["content"]},
    )
    if (n_answered := processor(ray.data.range(n)).count()) != n:
        raise RuntimeError(f"{n - n_answered} of {n} requests of the peer had no answer")
    return _read_window(url)


def _read_window(url: str) -> dict[str, float]:
    """What the server has seen since it was asked last."""
    with open_url(f"{url}/window", timeout_s=10) as response:
        return json.load(response)


@contextmanager
def _serving() -> Iterator[str]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise RuntimeError("the server of the measurement did not start")
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection) -> None:
    """A chat server that answers after `REPLY_S`; /window tells and forgets what it has seen."""
    from aiohttp import web

    message = {"role": "assistant", "content": "Query1: Where is my parcel, which should have come on Monday?"}
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})
    seen: list[float] = []  # arrival of the first and end of the last
    counts = {"answered": 0, "in_flight": 0, "most": 0}

    async def answer(request: web.Request) -> web.Response:
        if not counts["answered"] and not counts["in_flight"]:
            seen[:] = [time.perf_counter()] * 2
        counts["in_flight"] += 1
        counts["most"] = max(counts["most"], counts["in_flight"])
        await request.read()
        await asyncio.sleep(REPLY_S)
        counts["in_flight"] -= 1
        counts["answered"] += 1
        seen[1] = time.perf_counter()
        return web.Response(text=body, content_type="application/json")

    async def tell(_: web.Request) -> web.Response:
        found = {"requests_per_s": counts["answered"] / (seen[1] - seen[0]), "most_in_flight": counts["most"]}
        counts.update(answered=0, most=0)
        return web.json_response(found)

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        app.router.add_get("/window", tell)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(serve())
