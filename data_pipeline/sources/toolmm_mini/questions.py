"""The grammar of questions: `questions.yaml` read, checked and turned into wordings.

A family's wording comes with every kind of medium of the family, so its words say nothing about the right tool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality

_QUESTIONS_PATH = Path(__file__).with_name("questions.yaml")


@dataclass(frozen=True)
class Family:
    """Ambiguous questions over one set of media kinds.

    Attributes:
        name: of the family.
        modality: of its media.
        ambiguity_type: why the words do not decide.
        tools: kind of medium -> right tools.
        wordings: split -> every question that its templates and slots can make.
    """

    name: str
    modality: Modality
    ambiguity_type: AmbiguityType
    tools: Mapping[str, tuple[str, ...]]
    wordings: Mapping[str, tuple[str, ...]]

    @property
    def candidate_tool_ids(self) -> tuple[str, ...]:
        """Every tool that the words allow."""
        return tuple(dict.fromkeys(tool_id for tool_ids in self.tools.values() for tool_id in tool_ids))


@dataclass(frozen=True)
class Task:
    """Questions whose words decide.

    Attributes:
        tools: the right tools.
        modality: of the medium that comes with it, or TEXT.
        kinds: kinds of media that it makes sense for; () for TEXT.
        share: weight among the tasks.
        wordings: split -> every question.
        requests: split -> what is asked for in it, not yet framed as a sentence.
    """

    tools: tuple[str, ...]
    modality: Modality
    kinds: tuple[str, ...]
    share: int
    wordings: Mapping[str, tuple[str, ...]]
    requests: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Grammar:
    families: tuple[Family, ...]
    tasks: tuple[Task, ...]


def _fill(template: str, slots: Mapping[str, list[str]]) -> Iterator[str]:
    """Every filling of the template's slots."""
    names = list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))
    for values in product(*(slots[name] for name in names)):
        yield template.format(**dict(zip(names, values, strict=True)))


def _family(entry: Mapping[str, Any]) -> Family:
    return Family(
        name=entry["name"],
        modality=Modality(entry["modality"]),
        ambiguity_type=AmbiguityType(entry["ambiguity"]),
        tools={kind: tuple(tool_ids) for kind, tool_ids in entry["tools"].items()},
        wordings={
            split: tuple(words for template in entry[split] for words in _fill(template, entry["slots"]))
            for split in SPLITS
        },
    )


def _task(entry: Mapping[str, Any], frames: Mapping[str, list[str]]) -> Task:
    requests = {
        split: tuple(request for template in entry[split] for request in _fill(template, entry["slots"]))
        for split in SPLITS
    }
    wordings = {}
    for split in SPLITS:
        texts = (frame.replace("{request}", request) for request in requests[split] for frame in frames[split])
        wordings[split] = tuple(text[0].upper() + text[1:] for text in texts)
    return Task(
        tools=tuple(entry["tools"]),
        modality=Modality(entry.get("modality", "text")),
        kinds=tuple(entry.get("kinds", ())),
        share=entry["share"],
        wordings=wordings,
        requests=requests,
    )


@cache
def load_grammar() -> Grammar:
    """Read `questions.yaml`."""
    content = yaml.safe_load(_QUESTIONS_PATH.read_text(encoding="utf-8"))
    return Grammar(
        families=tuple(_family(entry) for entry in content["families"]),
        tasks=tuple(_task(entry, content["frames"]) for entry in content["tasks"]),
    )
