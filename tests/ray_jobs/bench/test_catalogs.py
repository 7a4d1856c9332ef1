"""The benchmark of catalogues: its peer is bound to the catalogue, and names what our greedy search names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data_pipeline.batches.encoding import encode_question
from model.decode.tools import Prompt, greedy_tools
from model.decode.trie import ChoiceTrie
from model.llm.tool_llm import ToolLLM
from model.tiny.practised import build_practised_mllm, build_tools, draw_questions
from ray_jobs.bench import catalogs
from ray_jobs.bench.catalogs import allow_catalog, generate_bound


@pytest.fixture(scope="module")
def practised(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToolLLM, ChoiceTrie, list[Prompt]]:
    """A model that has hardly learnt anything, of 60 tools, and three questions of unequal lengths."""
    mllm, tools_of = build_practised_mllm(tmp_path_factory.mktemp("catalogs") / "backbone", 2, 60)
    trie = ChoiceTrie([tool for tools in tools_of.values() for tool in tools], mllm.tokenizer)
    questions = [*draw_questions(2, 0), "a much longer question about depth, pose and speech"]
    return mllm, trie, [Prompt(encode_question(mllm.tokenizer, text, False, ()).prompt_ids) for text in questions]


def test_generate_is_bound_and_our_greedy_answers_are_its_own(practised: Any) -> None:
    mllm, trie, prompts = practised
    assert len({len(prompt.prompt_ids) for prompt in prompts}) > 1, "padding is tried"
    ours = [tool.tool_id for tool in greedy_tools(mllm, prompts, trie)]
    assert generate_bound(mllm, prompts, trie) == ours
    assert [generate_bound(mllm, [prompt], trie)[0] for prompt in prompts] == ours


def test_what_may_follow_is_the_catalogues(practised: Any) -> None:
    _, trie, _ = practised
    allow = allow_catalog(trie, 3, end_token=2)
    prompt, whole = [7, 8, 9], trie.sequences[5].tolist()
    assert set(allow(0, torch.tensor(prompt))) == {int(sequence[0]) for sequence in trie.sequences}
    half = len(whole) // 2
    after = {int(s[half]) for s in trie.sequences if s[:half].tolist() == whole[:half]}
    assert set(allow(0, torch.tensor(prompt + whole[:half]))) == after
    assert allow(0, torch.tensor(prompt + whole)) == [2]
    assert allow(0, torch.tensor([*prompt, *whole, 2])) == [2], "a row that is padded behind its end"


def test_a_run_says_how_they_compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogs, "TRAIN_STEPS", 10)
    monkeypatch.setattr(catalogs, "ROUNDS", 1)
    (result,) = catalogs.run(sizes=(12,), n_questions=2).values()
    assert result["equal_answers"] == 1
    rates = result["queries_per_cpu_s"]
    slower = max(rates[catalogs.FREE], rates[catalogs.BOUND])
    assert result["exact_over_one_by_one"] == rates[catalogs.EXACT] / slower
    assert "generate() in batches; 100% of the greedy answers are theirs" in capsys.readouterr().out


def test_fewer_names_are_the_first_of_more() -> None:
    by_size = {size: build_tools(size) for size in (40, 933, 10_000)}
    for size, tools_of in by_size.items():
        names = [tool for tools in tools_of.values() for tool in tools]
        assert len(set(names)) == len(names) == size
        for wish, tools in tools_of.items():
            assert tools
            assert by_size[10_000][wish][: len(tools)] == tools
    assert {len(tools) for tools in by_size[933].values()} == {12, 13}
