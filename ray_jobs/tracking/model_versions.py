"""MLflow's registered models: bundles as versions, and which of them is the champion."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from ray_jobs.tracking.client import build_client, default_uri, explained, patiently

CHAMPION = "champion"
DATA_HASH_TAG = "toolmm.data_hash"
SCORE_TAG = "toolmm.score"


@dataclass(frozen=True)
class ChampionInfo:
    """The version that bears the alias `champion`.

    Attributes:
        version: of the registered model.
        run_id: that made it.
        data_hash: of the corpus that it was trained on; "" where it was registered without.
        score: what it was chosen by; None where it was registered without.
    """

    version: str
    run_id: str
    data_hash: str
    score: float | None


def register_bundle(
    uri: str,
    run_id: str,
    name: str,
    bundle: Path,
    *,
    data_hash: str = "",
    score: float | None = None,
    make_champion: bool = True,
) -> str:
    """Register a bundle as a model version with a signature; returns the version.

    The registered model is code plus the bundle's files: nothing is pickled.

    Args:
        uri: of the tracking server or database.
        run_id: that made the bundle.
        name: of the registered model.
        bundle: its folder.
        data_hash: of the corpus, kept with the version.
        score: what versions are compared by, kept with the version.
        make_champion: give it the alias `champion`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    client = build_client(uri)
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
    with explained(uri), default_uri(uri), mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(bundle)},
            signature=signature,
            registered_model_name=name,
            pip_requirements=[],
        )
    version = str(info.registered_model_version)
    tags = {DATA_HASH_TAG: data_hash, SCORE_TAG: "" if score is None else repr(score)}
    for key, value in tags.items():
        patiently(lambda key=key, value=value: client.set_model_version_tag(name, version, key, value), uri)
    if make_champion:
        promote(uri, name, version)
    return version


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
    score = version.tags.get(SCORE_TAG, "")
    return ChampionInfo(
        version=str(version.version),
        run_id=version.run_id or "",
        data_hash=version.tags.get(DATA_HASH_TAG, ""),
        score=float(score) if score else None,
    )
