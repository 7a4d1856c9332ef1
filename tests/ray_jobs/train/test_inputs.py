"""What a training is made of: the lengths of its batches."""

from __future__ import annotations

import pytest

from ray_jobs.config import RunSpec
from ray_jobs.train.inputs import length_multiple


@pytest.mark.parametrize(
    ("dtype", "use_gpu", "multiple"), [("float32", False, 1), ("bfloat16", False, 64), ("bfloat16", True, 128)]
)
def test_lengths_are_rounded_where_kernels_are_made_for_each(dtype: str, use_gpu: bool, multiple: int) -> None:
    spec = RunSpec.model_validate({"name": "x", "model": {"dtype": dtype}, "train": {"use_gpu": use_gpu}})
    assert length_multiple(spec) == multiple
