"""The temperature of the catalogue's decisions: fitted on the validation split, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.records.schema import ToolRecord
from model.decode.tools import first_answers
from model.decode.trie import ChoiceTrie
from model.scoring.calibration import expected_calibration_error, fit_temperature
from ray_jobs.evaluate.prompts import PromptReader, QuestionJob, vector_column
from ray_jobs.train.features import MediaVectors


class DecisionReader:
    """Ray Data actor: a built model that tells its first answers and the decisions on the way to them."""

    def __init__(self, job: QuestionJob) -> None:
        self._mllm = job.model.build()
        self._trie = ChoiceTrie(job.tool_ids, self._mllm.tokenizer)
        self._prompts = PromptReader(self._mllm.tokenizer, job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = [self._prompts.read(row) for row in batch.to_pylist()]
        found = first_answers(self._mllm, prompts, self._trie)
        ways = [[{"taken": taken, "log_p": log_p.tolist()} for taken, log_p in each.decisions] for each in found]
        kind = pa.list_(pa.struct({"taken": pa.int32(), "log_p": pa.list_(pa.float64())}))
        first = [each.tool_id for each in found]
        return pa.table({"position": batch["position"], "tool_id": first, "way": pa.array(ways, kind)})


def find_temperature(job: QuestionJob, records: Sequence[ToolRecord], vectors: MediaVectors) -> float | None:
    """The temperature under which the first answers to some questions are as often right as they say.

    Args:
        job: says what answers.
        records: of the validation split, which can be used.
        vectors: of their media.

    Returns:
        None where there is no question.
    """
    if not records:
        return None
    read = job.run(DecisionReader, records, media=vector_column([vectors.get(record) for record in records]))
    ways = [[(each["taken"], np.array(each["log_p"])) for each in row["way"]] for row in read]
    is_right = [row["tool_id"] in record.valid_tool_ids for row, record in zip(read, records, strict=True)]
    return fit_temperature(ways, np.array(is_right))


def measure_calibration(
    records: Sequence[ToolRecord], decoded: Sequence[dict[str, Any]], temperature: float, n_val: int
) -> dict[str, float]:
    """Expected calibration error of the first answers, as they are and at a temperature.

    Args:
        records: of the test split.
        decoded: what the actors gave for each, at that temperature too.
        temperature: that was fitted.
        n_val: on so many questions.
    """

    def error(confidence: Sequence[float], answers: Sequence[str]) -> tuple[float, float]:
        pairs = zip(records, answers, strict=True)
        is_right = np.array([tool_id in record.valid_tool_ids for record, tool_id in pairs])
        return expected_calibration_error(np.array(confidence), is_right), float(is_right.mean())

    plain, _ = error([row["probabilities"][0] for row in decoded], [row["tool_ids"][0] for row in decoded])
    tempered, acc = error([row["tempered_p"] for row in decoded], [row["tempered"] for row in decoded])
    return {"n_val": n_val, "temperature": temperature, "ece_uncalibrated": plain, "ece": tempered, "acc": acc}


def describe_calibration(found: dict[str, float] | None) -> list[str]:
    """Lines of the report."""
    if found is None:
        return []
    return [
        f"Calibration of the first answer: expected calibration error {found['ece_uncalibrated']:.3f}, and "
        f"{found['ece']:.3f} at the temperature {found['temperature']:.2f} of every decision, fitted on "
        f"{found['n_val']} questions of the validation split, at which {100 * found['acc']:.1f} % are right; "
        "`export` writes it into the bundle.",
        "",
    ]
