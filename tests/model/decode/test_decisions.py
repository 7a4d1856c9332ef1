"""Decisions on the way to right answers: their products are what brute force gives, at any temperature."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from model.decode.decisions import read_decisions
from model.decode.tools import score_all_tools
from model.decode.trie import ChoiceTrie
from model.scoring.calibration import log_probability

sys.path.insert(0, str(Path(__file__).parent))
from test_tools import build_mllm, hub_like_names, make_prompts, train_tokenizer


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_products_of_decisions_are_probabilities(temperature: float) -> None:
    names = hub_like_names(40)
    tokenizer = train_tokenizer(names)
    mllm, trie, prompts = build_mllm(tokenizer), ChoiceTrie(names, tokenizer), make_prompts(tokenizer)
    answers = [names[:1], names[3:9], [], names]
    found = read_decisions(mllm, prompts, answers, trie)
    expected = score_all_tools(mllm, prompts, trie, temperature)
    assert [len(own) for own in found] == [1, 6, 0, 40]
    for ways, own, probabilities in zip(found, answers, expected, strict=True):
        p = [np.exp(log_probability(way, temperature)) for way in ways]
        np.testing.assert_allclose(p, [probabilities[names.index(name)] for name in own], rtol=1e-4)


def test_where_nothing_is_to_decide() -> None:
    tokenizer = train_tokenizer(["a"])
    mllm, trie, prompts = build_mllm(tokenizer), ChoiceTrie(["a"], tokenizer), make_prompts(tokenizer)
    assert read_decisions(mllm, prompts[:2], [["a"], []], trie) == [[[]], []]
    assert read_decisions(mllm, [], [], trie) == []
