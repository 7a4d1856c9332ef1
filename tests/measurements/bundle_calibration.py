"""Whether a bundle's probabilities mean what they say, on the questions of a corpus: no test.

    python tests/measurements/bundle_calibration.py model/weights/agent_smollm2 --config agent_smollm2

The corpus and its vectors are those of `prepare` and `embed` with the same config. The temperature is fitted on the
validation split and judged on the test split, as `evaluate` does for a run; questions that come without a usable medium
where they need one are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data_pipeline.corpus.files import Corpus
from data_pipeline.records.schema import ToolRecord
from model.llm.bundle import load_bundle
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import Decision, expected_calibration_error, fit_temperature, log_probability
from ray_jobs.config import load_run_spec
from ray_jobs.evaluate.actors import TrainedModel
from ray_jobs.evaluate.calibration import DecisionReader
from ray_jobs.evaluate.prompts import QuestionJob, vector_column
from ray_jobs.progress import Progress
from ray_jobs.train.features import MediaVectors, load_media_vectors, separate_usable

BATCH_SIZE = 16


class BundledModel(TrainedModel):
    """The model of the bundle whose folder stands in the place of a checkpoint."""

    def build(self) -> ToolLLM:
        return load_bundle(self.checkpoint).build_mllm()


def answer(
    reader: DecisionReader, records: Sequence[ToolRecord], vectors: MediaVectors, split: str
) -> tuple[list[list[Decision]], np.ndarray]:
    """By question the decisions on the way to its first answer; bool [N], whether that is right."""
    table = pa.table(
        {
            "position": range(len(records)),
            "instruction": [record.instruction for record in records],
            "media": vector_column([vectors.get(record) for record in records]),
        }
    )
    table = table.take(np.argsort([len(record.instruction) for record in records], kind="stable"))
    ways: list[list[Decision]] = [[] for _ in records]
    is_right = np.zeros(len(records), dtype=bool)
    with Progress(split) as progress:
        for start in range(0, len(records), BATCH_SIZE):
            for row in reader(table.slice(start, BATCH_SIZE)).to_pylist():
                number = row["position"]
                ways[number] = [(each["taken"], np.array(each["log_p"])) for each in row["way"]]
                is_right[number] = row["tool_id"] in records[number].valid_tool_ids
            progress.show(min(start + BATCH_SIZE, len(records)), len(records), "questions")
    return ways, is_right


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
    reader = DecisionReader(QuestionJob(model, bundle.catalog.selection_tool_ids, bundle.info.max_target_tokens))
    found = {}
    for split in ("val", "test"):
        asked = [record for record in corpus.records(split) if not record.is_dialogue and record.source == args.source]
        found[split] = answer(reader, separate_usable(asked, vectors)[0], vectors, split)
    fitted = fit_temperature(*found["val"])
    ways, is_right = found["test"]
    print(f"{len(ways)} questions, {is_right.mean():.3f} right; at {fitted:.3f}, fitted on {len(found['val'][0])}:")
    for temperature in (fitted, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5):
        p = np.exp([log_probability(way, temperature) for way in ways])
        print(f"{temperature:.3f}: error {expected_calibration_error(p, is_right):.3f}")


if __name__ == "__main__":
    main()
