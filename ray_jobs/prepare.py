"""Build the corpus of a run (DESIGN 4.3)."""

from __future__ import annotations

from typing import Any

from data_pipeline.corpus.build import build_corpus
from data_pipeline.records.schema import SPLITS
from ray_jobs.cluster import connect
from ray_jobs.config import RunSpec
from ray_jobs.progress import Progress
from ray_jobs.train.run_folder import prove_shared


def run(spec: RunSpec) -> dict[str, Any]:
    """Build `spec.corpus_dir`, print what is in it, and return its numbers."""
    connect(spec.ray)
    prove_shared(spec.run_dir)
    with Progress("prepare") as progress:
        summary = build_corpus(spec.prepare, spec.corpus_dir, spec.seed, progress.show)
    manifest = summary.manifest
    counts = manifest["counts"]
    print(f"corpus {summary.path}  source {manifest['source']}  data hash {summary.data_hash[:12]}")
    print(f"{'split':8}{'questions':>10}{'rows':>8}{'text':>8}{'image':>8}{'audio':>8}{'video':>8}{'ambiguous':>11}")
    for split in SPLITS:
        modality = counts[split]["by_modality"]
        n_ambiguous = counts[split]["questions"] - counts[split]["by_ambiguity_type"]["none"]
        print(
            f"{split:8}{counts[split]['questions']:>10}{counts[split]['rows']:>8}"
            + "".join(f"{modality[kind]:>8}" for kind in ("text", "image", "audio", "video"))
            + f"{n_ambiguous:>11}"
        )
    leaks = manifest["leaks"]["test_vs_train_and_val"].values()
    n_pairs, n_media = (sum(numbers[key] for numbers in leaks) for key in ("exact_pairs", "shared_media"))
    print(f"leaks into test: {n_pairs} exact pairs, {n_media} shared media; dropped {manifest['leaks']['dropped']}")
    print(f"missing media files: {manifest['missing_media']['files']}; see {summary.path / 'report.md'}")
    return {
        "corpus": str(summary.path),
        "data_hash": summary.data_hash,
        "catalog_hash": manifest["catalog_hash"],
        "tools": manifest["tools"],
        "counts": counts,
        "leaks": manifest["leaks"],
        "missing_media": manifest["missing_media"],
        "duplicates_merged": manifest["duplicates_merged"],
        "repairs": manifest["repairs"],
        "rejected": manifest["rejected"],
    }
