"""Model cards as repositories of the Hugging Face Hub hold them: README.md, YAML between lines of ---, and Markdown.

The Hub's API tells of a model's task, tags and downloads, and never what it does in words: those stand in its card. So
a folder of cards is read, and lists of the API that lie beside them add what they know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import InputError
from data_pipeline.instruct.categories import is_task
from data_pipeline.records.text import parse_json, read_text
from data_pipeline.sources.rows import read_rows

MAX_FRONT_CHARS = 100_000  # of the YAML; a model with many results has some 20,000
MAX_PROSE_CHARS = 20_000  # in which the first paragraph has to stand
MIN_PROSE_WORDS = 6  # of the paragraph that says what a model does

_FRONT = re.compile(r"\A\s*---[ \t]*\n(?P<front>.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```[ \t]*$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->|<h[1-6]\b.*?</h[1-6]>", re.DOTALL | re.IGNORECASE)  # and headings in HTML
_NUMBERED = re.compile(r"\d+[.)] ")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_TAG = re.compile(r"</?[A-Za-z][^>]*>")
_MARKS = re.compile(r"\*\*|__|`")
_NO_PROSE = ("#", "|", "- ", "* ", "+ ", ">", "=", "---", "    ")  # headings, tables, lists, quotes, rules, code
_UNFILLED = "more information needed"  # the Hub's template, as it is
_CACHED = re.compile(r"models--(?P<name>.+)")  # the folder of a model in the Hub's cache


def read_model_cards(folder: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Every model of a folder: cards by the path that names them, and what lists of the API say beside.

    `lab/model/README.md` and `lab/model.md` are the card of lab/model, and so is a README.md in the Hub's cache. Lists
    lie in the folder itself: below it JSON belongs to the models.

    Yields:
        (id, the entry in the API's form with `description`), or (id, why its card cannot be read).

    Raises:
        InputError: a list beside the cards cannot be read.
    """
    listed: dict[str, Mapping[str, Any]] = {}
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.jsonl"))):
        for listing in _read_list(path):
            name = listing.get("modelId") or listing.get("id")
            if isinstance(name, str):
                listed.setdefault(name, listing)
    cards: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.md")):
        if name := _name_model(path.relative_to(folder)):
            cards.setdefault(name, path)
    for name in dict.fromkeys([*cards, *listed]):
        entry: dict[str, Any] = {"id": name, **listed.get(name, {})}
        if name in cards:
            try:
                card = parse_model_card(read_text(cards[name]))
            except InputError as error:
                yield name, str(error)
                continue
            entry |= {key: value for key, value in card.items() if not entry.get(key)}
        yield name, entry


def parse_model_card(text: str) -> dict[str, Any]:
    """What a card tells, in the form of the Hub's API.

    Returns:
        `cardData`, `tags`, `pipeline_tag`, `library_name` as far as they are stated, and `description`: the first
        paragraph of prose, and the code that stands between fences.

    Raises:
        InputError: what stands between the two lines of --- is no YAML of an object.
    """
    text = text.replace("\r\n", "\n")
    found = _FRONT.match(text)
    front: Any = {}
    if found:
        if len(found["front"]) > MAX_FRONT_CHARS:
            raise InputError(f"its YAML has more than {MAX_FRONT_CHARS:,} characters")
        try:
            front = yaml.safe_load(found["front"]) or {}
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError("its YAML cannot be read") from error
    if not isinstance(front, dict):
        raise InputError("its YAML is no object")
    listed = front.get("tags")
    tags = [tag for tag in (listed if isinstance(listed, list) else [listed]) if isinstance(tag, str)]
    stated = front.get("pipeline_tag")
    card: dict[str, Any] = {
        "cardData": front,
        "tags": tags,
        # the Hub tells the task of a card that does not state it by its tags as well
        "pipeline_tag": stated if isinstance(stated, str) else next(filter(is_task, tags), None),
        "library_name": front.get("library_name"),
    }
    body = text[found.end() :] if found else text
    card["description"] = "\n\n".join(filter(None, [_find_prose(body), *_FENCE.findall(body)]))
    return card


def _find_prose(body: str) -> str:
    """The first paragraph that is a sentence, without marks of Markdown and HTML; "" where there is none."""
    body = _FENCE.sub("", _COMMENT.sub("", body[:MAX_PROSE_CHARS]))
    for block in re.split(r"\n[ \t]*\n", body):
        lines = [line for line in block.splitlines() if not (line.startswith(_NO_PROSE) or _NUMBERED.match(line))]
        words = _LINK.sub(r"\1", _IMAGE.sub("", " ".join(lines)))
        words = " ".join(_MARKS.sub("", _TAG.sub(" ", words)).split())
        if len(words.split()) >= MIN_PROSE_WORDS and not words.endswith(":") and _UNFILLED not in words.casefold():
            return words
    return ""


def _name_model(path: Path) -> str:
    """The model's id, of the path of its card; "" where it is another file."""
    is_readme = path.stem.casefold() == "readme"
    cached = next(filter(None, map(_CACHED.fullmatch, path.parts)), None)
    if cached is not None:
        return cached["name"].replace("--", "/") if is_readme else ""
    parts = path.parts[:-1] if is_readme else (*path.parts[:-1], path.stem)
    return "/".join(parts) if len(parts) <= 2 else ""


def _read_list(path: Path) -> Iterator[Mapping[str, Any]]:
    """The entries of a list, or of one entry that lies in a file of its own; what has another form is passed over."""
    text = read_text(path)
    whole = parse_json(text) if path.suffix == ".json" and text.lstrip()[:1] == "{" and "\n{" not in text else None
    for entry in [whole] if whole is not None else (row.content for row in read_rows(path)):
        if isinstance(entry, Mapping):
            yield entry
