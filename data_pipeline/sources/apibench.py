"""APIBench as released (github.com/ShishirPatil/gorilla, `data/apibench` at commit 6ea5797): its defects end here.

Each line is ``{"code", "api_call", "provider", "api_data"}``. `code` holds the instruction and a written answer in one
of two forms, ``{'Instruction': ..., 'Output': ...}`` and ``###Instruction: ... ###Output: ...``; the right answer is
`api_call`, as in Gorilla's evaluation, whatever the written one says. A tool is what a call loads: a repository and a
model of PyTorch Hub (``intel-isl/MiDaS:DPT_Hybrid``), a model elsewhere (``openai/clip-vit-base-patch32``), or, where
the call names none (``joblib.load('model.joblib')``), what its card calls it. Calls that load one model by different
functions are one tool, with the first of them as its code.

Reference: Patil et al. 2023, "Gorilla: Large Language Model Connected with Massive APIs", arXiv 2305.15334.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.api_calls import name_api, render_tool_id
from data_pipeline.records.catalog import Tool
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.records.text import cut_words
from data_pipeline.sources.reading import (
    Rejected,
    SourceReading,
    catalog_with_unknown,
    check_row_texts,
    merge_records,
    merge_same_questions,
)
from data_pipeline.sources.rows import SourceRow, read_rows

SOURCE = "apibench"
LICENCE = "Apache License 2.0 (Gorilla, github.com/ShishirPatil/gorilla)"
HUBS = ("torchhub", "huggingface", "tensorflow")
SPLIT_OF_ENDING = {"train": "train", "eval": "test"}
MAX_DESCRIPTION_CHARS = 300

_FILE_NAME = re.compile(rf"({'|'.join(HUBS)})_({'|'.join(SPLIT_OF_ENDING)})\.json(\.gz)?")
# of each written form: what begins it, what begins an input, what begins the output
_WRITTEN_FORMS = (
    (re.compile(r"\s*\{'Instruction':"), re.compile(r",\s*'Input':"), re.compile(r",\s*'Output':")),
    (
        re.compile(r"\s*###\s?Instruction:"),
        re.compile(r"\n\s*(###\s?|\*\*)Input:"),
        re.compile(r"\n\s*###\s?Output:"),
    ),
)
_NO_INPUT = ("", "<noinput>")
_NOT_RELEASED_FORM = "not in the released form: code, api_call or a text of api_data is missing or no text"


@dataclass(frozen=True)
class ApiCard:
    """An API of the released data: the code that calls it, and what its card (`api_data`) says in words."""

    call: str
    name: str
    domain: str
    functionality: str
    description: str


def read_apibench(path: Path) -> SourceReading:
    """Open the released files: `*_train.json` is training, `*_eval.json` test; training files alone are split by us.

    A record's `source_index` is its row's position among the rows of all `*_eval.json` that are read, hub by hub in the
    order of `HUBS`.

    Args:
        path: the folder with the files of any of `HUBS`, or one of the files, which stands for its hub's.

    Raises:
        InputError: no such file or folder, none of the released names, a file packed and unpacked, or one that is not
            JSON.
    """
    files = find_released_files(path)
    has_test = any(split == "test" for _, split in files)
    reading = SourceReading(name=SOURCE, licence=LICENCE, catalog=catalog_with_unknown(()), media_root=None, items=())
    tools: dict[str, Tool] = {}
    parsed: list[ToolRecord | Rejected] = []
    n_test = 0
    for file, split in files:
        rows = list(read_rows(file))
        for row in rows:
            index = n_test + row.position if split == "test" else None
            try:
                record, tool = _parse_row(row, file, split if has_test else "", index, reading.repairs)
            except InputError as error:
                parsed.append(Rejected(str(error), f"{file.name}, {row.place}"))
                continue
            tools.setdefault(tool.tool_id, tool)
            parsed.append(record)
        n_test += len(rows) if split == "test" else 0
    reading.catalog = catalog_with_unknown(tools.values())
    reading.items = list(merge_same_questions(parsed, partial(_join, reading)))
    return reading


def find_released_files(path: Path) -> list[tuple[Path, str]]:
    """The released files of a folder, or of the hub that a file belongs to, with their splits; hub by hub.

    Raises:
        InputError: see `read_apibench`.
    """
    hubs = HUBS
    folder = path
    if path.is_file():
        named = _FILE_NAME.fullmatch(path.name)
        if named is None:
            raise InputError(
                f"apibench: {path} is not named as the released files are, such as {HUBS[0]}_eval.json; rename it so."
            )
        hubs, folder = (named[1],), path.parent
    elif not path.is_dir():
        raise InputError(f"apibench: no file or folder {path}; give the folder with the released JSON files.")
    files = []
    for stem, split in ((f"{hub}_{ending}", split) for hub in hubs for ending, split in SPLIT_OF_ENDING.items()):
        found = [file for file in (folder / f"{stem}.json", folder / f"{stem}.json.gz") if file.is_file()]
        if len(found) > 1:
            raise InputError(f"apibench: {folder} holds {found[0].name} and {found[1].name}; keep one of them.")
        files += [(file, split) for file in found]
    if not files:
        names = ", ".join(f"{hub}_{ending}.json" for hub in HUBS for ending in SPLIT_OF_ENDING)
        raise InputError(f"apibench: {path} holds none of {names}; give the folder with the released JSON files.")
    return files


def read_card(content: Any) -> ApiCard:
    """The API of a row, or of a line of Gorilla's API database, which is a card alone.

    Raises:
        InputError: it is neither; equal faults have equal words.
    """
    row = content if isinstance(content, dict) else {}
    card = row.get("api_data", row)
    if not isinstance(card, dict):
        raise InputError(_NOT_RELEASED_FORM)
    functionality = card.get("functionality")
    if isinstance(functionality, list):
        functionality = ", ".join(map(str, functionality))
    call, name, domain = row.get("api_call"), card.get("api_name"), card.get("domain")
    texts = (call, name, domain, functionality, card.get("description"))
    if not all(isinstance(text, str) for text in texts):
        raise InputError(_NOT_RELEASED_FORM)
    call, name, domain, functionality, description = (" ".join(str(text).split()) for text in texts)
    if not call:
        raise InputError("the API call is empty")
    return ApiCard(call, name, domain, functionality, description)


def read_instruction(code: str, repairs: Counter[str]) -> str:
    """The user's words in a row's `code`: the instruction, and behind it the input, where there is one.

    Args:
        code: in one of the two written forms.
        repairs: where it is counted what was mended.

    Raises:
        InputError: in neither form, or without an instruction.
    """
    for begin, input_mark, output_mark in _WRITTEN_FORMS:
        found = begin.match(code)
        if found is None:
            continue
        words = code[found.end() :]
        output = output_mark.search(words)
        if output is None:
            repairs["no output behind the instruction"] += 1
        else:
            words = words[: output.start()]
        given = input_mark.search(words)
        if given is None:
            return _read_words(words, repairs)
        text = _unquote(words[given.end() :].strip().strip("*").strip())
        instruction = _read_words(words[: given.start()], repairs)
        if text.lower() in _NO_INPUT:
            repairs["empty input left out"] += 1
            return instruction
        repairs["input joined to the instruction"] += 1
        return f"{instruction}\n{text}"
    raise InputError("code is in neither of the two written forms")


def _read_words(words: str, repairs: Counter[str]) -> str:
    words = words.strip()
    bare = _unquote(words)
    if bare != words:
        repairs["quotation marks around the instruction left out"] += 1
    if not bare:
        raise InputError("the instruction is empty")
    return bare


def _unquote(words: str) -> str:
    """A text without the quotation marks around all of it, or the last one where its other half was lost."""
    for mark in ('"', "'"):
        if words.endswith(mark) and words.count(mark) == 1:
            return words[:-1].strip()
        if words.endswith(mark) and words.startswith(mark) and words.count(mark) == 2:
            return words[1:-1].strip()
    return words


def _parse_row(
    row: SourceRow, file: Path, split: str, index: int | None, repairs: Counter[str]
) -> tuple[ToolRecord, Tool]:
    """Read one row.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    if row.fault:
        raise InputError(row.fault)
    card = read_card(row.content)
    code = row.content.get("code")
    if not isinstance(code, str) or "api_data" not in row.content:
        raise InputError(_NOT_RELEASED_FORM)
    mended: Counter[str] = Counter()
    instruction = read_instruction(code, mended)
    check_row_texts((instruction, *vars(card).values()))
    tool = build_tool(card)
    repairs.update(mended)
    record = ToolRecord(
        record_id=f"{SOURCE}/{file.name.split('.')[0]}/{row.position}",
        source=SOURCE,
        modality=Modality.TEXT,
        instruction=instruction,
        valid_tool_ids=(tool.tool_id,),
        source_index=index,
        split=split,
    )
    return record, tool


def build_tool(card: ApiCard) -> Tool:
    """The catalogue's entry of an API.

    Raises:
        InputError: neither its call nor its card has a name for it.
    """
    target = name_api(card.call, card.name) or name_api(card.name, card.name) or (card.name,)
    tool_id = render_tool_id(target)
    if not tool_id:
        raise InputError("neither the call nor the card names the API")
    words = f"{card.domain}: {card.functionality.rstrip('.')}. {card.description}".strip()
    return Tool(tool_id, description=cut_words(words, MAX_DESCRIPTION_CHARS), call=card.call)


def _join(reading: SourceReading, first: ToolRecord, other: ToolRecord) -> ToolRecord:
    """Two rows of one question, counted."""
    if first.source_index is not None and other.source_index is not None:
        reading.merged_source_indexes.setdefault(first.source_index, []).append(other.source_index)
    is_known = set(other.valid_tool_ids) <= set(first.valid_tool_ids)
    reading.repairs["question repeated" if is_known else "question repeated with another right API"] += 1
    return merge_records(first, other)
