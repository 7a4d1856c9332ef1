"""Sources: the released files' defects end at the edge, and a user's faults are named by line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.schema import AmbiguityType, Modality, ToolRecord
from data_pipeline.sources.read import SourceOptions, read_source, unite_sources
from data_pipeline.sources.reading import Rejected, merge_records, relative_media_uri

ANSWER = "Thought: Do I need to use a tool? No\nAI: Hello."


def _row(query: str, answer: str | list[str], **fields: object) -> dict[str, object]:
    modality = str(fields.pop("modality", "audio"))
    paths = {f"{kind}_path": "" for kind in ("image", "audio", "video")}
    if modality != "text":
        paths[f"{modality}_path"] = str(fields.pop("path", "a.wav"))
    code = fields.pop("code", -1)
    turns = [{"from": "human", "value": query}, {"from": "gpt", "value": answer, "ambiguity": code}]
    return {"id": 1, "input_modality": modality, **paths, "conversations": turns, **fields}


def _write(path: Path, rows: object) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def released(shared_dir: Path) -> list[ToolRecord | Rejected]:
    return list(read_source("toolmmbench", shared_dir / "toolmmbench"))


def test_released_files_give_one_record_per_question(released: list[ToolRecord | Rejected]) -> None:
    records = [item for item in released if isinstance(item, ToolRecord)]
    assert len(records) == len(released), "the released files hold nothing that must be rejected"
    counts = Counter((record.split, record.modality.value) for record in records)
    assert counts == {
        ("train", "audio"): 562,
        ("train", "video"): 82,
        ("test", "text"): 867,
        ("test", "image"): 456,
        ("test", "audio"): 97,
        ("test", "video"): 13,
    }
    assert len({record.record_id for record in records}) == len(records)
    assert all(tool_id == tool_id.strip() for record in records for tool_id in record.valid_tool_ids)


def test_released_defects_are_counted(shared_dir: Path) -> None:
    reading = read_source("toolmmbench", shared_dir / "toolmmbench")
    raw = json.loads((shared_dir / "toolmmbench/test_shared.json").read_text())
    names = [name for row in raw for name in row["conversations"][1]["value"]]
    list(reading)
    assert reading.repairs["tool name with surrounding white space"] == sum(n != n.strip() for n in names) > 0
    assert reading.repairs["test question repeated"] == 6
    assert sum(map(len, reading.merged_source_indexes.values())) == 6
    # 933 strings in api_names.txt are 932 names once " t5-base" is stripped; "unknown" is one of them
    assert len(reading.catalog) == 932
    assert UNKNOWN_TOOL_ID in reading.catalog
    assert "t5-base" in reading.catalog


def test_released_test_records_keep_words_and_positions(
    released: list[ToolRecord | Rejected], shared_dir: Path
) -> None:
    raw = {row["source_index"]: row for row in json.loads((shared_dir / "toolmmbench/test_shared.json").read_text())}
    codes = {1: "domains", 2: "categories", 3: "quality", 4: "conditions", 5: "others", -1: "none"}
    test = [item for item in released if isinstance(item, ToolRecord) and item.split == "test"]
    for record in test:
        assert record.source_index is not None
        row = raw[record.source_index]
        assert record.instruction == row["conversations"][0]["value"], "the words are not stripped"
        assert record.ambiguity_type.value == codes[int(row["ambiguity"])]
        assert record.is_ambiguous == row["ifambiguity"]
    prefixes = {(record.modality.value, record.media_uri.split("/")[0]) for record in test if record.has_media}
    assert prefixes == {("image", "image"), ("audio", "audio"), ("video", "video")}


def test_training_rows_of_one_question_become_one_record(tmp_path: Path) -> None:
    rows = [_row("q", "b", code=2), _row("q", " a ", code=2), _row("q", "b", code=2), _row("q", "c", path="./b.wav")]
    _write(tmp_path / "audio_tx2t.json", rows)
    _write(tmp_path / "combined_data.json", [_row("t", ["a", "a"], modality="text", ambiguity="-1")])
    reading = read_source("toolmmbench", tmp_path)
    first, second, test = list(reading)
    assert isinstance(first, ToolRecord)
    assert isinstance(second, ToolRecord)
    assert isinstance(test, ToolRecord)
    assert first.valid_tool_ids == ("b", "a")
    assert (first.split, first.media_uri, first.ambiguity_type) == ("train", "audio/a.wav", AmbiguityType.CATEGORIES)
    assert second.media_uri == "audio/b.wav"
    assert (test.valid_tool_ids, test.source_index, test.modality) == (("a",), 0, Modality.TEXT)
    assert reading.repairs["training row repeated"] == 1
    assert reading.repairs["tool listed twice in one answer"] == 1


def test_malformed_released_rows_are_rejected_with_reason_and_place(tmp_path: Path) -> None:
    good = _row("q", "a")
    bad = [
        {"id": 1},
        _row("  ", "a"),
        _row("q", "a", code=7),
        _row("q", "two words"),
        _row("q", []),
        _row("q", "a", path="../../etc/passwd"),
        _row("q", 3),  # type: ignore[arg-type]
        _row("\ud800", "a"),
        "no object",
        _row("q", "a") | {"audio_path": ["a.wav"]},
        _row("q", "a") | {"audio_path": {"path": "a.wav"}},
        _row("q", "a") | {"audio_path": 3},
        _row("q", "a") | {"audio_path": None},
        _row("q", "a", path="https://host/a.wav"),
        _row("q", "a") | {"conversations": {"human": "q", "gpt": "a"}},
        _row("q", [["a"]]),  # type: ignore[list-item]
    ]
    _write(tmp_path / "audio_tx2t.json", [*bad, good])
    items = list(read_source("toolmmbench", tmp_path))
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert len(rejected) == len(bad)
    assert [item.where for item in rejected] == [f"audio_tx2t.json, record {i}" for i in range(len(bad))]
    assert sum(isinstance(item, ToolRecord) for item in items) == 1


def test_a_row_nested_too_deeply_is_rejected_alone(tmp_path: Path) -> None:
    deep = "[" * 100_000 + '"]",' + "]" * 100_000
    rows = [json.dumps(_row("q", "a")), '{"conversations": ' + deep + "}", json.dumps(_row("r", "b"))]
    (tmp_path / "audio_tx2t.json").write_text(f"[{', '.join(rows)}]", encoding="utf-8")
    first, second, rejected = read_source("toolmmbench", tmp_path)
    assert isinstance(first, ToolRecord)
    assert isinstance(second, ToolRecord)
    assert (first.instruction, second.instruction) == ("q", "r")
    assert rejected == Rejected("nested too deeply", "audio_tx2t.json, record 1")


def test_equal_faults_have_equal_reasons(tmp_path: Path) -> None:
    """They are counted: with names and ids in them, a report would list each row."""
    rows = [
        _row("q", "a b"),
        _row("q", "c d"),
        _row(" ", "a"),
        _row("", "a"),
        _row("q", "a", path="/x"),
        _row("q", "a", path="/y"),
    ]
    _write(tmp_path / "audio_tx2t.json", rows)
    reasons = Counter(item.reason for item in read_source("toolmmbench", tmp_path) if isinstance(item, Rejected))
    assert sorted(reasons.values()) == [2, 2, 2]


def test_numbers_are_read_as_pandas_writes_them(tmp_path: Path) -> None:
    rows = [
        _row("a", "x", modality="text", ambiguity=2.0, source_index=7.0),
        _row("b", "x", modality="text", ambiguity=-1.0, source_index=None),
        _row("c", "x", modality="text", ambiguity=float("nan"), source_index=9),
        _row("d", "x", modality="text", source_index=1.5),
        _row("e", "x", modality="text", source_index=float("inf")),
        _row("f", "x", modality="text", source_index=10**400),
        _row("g", "x", modality="text", ambiguity=2.5),
    ]
    _write(tmp_path / "combined_data.json", rows)
    items = list(read_source("toolmmbench", tmp_path))
    records = [item for item in items if isinstance(item, ToolRecord)]
    assert [record.source_index for record in records] == [7, 1, 9]
    assert [record.ambiguity_type.value for record in records] == ["categories", "none", "none"]
    assert len(items) == len(rows)


def test_test_questions_that_differ_in_case_alone_are_one(tmp_path: Path) -> None:
    _write(
        tmp_path / "combined_data.json", [_row("Do it", ["a"], modality="text"), _row("do  it", ["b"], modality="text")]
    )
    reading = read_source("toolmmbench", tmp_path)
    (record,) = (item for item in reading if isinstance(item, ToolRecord))
    assert (record.instruction, record.valid_tool_ids) == ("Do it", ("a", "b"))
    assert reading.merged_source_indexes == {0: [1]}


def test_records_without_a_test_file_leave_the_split_to_us(tmp_path: Path) -> None:
    _write(tmp_path / "audio_tx2t.json", [_row("q", "a")])
    (record,) = list(read_source("toolmmbench", tmp_path))
    assert isinstance(record, ToolRecord)
    assert record.split == ""


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "\x80"])
def test_broken_released_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "audio_tx2t.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"audio_tx2t\.json"):
        read_source("toolmmbench", tmp_path)


def test_folder_without_released_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"combined_data\.json"):
        read_source("toolmmbench", tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_source("toolmmbench", tmp_path / "absent")
    with pytest.raises(InputError, match="unknown; it must be one of"):
        read_source("nothing")
    with pytest.raises(InputError, match="needs `path`"):
        read_source("jsonl")


def _jsonl(folder: Path, *lines: str, catalog: str = "look\nlisten\n") -> Path:
    (folder / "catalog.txt").write_text(catalog, encoding="utf-8")
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_jsonl_reads_every_field_and_sniffs_the_modality(tmp_path: Path) -> None:
    path = _jsonl(
        tmp_path,
        "\ufeff" + json.dumps({"instruction": " hello ", "tools": ["look", "look"]}),
        "",
        json.dumps(
            {
                "instruction": "what?",
                "media": "x/./1.JPG",
                "tools": ["look"],
                "ambiguity": "quality",
                "candidates": ["look", "listen"],
                "split": "test",
            }
        ),
        json.dumps({"instruction": "what?", "media": "clip.bin", "modality": "video", "tools": ["unknown"]}),
        json.dumps({"instruction": "a prompt", "tools": ["unknown"], "turns": [["assistant", ANSWER]]}),
    )
    reading = read_source("jsonl", path)
    text, image, video, dialogue = (item for item in reading if isinstance(item, ToolRecord))
    assert (text.instruction, text.modality, text.valid_tool_ids) == (" hello ", Modality.TEXT, ("look",))
    assert (image.media_uri, image.modality, image.split) == ("x/1.JPG", Modality.IMAGE, "test")
    assert image.ambiguity_type is AmbiguityType.QUALITY
    assert image.candidate_tool_ids == ("look", "listen")
    assert [(turn.role, turn.text) for turn in dialogue.turns] == [("assistant", ANSWER)]
    assert (video.modality, video.record_id) == (Modality.VIDEO, "jsonl/4")
    assert reading.media_root == tmp_path
    assert reading.catalog.tool_ids == ("look", "listen", "unknown")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "list instead of an object"),
        ('{"instruction": "a", "tools": ["look"], "colour": 1}', "unknown key 'colour'"),
        ('{"instruction": "a", "tools": ["smell"]}', "'smell' is not in the catalogue"),
        ('{"instruction": "a", "tools": "look"}', "list of tool ids"),
        ('{"instruction": "", "tools": ["look"]}', "instruction is empty"),
        ('{"instruction": "a", "tools": []}', "no tool is named"),
        ('{"instruction": "a", "tools": ["look"], "media": "/etc/x.png"}', "below the media root"),
        ('{"instruction": "a", "tools": ["look"], "media": "x.bin"}', 'add "modality"'),
        ('{"instruction": "a", "tools": ["look"], "modality": "smell"}', "must be one of text, image"),
        ('{"instruction": "a", "tools": ["look"], "media": "https://host/x.png"}', "is an address"),
        ('{"instruction": "a", "tools": ["look"], "media": "file:///tmp/x.png"}', "is an address"),
        ('{"instruction": "a", "tools": ["look"], "media": "s3://bucket/x.png"}', "is an address"),
        ('{"instruction": "a", "tools": ["look"], "media": "data:image/png;base64,AAAA"}', "is an address"),
        ('{"instruction": "a", "tools": ["look"], "media": "C:/x.png"}', "is an address"),
        ('{"instruction": "a", "tools": ["look"], "media": "\\ud800.png"}', "lone surrogate"),
        ('{"instruction": "a", "tools": ["look"], "media": ["x.png"]}', "media is .* give a string"),
        ('{"instruction": null, "tools": ["look"]}', "instruction is empty"),
        ('{"instruction": "a", "tools": null}', "no tool is named"),
        ('{"instruction": "a", "tools": ' + "[" * 900 + "]" * 900 + "}", "list of tool ids"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "too many digits"),
        ('{"instruction": "a", "tools": ["look"], "modality": "image"}', "media_uri ''"),
        ('{"instruction": "\\ud800", "tools": ["look"]}', "lone surrogate"),
        ('{"instruction": "a", "tools": ["look"], "turns": ["hi"]}', "pairs"),
        ('{"instruction": "a", "tools": ["look"], "turns": [["human", "hi"]]}', "do not go assistant, observation"),
        (
            '{"instruction": "a", "tools": ["look"], "turns": [["assistant", "hi"]]}',
            "neither a tool call nor an answer",
        ),
        (
            json.dumps({"instruction": "a", "tools": ["look"], "media": "x.png", "turns": [["assistant", ANSWER]]}),
            "leave",
        ),
    ],
)
def test_jsonl_faults_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = _jsonl(tmp_path, json.dumps({"instruction": "fine", "tools": ["look"]}), line)
    with pytest.raises(InputError, match=message) as raised:
        list(read_source("jsonl", path))
    assert "line 2" in str(raised.value)


def test_null_is_the_same_as_absent(tmp_path: Path) -> None:
    """pandas writes null, or NaN, for every key that another row has."""
    row = {"instruction": "a", "tools": ["look"]}
    nulls = dict.fromkeys(("media", "modality", "ambiguity", "candidates", "turns", "split"))
    nans = '{"instruction": "a", "tools": ["look"], "media": NaN, "split": NaN}'
    path = _jsonl(tmp_path, json.dumps(row), json.dumps(row | nulls), nans)
    plain, *others = (item for item in read_source("jsonl", path) if isinstance(item, ToolRecord))
    assert [replace(other, record_id=plain.record_id) for other in others] == [plain, plain]


def test_line_breaks_of_other_systems_are_mended_in_dialogues(tmp_path: Path) -> None:
    row = {"instruction": "a\r\nprompt", "tools": ["unknown"], "turns": [["assistant", ANSWER.replace("\n", "\r\n")]]}
    path = _jsonl(tmp_path, json.dumps(row), json.dumps({"instruction": "a\r\nb", "tools": ["look"]}))
    reading = read_source("jsonl", path)
    dialogue, question = (item for item in reading if isinstance(item, ToolRecord))
    assert (dialogue.instruction, dialogue.turns[0].text) == ("a\nprompt", ANSWER)
    assert question.instruction == "a\r\nb", "a question's words stay as they are"
    assert dict(reading.repairs) == {"line breaks of a dialogue (CR LF) read as LF": 1}


def test_jsonl_catalogue_faults(tmp_path: Path) -> None:
    path = _jsonl(tmp_path, "{}", catalog="fine\nfine\n")
    with pytest.raises(InputError, match=r"catalog\.txt: tool id 'fine' is in the catalogue twice"):
        read_source("jsonl", path)
    path = _jsonl(tmp_path, "{}", catalog="fine\ntwo words\n")
    with pytest.raises(InputError, match=r"catalog\.txt, line 2"):
        read_source("jsonl", path)
    (tmp_path / "catalog.txt").unlink()
    with pytest.raises(InputError, match=r"no catalog\.jsonl or catalog\.txt beside"):
        list(read_source("jsonl", path))


def _own(folder: Path, name: str, *rows: dict[str, object], catalog: str = "look\nlisten\n") -> SourceOptions:
    (folder / name).mkdir()
    path = _jsonl(folder / name, *(json.dumps(row) for row in rows), catalog=catalog)
    return SourceOptions(source="jsonl", path=path)


def test_sources_unite_with_one_catalogue_and_ids_of_their_own(tmp_path: Path) -> None:
    first = _own(tmp_path, "a", {"instruction": "what?", "media": "1.png", "tools": ["look"]})
    second = _own(tmp_path, "b", {"instruction": "hear", "tools": ["smell"]}, catalog="smell\nlook\n")
    dialogues = SourceOptions(source="toolmm-mini-dialogues", size="test")
    united = unite_sources([dialogues, second, first], tmp_path, seed=0)
    *_, heard, seen = (item for item in united if isinstance(item, ToolRecord))
    assert (heard.source, heard.record_id, seen.source, seen.record_id) == ("jsonl", "jsonl/1", "jsonl-2", "jsonl-2/1")
    assert united.name == "toolmm-mini-dialogues+jsonl+jsonl-2"
    assert list(united.licences) == united.name.split("+")
    assert united.media_root == tmp_path / "a", "that of the one source with media"
    assert united.catalog.tool_ids[-3:] == ("smell", "look", "listen")
    assert len(united.catalog) == 31 + 1 + 3, "'unknown' is one tool"


def test_sources_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    pictures = _own(tmp_path, "a", {"instruction": "what?", "media": "1.png", "tools": ["look"]})
    more_pictures = _own(tmp_path, "b", {"instruction": "what?", "media": "1.png", "tools": ["look"]})
    with pytest.raises(InputError, match="'jsonl' and 'jsonl-2' both have media"):
        list(unite_sources([pictures, more_pictures], tmp_path, seed=0))
    generated = SourceOptions(source="toolmm-mini-dialogues", size="test")
    with pytest.raises(InputError, match="'toolmm-mini-dialogues' is named twice"):
        unite_sources([generated, generated], tmp_path, seed=0)
    other = _own(tmp_path, "c", catalog="gpt4tools/detection\n")
    with pytest.raises(
        InputError, match=r"'gpt4tools/detection' is not the same .* 'toolmm-mini-dialogues' and 'jsonl'"
    ):
        unite_sources([generated, other], tmp_path, seed=0)


def test_merging_prefers_tools_over_unknown() -> None:
    def record(*tool_ids: str) -> ToolRecord:
        return ToolRecord("r", "s", Modality.TEXT, "q", tool_ids)

    assert merge_records(record("a"), record("b", "a")).valid_tool_ids == ("a", "b")
    assert merge_records(record("unknown"), record("a")).valid_tool_ids == ("a",)
    assert merge_records(record("a"), record("unknown")).valid_tool_ids == ("a",)
    assert merge_records(record("unknown"), record("unknown")).valid_tool_ids == ("unknown",)


@pytest.mark.parametrize("path", ["https:/a", "file:///a"])
def test_addresses_are_no_media_paths(path: str) -> None:
    with pytest.raises(InputError, match="is an address; fetch the file"):
        relative_media_uri(path)


@pytest.mark.parametrize("path", ["", " ", "/a", "../a", "a/../../b", "a\\b", "a\0b", "."])
def test_media_paths_stay_below_the_root(path: str) -> None:
    with pytest.raises(InputError, match="below the media root"):
        relative_media_uri(path)
