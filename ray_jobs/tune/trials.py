"""What is known of a sweep's trials, a folder each: what makes a killed sweep go on, and what its report shows.

Ray Tune's own snapshot of a sweep is some seconds old when a sweep is killed and does not hold what its scheduler has
seen, so these records decide what is left to do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from data_pipeline import storage
from data_pipeline.locations import Location
from ray_jobs.train.job import TRAIN_FILE, TrainSummary
from ray_jobs.train.validation import SCORE_KEY
from ray_jobs.tune.space import Parameters

TRIAL_FILE = "trial.json"
FAILURE_FILE = "failure.txt"

Status = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class TrialRecord:
    """One trial; `trial.json` in its folder, written by the sweep's own process alone.

    Attributes:
        name: of its folder.
        sweep: fingerprint of the sweep.
        parameters: what it does not share with the other trials.
        planned_epochs: of its schedule.
        number: of trials of the sweep that were begun before it.
        status: "stopped" is by the scheduler.
        reason: why it failed, one line.
        seconds: that it has run, over all attempts.
        job: fingerprint of its training; "" until the first epoch is done.
        epochs: what was reported at the end of each.
    """

    name: str
    sweep: str
    parameters: Parameters
    planned_epochs: int
    number: int = 0
    status: Status = "waiting"
    reason: str = ""
    seconds: float = 0.0
    job: str = ""
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Nothing is left to do; a trial that failed is tried again when the sweep is started again."""
        return self.status in ("finished", "stopped")

    @property
    def best_score(self) -> float | None:
        return max((epoch[SCORE_KEY] for epoch in self.epochs if SCORE_KEY in epoch), default=None)

    @property
    def epochs_run(self) -> int:
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def steps(self) -> int:
        """Optimizer steps up to the last epoch that was reported."""
        return self.epochs[-1]["step"] if self.epochs else 0

    def add_epoch(self, report: dict[str, Any]) -> None:
        """Take note of a report; one that was already known, from before a restart, is replaced."""
        kept = {key: value for key, value in report.items() if key in ("epoch", "step") or "/" in key}
        self.epochs = [epoch for epoch in self.epochs if epoch["epoch"] < report["epoch"]] + [kept]


class TrialFolders:
    """The folder `trials` of a sweep."""

    def __init__(self, run_dir: Location, sweep: str) -> None:
        self._root = run_dir / "trials"
        self._sweep = sweep

    def path(self, name: str) -> Location:
        return self._root / name

    def load(self) -> list[TrialRecord]:
        """The records of this sweep, in the order of their names; what another sweep has left is passed over."""
        records = []
        for folder in storage.list_folders(self._root):
            try:
                record = TrialRecord(**json.loads(storage.read_bytes(folder / TRIAL_FILE)))
            except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, TypeError):
                continue  # of another version of this program: the trial is made again, its checkpoints are not lost
            if record.sweep == self._sweep:
                records.append(record)
        return records

    def save(self, record: TrialRecord) -> None:
        storage.write_file(self.path(record.name) / TRIAL_FILE, json.dumps(asdict(record), indent=1) + "\n")

    def close(self, record: TrialRecord) -> None:
        """Note how a trial that runs no longer has ended: by what its training left in its folder."""
        failure = self.path(record.name) / FAILURE_FILE
        if self.has_summary(record.name):
            record.status, record.reason = "finished", ""
            best = self.load_summary(record.name).metrics
            if best["epoch"] not in [epoch["epoch"] for epoch in record.epochs]:
                # its report was on its way when the sweep was killed, and the training goes on from its checkpoint
                later = [epoch for epoch in record.epochs if epoch["epoch"] > best["epoch"]]
                record.add_epoch(best)
                record.epochs += later
        elif storage.exists(failure):
            record.status, record.reason = "failed", storage.read_bytes(failure).decode().strip()
        else:
            record.status, record.reason = "stopped", ""
        self.save(record)

    def has_summary(self, name: str) -> bool:
        return storage.exists(self.path(name) / TRAIN_FILE)

    def load_summary(self, name: str) -> TrainSummary:
        return TrainSummary.load(self.path(name))

    def note_failure(self, name: str, reason: str) -> None:
        storage.write_file(self.path(name) / FAILURE_FILE, reason + "\n")

    def forget_failure(self, name: str) -> None:
        storage.remove_file(self.path(name) / FAILURE_FILE)


def find_best(records: list[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the best score; of equals, the one with fewer steps, then the first by name."""
    finished = [record for record in records if record.status == "finished" and record.best_score is not None]
    return min(finished, key=lambda record: (-(record.best_score or 0.0), record.steps, record.name), default=None)
