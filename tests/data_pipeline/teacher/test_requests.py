"""Keys of requests."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from data_pipeline.teacher.requests import TeacherRequest

REQUEST = TeacherRequest((("system", "Be brief."), ("user", "Größe?")), schema={"type": "object", "required": ["a"]})


def test_a_key_is_the_same_in_every_run() -> None:
    assert REQUEST.key("m") == "b3994b633bb9a6da00fcbbc4d8cf8a375ca77c7ec776ec3458f2c5d3e34e9b34"


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (("system", "Be brief."), ("user", "Size?"))},
        {"messages": (("user", "Be brief."), ("user", "Größe?"))},
        {"schema": None},
        {"schema": {}},
        {"max_tokens": 1},
        {"temperature": 0.0},
        {"sample": 1},
    ],
    ids=str,
)
def test_whatever_differs_makes_another_key(change: dict) -> None:
    assert replace(REQUEST, **change).key("m") != REQUEST.key("m")


def test_another_model_is_another_key() -> None:
    assert REQUEST.key("m") != REQUEST.key("n")


def test_what_is_the_same_has_the_same_key() -> None:
    schema = MappingProxyType({"required": ["a"], "type": "object"})
    assert replace(REQUEST, schema=schema).key("m") == REQUEST.key("m")
    assert replace(REQUEST, temperature=1).key("m") == replace(REQUEST, temperature=1.0).key("m")
