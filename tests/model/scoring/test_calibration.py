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
    ways = [[(int(taken), log_p) for taken, log_p in zip(*both, strict=True)] for both in zip(right, said, strict=True)]
    found = fit_temperature([[way] for way in ways])
    assert found == pytest.approx(true_temperature, rel=0.1)

    def error(temperature: float) -> float:
        best = said.argmax(axis=2)
        likeliest = [[*zip(taken.tolist(), log_p, strict=True)] for taken, log_p in zip(best, said, strict=True)]
        confidence = np.exp([log_probability(way, temperature) for way in likeliest])
        return expected_calibration_error(confidence, (best == right).all(axis=1))

    assert error(found) < 0.03
    if true_temperature != 1:
        assert error(1.0) > 0.05


def test_several_right_answers_count_together() -> None:
    halves = np.log([0.5, 0.5])
    either = [[(0, halves)], [(1, halves)]]  # says nothing: one of two that are both right
    other = [[(0, np.log([0.4, 0.6]))]]
    assert fit_temperature([other] * 9) == pytest.approx(fit_temperature([either, *[other] * 9]), rel=1e-3)
    assert fit_temperature([either] * 9) == pytest.approx(1, rel=1e-2)


def test_a_few_right_answers_make_no_certainty() -> None:
    few = [[[(0, np.log([0.97, 0.03]))]]] * 8
    assert 0.5 < fit_temperature(few) < 1
    assert fit_temperature(few * 1000) < 0.5
