"""The head as a file: what goes in comes out, anything else is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save
from toy_questions import MEDIA, TOOLS, make_questions

from data_pipeline.errors import InputError
from model.wide.fit import fit_wide
from model.wide.head import N_COLUMNS, WideHead


def test_what_is_written_is_read() -> None:
    head = fit_wide(make_questions(80), TOOLS, MEDIA, 0)
    content = head.to_bytes()
    assert len(content) < head.idf.nbytes + head.word_weights.nbytes / 4  # columns that are not used are left out
    read = WideHead.from_bytes(content)
    asked, media = ["blur the dog", "improve the harbour", ""], [None, next(iter(MEDIA.values())), None]
    np.testing.assert_array_equal(read.log_probabilities(asked, media), head.log_probabilities(asked, media))
    assert (read.tool_ids, read.scale) == (head.tool_ids, head.scale)


def test_a_medium_is_nothing_to_a_head_that_has_seen_none() -> None:
    head = fit_wide([question for question in make_questions(40) if not question.has_media], TOOLS, {}, 0)
    with_it, without = (head.log_probabilities(["blur the dog"], [medium]) for medium in (np.ones(8), None))
    np.testing.assert_array_equal(with_it, without)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no tensors at all",
        save({"idf": np.zeros(3, dtype=np.float32)}),
        save(
            {
                "columns": np.array([N_COLUMNS], dtype=np.int32),  # one too far
                "idf": np.ones(N_COLUMNS, dtype=np.float32),
                "word_weights": np.zeros((1, 1), dtype=np.float16),
                "media_weights": np.zeros((0, 1), dtype=np.float16),
                "scale": np.ones(1),
                "tool_ids": np.frombuffer(b'["blur"]', dtype=np.uint8),
            }
        ),
    ],
    ids=["empty", "noise", "another file", "a column that is not there"],
)
def test_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="no wide head of this code"):
        WideHead.from_bytes(content)
