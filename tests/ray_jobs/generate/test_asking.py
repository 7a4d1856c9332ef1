"""What of an answer is read."""

from __future__ import annotations

import pytest

from data_pipeline.teacher.requests import TeacherReply
from ray_jobs.generate.asking import drop_cut_line


@pytest.mark.parametrize(
    ("text", "finish_reason", "read"),
    [
        ("Query1: Where is it?\nQuery2: Who has", "length", "Query1: Where is it?"),
        ("Query1: Where is it?\nQuery2: Who has it?", "stop", "Query1: Where is it?\nQuery2: Who has it?"),
        ("Yes, because the user", "length", "Yes, because the user"),
        ("", "length", ""),
    ],
)
def test_a_line_that_was_cut_is_not_read(text: str, finish_reason: str, read: str) -> None:
    assert drop_cut_line(TeacherReply(text, finish_reason)) == read
