"""Calibration: by hand, and by models whose chances are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import _sigmoid_calibration

from model.scoring.calibration import UNCALIBRATED, Calibration, expected_calibration_error, fit_calibration


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


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 1.2), (1.0, 0.0), (2.0, -0.5)])
def test_what_a_model_should_have_said_is_found(slope: float, offset: float) -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.3, 0.999, 20_000)
    truth = expit(slope * logit(p) + offset)
    is_right = rng.random(len(p)) < truth
    found = fit_calibration(p, is_right)
    assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=0.1)
    fresh = rng.random(len(p)) < truth
    keeps = truth >= np.minimum(p, 0.5)  # what would come behind others is kept before them
    assert expected_calibration_error(found.of_first(p)[keeps], fresh[keeps]) < 0.015
    if slope != 1:
        assert expected_calibration_error(p[keeps], fresh[keeps]) > 0.05


def test_it_is_platts_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(2)
    odds = rng.normal(2, 2, 300)
    is_right = rng.random(300) < expit(0.6 * odds + 0.7)
    a, b = _sigmoid_calibration(odds, is_right)  # 1 / (1 + exp(a x + b))
    found = fit_calibration(expit(odds), is_right)
    assert (found.slope, found.offset) == pytest.approx((-a, -b), abs=1e-3)


def test_a_few_right_answers_make_no_certainty() -> None:
    few, many = (fit_calibration(np.full(n, 0.97), np.ones(n, dtype=bool)).of_first(np.array(0.97)) for n in (8, 8000))
    assert few == pytest.approx(9 / 10, abs=0.01)  # Platt's: as if one more had been right, and one wrong
    assert many > 0.999


def test_a_first_answer_of_several_right_ones_is_right() -> None:
    """Two tools are right and share the probability: the first one's half was too little."""
    found = fit_calibration(np.full(200, 0.5), np.ones(200, dtype=bool))
    assert found.of_first(np.array(0.5)) > 0.98


def test_a_ranking_keeps_its_order_and_its_sum() -> None:
    rng = np.random.default_rng(3)
    for slope, offset in rng.uniform((0.05, -4), (3, 4), (200, 2)):
        p = np.sort(rng.dirichlet(np.full(5, 0.5)))[::-1]
        found = Calibration(slope, offset).of_ranking(p.tolist())
        assert sum(found) == pytest.approx(1, abs=1e-9)
        assert found == sorted(found, reverse=True)
        assert Calibration(slope, offset).of_ranking(p[:2].tolist()) == found[:2], "however many are asked for"
        assert found[2] * p[3] == pytest.approx(found[3] * p[2], abs=1e-12)
        assert UNCALIBRATED.of_ranking(p.tolist()) == pytest.approx(p.tolist())


def test_the_only_answer_is_sure() -> None:
    assert Calibration(0.5, -3.0).of_ranking([1.0]) == [1.0]
    assert Calibration(0.5, 2.0).of_ranking([]) == []
