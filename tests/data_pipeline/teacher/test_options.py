"""What options of a teacher may be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from data_pipeline.teacher.options import TeacherOptions

GOOD: dict[str, Any] = {"url": "https://api.example.org/v1/", "model": "m"}


def test_defaults() -> None:
    options = TeacherOptions(**GOOD)
    assert options.url == "https://api.example.org/v1"
    assert (options.api_key_env, options.max_concurrency, options.max_attempts) == ("OPENAI_API_KEY", 64, 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "api.example.org/v1"}, "an address like"),
        ({"url": "ftp://api.example.org"}, "an address like"),
        ({"url": "http://:80"}, "an address like"),
        ({"url": "http://host:port/v1"}, "an address like"),
        ({"url": "http://[::1/v1"}, "an address like"),
        ({"url": "https://me:hunter2hunter2@api.example.org"}, "no user, password or query"),
        ({"url": "https://api.example.org/v1?key=hunter2hunter2"}, "no user, password or query"),
        ({"budget": 3}, "budget needs input_price or output_price"),
        ({"budget": 0, "input_price": 1}, "greater than 0"),
        ({"max_concurrency": 0}, "greater than or equal to 1"),
        ({"timeout_s": float("inf")}, "finite"),
        ({"api_key": "hunter2hunter2"}, "Extra inputs"),
    ],
    ids=str,
)
def test_bad_options_are_errors_that_show_no_secret(change: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        TeacherOptions(**{**GOOD, **change})
    assert "hunter2" not in str(caught.value)
