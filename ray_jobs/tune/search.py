"""Which trials come next, which of them go on, and how many run at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from data_pipeline.errors import InputError
from ray_jobs.cluster import tagged
from ray_jobs.config import TuneOptions
from ray_jobs.train.validation import SCORE_KEY
from ray_jobs.train_options import TrainOptions
from ray_jobs.tune.space import MAX_DRAWS, Parameters, Space, ValueRange, identify, shorten_number
from ray_jobs.tune.trials import TrialRecord

DRIVER_CPUS = 1  # of the process that launches a trial's training
DATA_CPUS_PER_WORKER = 1  # the actor that builds a Train worker's batches
SPARE_CPUS = 1  # for Ray Data's short tasks
TIE_BREAK = 1e-6  # of a score for a unit of loss: less than one question in any validation set


class ListedTrials(Searcher):
    """The trials of a list, one after the other."""

    def __init__(self, trials: Sequence[Parameters]) -> None:
        super().__init__(metric=SCORE_KEY, mode="max")
        self._left = list(trials)

    def suggest(self, trial_id: str) -> Any:
        return dict(self._left.pop(0)) if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A list has nothing to learn."""


class OptunaTrials(Searcher):
    """What Optuna's TPE proposes from the scores so far, never the same twice.

    A proposal depends on the records of the trials before it and on a seed of its own, on nothing that this process
    alone knows: a sweep that is killed and started again is proposed what it would have been anyway.

    Args:
        space: of the sweep.
        seed: of the sampler.
        num_trials: of the whole sweep.
        records: of its trials, by name, kept up to date while it runs; those that are not over now come first.
    """

    def __init__(self, space: Space, seed: int, num_trials: int, records: Mapping[str, TrialRecord]) -> None:
        import optuna

        super().__init__(metric=SCORE_KEY, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._seed, self._num_trials, self._records = space, seed, num_trials, records
        self._distributions = {path: _distribution(domain) for path, domain in space.domains.items()}
        in_order = sorted(records.values(), key=lambda record: (record.number, record.name))
        known = [record for record in in_order if space.holds(record.parameters)]
        self._first = [record.parameters for record in known if not record.is_over]
        self._proposed = {identify(record.parameters): record.parameters for record in known}

    def suggest(self, trial_id: str) -> Any:
        from optuna.trial import TrialState

        if self._first:
            return dict(self._first.pop(0))
        if len(self._proposed) >= self._num_trials:
            return Searcher.FINISHED
        study = self._build_study()
        for _ in range(MAX_DRAWS):
            asked = study.ask(self._distributions)
            parameters = {
                path: shorten_number(value, self._space.domains[path]) for path, value in asked.params.items()
            }
            if identify(parameters) not in self._proposed:
                self._proposed[identify(parameters)] = parameters
                return dict(parameters)
            study.tell(asked, state=TrialState.FAIL)
        return Searcher.FINISHED  # the space is used up

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial's record says how it ended, which a last result does not."""

    def _build_study(self) -> Any:
        import optuna

        seed = np.random.SeedSequence([self._seed, len(self._proposed)]).generate_state(1)[0]
        sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=5)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        records = {identify(record.parameters): record for record in self._records.values()}
        for key, parameters in self._proposed.items():
            state, score = _outcome(records.get(key))
            study.add_trial(
                optuna.trial.create_trial(
                    state=state, value=score, params=parameters, distributions=self._distributions
                )
            )
        return study


class SameScheduleHalving(FIFOScheduler):
    """ASHA (Li et al., 2020) on epochs, among trials whose schedules are equally long.

    After as many epochs a short schedule has a lower learning rate than a long one and the better score, so trials of
    different `train.epochs` are not compared. Of equal scores, frequent while little is learnt, the lower training loss
    is ahead: ASHA lets equals go on. A trial in its last epoch is never stopped: nothing would be saved. A report
    without a score is compared with none: its trial goes on, and the others as if it had not been there.

    Args:
        options: grace and reduction.
        base_epochs: of trials that do not vary `train.epochs`.
        known: trials from before a restart; the scheduler goes on from their scores.
    """

    def __init__(self, options: TuneOptions, base_epochs: int, known: Sequence[TrialRecord]) -> None:
        super().__init__()
        self._options, self._base_epochs = options, base_epochs
        self._groups: dict[int, ASHAScheduler] = {}
        for record in known:
            member = _member(record.parameters)
            group = self._group(record.planned_epochs)
            if group is not None:
                group.on_trial_add(None, member)  # pyright: ignore[reportArgumentType]
            for epoch in record.epochs:
                self._decide(record.planned_epochs, member, epoch)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        group = self._group(self._planned_epochs(trial))
        if group is not None:
            group.on_trial_add(tune_controller, _member(trial.config))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return self._decide(self._planned_epochs(trial), _member(trial.config), result)

    def _decide(self, planned_epochs: int, member: Any, result: Mapping[str, Any]) -> str:
        group = self._group(planned_epochs)
        if group is None or SCORE_KEY not in result or result.get("epoch", planned_epochs) >= planned_epochs:
            return TrialScheduler.CONTINUE
        ranked = dict(result) | {SCORE_KEY: result[SCORE_KEY] - TIE_BREAK * result.get("train/epoch_loss", 0.0)}
        return group.on_trial_result(None, member, ranked)  # pyright: ignore[reportArgumentType]

    def _group(self, planned_epochs: int) -> ASHAScheduler | None:
        """None for schedules that end before the first halt."""
        if planned_epochs <= self._options.grace_epochs:
            return None
        if planned_epochs not in self._groups:
            self._groups[planned_epochs] = ASHAScheduler(
                time_attr="epoch",
                metric=SCORE_KEY,
                mode="max",
                max_t=planned_epochs,
                grace_period=self._options.grace_epochs,
                reduction_factor=self._options.reduction_factor,
            )
        return self._groups[planned_epochs]

    def _planned_epochs(self, trial: Trial) -> int:
        return trial.config.get("train.epochs", self._base_epochs)


