"""Readers of the files that `score` takes, plain or packed with gzip. Faults name the file and the line or record."""

from __future__ import annotations

import gzip
import json
import re
import zlib
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
EMPTY_RESPONSE = '"" where the model wrote nothing (which counts as malformed)'
MAX_TEXT_BYTES = 2 * 2**30  # of one file, unpacked; it is held in memory as a whole

_GZIP_MAGIC = b"\x1f\x8b"
_INDEX_TEXT = re.compile(r"[0-9]{1,15}(\.0*)?")  # as a spreadsheet or a data frame with gaps writes an integer


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
        index = parse_index(entry.get("source_index", position))
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
    if index is None:
        raise InputError(f"{where}: source_index is {entry['source_index']!r}; give an integer >= 0 or leave it out.")
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
    if path.name.endswith((".jsonl", ".jsonl.gz")):
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
        index = parse_index(entry.get("index"))
        if index is None:
            raise InputError(
                f'{where}: "index" is {describe_value(entry, "index")}; give the record\'s source_index, or its '
                "0-based position where it has none (predictions by id belong to --protocol gpt4tools)."
            )
        samples = _parse_samples(entry, where)
        if not predictions:
            first_line, k = number, len(samples)
        if len(samples) != k:
            raise InputError(
                f"{where}: {len(samples)} responses, but line {first_line} has {k}; give every record the same number."
            )
        check_place(where, gold, predictions, "index", index)
        predictions[index] = samples
    check_complete(path, gold, predictions, "index")
    return [predictions[index] for index in gold]


def _parse_samples(entry: dict[str, Any], where: str) -> list[str]:
    if ("response" in entry) == ("responses" in entry):
        found = "both" if "response" in entry else "neither"
        raise InputError(
            f'{where}: {found} of "response" (a string) and "responses" (K strings) given; give one of them.'
        )
    if "response" in entry:
        return [read_response(entry, where)]
    samples = entry["responses"]
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, str) for sample in samples):
        faulty = [sample for sample in samples if not isinstance(sample, str)] if isinstance(samples, list) else []
        found = f"holds {json.dumps(faulty[0])[:40]}" if faulty else f"is {describe_value(entry, 'responses')}"
        raise InputError(f'{where}: "responses" {found}; give a list of at least one string, {EMPTY_RESPONSE}.')
    return samples


def read_response(entry: dict[str, Any], where: str) -> str:
    """The model's text; null is not taken for an empty one, as it may as well mean that the model was never asked."""
    text = entry.get("response")
    if not isinstance(text, str):
        raise InputError(
            f'{where}: "response" is {describe_value(entry, "response")}; give a string, {EMPTY_RESPONSE}.'
        )
    return text


def describe_value(entry: dict[str, Any], key: str) -> str:
    """A value as it stands in the file, or that there is none."""
    return json.dumps(entry[key], ensure_ascii=False)[:40] if key in entry else "missing"


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
        if not isinstance(entry, dict):
            raise InputError(f'{where}: not a JSON object; give {{"id": ..., "output": "..."}}.')
        if "conversations" in entry:
            raise InputError(f"{where}: this is a ToolMMBench record; score it with --protocol mllm-tool.")
        item_id, output = _parse_id(entry, where), entry.get("output")
        if not isinstance(output, str):
            raise InputError(
                f'{where}: "output" is {describe_value(entry, "output")}; give the right turns as a string.'
            )
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
        item_id = _parse_id(entry, where)
        check_place(where, gold, predictions, "id", item_id)
        predictions[item_id] = read_response(entry, where)
    check_complete(path, gold, predictions, "id")
    return predictions


def _parse_id(entry: dict[str, Any], where: str) -> str | int:
    item_id = entry.get("id")
    if isinstance(item_id, float) and item_id.is_integer():  # 2.0 is the same number
        item_id = int(item_id)
    if isinstance(item_id, bool) or not isinstance(item_id, (int, str)):
        raise InputError(f"{where}: no usable id ({describe_value(entry, 'id')}); give {ITEM_ID_FORM}.")
    return item_id


def check_place(where: str, gold: dict[Any, Any], predictions: dict[Any, Any], key: str, value: int | str) -> None:
    """A prediction is of one gold record, and the only one."""
    if value in predictions:
        raise InputError(f"{where}: {key} {value!r} is predicted twice; keep one line for each record.")
    if value not in gold:
        twins = [each for each in gold if str(each) == str(value)]
        note = f", but one with {twins[0]!r} (numbers and strings differ)" if twins else ""
        raise InputError(
            f"{where}: the gold has no record with {key} {value!r}{note}; correct the {key} or give the right gold."
        )


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
    """The file as UTF-8 text, unpacked if it is packed with gzip; a byte order mark is dropped."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path) if is_packed else path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); copy the file again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path.") from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"{path}: more than {MAX_TEXT_BYTES:,} bytes of text; score it in parts.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error


def _load_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); mend the file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable JSON ({error}); mend the file.") from error


def parse_index(value: Any) -> int | None:
    """An integer >= 0, be it written as 2, 2.0, "2" or "2.0"; None for anything else."""
    if isinstance(value, str) and _INDEX_TEXT.fullmatch(value):
        return int(value.split(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
