"""`export`: turn the best checkpoint into a bundle and register it in MLflow with the alias `champion`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.locations import Location
from model.llm.backbone import read_shape
from model.llm.bundle import Bundle, load_bundle, save_bundle
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import UNCALIBRATED, Calibration
from ray_jobs.config import RunSpec
from ray_jobs.evaluate.job import EVALUATION_FILE, FOLDER, name_checkpoint
from ray_jobs.tracking.model_versions import ChampionInfo, register_bundle
from ray_jobs.tracking.runs import RunLogger
from ray_jobs.train.checkpoint import load_parameters
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.validation import SCORE_KEY


def run(spec: RunSpec) -> dict[str, Any]:
    """Write `bundle/` in the run's folder, check it by loading it, register it, make it the champion.

    Raises:
        InputError: no trained model, or its checkpoint is gone.
    """
    summary = TrainSummary.load(spec.run_dir)
    bundle = write_bundle(spec, summary, _read_evaluation(spec.run_dir))
    version = register(spec, summary, bundle, make_champion=True)
    print(f"registered as     models:/{spec.tracking.registered_model}@champion = version {version}")
    return describe_bundle(bundle) | {"model_version": version}


def write_bundle(spec: RunSpec, summary: TrainSummary, evaluation: dict[str, Any] | None = None) -> Bundle:
    """Write the best checkpoint of a training as the run's bundle and load it again.

    Args:
        spec: of the training.
        summary: what it left.
        evaluation: numbers of the test split, where it was evaluated.

    Raises:
        InputError: its checkpoint is gone, or the corpus is another one.
    """
    checkpoint = summary.find_best_checkpoint()
    corpus = summary.open_corpus(spec.corpus_dir)
    model_config = ModelConfig.model_validate(summary.model_config)
    mllm = ToolLLM.sketch(model_config, read_shape(model_config.backbone))  # an adapter needs no weights beneath it
    mllm.load_trainable_state_dict(load_parameters(checkpoint))
    folder = spec.run_dir / "bundle"
    save_bundle(
        folder,
        mllm=mllm,
        catalog=corpus.catalog,
        encoder_id=summary.encoder_id,
        encoder_name=spec.embed.encoder,
        model_config=model_config,
        data_hash=summary.data_hash,
        metrics=summary.metrics | {"evaluation": evaluation},
        resolved_config=spec.describe(),
        git_revision=read_git_revision(),
        max_target_tokens=summary.max_target_tokens,
        writes_dialogues=bool(corpus.manifest.get("dialogues")),
        calibration=_find_calibration(evaluation, name_checkpoint(str(checkpoint))),
        adapter_dtype=spec.export.adapter_dtype,
    )
    bundle = load_bundle(folder)
    print(f"bundle            {folder}  ({_size_mib(bundle.folder):.1f} MiB, revision {bundle.revision})")
    return bundle


def register(spec: RunSpec, summary: TrainSummary, bundle: Bundle, make_champion: bool) -> str:
    """Register a bundle with its score and data; returns the version."""
    version = register_bundle(
        spec.tracking_uri,
        summary.mlflow_run_id,
        spec.tracking.registered_model,
        bundle.folder,
        data_hash=summary.data_hash,
        score=summary.metrics.get(SCORE_KEY),
        make_champion=make_champion,
    )
    tracker = RunLogger(spec.tracking_uri, summary.mlflow_run_id, spool_dir=spec.spool_dir)
    tracker.log_tags({"toolmm.bundle_revision": bundle.revision, "toolmm.git_revision": bundle.info.git_revision})
    tracker.close()
    return version


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    return {"bundle": bundle.location, "revision": bundle.revision, "size_mib": round(_size_mib(bundle.folder), 2)}


def decide_promotion(score: float, data_hash: str, champion: ChampionInfo | None) -> tuple[bool, str]:
    """Whether a model takes the champion's place, and why: it must be better on the very same data.

    Args:
        score: of the candidate on its validation questions.
        data_hash: of its corpus.
        champion: the present one.
    """
    if champion is None:
        return True, "there was no champion"
    name = f"the champion (version {champion.version})"
    if champion.data_hash != data_hash:
        other = champion.data_hash[:12] or "not recorded"
        return False, f"{name} was trained on other data ({other}, here {data_hash[:12]}), so scores do not compare"
    if champion.score is None:
        return False, f"{name} was registered without a score"
    if score > champion.score:
        return True, f"{score:.4f} beats the {champion.score:.4f} of {name} on the same data"
    return False, f"{score:.4f} does not beat the {champion.score:.4f} of {name}"


def read_git_revision() -> str:
    """Commit of this code, with "-dirty" where files differ; "" outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def _find_calibration(evaluation: dict[str, Any] | None, checkpoint: str) -> Calibration:
    """As it was fitted for these very weights, if it was."""
    found = (evaluation or {}).get("calibration") or {}
    if evaluation is None or evaluation.get("checkpoint") != checkpoint or "slope" not in found:
        return UNCALIBRATED
    return Calibration(found["slope"], found["offset"])


def _read_evaluation(run_dir: Location) -> dict[str, Any] | None:
    path = storage.open_folder(run_dir / FOLDER) / EVALUATION_FILE
    return json.loads(storage.read_bytes(path)) if storage.exists(path) else None
