"""Readers of the files that `score` takes. Every fault names the file and the line or record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import CATALOG_FILE, ToolCatalog
from data_pipeline.records.schema import CORPUS_SCHEMA, AmbiguityType, Modality, ToolRecord
from model.scoring.selection import GoldItem

_AMBIGUITY_BY_CODE = dict(enumerate((kind for kind in AmbiguityType if kind is not AmbiguityType.NONE), start=1))
_AMBIGUITY_BY_CODE[-1] = AmbiguityType.NONE
ITEM_ID_FORM = 'an integer or a string under "id"'


@dataclass(frozen=True)
class SelectionGold:
    """Gold of the MLLM-Tool protocol: index -> item, in file order, and the names that exist as far as it says."""

    items: dict[int, GoldItem]
    catalog_ids: frozenset[str]
    catalog_origin: str


def read_selection_gold(path: Path) -> SelectionGold:
    """Read the released test format (a JSON list), a corpus (its test split), a split's folder or a Parquet file."""
    if path.is_dir() or path.suffix == ".parquet":
        return _read_corpus_gold(path)
    entries = _load_json(path, read_text(path))
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{path}: not a list of records; give the released test format (a JSON list) or a corpus folder."
        )
    items: dict[int, GoldItem] = {}
    for position, entry in enumerate(entries):
        where = f"{path}, record {position}"
        if isinstance(entry, dict) and "output" in entry and "conversations" not in entry:
            raise InputError(f"{where}: this is a GPT4Tools item; score it with --protocol gpt4tools.")
        index, item = _parse_released_record(entry, position, where)
        if index in items:
            raise InputError(f"{where}: index {index} occurs twice; every record needs a source_index of its own.")
        items[index] = item
    return SelectionGold(items, _gold_names(items), "the gold's own names")


def _parse_released_record(entry: Any, position: int, where: str) -> tuple[int, GoldItem]:
    """One record of the released test file (MLLM-Tool, `combined_data.json`) and its index."""
    try:
        names = entry["conversations"][1]["value"]
        names = [names] if isinstance(names, str) else names
        item = GoldItem(
            valid_tool_ids=frozenset(name.strip() for name in names),
            modality=Modality(entry["input_modality"]),
            ambiguity_type=(ambiguity_type := _AMBIGUITY_BY_CODE[int(entry.get("ambiguity", -1))]),
            is_ambiguous=bool(entry.get("ifambiguity", ambiguity_type is not AmbiguityType.NONE)),
            is_one_to_many=bool(entry.get("onetomulti", len({name.strip() for name in names}) > 1)),
        )
        index = entry.get("source_index", position)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not in the released test format ({type(error).__name__}: {error}); it needs input_modality "
            "(text, image, audio, video), conversations[1].value (a name or a list of names) "
            "and ambiguity (1 to 5, or -1)."
        ) from error
    if not item.valid_tool_ids or "" in item.valid_tool_ids:
        raise InputError(
            f"{where}: conversations[1].value lists no name or an empty one; give at least one right name."
        )
    if not _is_index(index):
        raise InputError(f"{where}: source_index is {index!r}; give an integer >= 0 or leave it out.")
    return index, item


def _read_corpus_gold(path: Path) -> SelectionGold:
    folder = path / "test" if (path / "test").is_dir() else path
    shards = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not shards:
        raise InputError(f"{path}: no Parquet shards here or in test/; give a corpus folder that `prepare` wrote.")
    items: dict[int, GoldItem] = {}
    for record in _read_corpus_records(shards):
        if record.is_dialogue:  # `evaluate` writes those beside their predictions, for the other protocol
            continue
        index = len(items) if record.source_index is None else record.source_index
        if index in items:
            raise InputError(
                f"{path}: index {index} belongs to two records, the second is {record.record_id!r}; either all records "
                "or none need a source_index, each its own."
            )
        items[index] = GoldItem.from_record(record)
    if not items:
        raise InputError(f"{path}: the shards hold no question; give a corpus with a test split.")
    catalog_path = path / CATALOG_FILE
    if path.is_dir() and catalog_path.is_file():
        return SelectionGold(items, read_catalog_names(catalog_path), "the corpus's catalog.jsonl")
    return SelectionGold(items, _gold_names(items), "the gold's own names")


def _read_corpus_records(shards: Sequence[Path]) -> Iterator[ToolRecord]:
    for shard in shards:
        try:
            rows = pq.ParquetFile(shard).read(columns=CORPUS_SCHEMA.names).to_pylist()
            for row in rows:
                yield ToolRecord.from_row(row)
        except FileNotFoundError as error:
            raise InputError(f"{shard}: no such file; correct --gold.") from error
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{shard}: not a corpus shard ({type(error).__name__}: {error}); write the corpus again with `prepare`."
            ) from error


def _gold_names(items: dict[int, GoldItem]) -> frozenset[str]:
    return frozenset().union(*(item.valid_tool_ids for item in items.values()))


def read_catalog_names(path: Path) -> frozenset[str]:
    """Read one name per line (white space around it is dropped), or a corpus's `catalog.jsonl`."""
    if path.suffix == ".jsonl":
        return frozenset(ToolCatalog.load_jsonl(path).selection_tool_ids)
    names = frozenset(line.strip() for line in read_text(path).split("\n") if line.strip())
    if not names:
        raise InputError(f"{path}: the catalogue is empty; give one tool name per line.")
    return names


