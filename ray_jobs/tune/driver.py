"""One trial: the function that Ray Tune runs, which launches the very training that `train` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from ray_jobs.faults import CARRIED_AS, find_input_error
from ray_jobs.train import job as train
from ray_jobs.tune.space import Parameters, Space, name_trial
from ray_jobs.tune.trials import TrialFolders

JOB_KEY = "job"  # in what a trial reports: the name of its Ray Train run
MAX_REASON_CHARS = 300


@dataclass(frozen=True)
class SweepRun:
    """What every trial's process is given.

    Attributes:
        space: of the sweep.
        fingerprint: of the sweep.
        folders: of its trials.
        parent_run_id: the sweep's MLflow run.
        tokenizers: backbone -> hash of its tokenizer, "" where it cannot be loaded.
    """

    space: Space
    fingerprint: str
    folders: TrialFolders
    parent_run_id: str
    tokenizers: Mapping[str, str]

    def name(self, parameters: Parameters) -> str:
        """Of the trial with these values; what was trained with another tokenizer has another one."""
        backbone = parameters.get("model.backbone", self.space.base.model.backbone)
        return name_trial(parameters, self.fingerprint, self.tokenizers.get(backbone, ""))


class ReportEpoch(TuneReportCallback):
    """Tells Ray Tune what Train's first worker reports after an epoch, and which job it is."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        super().after_report(run_context, [metrics[0] | {JOB_KEY: run_context.run_config.name}], checkpoint)


def run_trial(config: dict[str, Any], sweep: SweepRun) -> None:
    """Train with the parameters in `config`; leaves `train.json`, or the reason why not, in the trial's folder.

    A fault of the trial is no fault of the sweep: it returns normally, so that Ray Tune tries again only what has died.
    """
    name = sweep.name(config)
    if sweep.folders.has_summary(name):
        return
    sweep.folders.forget_failure(name)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        spec = sweep.space.trial_spec(config)
        summary = train.launch(spec, sweep.parent_run_id, callbacks=[ReportEpoch()])
    except Exception as error:  # noqa: BLE001 - whatever a training may raise is this trial's result
        sweep.folders.note_failure(name, describe_failure(error))
        return
    summary.save(sweep.folders.path(name))


def describe_failure(error: BaseException) -> str:
    """One line: what was at the root of an exception that came through Ray."""
    root = find_input_error(error) or _find_root(error)
    first_line = str(root).strip().partition("\n")[0][:MAX_REASON_CHARS]
    return f"{type(root).__name__}: {first_line}" if first_line else type(root).__name__


def _find_root(error: BaseException) -> BaseException:
    """The exception that the others were raised for; of several workers' the first one's."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        carried = [
            *getattr(error, "worker_failures", {}).values(),
            *(getattr(error, name, None) for name in CARRIED_AS),
        ]
        error = next((cause for cause in carried if isinstance(cause, BaseException) and id(cause) not in seen), error)
    return error
