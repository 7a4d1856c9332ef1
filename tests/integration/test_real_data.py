"""The released ToolMMBench records through prepare, a short text-only training, and evaluation beside the baselines."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs import prepare
from ray_jobs.config import load_run_spec
from ray_jobs.evaluate import job as evaluate
from ray_jobs.train import job as train

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_released_records_train_and_evaluate(ray_session: None, shared_dir: Path, tmp_path: Path) -> None:
    spec = load_run_spec(
        "toolmmbench_tiny",
        [
            f"runs_dir={tmp_path}",
            f"prepare.path={shared_dir / 'toolmmbench'}",
            "train.workers=1",
            "train.wide=true",
            "train.epochs=1",
            "train.max_steps=12",
            "train.validation_questions=8",
            "evaluate.max_questions=64",
        ],
    )

    prepared = prepare.run(spec)
    trained = train.run(spec)
    evaluated = evaluate.run(spec)

    assert prepared["tools"]["catalog"] == 932
    assert prepared["missing_media"]["records"] > 1000  # no media here: reported, and the words still train
    assert trained["metrics"]["step"] == 12
    assert evaluated["n_questions"] == 64
    assert evaluated["constrained"]["hallu"] == 0.0
    assert evaluated["constrained"]["format_acc"] == 1.0
    assert evaluated["knn"]["acc"] > evaluated["majority"]["acc"]
    assert evaluated["wide"]["acc"] > evaluated["knn"]["acc"]
    assert evaluated["constrained"]["acc"] > evaluated["language_model"]["acc"], "twelve steps alone teach little"
    report = (spec.run_dir / "evaluation" / "report.md").read_text(encoding="utf-8")
    for way in ("constrained", "free", "majority", "knn", "language_model", "wide"):
        assert f"| {way}" in report
