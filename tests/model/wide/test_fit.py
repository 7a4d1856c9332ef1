"""Fitting: ridge regression as scikit-learn does it, words and media that tell tools apart, and honest sureness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import Ridge
from toy_questions import MEDIA, TOOLS, make_questions

from data_pipeline.errors import InputError
from model.wide.fit import fit_wide
from model.wide.head import count_pieces


@pytest.mark.parametrize("n", [20, 2000], ids=["fewer questions than columns", "more"])
def test_weights_are_those_of_scikit_learn(n: int) -> None:
    questions = [question for question in make_questions(n) if not question.has_media]
    head = fit_wide(questions, TOOLS, {}, 0)
    features = TfidfTransformer(sublinear_tf=True).fit_transform(count_pieces([q.instruction for q in questions]))
    targets = np.array([[tool in question.valid_tool_ids for tool in TOOLS] for question in questions], dtype=float)
    reference = Ridge(alpha=1.0, fit_intercept=False, solver="cholesky").fit(features, targets)
    asked = ["blur the garden", "translate a letter about rain", "quite another thing"]
    pieces = TfidfTransformer(sublinear_tf=True).fit(count_pieces([q.instruction for q in questions]))
    expected = reference.predict(pieces.transform(count_pieces(asked)))
    scores = head.log_probabilities(asked, [None] * 3) / head.scale
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], atol=3e-3)  # weights are float16


def test_words_and_media_decide_together() -> None:
    questions = make_questions(400)
    head = fit_wide(questions, TOOLS, MEDIA, 0)
    vectors = [MEDIA.get(question.media_sha256) for question in questions]
    log_p = head.log_probabilities([question.instruction for question in questions], vectors)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1)
    answers = [TOOLS[tool] for tool in log_p.argmax(axis=1)]
    hits = [answer in question.valid_tool_ids for answer, question in zip(answers, questions, strict=True)]
    assert np.mean(hits) > 0.95
    without = head.log_probabilities([question.instruction for question in questions], [None] * len(questions))
    assert np.abs(np.exp(without) - np.exp(log_p)).max() > 0.1  # the medium counts


def test_labels_that_nothing_tells_leave_it_unsure() -> None:
    """The scale comes from questions that were held out: by heart it would be sure of what cannot be known."""
    generator = np.random.default_rng(0)
    questions = [question for question in make_questions(300) if not question.has_media]
    drawn = [replace(question, valid_tool_ids=(TOOLS[generator.integers(len(TOOLS))],)) for question in questions]
    words = [question.instruction for question in questions]
    sure, unsure = (
        np.exp(fit_wide(some, TOOLS, {}, 0).log_probabilities(words, [None] * len(words))).max(axis=1).mean()
        for some in (questions, drawn)
    )
    assert sure > 0.9
    assert unsure < 0.5


def test_the_same_questions_give_the_same_head() -> None:
    questions = make_questions(60)
    assert fit_wide(questions, TOOLS, MEDIA, 0).to_bytes() == fit_wide(questions, TOOLS, MEDIA, 0).to_bytes()


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(InputError, match=r"train\.wide=false"):
        fit_wide([], TOOLS, {}, 0)


def test_one_question_is_enough() -> None:
    head = fit_wide(make_questions(1), TOOLS, {}, 0)
    assert np.isfinite(head.log_probabilities(["blur it"], [None])).all()
