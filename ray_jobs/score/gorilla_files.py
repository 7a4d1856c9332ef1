"""Readers of what `score --protocol gorilla` takes: APIBench's released files, and answers to their questions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import InputError
from data_pipeline.records.text import words_key
from data_pipeline.sources.apibench import find_released_files, read_card, read_instruction
from data_pipeline.sources.rows import SourceRow, read_rows
from model.scoring.gorilla import Api, GorillaItem
from ray_jobs.score.files import (
    check_complete,
    check_place,
    describe_value,
    iterate_json_lines,
    parse_index,
    read_response,
)


@dataclass(frozen=True)
class GorillaGold:
    """Questions by the position of their rows, in file order, and the APIs of those rows, each once."""

    items: dict[int, GorillaItem]
    apis: list[Api]


def read_gorilla_gold(path: Path) -> GorillaGold:
    """Read a released evaluation file, or all of a folder, hub by hub, as `prepare` numbers them (`source_index`).

    Rows with the same words share their right answers.

    Raises:
        InputError: no such file, no row, or a row that is not in the released form.
    """
    files = [file for file, split in find_released_files(path) if split == "test"] if path.is_dir() else [path]
    apis: list[Api] = []
    words: list[str] = []
    right: dict[str, list[Api]] = {}
    for file in files:
        for row in read_rows(file):
            api = _read_api(row, file)
            key = _read_words(row, file)
            apis.append(api)
            words.append(key)
            right.setdefault(key, []).append(api)
    if not apis:
        raise InputError(f"{path}: no question in it; give a released *_eval.json of APIBench.")
    items = {
        index: GorillaItem(api.domain, tuple(dict.fromkeys(right[key])))
        for index, (api, key) in enumerate(zip(apis, words, strict=True))
    }
    return GorillaGold(items, list(dict.fromkeys(apis)))


def read_apis(path: Path) -> list[Api]:
    """Read the APIs of a released file (APIBench's, or Gorilla's API database, whose lines are cards), or of a folder.

    Raises:
        InputError: no such file, no API, or a row that is not in the released form.
    """
    files = [file for file, _ in find_released_files(path)] if path.is_dir() else [path]
    apis = [_read_api(row, file) for file in files for row in read_rows(file)]
    if not apis:
        raise InputError(f"{path}: no API in it; give a released file of APIBench.")
    return list(dict.fromkeys(apis))


def read_gorilla_predictions(path: Path, gold: dict[int, GorillaItem]) -> list[str]:
    """Read ``{"index", "response"}`` lines; returns one response each, in gold order.

    Raises:
        InputError: a line that is not of this form, or whose index the gold lacks; an index twice or not at all.
    """
    predictions: dict[int, str] = {}
    for number, entry in iterate_json_lines(path):
        where = f"{path}, line {number}"
        index = parse_index(entry.get("index"))
        if index is None:
            raise InputError(
                f'{where}: "index" is {describe_value(entry, "index")}; give the position of the gold\'s row, from 0.'
            )
        check_place(where, gold, predictions, "index", index)
        predictions[index] = read_response(entry, where)
    check_complete(path, gold, predictions, "index")
    return [predictions[index] for index in gold]


def _read_api(row: SourceRow, file: Path) -> Api:
    try:
        if row.fault:
            raise InputError(row.fault)
        card = read_card(row.content)
    except InputError as error:
        raise InputError(f"{file}, {row.place}: {error}; give a released file of APIBench.") from error
    return Api(card.call, card.name, card.domain)


def _read_words(row: SourceRow, file: Path) -> str:
    """What rows with the same words have in common."""
    code = row.content.get("code")
    if not isinstance(code, str):
        raise InputError(f"{file}, {row.place}: code is missing or no text; give a released *_eval.json of APIBench.")
    try:
        return words_key(read_instruction(code, Counter()))
    except InputError:  # `prepare` rejects the row, but its answer can be scored: it shares its words with none
        return code
