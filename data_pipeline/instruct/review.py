"""What a person decides about generated rows: a file of JSON Lines that is edited, read back, and never forgotten.

A line is ``{"decision": "", "note": "", "words": ..., "answer": ..., "situation": ..., "why": ..., "medium": ...,
"key": ...}``. `decision` is "keep", "drop", or "edit", for which `words` and `answer` hold as they stand there; "" =
not decided. Lines that are decided stay as they are whatever is generated later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.instruct.cases import Case
from data_pipeline.locations import Location
from data_pipeline.records.text import parse_json, read_text

REVIEW_FILE = "review.jsonl"
DECISIONS = ("keep", "drop", "edit")

_TEXTS = ("decision", "note", "words", "answer", "key")


@dataclass(frozen=True)
class Doubt:
    """A row that a person should look at.

    Attributes:
        case: the row.
        why: what the checks found.
        medium: its file, as the row names it; "" = none.
    """

    case: Case
    why: str
    medium: str = ""

    def to_line(self) -> dict[str, str]:
        """Not decided yet."""
        case = self.case
        return {
            "decision": "",
            "note": "",
            "words": case.words,
            "answer": case.answer,
            "situation": case.situation,
            "why": self.why,
            "medium": self.medium,
            "key": case.key,
        }


@dataclass(frozen=True)
class Decision:
    """One line of the file, and where it stands, for messages."""

    line: Mapping[str, Any]
    place: str

    @property
    def decision(self) -> str:
        return self.line["decision"]

    @property
    def note(self) -> str:
        return self.line.get("note", "")


def read_review(file: Location) -> dict[str, Decision]:
    """Key -> line, in order; none where there is no file.

    Raises:
        InputError: a line is not well formed, decides something else than `DECISIONS`, or a key is there twice.
    """
    found: dict[str, Decision] = {}
    if not storage.exists(file):
        return found
    for number, text in enumerate(read_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{file}, line {number}"
        try:
            line = parse_json(text)
        except InputError as error:
            raise InputError(f"{place}: {error}; mend it, or remove the line to be asked again.") from error
        if not isinstance(line, dict) or not isinstance(line.get("key"), str):
            raise InputError(f"{place}: it is no object with a `key`; remove the line to be asked again.")
        if strange := [name for name in _TEXTS if not isinstance(line.setdefault(name, ""), str)]:
            raise InputError(f"{place}: {strange[0]} is no text; put it in quotation marks.")
        if line["decision"] not in ("", *DECISIONS):
            raise InputError(
                f"{place}: the decision is {line['decision'][:40]!r}; write {', '.join(DECISIONS)}, or nothing."
            )
        if line["key"] in found:
            raise InputError(f"{place}: {found[line['key']].place} has the same key; keep one of the two.")
        found[line["key"]] = Decision(line, place)
    return found


def merge_review(known: Mapping[str, Decision], doubts: Sequence[Doubt]) -> list[Mapping[str, Any]]:
    """The lines of the file: all that are decided, then the open ones, which keep what a person began to write."""
    decided = [decision.line for decision in known.values() if decision.decision]
    keys = {line["key"] for line in decided}
    open_lines: list[Mapping[str, Any]] = []
    for doubt in doubts:
        if doubt.case.key in keys:
            continue
        keys.add(doubt.case.key)
        begun = known.get(doubt.case.key)
        open_lines.append(begun.line if begun is not None else doubt.to_line())
    return [*decided, *open_lines]


def write_review(file: Location, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the file whole."""
    storage.write_file(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
