"""The calibration of first answers: fitted on the validation split, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.records.schema import ToolRecord
from model.decode.tools import top_k_tools
from model.decode.trie import ChoiceTrie
from model.scoring.calibration import Calibration, expected_calibration_error, fit_calibration
from ray_jobs.evaluate.prompts import PromptReader, QuestionJob, vector_column
from ray_jobs.train.features import MediaVectors


class FirstAnswers:
    """Ray Data actor: a built model that tells its first answers and how sure it is of them."""

    def __init__(self, job: QuestionJob) -> None:
        self._mllm = job.model.build()
        self._trie = ChoiceTrie(job.tool_ids, self._mllm.tokenizer)
        self._prompts = PromptReader(self._mllm.tokenizer, job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = [self._prompts.read(row) for row in batch.to_pylist()]
        first = [ranking[0] for ranking in top_k_tools(self._mllm, prompts, 1, self._trie)]
        answers = [tool.tool_id for tool in first]
        return pa.table({"position": batch["position"], "tool_id": answers, "p": [tool.probability for tool in first]})


def find_calibration(job: QuestionJob, records: Sequence[ToolRecord], vectors: MediaVectors) -> Calibration | None:
    """How often the first answers to some questions are right, by the probabilities that they have.

    Args:
        job: says what answers.
        records: of the validation split, which can be used.
        vectors: of their media.

    Returns:
        None where there is no question.
    """
    if not records:
        return None
    read = job.run(FirstAnswers, records, media=vector_column([vectors.get(record) for record in records]))
    return fit_calibration(np.array([row["p"] for row in read]), judge([row["tool_id"] for row in read], records))


def judge(answers: Sequence[str], records: Sequence[ToolRecord]) -> np.ndarray:
    """bool [N], whether each question's answer is among the right ones."""
    return np.array([answer in record.valid_tool_ids for answer, record in zip(answers, records, strict=True)])


def measure_calibration(
    records: Sequence[ToolRecord], decoded: Sequence[dict[str, Any]], calibration: Calibration, n_val: int
) -> dict[str, float]:
    """Expected calibration error of the first answers, as they are and calibrated.

    Args:
        records: of the test split.
        decoded: what the actors gave for each.
        calibration: that was fitted.
        n_val: on so many questions.
    """
    p = np.array([row["probabilities"][0] for row in decoded])
    is_right = judge([row["tool_ids"][0] for row in decoded], records)
    return {
        "n_val": n_val,
        "slope": calibration.slope,
        "offset": calibration.offset,
        "ece_uncalibrated": expected_calibration_error(p, is_right),
        "ece": expected_calibration_error(calibration.of_first(p), is_right),
    }


def describe_calibration(found: dict[str, float] | None) -> list[str]:
    """Lines of the report."""
    if found is None:
        return []
    return [
        f"Calibration of the first answer: expected calibration error {found['ece_uncalibrated']:.3f}, and "
        f"{found['ece']:.3f} with log-odds times {found['slope']:.2f} plus {found['offset']:.2f}, fitted on "
        f"{found['n_val']} questions of the validation split; `export` writes it into the bundle.",
        "",
    ]
