"""Whether a bundle's probabilities mean what they say, on the questions of a corpus: no test.

    python tests/measurements/bundle_calibration.py model/weights/agent_smollm2 --config agent_smollm2

The corpus and its vectors are those of `prepare` and `embed` with the same config. The temperature is fitted on the
validation split and judged on the test split, as `evaluate` does for a run; questions that come without a usable medium
where they need one are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from data_pipeline.batches.encoding import encode_question, longest_answer
from data_pipeline.corpus.files import Corpus
from data_pipeline.records.schema import ToolRecord
from model.decode.tools import FirstAnswer, Prompt, first_answers
from model.decode.trie import ChoiceTrie
from model.llm.bundle import Bundle, load_bundle
from model.scoring.calibration import expected_calibration_error, fit_temperature, log_probability
from ray_jobs.config import load_run_spec
from ray_jobs.progress import Progress
from ray_jobs.train.features import MediaVectors, load_media_vectors

BATCH_SIZE = 16


def answer(bundle: Bundle, records: Sequence[ToolRecord], vectors: MediaVectors, split: str) -> list[FirstAnswer]:
    mllm = bundle.build_mllm()
    tool_ids = bundle.catalog.selection_tool_ids
    trie, reserve = ChoiceTrie(tool_ids, mllm.tokenizer), longest_answer(mllm.tokenizer, tool_ids)
    by_length = sorted(range(len(records)), key=lambda number: len(records[number].instruction))
    found: dict[int, FirstAnswer] = {}
    with Progress(split) as progress:
        for start in range(0, len(by_length), BATCH_SIZE):
            numbers = by_length[start : start + BATCH_SIZE]
            media = [vectors.get(records[number]) for number in numbers]
            prompts = [
                Prompt(
                    encode_question(
                        mllm.tokenizer,
                        records[number].instruction,
                        vector is not None,
                        (),
                        bundle.info.max_target_tokens,
                        reserve,
                    ).prompt_ids,
                    vector,
                )
                for number, vector in zip(numbers, media, strict=True)
            ]
            found |= zip(numbers, first_answers(mllm, prompts, trie), strict=True)
            progress.show(len(found), len(records), "questions")
    return [found[number] for number in range(len(records))]


def judge(records: Sequence[ToolRecord], found: Sequence[FirstAnswer], temperature: float) -> tuple[float, float]:
    """Expected calibration error of the first answers at a temperature, and how many are right."""
    p = np.exp([log_probability(each.decisions, temperature) for each in found])
    is_right = judge_right(records, found)
    return expected_calibration_error(p, is_right), float(is_right.mean())


def judge_right(records: Sequence[ToolRecord], found: Sequence[FirstAnswer]) -> np.ndarray:
    return np.array([each.tool_id in record.valid_tool_ids for record, each in zip(records, found, strict=True)])


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
    asked, found = {}, {}
    for split in ("val", "test"):
        usable = [
            record
            for record in corpus.records(split)
            if not record.is_dialogue
            and record.source == args.source
            and (record.media_uri == "" or vectors.get(record) is not None)
        ]
        asked[split], found[split] = usable, answer(bundle, usable, vectors, split)
    ways = [each.decisions for each in found["val"]]
    fitted = fit_temperature(ways, judge_right(asked["val"], found["val"]))
    for temperature in (1.0, fitted):
        error, acc = judge(asked["test"], found["test"], temperature)
        print(f"{len(asked['test'])} questions at temperature {temperature:.3f}: error {error:.3f}, right {acc:.3f}")
    print(f"fitted on {len(asked['val'])}")
    for temperature in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.2, 1.5):
        print(f"{temperature:.1f}: {judge(asked['test'], found['test'], temperature)[0]:.3f}")


if __name__ == "__main__":
    main()
