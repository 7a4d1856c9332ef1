"""Calibration: by hand, and by a model that is known to be too sure of itself."""

from __future__ import annotations

import numpy as np
import pytest

from model.scoring.calibration import (
    apply_temperature,
    complete_rankings,
    expected_calibration_error,
    fit_temperature,
)


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


def test_what_is_not_ranked_is_a_column_of_its_own() -> None:
    rows = complete_rankings([[0.5, 0.2], [0.9], [0.6, 0.4000001]])
    assert rows == pytest.approx(np.array([[0.5, 0.2, 0.3], [0.9, 0.0, 0.1], [0.6, 0.4000001, 0.0]]))


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_a_model_is_found_and_mends_it(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    honest = rng.dirichlet(np.full(6, 0.5), size=20_000)
    right = (honest.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    said = apply_temperature(honest, 1 / true_temperature)  # too sure where the temperature is above 1
    is_right = np.arange(6) == right[:, None]
    found = fit_temperature(said, is_right)
    assert found == pytest.approx(true_temperature, rel=0.05)

    def error(p: np.ndarray) -> float:
        return expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == right)

    assert error(apply_temperature(said, found)) < 0.015
    if true_temperature != 1:
        assert error(said) > 0.05
    assert (apply_temperature(said, found).argsort(axis=1) == said.argsort(axis=1)).all()
