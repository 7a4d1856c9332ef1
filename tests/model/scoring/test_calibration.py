"""Calibration: by hand, and by a model that is known to be too sure of itself."""

from __future__ import annotations

import numpy as np
import pytest

from model.scoring.calibration import expected_calibration_error, fit_temperature, log_probability


def test_error_by_hand() -> None:
    confidence = np.array([0.91, 0.92, 0.95, 0.32, 0.31, 1.0])
    is_right = np.array([True, True, False, False, True, True])
    # bins of a fifteenth: (0.91, 0.92) right twice; 0.95 alone with 1.0: one of two right; (0.32, 0.31): one of two
    expected = (abs(1 - 0.915) * 2 + abs(0.5 - 0.975) * 2 + abs(0.5 - 0.315) * 2) / 6
    assert expected_calibration_error(confidence, is_right) == pytest.approx(expected)


def test_perfect_confidence_has_no_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000)
    assert expected_calibration_error(confidence, rng.random(200_000) < confidence) < 0.005


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_a_model_is_found_and_mends_it(true_temperature: float) -> None:
    """Two decisions to an answer; the model's logits are those of the world, times its temperature's inverse."""
    rng = np.random.default_rng(1)
    n = 4000
    honest = np.log(rng.dirichlet(np.full(4, 0.5), size=(n, 2)))  # [N, 2 decisions, 4 children]
    said = honest * true_temperature  # too sure where the temperature is above 1
    said -= np.logaddexp.reduce(said, axis=2, keepdims=True)
    right = (np.exp(honest).cumsum(axis=2) > rng.random((n, 2, 1))).argmax(axis=2)  # [N, 2]
    best = said.argmax(axis=2)
    likeliest = [[*zip(taken.tolist(), log_p, strict=True)] for taken, log_p in zip(best, said, strict=True)]
    is_right = (best == right).all(axis=1)
    found = fit_temperature(likeliest, is_right)
    assert found == pytest.approx(true_temperature, rel=0.1)

    def error(temperature: float) -> float:
        confidence = np.exp([log_probability(way, temperature) for way in likeliest])
        return expected_calibration_error(confidence, is_right)

    assert error(found) < 0.03
    if true_temperature != 1:
        assert error(1.0) > 0.05


def test_a_few_right_answers_make_no_certainty() -> None:
    way = [(0, np.log([0.97, 0.03]))]
    assert 0.5 < fit_temperature([way] * 8, np.ones(8, dtype=bool)) < 1
    assert fit_temperature([way] * 8000, np.ones(8000, dtype=bool)) < 0.5


def test_a_first_answer_of_several_right_ones_is_right() -> None:
    """Two tools are right and share the probability: the first one's half was too little."""
    assert fit_temperature([[(0, np.log([0.5, 0.48, 0.02]))]] * 200, np.ones(200, dtype=bool)) < 0.1
