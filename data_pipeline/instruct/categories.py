"""What kind of tool a model of the Hub is: MLLM-Tool's tasks and subtasks (Tables 2 and 10), by tags and words."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.records.schema import Modality

_WORD = re.compile(r"[^\W_]+")
_STEM_CHARS = 5
# in names of subtasks and of no use to tell them apart
_PLAIN = frozenset(["to", "2d", "of", "image", "promp", "guide", "condi", "gener", "speci", "type", "based"])
_MEDIA = {f"{modality.value}_path": modality.value for modality in Modality if modality is not Modality.TEXT}
_SCHEMAS: dict[str, dict[str, Any]] = {
    **{name: {"type": "string", "contentMediaType": f"{medium}/*"} for name, medium in _MEDIA.items()},
    **{name: {"type": "array", "items": {"type": "string"}} for name in ("candidate_labels", "sentences")},
    "table": {"type": "object"},
}


@dataclass(frozen=True)
class Category:
    """A kind of tool.

    Attributes:
        domain: the Hub's.
        takes: the arguments of a call.
        gives: a modality; "" where the project has none for it.
        task: as Table 2 has it, or the Hub's tag where the table has none.
        subtask: as Table 10 has it; "" where nothing tells it.
    """

    domain: str
    takes: tuple[str, ...]
    gives: str
    task: str
    subtask: str = ""

    @property
    def input_modality(self) -> str:
        """Of the medium that a call takes, else text; "" of a call without arguments."""
        return next((_MEDIA[name] for name in self.takes if name in _MEDIA), "text" if self.takes else "")

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON Schema of the arguments; {} where there are none."""
        if not self.takes:
            return {}
        properties = {name: _SCHEMAS.get(name, {"type": "string"}) for name in self.takes}
        return {"type": "object", "properties": properties, "required": list(self.takes)}


def find_category(tag: str, text: str) -> Category | None:
    """The kind of a model.

    Args:
        tag: its task on the Hub (`pipeline_tag`).
        text: what is said of it. The subtask is the one of which it says most: every word that tells it from others.

    Returns:
        None where the Hub's tag is not known.
    """
    known = load_categories().get(tag)
    if known is None:
        return None
    said = list_stems(text)
    found, most = known[0], 0
    for category in known:
        for name in () if category.subtask else load_subtasks().get(category.task, ()):
            telling = list_stems(name) - list_stems(tag) - _PLAIN
            if most < len(telling) and telling <= said:
                most = len(telling)
                found = replace(category, subtask=name)
    return found


def is_task(tag: str) -> bool:
    """Whether a tag is the name of a task on the Hub."""
    return tag in load_categories()


def list_stems(text: str) -> frozenset[str]:
    """The beginnings of its words: Deblurring, deblurs and Deblur are one."""
    return frozenset(word.casefold()[:_STEM_CHARS] for word in _WORD.findall(text))


@cache
def load_categories() -> dict[str, tuple[Category, ...]]:
    """The Hub's tags -> the kinds of models that bear them, the usual one first."""
    content = yaml.safe_load(Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8"))
    return {
        tag: tuple(_read(domain, tag, each) for each in (given if isinstance(given, list) else [given]))
        for domain, own in content.items()
        for tag, given in own.items()
    }


def _read(domain: str, tag: str, given: dict[str, Any]) -> Category:
    return Category(domain, tuple(given["takes"]), given["gives"], given.get("task", tag), given.get("subtask", ""))


@cache
def load_subtasks() -> dict[str, tuple[str, ...]]:
    """The tasks of Table 2 -> their subtasks of Table 10."""
    content = yaml.safe_load(Path(__file__).with_name("subtasks.yaml").read_text(encoding="utf-8"))
    return {task: tuple(names) for task, names in content.items()}
