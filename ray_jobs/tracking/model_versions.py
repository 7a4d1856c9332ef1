"""MLflow's registered models: bundles as versions, and which of them is the champion."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ray_jobs.tracking.client import build_client, default_uri, explained, patiently

CHAMPION = "champion"
DATA_HASH_TAG = "toolmm.data_hash"
SCORE_TAG = "toolmm.score"
SCORE_LOW_TAG = "toolmm.score_low"
SCORE_HIGH_TAG = "toolmm.score_high"
VALIDATION_QUESTIONS_TAG = "toolmm.validation_questions"
VALIDATION_SET_TAG = "toolmm.validation_set"
UNDECIDED_TAG = "toolmm.undecided"  # a version bears it from its registration until it is compared with the champion
TURN_LIMIT_S = 60.0  # a process that has not decided on its version by then is taken for dead
TURN_PAUSE_S = 0.2
PACKAGES = ("data_pipeline", "model")  # ours that the registered code imports
# and others' that these import; the versions are those that are installed, which `make install` takes from the lock
REQUIRED = (
    "mlflow",
    "av",
    "filelock",
    "gguf",  # by which transformers reads packaged backbones
    "jsonschema",
    "numpy",
    "pandas",
    "peft",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class ValidationScore:
    """What versions are compared by.

    Attributes:
        value, low, high: the score and its 95 % interval, fractions.
        n_questions: that it is of.
        validation_set: names these questions, how they are scored and among which tools.
    """

    value: float
    low: float
    high: float
    n_questions: int
    validation_set: str

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"

    def to_tags(self) -> dict[str, str]:
        return {
            SCORE_TAG: repr(self.value),
            SCORE_LOW_TAG: repr(self.low),
            SCORE_HIGH_TAG: repr(self.high),
            VALIDATION_QUESTIONS_TAG: str(self.n_questions),
            VALIDATION_SET_TAG: self.validation_set,
        }

    @classmethod
    def from_tags(cls, tags: dict[str, str]) -> ValidationScore | None:
        """None where the version was registered without, or by an earlier release, which kept the value alone."""
        try:
            value, low, high = (float(tags[key]) for key in (SCORE_TAG, SCORE_LOW_TAG, SCORE_HIGH_TAG))
            return cls(value, low, high, int(tags[VALIDATION_QUESTIONS_TAG]), tags[VALIDATION_SET_TAG])
        except (KeyError, ValueError):  # anybody may change tags in MLflow's page
            return None


@dataclass(frozen=True)
class ChampionInfo:
    """The version that bears the alias `champion`.

    Attributes:
        version: of the registered model.
        run_id: that made it.
        data_hash: of the corpus that it was trained on; "" where it was registered without.
        score: what it is compared by; None where it was registered without.
        created_ms: when it was registered, by the registry's clock.
    """

    version: str
    run_id: str
    data_hash: str
    score: ValidationScore | None
    created_ms: int = 0


@dataclass(frozen=True)
class Registered:
    """A bundle in the registry.

    Attributes:
        version: of the registered model.
        is_promoted: whether it bears the alias `champion` now.
        why: it does or does not.
    """

    version: str
    is_promoted: bool
    why: str


Decision = Callable[[ChampionInfo | None], tuple[bool, str]]  # whether to take that one's place, and why


def register_bundle(
    uri: str,
    run_id: str,
    name: str,
    bundle: Path,
    decide: Decision,
    *,
    data_hash: str = "",
    score: ValidationScore | None = None,
) -> Registered:
    """Upload a bundle, register it as a model version with a signature, and then decide whether it is the champion.

    The registered model is code plus the bundle's files: nothing is pickled, and the packages of this project that it
    imports travel along.

    Args:
        uri: of the tracking server or database.
        run_id: that made the bundle.
        name: of the registered model.
        bundle: its folder.
        decide: asked at the end, with the champion of that moment; of several that register at once, one by one.
        data_hash: of the corpus, kept with the version.
        score: what versions are compared by, kept with the version.

    Raises:
        InputError: the tracking server does not answer or refuses, or a file of this machine cannot be written.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    build_client(uri)
    warnings.filterwarnings("ignore", message=".*input example was not provided.*")  # the signature is written out here
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "instruction"),
                ColSpec(DataType.string, "modality"),
                ColSpec(DataType.binary, "media", required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string, "tool_id"), ColSpec(DataType.double, "probability")]),
    )
    tags = {DATA_HASH_TAG: data_hash, UNDECIDED_TAG: "yes"} | (score.to_tags() if score else {})
    with explained(uri), default_uri(uri):
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="bundle",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"bundle": str(bundle)},
                signature=signature,
                code_paths=[str(Path(__file__).parents[2] / package) for package in PACKAGES],
                pip_requirements=list_requirements(),
            )
        version = str(mlflow.register_model(info.model_uri, name, tags=tags).version)
        is_promoted, why = decide_in_turn(uri, name, version, decide)
    return Registered(version, is_promoted, why)


