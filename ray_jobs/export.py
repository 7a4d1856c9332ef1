"""`export`: turn the best checkpoint into a bundle and register it in MLflow with the alias `champion`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from model.bundle import load_bundle, save_bundle
from model.config import ModelConfig
from model.mllm import ToolLLM
from ray_jobs.checkpoint import load_parameters
from ray_jobs.config import RunSpec
from ray_jobs.evaluate import EVALUATION_FILE
from ray_jobs.model_versions import register_bundle
from ray_jobs.tracking import RunLogger
from ray_jobs.train import TrainSummary


def run(spec: RunSpec) -> dict[str, Any]:
    """Write `bundle/` in the run's folder, check it by loading it, register it.

    Raises:
        InputError: no trained model, or its checkpoint is gone.
    """
    summary = TrainSummary.load(spec.run_dir)
    checkpoint = summary.find_best_checkpoint()
    corpus = summary.open_corpus(spec.corpus_dir)
    model_config = ModelConfig.model_validate(summary.model_config)
    mllm = ToolLLM.build(model_config)
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
        metrics=summary.metrics | {"evaluation": _read_evaluation(spec.run_dir)},
        resolved_config=spec.model_dump(mode="json"),
        git_revision=read_git_revision(),
        max_target_tokens=summary.max_target_tokens,
    )
    bundle = load_bundle(folder)
    version = register_bundle(spec.tracking_uri, summary.mlflow_run_id, spec.tracking.registered_model, folder)
    RunLogger(spec.tracking_uri, summary.mlflow_run_id).log_tags(
        {"toolmm.bundle_revision": bundle.revision, "toolmm.git_revision": bundle.info.git_revision}
    )
    size_mib = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"bundle            {folder}  ({size_mib:.1f} MiB, revision {bundle.revision})")
    print(f"registered as     models:/{spec.tracking.registered_model}@champion = version {version}")
    return {
        "bundle": str(folder),
        "revision": bundle.revision,
        "model_version": version,
        "size_mib": round(size_mib, 2),
    }


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


def _read_evaluation(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "evaluation" / EVALUATION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
