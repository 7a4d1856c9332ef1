"""Pooling: the search with a wide head agrees with the pool written out over all tools."""

from __future__ import annotations

import numpy as np
import pytest
from random_head import make_head
from scipy.special import log_softmax
from toy_llm import build_mllm, hub_like_names, make_prompts, train_tokenizer

from model.decode.pool import Decision, compute_shares, fit_weight
from model.decode.tools import Prompt, score_all_tools, top_k_tools
from model.decode.trie import ChoiceTrie
from model.wide.head import WeightedHead

NAMES = hub_like_names(40)


@pytest.fixture(scope="module")
def small() -> tuple:
    tokenizer = train_tokenizer(NAMES)
    prompts = [
        Prompt(prompt.prompt_ids, prompt.media, f"question {i}") for i, prompt in enumerate(make_prompts(tokenizer))
    ]
    return build_mllm(tokenizer), ChoiceTrie(NAMES, tokenizer), prompts


def pool_by_hand(trie: ChoiceTrie, of_model: np.ndarray, of_head: np.ndarray, weight: float) -> np.ndarray:
    """[n_tools]: at each node, from the root down, both shares of every child, weighed, multiplied and normalised."""

    def below(node: int) -> list[int]:
        if trie.leaf_choice[node] >= 0:
            return [int(trie.leaf_choice[node])]
        return [tool for child in trie.children(node) for tool in below(child)]

    pooled = np.ones(len(trie))
    for node in range(trie.n_nodes):
        products = {
            child: of_model[below(child)].sum() ** (1 - weight) * of_head[below(child)].sum() ** weight
            for child in trie.children(node)
        }
        for child, product in products.items():
            pooled[below(child)] *= product / sum(products.values())
    return pooled


@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_search_finds_the_best_of_the_pool(small, k: int) -> None:
    mllm, trie, prompts = small
    wide = make_head(NAMES)
    of_model = score_all_tools(mllm, prompts, trie)
    of_head = np.exp(wide.head.log_probabilities([p.words for p in prompts], [p.media for p in prompts]))
    moved = 0
    for i, ranking in enumerate(top_k_tools(mllm, prompts, k, trie, wide=wide)):
        expected = pool_by_hand(trie, of_model[i], of_head[i], wide.weight)
        order = np.argsort(-expected)[:k]
        assert [tool.tool_id for tool in ranking] == [NAMES[tool] for tool in order]
        np.testing.assert_allclose([tool.probability for tool in ranking], expected[order], rtol=1e-4)
        moved += order[0] != of_model[i].argmax()
    assert moved  # else the head would not count


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_all_the_weight_makes_one_half_answer_alone(small, weight: float) -> None:
    mllm, trie, prompts = small
    wide = make_head(NAMES)
    of_head = np.exp(wide.head.log_probabilities([p.words for p in prompts], [p.media for p in prompts]))
    alone = of_head if weight else score_all_tools(mllm, prompts, trie)
    for ranking, expected in zip(
        top_k_tools(mllm, prompts, 40, trie, wide=WeightedHead(wide.head, weight)), alone, strict=True
    ):
        found = {tool.tool_id: tool.probability for tool in ranking}
        np.testing.assert_allclose([found[name] for name in NAMES], expected, rtol=1e-4, atol=1e-9)


def make_decisions(n: int, model_knows: float, head_knows: float) -> list[list[list[Decision]]]:
    """Questions with one right answer and one decision among five; each half's opinion is noise around the truth."""
    generator = np.random.default_rng(0)
    questions = []
    for _ in range(n):
        taken = int(generator.integers(5))
        of_model, of_head = (
            log_softmax(generator.normal(size=5) + knows * (np.arange(5) == taken))
            for knows in (model_knows, head_knows)
        )
        questions.append([[Decision(of_model, of_head, taken)]])
    return questions


def test_who_knows_more_counts_more() -> None:
    assert fit_weight(make_decisions(400, 3, 3)) == pytest.approx(0.5, abs=0.15)
    assert fit_weight(make_decisions(400, 3, 0)) < 0.15
    assert fit_weight(make_decisions(400, 0, 3)) > 0.85
    assert fit_weight(make_decisions(3, 0, 3)) < 0.8, "three questions prove little"


def test_any_of_several_right_answers_will_do() -> None:
    """The head is sure of one of two right answers, the model is torn between both: neither is blamed for it."""
    sure, torn = np.log([0.98, 0.01, 0.01]), np.log([0.49, 0.49, 0.02])
    questions = [[[Decision(torn, sure, 0)], [Decision(torn, sure, 1)]]] * 50
    wrong = [[[Decision(torn, sure, 1)]]] * 50
    assert fit_weight(questions) > fit_weight(wrong)


def test_a_tool_that_the_head_does_not_know_is_its_least_likely(small) -> None:
    _, trie, prompts = small
    shares = compute_shares(make_head(NAMES[:30]).head, trie, prompts)
    leaves = trie.choice_leaf
    log_p = np.zeros((len(prompts), len(NAMES)))
    for tool, leaf in enumerate(leaves):
        node = int(leaf)
        while node > 0:
            log_p[:, tool] += shares[:, node]
            node = int(trie.parent[node])
    np.testing.assert_allclose(log_p[:, 30:] - log_p[:, :30].min(axis=1, keepdims=True), 0, atol=1e-9)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1)


def test_no_question_has_no_answer(small) -> None:
    mllm, trie, _ = small
    assert top_k_tools(mllm, [], 3, trie, wide=make_head(NAMES)) == []


def test_a_head_that_is_all_too_sure_is_no_fault(small) -> None:
    mllm, trie, prompts = small
    for ranking in top_k_tools(mllm, prompts, 40, trie, wide=make_head(NAMES, scale=1e6)):
        assert sum(tool.probability for tool in ranking) == pytest.approx(1)
