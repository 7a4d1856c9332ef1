"""Whether the probabilities that a service answers mean what they say, on a corpus' test questions: no test.

    python tests/measurements/served_calibration.py http://127.0.0.1:8000 --config agent_smollm2

Every question goes to `/v1/tools/select` with its medium, as a client sends it: the service chooses among the tools
that take the medium, and calibrates as the bundle says. The corpus is that of `prepare` with the same config.
"""

from __future__ import annotations

import argparse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_pipeline.corpus.files import Corpus
from data_pipeline.records.schema import ToolRecord
from model.scoring.calibration import expected_calibration_error
from ray_jobs.config import load_run_spec
from serve.client import ServiceError, select

N_AT_A_TIME = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--config", required=True)
    parser.add_argument("--source", default="toolmm-mini", help="of the questions")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    corpus = Corpus.open(load_run_spec(args.config, args.overrides).corpus_dir)
    asked = [record for record in corpus.records("test") if not record.is_dialogue and record.source == args.source]

    def ask(record: ToolRecord) -> tuple[float, bool] | str:
        path = Path(str(corpus.media_root), record.media_uri) if record.has_media else None
        try:
            (first,) = select(args.url, record.instruction, path, 1, modality=record.modality.value)["tools"][:1]
        except (ServiceError, OSError) as error:
            return type(error).__name__ if isinstance(error, OSError) else str(error)
        return first["probability"], first["tool_id"] in record.valid_tool_ids

    with ThreadPoolExecutor(N_AT_A_TIME) as threads:
        answers = list(threads.map(ask, asked))
    judged = [answer for answer in answers if not isinstance(answer, str)]
    for reason, n in Counter(answer for answer in answers if isinstance(answer, str)).items():
        print(f"left out: {n} x {reason}")
    p, is_right = np.array([p for p, _ in judged]), np.array([right for _, right in judged])
    error = expected_calibration_error(p, is_right)
    print(
        f"{len(p)} questions, {is_right.mean():.3f} right, said {p.mean():.3f}: expected calibration error {error:.3f}"
    )


if __name__ == "__main__":
    main()
