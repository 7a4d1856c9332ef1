"""Whether a bundle's probabilities mean what they say, on the questions of a corpus: no test.

    python tests/measurements/bundle_calibration.py model/weights/agent_smollm2 --config agent_smollm2

The corpus and its vectors are those of `prepare` and `embed` with the same config. The calibration is fitted on the
validation split and judged on the test split, as `evaluate` does for a run, and on other parts of both of the same
sizes; questions that come without a usable medium where they need one are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_pipeline.corpus.files import Corpus
from data_pipeline.records.schema import ToolRecord
from model.llm.bundle import load_bundle
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import expected_calibration_error, fit_calibration
from ray_jobs.config import load_run_spec
from ray_jobs.evaluate.actors import TrainedModel
from ray_jobs.evaluate.calibration import read_first
from ray_jobs.evaluate.prompts import QuestionJob, vector_column
from ray_jobs.evaluate.questions import Decoder
from ray_jobs.progress import Progress
from ray_jobs.train.features import MediaVectors, load_media_vectors

BATCH_SIZE = 16
N_DRAWS = 50


class BundledModel(TrainedModel):
    """The model of the bundle whose folder stands in the place of a checkpoint."""

    def build(self) -> ToolLLM:
        return load_bundle(self.checkpoint).build_mllm()


def answer(
    model: Decoder, records: Sequence[ToolRecord], vectors: MediaVectors, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N] probabilities of the first answers; bool [N], whether each is right."""
    table = pa.table(
        {
            "position": range(len(records)),
            "instruction": [record.instruction for record in records],
            "first_only": [True] * len(records),
            "media": vector_column([vectors.get(record) for record in records]),
        }
    )
    table = table.take(np.argsort([len(record.instruction) for record in records], kind="stable"))
    answers: list[dict[str, Any]] = [{}] * len(records)
    with Progress(split) as progress:
        for start in range(0, len(records), BATCH_SIZE):
            for row in model(table.slice(start, BATCH_SIZE)).to_pylist():
                answers[row["position"]] = row
            progress.show(min(start + BATCH_SIZE, len(records)), len(records), "questions")
    return read_first(records, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--config", required=True)
    parser.add_argument("--source", default="toolmm-mini", help="of the questions")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(2)
    spec = load_run_spec(args.config, args.overrides)
    corpus = Corpus.open(spec.corpus_dir)
    bundle = load_bundle(args.bundle)
    if corpus.data_hash != bundle.info.data_hash:
        print(f"another corpus than the bundle's: {corpus.data_hash[:12]}, {bundle.info.data_hash[:12]}")
    vectors = load_media_vectors(spec, corpus, "val", "test")
    model = BundledModel({}, args.bundle, spec.evaluate, Path())
    reader = Decoder(QuestionJob(model, bundle.catalog.selection_tool_ids, bundle.info.max_target_tokens))
    found = []
    for split in ("val", "test"):
        asked = [record for record in corpus.records(split) if not record.is_dialogue and record.source == args.source]
        found.append(answer(reader, list(filter(vectors.has, asked)), vectors, split))
    (val_p, val_right), (p, is_right) = found
    fitted = fit_calibration(val_p, val_right)
    share = val_right.mean()
    print(f"slope {fitted.slope:.3f}, offset {fitted.offset:.3f}, fitted on {len(val_p)} ({share:.3f} right)")
    before, after = (expected_calibration_error(each, is_right) for each in (p, fitted.of_first(p)))
    print(f"{len(p)} test questions, {is_right.mean():.3f} right: error {before:.3f} before, {after:.3f} calibrated")
    all_p, all_right = np.concatenate([val_p, p]), np.concatenate([val_right, is_right])
    errors = []
    for seed in range(N_DRAWS):
        drawn = np.random.default_rng(seed).permutation(len(all_p))
        own, others = drawn[: len(val_p)], drawn[len(val_p) :]
        scaled = fit_calibration(all_p[own], all_right[own]).of_first(all_p[others])
        errors.append(expected_calibration_error(scaled, all_right[others]))
    print(f"{N_DRAWS} other parts of these sizes: {np.mean(errors):.3f}, standard deviation {np.std(errors):.3f}")


if __name__ == "__main__":
    main()
