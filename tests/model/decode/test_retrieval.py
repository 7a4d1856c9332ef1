"""Cards read together: the vectors that each has alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches.cards import encode_card
from model.decode import retrieval
from model.decode.retrieval import (
    PASS_TOKENS,
    CardSearch,
    compare_with_cards,
    encode_cards,
    encode_vectors,
    plan_passes,
)
from model.decode.tree_cache import Prompt
from model.llm.tool_llm import ToolLLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_bundle import build_backbone, build_bundle

WORDS = "### Tool: Improve this picture\n### Assistant: "


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    folder = tmp_path_factory.mktemp("bundle")
    return build_bundle(folder / "a", build_backbone(folder / "tiny", WORDS), 3).build_mllm(dtype="float32")


def draw_cards(mllm: ToolLLM, n: int) -> list[np.ndarray]:
    """Of many lengths; some begin alike, and two are equal."""
    cards = [encode_card(mllm.tokenizer, f"tool {i % 7}", "Improve this picture " * (i % 4)) for i in range(n - 1)]
    return [*cards, encode_card(mllm.tokenizer, "picture", "x" * 300)]


def test_cards_that_share_a_pass_have_the_vectors_that_they_have_alone(mllm: ToolLLM) -> None:
    cards = draw_cards(mllm, 30)
    alone = np.concatenate([encode_vectors(mllm, [Prompt(card)]) for card in cards])
    together = encode_cards(mllm, cards)
    assert (together.dtype, together.shape) == (np.float32, alone.shape)
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - encode_vectors(mllm, list(map(Prompt, cards)))).max() < 1e-5
    assert np.abs(alone[0] - alone[-1]).max() > 0.01
    assert np.abs(encode_cards(mllm, cards[:1]) - alone[:1]).max() < 1e-5


def test_a_pass_reads_many_cards_and_what_they_begin_with_once(mllm: ToolLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = draw_cards(mllm, 200)
    passes = plan_passes(cards)
    assert sorted(place for places in passes for place in places) == list(range(200))
    assert len(passes) <= sum(map(len, cards)) / PASS_TOKENS, "fewer than without what is shared"
    monkeypatch.setattr(retrieval, "PASS_TOKENS", 1)
    assert [len(places) for places in plan_passes(cards)] == [1] * 200
    assert plan_passes([]) == []


def test_a_batch_of_questions_is_ranked_as_each_alone(mllm: ToolLLM) -> None:
    cards = encode_cards(mllm, draw_cards(mllm, 9))
    questions = [Prompt(encode_card(mllm.tokenizer, word, "")) for word in ("this", "picture", "Tool")]
    search = CardSearch(mllm, [f"t{i}" for i in range(9)], cards, also=["t3"])
    assert search.run() == []
    search.add(questions[:2], 9)
    search.add(questions[2:], 1)
    rankings = search.run()
    for question, ranking in zip(questions, rankings, strict=True):
        (p,) = compare_with_cards(encode_vectors(mllm, [question]), cards)
        told = {tool.tool_id: tool.probability for tool in ranking}
        assert told == pytest.approx({tool: p[int(tool[1:])] for tool in told}, abs=1e-6)
        assert ranking[0].probability == pytest.approx(p.max(), abs=1e-6)
    assert [len(ranking) for ranking in rankings[:2]] == [9, 9]
    assert "t3" in {tool.tool_id for tool in rankings[2]}
