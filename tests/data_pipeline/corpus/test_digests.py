"""Numbers of digests against Python's own sorting, over several hash partitions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.corpus import digests
from data_pipeline.corpus.digests import DIGEST, digest_text, find_first, number_digests, to_digests


@pytest.mark.parametrize("rows_of_partition", [2**17, 7])
def test_equal_digests_get_equal_numbers_in_their_order(
    rows_of_partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_PARTITION_ROWS", rows_of_partition)
    values = [digest_text(str(number % 61)) if number % 5 else None for number in range(400)]
    column = pa.chunked_array([pa.array(values[:150], DIGEST), pa.array(values[150:], DIGEST)])
    numbers, n_distinct = number_digests(to_digests(column))
    ordered = sorted({value for value in values if value is not None})
    assert numbers.tolist() == [-1 if value is None else ordered.index(value) for value in values]
    assert n_distinct == len(ordered)
    assert find_first(numbers, n_distinct).tolist() == [values.index(value) for value in ordered]
    assert number_digests(to_digests(column.slice(3, 2)))[1] == 2, "a slice begins where it begins"


def test_no_digests_have_no_numbers() -> None:
    numbers, n_distinct = number_digests(to_digests(pa.chunked_array([], DIGEST)))
    assert (numbers.dtype, len(numbers), n_distinct) == (np.int32, 0, 0)
