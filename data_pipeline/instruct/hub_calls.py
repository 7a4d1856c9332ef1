"""The call that loads a model of the Hub, from the library and the task that its card names; a card's own code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")  # nothing else goes into a line of code
_CLASS = re.compile(r"[A-Za-z]\w*")
_FENCED = re.compile(r"^```[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "py", "python3")


def build_call(content: Mapping[str, Any], name: str) -> tuple[str, str]:
    """How a model is loaded.

    Args:
        content: the Hub's entry of it.
        name: its id.

    Returns:
        the call, on one line, and code of several lines that makes it; ("", "") where the card does not tell.
    """
    tags = content.get("tags")
    stated = [content.get("library_name"), *(tags if isinstance(tags, list) else ())]
    library = next((each for each in stated if isinstance(each, str) and each in _load_libraries()), None)
    if library is None or not _MODEL.fullmatch(name):
        return "", ""
    known, task = _load_libraries()[library], content.get("pipeline_tag")
    imported, call = known["import"], known["call"].format(model=name, task=task)
    if task not in known.get("tasks", [task]):
        details = content.get("transformersInfo")
        loader = details.get("auto_model") if isinstance(details, Mapping) else None
        if not isinstance(loader, str) or not _CLASS.fullmatch(loader):
            return "", ""
        imported, call = f"from transformers import {loader}", f"{loader}.from_pretrained('{name}')"
    return call, f"{imported}\n\nmodel = {call}"


def split_code(text: str) -> tuple[str, str]:
    """A card's words without what stands between fences, and the Python code that did."""
    code = [each["code"].strip("\n") for each in _FENCED.finditer(text) if each["language"].casefold() in _PYTHON]
    return _FENCED.sub("", text), "\n\n".join(code)


@cache
def _load_libraries() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(Path(__file__).with_name("libraries.yaml").read_text(encoding="utf-8"))