@dataclass(frozen=True)
class TrialNeed:
    """What one trial occupies."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    node_resource: str | None = None

    @property
    def cpus(self) -> float:
        return DRIVER_CPUS + self.workers * (self.cpus_per_worker + DATA_CPUS_PER_WORKER)

    @classmethod
    def of(cls, train: TrainOptions, workers: int) -> TrialNeed:
        return cls(workers, train.cpus_per_worker, int(train.use_gpu), train.node_resource)


def count_fitting(need: TrialNeed, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit at a time, drivers, Train workers and Data actors of all of them.

    Args:
        need: of one trial.
        nodes: resources of each node ("CPU", "GPU", custom ones); a Train worker must fit on one.
    """
    worker_slots = 0
    for node in nodes:
        slots = [math.floor(node.get("CPU", 0) / need.cpus_per_worker)]
        if need.gpus_per_worker:
            slots.append(math.floor(node.get("GPU", 0) / need.gpus_per_worker))
        slots += [math.floor(node.get(name, 0) / n) for name, n in tagged(need.node_resource, 1).items()]
        worker_slots += min(slots)
    cpus = sum(node.get("CPU", 0) for node in nodes) - SPARE_CPUS
    return max(0, min(worker_slots // need.workers, math.floor(cpus / need.cpus)))


def describe_shortage(train: TrainOptions, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What one trial needs and the nodes have, where not even one fits; None where one does."""
    fewest = train.min_workers
    least = TrialNeed.of(train, fewest)
    if count_fitting(least, nodes) >= 1:
        return None
    gpus = f" and {least.gpus_per_worker * fewest} GPU(s)" if train.use_gpu else ""
    have = ", ".join(f"{node.get('CPU', 0):g} CPU(s) and {node.get('GPU', 0):g} GPU(s)" for node in nodes)
    return (
        f"one trial needs {least.cpus + SPARE_CPUS:g} logical CPUs{gpus} (driver {DRIVER_CPUS}, {fewest} worker(s) "
        f"of {train.cpus_per_worker:g}, {DATA_CPUS_PER_WORKER} for each worker's data, {SPARE_CPUS} spare), and "
        f"the nodes have {have}"
    )


def choose_concurrency(train: TrainOptions, max_concurrent: int | None, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials to run at a time.

    Ray does not tell whether an autoscaler would add nodes, so a cluster that grows has to say how far by
    `max_concurrent`; what the sweep then waits for is printed.

    Raises:
        InputError: not even one fits, and nothing says that the cluster grows.
    """
    shortage = describe_shortage(train, nodes)
    if max_concurrent is not None:
        if shortage:
            print(f"waiting until the cluster has grown (tune.max_concurrent={max_concurrent}): {shortage}", flush=True)
        return max_concurrent
    if shortage:
        raise InputError(
            f"{shortage}; lower train.workers, raise ray.num_cpus, or set tune.max_concurrent where the cluster grows "
            "by itself."
        )
    return max(1, count_fitting(TrialNeed.of(train, train.max_workers), nodes))


def _member(parameters: Mapping[str, Any]) -> Any:
    """What ASHA knows a trial by: the same before and after a restart."""
    return SimpleNamespace(trial_id=identify(parameters))


def _outcome(record: TrialRecord | None) -> tuple[Any, float | None]:
    """What Optuna is told of a trial: its best score, as the sweep ranks it; without a score it is a failure."""
    from optuna.trial import TrialState

    if record is None or record.status in ("waiting", "running"):
        return TrialState.RUNNING, None
    if record.status == "failed" or record.best_score is None:
        return TrialState.FAIL, None
    return TrialState.COMPLETE, record.best_score


def _distribution(domain: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(domain, ValueRange):
        return CategoricalDistribution(domain)
    if domain.is_whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.is_log)
    return FloatDistribution(domain.low, domain.high, log=domain.is_log)
