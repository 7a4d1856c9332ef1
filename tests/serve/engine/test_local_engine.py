"""The engine in the predictor's own process: nobody waits for all that another one's question needs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from random_bundle import build_backbone, build_bundle

from data_pipeline.batches.encoding import encode_question
from data_pipeline.records.catalog import Tool
from model.decode.tools import Prompt
from serve.engine.answering import Engine
from serve.engine.choices import Question
from serve.engine.local_engine import TOOLS_AT_ONCE, LocalEngine
from serve.engine.messages import PartQuery, RankedParts, Ranking

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
    assert [step for step in happened if isinstance(step, int)] == [TOOLS_AT_ONCE] * 4 + [TOOLS_AT_ONCE - 3]
    assert happened.index("small") < 3, "it does not wait for all of them"
    assert happened[-1] == "large"
    assert asyncio.run(noted("large", many)) == large, "as if they had been read together"
    assert asyncio.run(noted("small", None)) == small
    assert len([step for step in happened if isinstance(step, int)]) == 5, "they are read once"


def test_parts_of_the_words_wait_for_their_turn(engine: LocalEngine) -> None:
    query = PartQuery("Improve ", ("this", "Human"))

    async def ask_all() -> tuple[Ranking, list[RankedParts], Ranking]:
        return await asyncio.gather(
            engine.answer(ask(engine, None)), engine.rank_parts("a", [query]), engine.answer(ask(engine, None))
        )

    first, (parts,), second = asyncio.run(ask_all())
    assert first == second
    assert sum(p for _, p in parts.parts) == pytest.approx(1)
