"""The engine in the predictor's own process: nobody waits for all that another one's question needs."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from random_bundle import build_backbone, build_bundle

from data_pipeline.batches.encoding import encode_question, encode_whole_prompt
from data_pipeline.records.catalog import Tool
from model.decode.json_text import WrittenJson, build_grammar, open_guide, write_json
from model.decode.kept_prefixes import KeptPrefixes
from model.decode.tools import Prompt
from serve.engine.answering import Engine
from serve.engine.choices import Question
from serve.engine.local_engine import LocalEngine
from serve.engine.messages import TOOLS_AT_ONCE, JsonQuery, PartQuery, RankedParts, Ranking

WORDS = "### Human: <Img></Img> Improve this\n"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """A model that finds tools by their cards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = build_bundle(tmp_path / "a", build_backbone(tmp_path / "tiny", WORDS), 3)
    info = bundle.info.model_copy(update={"resolved_config": {"train": {"loss": {"retrieval": 1.0}}}})
    return LocalEngine({"a": replace(bundle, info=info)}, "cpu", "float32")


def ask(engine: LocalEngine, tools: tuple[Tool, ...] | None) -> Question:
    return Question("a", Prompt(encode_question(engine.tokenizer, "Improve this", False, ()).prompt_ids), 3, tools)


def test_a_question_comes_between_the_tools_that_another_ones_question_needs(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(Tool(f"f{i}", f"Improve this {i}") for i in range(5 * TOOLS_AT_ONCE - 3))
    n_passes = len(engine._engine.find_new_tools("a", many))
    assert 4 < n_passes < len(many)
    happened: list[int | str] = []
    read_tools = Engine.read_tools

    def read_noted(self: Engine, name: str, tools: list[Tool]) -> None:
        happened.append(len(tools))
        read_tools(self, name, tools)

    async def noted(what: str, tools: tuple[Tool, ...] | None) -> Ranking:
        answer = await engine.answer(ask(engine, tools))
        happened.append(what)
        return answer

    async def ask_both() -> list[Ranking]:
        return await asyncio.gather(noted("large", many), noted("small", None))

    monkeypatch.setattr(Engine, "read_tools", read_noted)
    large, small = asyncio.run(ask_both())
    portions = [step for step in happened if isinstance(step, int)]
    assert (len(portions), sum(portions)) == (n_passes, len(many))
    assert happened.index("small") < 3, "it does not wait for all of them"
    assert happened[-1] == "large"
    assert asyncio.run(noted("large", many)) == large, "as if they had been read together"
    assert asyncio.run(noted("small", None)) == small
    assert len([step for step in happened if isinstance(step, int)]) == n_passes, "they are read once"


def test_who_leaves_keeps_what_was_read_and_the_model_is_nobodys_before_its_pass_is_over(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(Tool(f"f{i}", f"Improve this {i}") for i in range(5 * TOOLS_AT_ONCE))
    n_passes = len(engine._engine.find_new_tools("a", many))
    begun, go_on, is_reading = threading.Event(), threading.Event(), threading.Event()
    read_tools = Engine.read_tools

    def read_slowly(self: Engine, name: str, tools: list[Tool]) -> None:
        is_reading.set()
        begun.set()
        go_on.wait()
        read_tools(self, name, tools)
        is_reading.clear()

    async def leave() -> None:
        asking = asyncio.ensure_future(engine.answer(ask(engine, many)))
        await asyncio.to_thread(begun.wait)
        asking.cancel()
        other = asyncio.ensure_future(engine._run_alone(is_reading.is_set))
        await asyncio.sleep(0.01)
        assert not other.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not await other

    monkeypatch.setattr(Engine, "read_tools", read_slowly)
    asyncio.run(leave())
    assert len(engine._engine.find_new_tools("a", many)) == n_passes - 1


def test_parts_of_the_words_wait_for_their_turn(engine: LocalEngine) -> None:
    query = PartQuery("Improve ", ("this", "Human"))

    async def ask_all() -> tuple[Ranking, list[RankedParts], Ranking]:
        return await asyncio.gather(
            engine.answer(ask(engine, None)), engine.rank_parts("a", [query]), engine.answer(ask(engine, None))
        )

    first, (parts,), second = asyncio.run(ask_all())
    assert first == second
    assert sum(p for _, p in parts.parts) == pytest.approx(1)


def test_json_is_the_backbones_own_and_leaves_the_models_as_they_are(engine: LocalEngine) -> None:
    schema = {"type": "array", "items": {"enum": ["this", "Human"]}, "minItems": 5, "maxItems": 5}
    query = JsonQuery("Improve this ", build_grammar(schema), 60)
    bare, guide = engine._engine._shared.bundles["a"].build_mllm(), open_guide(engine.tokenizer)
    prompt = encode_whole_prompt(engine.tokenizer, query.prompt)
    expected = None
    with bare.llm.disable_adapter():
        writing = write_json(bare, guide, prompt, query.grammar, 60, KeptPrefixes(0), "")
        while expected is None:
            try:
                next(writing)
            except StopIteration as end:
                expected = end.value

    async def write() -> WrittenJson:
        *beginnings, written = [event async for event in engine.write_json(query)]
        assert isinstance(written, WrittenJson)
        assert all(isinstance(text, str) and written.text.startswith(text) for text in beginnings)
        assert len(set(beginnings)) > 5, "it grows pass by pass"
        return written

    async def ask_all() -> tuple[Ranking, WrittenJson, Ranking, WrittenJson]:
        return await asyncio.gather(
            engine.answer(ask(engine, None)), write(), engine.answer(ask(engine, None)), write()
        )

    before = asyncio.run(engine.answer(ask(engine, None)))
    first, written, second, again = asyncio.run(ask_all())
    after = asyncio.run(engine.answer(ask(engine, None)))
    for ranking in (first, second, after):
        assert [tool.tool_id for tool, _ in ranking.tools] == [tool.tool_id for tool, _ in before.tools]
        assert [p for _, p in ranking.tools] == pytest.approx([p for _, p in before.tools], abs=1e-5)
    assert written.text == again.text == expected.text
    assert set(json.loads(written.text)) <= {"this", "Human"}
