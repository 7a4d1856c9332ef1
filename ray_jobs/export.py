"""`export`: turn the best checkpoint into a bundle and register it in MLflow, as the champion if it deserves it."""

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
from model.wide.head import EQUAL_WEIGHT, WeightedHead
from ray_jobs.config import RunSpec
from ray_jobs.evaluate.job import EVALUATION_FILE, FOLDER, name_checkpoint
from ray_jobs.tracking.model_versions import CHAMPION, ChampionInfo, Registered, ValidationScore, register_bundle
from ray_jobs.tracking.runs import RunLogger
from ray_jobs.train.checkpoint import load_parameters
from ray_jobs.train.job import TrainSummary
from ray_jobs.train.validation import SCORE_HIGH_KEY, SCORE_KEY, SCORE_LOW_KEY
from ray_jobs.train.wide import read_wide

BY_HAND = "export.promote=always promotes it all the same, and so does the alias `champion` in MLflow"


def run(spec: RunSpec) -> dict[str, Any]:
    """Write `bundle/` in the run's folder, check it by loading it, register it; it may become the champion.

    Raises:
        InputError: no trained model, or its checkpoint is gone.
    """
    summary = TrainSummary.load(spec.run_dir)
    bundle = write_bundle(spec, summary, _read_evaluation(spec.run_dir))
    registered = register(spec, summary, bundle)
    name = f"models:/{spec.tracking.registered_model}"
    if registered.is_promoted:
        print(f"registered as     {name}@{CHAMPION} = version {registered.version}: {registered.why}")
    else:
        print(f"registered as     {name}/{registered.version}, not the champion: {registered.why}; {BY_HAND}")
    return describe_bundle(bundle) | describe_registered(registered)


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
    # what was fitted, if it was fitted for these very weights
    evaluated = evaluation or {}
    fitted = evaluated if evaluated.get("checkpoint") == name_checkpoint(str(checkpoint)) else {}
    folder = spec.run_dir / "bundle"
    save_bundle(
        folder,
        mllm=mllm,
        catalog=corpus.catalog,
        encoder_id=summary.encoder_id,
        encoder_name=find_encoder_name(spec, summary),
        model_config=model_config,
        data_hash=summary.data_hash,
        metrics=summary.metrics | {"evaluation": evaluation},
        resolved_config=spec.describe(),
        git_revision=read_git_revision(),
        max_target_tokens=summary.max_target_tokens,
        writes_dialogues=bool(corpus.manifest.get("dialogues")),
        calibration=_find_calibration(fitted),
        wide=_find_wide(summary, fitted),
        adapter_dtype=spec.export.adapter_dtype,
    )
    bundle = load_bundle(folder)
    print(f"bundle            {folder}  ({_size_mib(bundle.folder):.1f} MiB, revision {bundle.revision})")
    return bundle


def register(spec: RunSpec, summary: TrainSummary, bundle: Bundle) -> Registered:
    """Register a bundle with its score and data, and make it the champion where `decide_promotion` would."""
    score = find_score(summary)

    def decide(champion: ChampionInfo | None) -> tuple[bool, str]:
        if spec.export.promote == "always":
            return True, "export.promote=always"
        return decide_promotion(score, summary.mlflow_run_id, champion)

    registered = register_bundle(
        spec.tracking_uri,
        summary.mlflow_run_id,
        spec.tracking.registered_model,
        bundle.folder,
        decide,
        data_hash=summary.data_hash,
        score=score,
    )
    tracker = RunLogger(spec.tracking_uri, summary.mlflow_run_id, spool_dir=spec.spool_dir)
    tracker.log_tags({"toolmm.bundle_revision": bundle.revision, "toolmm.git_revision": bundle.info.git_revision})
    tracker.close()
    return registered


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    return {"bundle": bundle.location, "revision": bundle.revision, "size_mib": round(_size_mib(bundle.folder), 2)}


def describe_registered(registered: Registered) -> dict[str, Any]:
    return {
        "model_version": registered.version,
        "promoted": registered.is_promoted,
        "promotion": registered.why,
    }


def find_encoder_name(spec: RunSpec, summary: TrainSummary) -> str:
    """By which the encoder of the vectors is loaded: as noted when they were made, whatever the config says now."""
    return summary.encoder_name or spec.embed.encoder  # earlier releases did not note it


def find_score(summary: TrainSummary) -> ValidationScore | None:
    """What versions are compared by; None where nothing was validated, or by a release that noted less of it."""
    keys = (SCORE_KEY, SCORE_LOW_KEY, SCORE_HIGH_KEY)
    if not summary.validation_set or not all(key in summary.metrics for key in keys):
        return None
    value, low, high = (float(summary.metrics[key]) for key in keys)
    return ValidationScore(value, low, high, summary.n_validated, summary.validation_set)


def decide_promotion(score: ValidationScore | None, run_id: str, champion: ChampionInfo | None) -> tuple[bool, str]:
    """Whether a model takes the champion's place, and why: it must be better on the very same questions.

    The scores themselves are compared: on the same questions most of the chance that their intervals tell of is shared.

    Args:
        score: of the candidate; None where it has none that can be compared.
        run_id: of the candidate; the champion's own run may be exported again.
        champion: the present one.
    """
    if champion is None:
        return True, "there was no champion"
    name = f"the champion (version {champion.version})"
    if champion.run_id == run_id:
        return True, f"{name} is of the same run"
    if champion.score is None:
        return False, f"{name} was registered without a score and the questions that it is of"
    if score is None:
        return False, f"this run has no score to compare with {name}"
    if champion.score.validation_set != score.validation_set:
        return False, (
            f"{name} was scored on another validation set ({_describe_set(champion.score)}, here "
            f"{_describe_set(score)}), so scores do not compare"
        )
    place = f"{champion.score} of {name} on the same {score.n_questions} questions"
    if score.value > champion.score.value:
        return True, f"{score} beats the {place}"
    return False, f"{score} does not beat the {place}"


def _describe_set(score: ValidationScore) -> str:
    return f"{score.n_questions} questions, {score.validation_set[:12]}"


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


def _find_calibration(fitted: dict[str, Any]) -> Calibration:
    found = fitted.get("calibration") or {}
    return Calibration(found["slope"], found["offset"]) if "slope" in found else UNCALIBRATED


def _find_wide(summary: TrainSummary, fitted: dict[str, Any]) -> WeightedHead | None:
    """The training's wide head, with its weight."""
    head = read_wide(summary.wide)
    return None if head is None else WeightedHead(head, fitted.get("wide_weight", EQUAL_WEIGHT))


def _read_evaluation(run_dir: Location) -> dict[str, Any] | None:
    path = storage.open_folder(run_dir / FOLDER) / EVALUATION_FILE
    return json.loads(storage.read_bytes(path)) if storage.exists(path) else None