def list_requirements() -> list[str]:
    """What the registered code needs, pinned to what is installed here."""
    # without a build's name, as in 2.13.0+cpu, which no index has
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIRED]


def decide_in_turn(uri: str, name: str, version: str, decide: Decision) -> tuple[bool, str]:
    """Give a version the alias `champion` if `decide` says so; returns whether it bears it, and why.

    MLflow can set an alias, but not only if it is what it was read to be; so those that would read and set it at once
    do it in the order of their versions. These are drawn one by one, each with its tag, so nobody can come in before.

    Args:
        uri, name: as in `register_bundle`.
        version: bears `UNDECIDED_TAG`, which is taken away.
        decide: is given the champion, that nobody else replaces meanwhile.
    """
    client = build_client(uri)
    _wait_for_turn(client, uri, name, version)
    is_promoted, why = decide(get_champion(uri, name))
    if is_promoted:
        promote(uri, name, version)
        champion = get_champion(uri, name)
        if champion is None or champion.version != version:  # by somebody who does not wait for turns
            is_promoted, why = False, "the alias was set by hand in the same moment"
    patiently(lambda: client.delete_model_version_tag(name, version, UNDECIDED_TAG), uri)
    return is_promoted, why


def promote(uri: str, name: str, version: str) -> None:
    """Give a registered version the alias `champion`, which at most one version bears."""
    client = build_client(uri)
    patiently(lambda: client.set_registered_model_alias(name, CHAMPION, version), uri)


def get_champion(uri: str, name: str) -> ChampionInfo | None:
    """The present champion; None where there is none."""
    client = build_client(uri)
    try:
        version = patiently(lambda: client.get_model_version_by_alias(name, CHAMPION), uri)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise
    return ChampionInfo(
        version=str(version.version),
        run_id=version.run_id or "",
        data_hash=version.tags.get(DATA_HASH_TAG, ""),
        score=ValidationScore.from_tags(version.tags),
        created_ms=int(version.creation_timestamp or 0),
    )


def _wait_for_turn(client: MlflowClient, uri: str, name: str, version: str) -> None:
    """Until every version that was registered before this one is decided on, or its process seems to be dead."""
    query = f"name = '{name}' and tags.`{UNDECIDED_TAG}` = 'yes'"
    deadline_s = time.monotonic() + TURN_LIMIT_S
    while True:
        found = patiently(lambda: client.search_model_versions(query), uri)
        earlier = [str(other.version) for other in found if int(other.version) < int(version)]
        if not earlier:
            return
        if time.monotonic() > deadline_s:
            break
        time.sleep(TURN_PAUSE_S)
    for other in earlier:  # their processes were killed: nobody shall wait for them again
        patiently(lambda other=other: client.delete_model_version_tag(name, other, UNDECIDED_TAG), uri)
