"""What of an answer is read."""

from __future__ import annotations

from collections import Counter

import pytest

from data_pipeline.teacher.requests import TeacherReply
from ray_jobs.generate.asking import describe_rejected, drop_cut_line


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


def test_who_looks_on_is_told_why_lines_are_left_out() -> None:
    assert describe_rejected(Counter()) == "0 lines left out"
    assert describe_rejected(Counter(tool=1, format=3)) == "4 lines left out (format 3, tool 1)"
