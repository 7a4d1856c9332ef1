"""The vLLM engine against the one in this process, over a server that answers from the very models: equal, or refused.

`tests/integration/test_vllm.py` holds both against each other over vLLM itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_bundle import ENCODER_DIM, build_backbone, build_bundle
from random_head import make_head
from stand_in_vllm import API_KEY, StandIn, standing_in
from whole_turn import write_whole

from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.dialogue import parse_turn
from model.decode.tools import Prompt
from model.decode.turn_types import PromptTooLongError, TurnArgument, TurnRequest, TurnTool, WrittenTurn
from model.llm.bundle import Bundle
from serve.config import ServeArgs
from serve.deployments.predictor import Predictor
from serve.engine import vllm_http
from serve.engine.answering import Engine
from serve.engine.choices import Question
from serve.engine.messages import JsonQuery, PartQuery, Ranking, SelectQuery
from serve.engine.model_engine import EngineUnavailableError
from serve.engine.vllm_engine import API_KEY_VARIABLE, VllmEngine
from serve.http.schemas import RequestError

WORDS = "### Human: <Img></Img> Improve this\n"
CATALOG = ToolCatalog([*(Tool(f"{a}{b}-{a}") for a in "abcdefgh" for b in "pqrst"), Tool("unknown")])
TOOLS = (
    TurnTool("edges", (TurnArgument("image"),)),
    TurnTool("note", (TurnArgument("text"), TurnArgument("number", default=1, maximum=9))),
    TurnTool("mood", (TurnArgument("choice", choices=("sad", "glad")),)),
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("vllm")
    backbone = build_backbone(folder / "tiny", WORDS)
    built = {
        name: build_bundle(folder / name, backbone, seed, catalog=CATALOG, **fields)
        for seed, (name, fields) in enumerate({"a": {}, "b": {"adapter": "rslora"}}.items())
    }
    vars(built["b"])["wide"] = make_head(CATALOG.selection_tool_ids, ENCODER_DIM)
    return built


@pytest.fixture(scope="module")
def local(bundles: dict[str, Bundle]) -> Engine:
    return Engine(bundles, "cpu", "float32")


@pytest.fixture
def server(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv(API_KEY_VARIABLE, API_KEY)
    models = {bundle.revision: bundle.build_mllm().llm.merge_and_unload() for bundle in bundles.values()}
    with standing_in(models, max_model_len=256) as stand_in:
        yield stand_in


def _engine(bundles: dict[str, Bundle], server: StandIn) -> VllmEngine:
    return VllmEngine(bundles, server.url, timeout_s=20.0, dtype="float32")


def _with_info(bundle: Bundle, **info: Any) -> Bundle:
    return replace(bundle, info=bundle.info.model_copy(update=info))


def _ask(tokenizer: Any, model: str, words: str, k: int, seed: int | None = None, **choice: Any) -> Question:
    vector = None if seed is None else np.random.default_rng(seed).normal(size=ENCODER_DIM).astype(np.float32)
    prompt = Prompt(encode_question(tokenizer, words, vector is not None, ()).prompt_ids, vector, words)
    return Question(model, prompt, k, choice.get("tools"))


async def _streamed(engine: Any, name: str, request: TurnRequest) -> list[str | WrittenTurn]:
    return [event async for event in engine.write(name, request)]


def test_parts_of_the_words_are_ranked_as_by_the_engine_in_this_process(
    bundles: dict[str, Bundle], local: Engine, server: StandIn
) -> None:
    engine = _engine(bundles, server)
    queries = [
        PartQuery("Improve this: ", ("this", "Improve", "Improve this", "Human")),
        PartQuery("this ", ("Improve",)),
        PartQuery("Improve this " * 99, ("this", "that")),
    ]
    for name in bundles:
        expected = [local.rank_part(name, query) for query in queries]
        for one, other in zip(asyncio.run(engine.rank_parts(name, queries)), expected, strict=True):
            assert [part for part, _ in one.parts] == [part for part, _ in other.parts]
            assert [p for _, p in one.parts] == pytest.approx([p for _, p in other.parts], abs=1e-5)
            assert one.n_prompt_tokens == other.n_prompt_tokens


def test_rankings_are_those_of_the_engine_in_this_process(
    bundles: dict[str, Bundle], local: Engine, server: StandIn
) -> None:
    engine = _engine(bundles, server)
    own = (Tool("sharpen"), Tool("sharp", "Another."), Tool("blur"))
    questions = [
        _ask(engine.tokenizer, "a", "Improve this", 5),
        _ask(engine.tokenizer, "b", "Improve this", 1, seed=1),
        _ask(engine.tokenizer, "a", "this Human", len(CATALOG) + 3, seed=2),
        _ask(engine.tokenizer, "b", "Improve", 3, tools=own),
        _ask(engine.tokenizer, "b", "Improve", 3),
    ]

    async def ask_all() -> list[Ranking]:
        return await asyncio.gather(*map(engine.answer, questions))

    for question, expected, found in zip(questions, local.rank(questions), asyncio.run(ask_all()), strict=True):
        assert isinstance(expected, Ranking)
        assert [tool.tool_id for tool, _ in found.tools] == [tool.tool_id for tool, _ in expected.tools], question
        assert [p for _, p in found.tools] == pytest.approx([p for _, p in expected.tools], abs=1e-5)
        assert replace(found, tools=expected.tools) == expected
    assert engine.largest_batch == len(questions), "all at once: the server makes batches of them"
    with pytest.raises(InputError):
        engine.rank(_ask(engine.tokenizer, "a", "Improve", 0))
    with pytest.raises(InputError, match="leave response_format out"):
        asyncio.run(anext(engine.write_json(JsonQuery("Answer: ", "start: /a/", 1))))


def test_turns_are_those_of_the_engine_in_this_process(
    bundles: dict[str, Bundle], local: Engine, server: StandIn
) -> None:
    engine = _engine(bundles, server)
    kinds, n_before = set(), server.n_requests
    n_tokens = 0
    for name in bundles:
        for words, changes in (
            ("Improve this\n", {}),
            ("Human: this\n", {"may_answer": False}),
            ("Human: Improve\n", {"may_call": False, "max_answer_tokens": 12}),
            ("Img\n", {"is_constrained": False, "max_answer_tokens": 9}),
            ("Improve Img\n", {"tools": TOOLS[1:2], "may_answer": False}),
        ):
            request = TurnRequest(words, tools=TOOLS, files=("image/a.png", "image/b.png", "audio/c.wav"))
            request = replace(request, **changes)
            expected = write_whole(local, name, request)
            *texts, found = asyncio.run(_streamed(engine, name, request))
            assert isinstance(found, WrittenTurn)
            assert found.text == expected.text
            assert [choice for choice, _ in found.choices] == [choice for choice, _ in expected.choices]
            assert [p for _, p in found.choices] == pytest.approx([p for _, p in expected.choices], abs=1e-4)
            assert (found.prompt_tokens, found.completion_tokens) == (
                expected.prompt_tokens,
                expected.completion_tokens,
            )
            assert all(isinstance(text, str) for text in texts)
            kinds.add(type(parse_turn(found.text)).__name__)
            n_tokens += found.completion_tokens
    assert {"Answer", "ToolCall"} <= kinds, "both kinds of turns were written"
    assert server.n_requests - n_before < n_tokens, "what is written freely is streamed, not asked for by the token"
    with pytest.raises(PromptTooLongError):
        asyncio.run(_streamed(engine, "a", TurnRequest("Improve this " * 300)))


def test_the_predictor_takes_it_by_one_key(bundles: dict[str, Bundle], local: Engine, server: StandIn) -> None:
    predictor_class: Any = Predictor.func_or_class
    args = {"bundle": str(bundles["a"].folder), "engine": "vllm", "vllm_url": server.url, "dtype": "float32"}

    async def use() -> tuple[Any, ...]:
        predictor = predictor_class(ServeArgs.parse(args))
        (ranking,) = await predictor.select([SelectQuery("toolmm", "Improve this", None, 3)])
        turn = await predictor.write_turn("toolmm", TurnRequest("Improve this\n", tools=TOOLS, may_call=False))
        server.spoil = (500, b"Internal Server Error")
        (outage,) = await predictor.select([SelectQuery("toolmm", "Improve this", None, 3)])
        with pytest.raises(RequestError) as broken:
            await predictor.write_turn("toolmm", TurnRequest("Improve this\n", tools=TOOLS, may_call=False))
        return ranking, turn, outage, broken.value

    ranking, turn, outage, broken = asyncio.run(use())
    expected = local.rank([_ask(local.tokenizer, "a", "Improve this", 3)])[0]
    assert isinstance(expected, Ranking)
    assert [tool for tool, _ in ranking.tools] == [tool for tool, _ in expected.tools]
    assert turn.text == write_whole(local, "a", TurnRequest("Improve this\n", tools=TOOLS, may_call=False)).text
    for error in (outage, broken):
        assert (error.status, error.code) == (503, "unavailable")
        assert server.url not in error.message, "where the server is, is nothing for callers"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"{"),
        (200, b"[]"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"index": 7, "logprobs": {"top_logprobs": [{}]}}]}'),
        (200, b'{"choices": "' + b"x" * 2**17 + b'"}'),
        (302, b""),
        (503, b"\xff"),
    ],
)
def test_a_strange_answer_is_an_outage(
    bundles: dict[str, Bundle], server: StandIn, status: int, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_http, "MAX_ANSWER_BYTES", 2**17)
    engine = _engine(bundles, server)
    server.spoil = (status, body)
    with pytest.raises(EngineUnavailableError):
        engine.rank(_ask(engine.tokenizer, "a", "Improve this", 2))
    with pytest.raises(EngineUnavailableError):
        asyncio.run(_streamed(engine, "a", TurnRequest("Improve\n", may_call=False)))
    server.spoil = None
    assert engine.rank(_ask(engine.tokenizer, "a", "Improve this", 2)).tools


def test_what_the_server_cannot_do_is_refused_at_the_start(
    bundles: dict[str, Bundle], server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["a"]

    def start(changed: Bundle) -> None:
        VllmEngine({"a": changed}, server.url, timeout_s=20.0, dtype="float32")

    start(bundle)
    finder = {"resolved_config": {"train": {"loss": {"retrieval": 1.0}}}}
    with pytest.raises(InputError, match="cards"):
        start(_with_info(bundle, **finder))
    with pytest.raises(InputError, match="nf4"):
        start(_with_info(bundle, llm_config={**bundle.info.llm_config, "quantize": "nf4"}))
    with standing_in({bundle.revision: None}, 255) as short, pytest.raises(InputError, match="--max-model-len"):
        VllmEngine({"a": bundle}, short.url, timeout_s=20.0)
    with pytest.raises(InputError, match="--lora-modules 0123456789ab="):
        start(replace(bundle, revision="0123456789ab"))
    monkeypatch.setenv(API_KEY_VARIABLE, "wrong")
    with pytest.raises(InputError, match="401"):
        start(bundle)


def test_another_backbone_under_the_name_is_refused(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, API_KEY)
    bundle = bundles["a"]
    llm = bundle.build_mllm().llm.merge_and_unload()
    llm.get_input_embeddings().weight.data.mul_(-1)
    with standing_in({bundle.revision: llm}, 256) as server, pytest.raises(InputError, match="another backbone"):
        VllmEngine({"a": bundle}, server.url, timeout_s=20.0, dtype="float32")


def test_a_followed_bundle_is_taken_over_once_the_server_has_it(
    bundles: dict[str, Bundle], local: Engine, server: StandIn
) -> None:
    engine = VllmEngine({"m": bundles["a"]}, server.url, timeout_s=20.0, dtype="float32")
    question = _ask(engine.tokenizer, "m", "Improve this", 3)
    adopted: list[str] = []

    def adopt() -> Question:
        adopted.append("b")
        return question

    with pytest.raises(InputError):
        asyncio.run(engine.take_over("m", replace(bundles["b"], revision="0123456789ab"), adopt))
    assert adopted == []
    assert engine.rank(question).revision == bundles["a"].revision
    asyncio.run(engine.take_over("m", bundles["b"], adopt))
    assert adopted == ["b"]
    (expected,) = local.rank([question._replace(model="b")])
    assert isinstance(expected, Ranking)
    assert json.dumps([t.tool_id for t, _ in engine.rank(question).tools]) == json.dumps(
        [t.tool_id for t, _ in expected.tools]
    )
