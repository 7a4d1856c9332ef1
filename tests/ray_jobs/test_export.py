"""What is exported: the champion's place, and what belongs to the weights though the config says otherwise by now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.config import RunSpec
from ray_jobs.export import decide_promotion, find_encoder_name, find_score
from ray_jobs.tracking.model_versions import ChampionInfo, ValidationScore
from ray_jobs.train.job import TrainSummary

CHAMPION = ChampionInfo("3", "r", "d1", ValidationScore(0.5, 0.46, 0.54, 512, "s1"))
METRICS = {"val/score": 0.5, "val/score_low": 0.4, "val/score_high": 0.6}
SUMMARY = TrainSummary("best", "last", METRICS, "run", "tiny-1", {}, "data", 512, "tiny", "s1", 53)


@pytest.mark.parametrize(
    ("score", "run_id", "champion", "is_promoted", "why"),
    [
        (0.1, "new", None, True, "no champion"),
        (0.6, "new", CHAMPION, True, "0.6000 (0.5500 to 0.6500) beats the 0.5000 (0.4600 to 0.5400) of the champion"),
        (0.5, "new", CHAMPION, False, "does not beat"),
        (0.1, "r", CHAMPION, True, "of the same run"),
        (None, "new", CHAMPION, False, "has no score"),
        (None, "new", None, True, "no champion"),
        (0.9, "new", ChampionInfo("3", "r", "d1", None), False, "without a score"),
    ],
)
def test_only_a_better_score_on_the_same_questions_makes_a_champion(
    score: float | None, run_id: str, champion: ChampionInfo | None, is_promoted: bool, why: str
) -> None:
    own = None if score is None else ValidationScore(score, score - 0.05, score + 0.05, 512, "s1")
    decision, reason = decide_promotion(own, run_id, champion)
    assert decision == is_promoted
    assert why in reason


def test_eight_questions_never_beat_512() -> None:
    few = ValidationScore(1.0, 0.68, 1.0, 8, "s2")
    decision, reason = decide_promotion(few, "new", CHAMPION)
    assert not decision
    assert "another validation set (512 questions, s1, here 8 questions, s2)" in reason


def test_a_score_is_compared_only_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    SUMMARY.save(tmp_path)
    assert find_score(TrainSummary.load(tmp_path)) == ValidationScore(0.5, 0.4, 0.6, 53, "s1")
    assert find_score(replace(SUMMARY, validation_set="")) is None, "of an earlier release"
    assert find_score(replace(SUMMARY, metrics={"val/score": 0.5})) is None, "resumed from one"


def test_the_encoder_is_named_as_it_was_at_embed() -> None:
    spec = RunSpec.model_validate({"embed": {"encoder": "imagebind_huge"}})
    assert find_encoder_name(spec, SUMMARY) == "tiny", "whatever the config says now"
    assert find_encoder_name(spec, replace(SUMMARY, encoder_name="")) == "imagebind_huge", "of an earlier release"