def read_selection_predictions(path: Path, gold: dict[int, GoldItem]) -> list[list[str]]:
    """Read ``{"index", "response"}`` or ``{"index", "responses"}`` lines; returns K responses each, in gold order."""
    predictions: dict[int, list[str]] = {}
    first_line = 0
    for number, entry in iterate_json_lines(path):
        where = f"{path}, line {number}"
        index = entry.get("index")
        if not _is_index(index):
            raise InputError(
                f'{where}: "index" is {index!r}; give the record\'s source_index, or its 0-based position where it has '
                "none (predictions by id belong to --protocol gpt4tools)."
            )
        samples = _parse_samples(entry, where)
        if not predictions:
            first_line, k = number, len(samples)
        if len(samples) != k:
            raise InputError(
                f"{where}: {len(samples)} responses, but line {first_line} has {k}; give every record the same number."
            )
        if index in predictions:
            raise InputError(f"{where}: index {index} is predicted twice; keep one line for each record.")
        if index not in gold:
            raise InputError(
                f"{where}: the gold has no record with index {index}; correct the index or give the right gold."
            )
        predictions[index] = samples
    check_complete(path, gold, predictions, "index")
    return [predictions[index] for index in gold]


def _parse_samples(entry: dict[str, Any], where: str) -> list[str]:
    if ("response" in entry) == ("responses" in entry):
        found = "both" if "response" in entry else "neither"
        raise InputError(
            f'{where}: {found} of "response" (a string) and "responses" (K strings) given; give one of them.'
        )
    samples = entry["responses"] if "responses" in entry else [entry["response"]]
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, str) for sample in samples):
        raise InputError(f'{where}: "response" must be a string and "responses" a list of at least one string.')
    return samples


def read_gpt4tools_gold(path: Path) -> dict[str | int, str]:
    """Read the released form, a JSON list or JSON Lines of ``{"id", "output"}``; other keys are ignored."""
    if path.is_dir() or path.suffix == ".parquet":
        raise InputError(
            f"{path}: a corpus has no GPT4Tools texts; give the released JSON file or the gold_dialogues.jsonl that "
            "`evaluate` writes, or use --protocol mllm-tool."
        )
    if read_text(path).lstrip()[:1] == "[":
        entries = list(enumerate(_load_json(path, read_text(path))))
        unit = "record"
    else:
        entries = list(iterate_json_lines(path))
        unit = "line"
    gold: dict[str | int, str] = {}
    for number, entry in entries:
        where = f"{path}, {unit} {number}"
        if isinstance(entry, dict) and "conversations" in entry:
            raise InputError(f"{where}: this is a ToolMMBench record; score it with --protocol mllm-tool.")
        item_id, output = _parse_item(entry, "output", where)
        if item_id in gold:
            raise InputError(f"{where}: id {item_id!r} occurs twice; every gold item needs an id of its own.")
        gold[item_id] = output
    if not gold:
        raise InputError(f'{path}: no item in it; give a list of {{"id", "output"}}.')
    return gold


def read_gpt4tools_predictions(path: Path, gold: dict[str | int, str]) -> dict[str | int, str]:
    """Read ``{"id", "response"}`` lines; the ids must be those of `gold`, each once."""
    predictions: dict[str | int, str] = {}
    for number, entry in iterate_json_lines(path):
        where = f"{path}, line {number}"
        item_id, response = _parse_item(entry, "response", where)
        if item_id in predictions:
            raise InputError(f"{where}: id {item_id!r} is predicted twice; keep one line for each item.")
        if item_id not in gold:
            raise InputError(
                f"{where}: the gold has no item with id {item_id!r} (numbers and strings differ); correct the id."
            )
        predictions[item_id] = response
    check_complete(path, gold, predictions, "id")
    return predictions


def _parse_item(entry: Any, text_key: str, where: str) -> tuple[str | int, str]:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: not a JSON object; give {{"id": ..., "{text_key}": "..."}}.')
    item_id, text = entry.get("id"), entry.get(text_key)
    if isinstance(item_id, bool) or not isinstance(item_id, (int, str)):
        raise InputError(f"{where}: no usable id ({item_id!r}); give {ITEM_ID_FORM}.")
    if not isinstance(text, str):
        raise InputError(
            f'{where}: "{text_key}" is {"missing" if text is None else "not a string"}; give the text under it.'
        )
    return item_id, text


def check_complete(path: Path, gold: dict[Any, Any], predictions: dict[Any, Any], key: str) -> None:
    """A subset is never scored silently."""
    missing = [each for each in gold if each not in predictions]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(gold)} gold records have no prediction, the first is {key} {missing[0]!r};"
            ' predict all of them (an empty "response" counts as malformed).'
        )


def iterate_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based line number, object); blank lines are skipped, a file without any object is an error."""
    is_empty = True
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); give one JSON object per line.") from error
        if not isinstance(entry, dict):
            raise InputError(f"{path}, line {number}: a JSON {type(entry).__name__}; give one JSON object per line.")
        is_empty = False
        yield number, entry
    if is_empty:
        raise InputError(f"{path}: the file is empty; give one JSON object per line.")


def read_text(path: Path) -> str:
    """The file as UTF-8 text; a byte order mark is dropped."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path.") from error


def _load_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); mend the file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable JSON ({error}); mend the file.") from error


def _is_index(index: Any) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and index >= 0
