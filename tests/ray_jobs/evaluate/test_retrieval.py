"""What offering the nearest cards alone saves, counted by hand, and how the report says it."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.evaluate.retrieval import RetrievalEvaluation, count_tokens


def test_offered_tokens_are_those_of_each_questions_nearest_cards() -> None:
    cards = [np.zeros(length, dtype=np.int32) for length in (10, 20, 30, 40)]
    counted = count_tokens(cards, np.array([[0, 1], [3, 2], [0, 3]]))
    assert counted["all_tokens"] == 100
    assert counted["offered_tokens"] == pytest.approx((30 + 70 + 50) / 3)
    assert counted["tokens_saved"] == pytest.approx(0.5)


def test_the_report_says_what_is_saved_beside_the_scores() -> None:
    score = {"n": 4, "acc": 0.5, "acc_low": 0.2, "acc_high": 0.8, "abstention_f1": None}
    score |= {"recall@1": 0.5, "recall@5": 0.75, "recall@10": 0.875}
    tokens = {"all_tokens": 6344, "offered_tokens": 317.7, "tokens_saved": 1 - 317.7 / 6344}
    report = RetrievalEvaluation({"retriever": {"unseen": score}, "n_cards": 200, **tokens}).to_markdown()
    assert "50.0 [20.0, 80.0]" in report
    assert "the 10 nearest cards have 318 tokens on average, all cards 6344" in report
    assert "saves 95.0 % of them" in report
