"""Names for clients: what they take, one for each id, whatever the others are."""

from __future__ import annotations

import re

from serve.tools.all_tools import load_tools
from serve.tools.names import MAX_NAME_CHARS, name_tools


def test_every_tool_of_ours_has_a_name_that_clients_take() -> None:
    ids = list(load_tools())
    names = name_tools(ids)
    assert list(names.values()) == ids
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    assert names["local__detect-edges"] == "local/detect-edges"
    assert names["Kaludi__food-category-classification-v2_0"] == "Kaludi/food-category-classification-v2.0"


def test_ids_that_would_be_called_alike_are_told_apart() -> None:
    ids = ["a/b", "a__b", "a.b", "c", "tool_search", "ü", "x" * 200, "x" * 201, ""]
    names = name_tools(ids, reserved=["tool_search"])
    assert list(names.values()) == ids
    assert all(re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_CHARS}}}", name) for name in names)
    assert {"a_b", "c"} <= names.keys()
    assert not {"a__b", "tool_search"} & names.keys()


def test_a_name_depends_on_no_order() -> None:
    ids = ["a/b", "a__b", "c/d"]
    assert name_tools(ids) == name_tools(reversed(ids))
