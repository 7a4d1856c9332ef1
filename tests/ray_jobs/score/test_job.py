"""`score` from its options to what it prints, returns and writes, and every way in which input can be wrong."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import ToolCatalog
from data_pipeline.records.schema import CORPUS_SCHEMA, AmbiguityType, Modality, ToolRecord
from ray_jobs.cli import main
from ray_jobs.score.job import add_arguments, run

USE = "Thought: Do I need to use a tool? Yes\nAction: Edge Detection On Image\nAction Input: image/a.png\nObservation:"


def score(*options: str | Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(option) for option in options]))


def write_lines(path: Path, entries: Sequence[Any]) -> Path:
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries), encoding="utf-8")
    return path


def build_released(names: list[str] | str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": names}]
    return {"id": 1, "input_modality": "text", "conversations": turns, "ambiguity": "-1"} | changes


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    path = tmp_path / "gold.json"
    path.write_text(json.dumps([build_released(["a", "b"]), build_released([" a "]), build_released("c")]))
    return path


def answer(tool_id: str) -> str:
    return "{'api_name': " + tool_id + "}"


def test_released_test_file_as_a_command(shared_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = [
        *("score", "--protocol", "mllm-tool", "--gold", str(shared_dir / "toolmmbench/test_shared.json")),
        *("--predictions", str(shared_dir / "oracle/metrics/pred_ten_samples.jsonl")),
        *("--catalog", str(shared_dir / "toolmmbench/api_names.txt"), "--report", str(tmp_path / "report")),
    ]
    assert main(options) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    expected = json.loads((shared_dir / "oracle/metrics/expected.json").read_text())["ten_samples"]
    measured = json.loads(lines[-1])
    assert measured.keys() == expected.keys()
    for group, values in expected.items():
        assert measured[group] == pytest.approx(values, abs=1e-9)
    assert lines[0].startswith("| Questions")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["scores.csv", "scores.md", "scores.png"]


def test_gpt4tools_file_as_a_command(shared_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = (shared_dir / "oracle/gpt4tools/cases.jsonl").read_text().split("\n")
    cases = [json.loads(line) for line in lines if line]
    gold = write_lines(tmp_path / "g.jsonl", [{"id": c["id"], "instruction": "i", "output": c["gold"]} for c in cases])
    # predictions in another order than gold
    predictions = write_lines(tmp_path / "p.jsonl", [{"id": c["id"], "response": c["pred"]} for c in reversed(cases)])
    options = ["--gold", str(gold), "--predictions", str(predictions), "--per-item", str(tmp_path / "items.jsonl")]
    assert main(["score", "--protocol", "gpt4tools", *options]) == 0
    measured = json.loads(capsys.readouterr().out.rstrip("\n").split("\n")[-1])
    expected = json.loads((shared_dir / "oracle/gpt4tools/aggregate.json").read_text())["aggregate"]
    assert measured == pytest.approx(expected, abs=1e-9)
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().split("\n") if line]
    for item, case in zip(items, cases, strict=True):
        assert item == pytest.approx({name: case[name] for name in item}, abs=1e-9)
        assert item.keys() == {"id", "thought", "action", "args", "acc", "iou"}

    gold.write_text(json.dumps([{"id": c["id"], "output": c["gold"]} for c in cases]))  # the JSON list form
    assert score("--protocol", "gpt4tools", *options) == measured


def test_released_file_without_source_index_counts_positions(gold: Path, tmp_path: Path) -> None:
    predictions = write_lines(
        tmp_path / "p.jsonl",
        [
            {"index": 2, "response": answer("c")},
            "",
            {"index": 0, "response": "x"},
            {"index": 1, "response": answer("z")},
        ],
    )
    scores = score("--gold", gold, "--predictions", predictions, "--per-item", tmp_path / "items.jsonl")
    assert scores["overall"] == {
        "n": 3,
        "acc": pytest.approx(1 / 3),
        "hallu": pytest.approx(1 / 3),
        "format_acc": pytest.approx(2 / 3),
        "recall@1": pytest.approx(1 / 3),
    }
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().split("\n") if line]
    assert [(item["index"], item["parsed"]) for item in items] == [(0, None), (1, "z"), (2, "c")]


def test_files_are_read_as_people_have_them(gold: Path, tmp_path: Path) -> None:
    """Out of a spreadsheet, a data frame with gaps, a Windows editor, or packed."""
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    lines = [{"index": "0", "response": answer("a")}, {"index": 1.0, "response": ""}, {"index": "2.0", "response": "é"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    plain = score("--gold", gold, "--predictions", write_lines(tmp_path / "p.jsonl", lines), "--catalog", names)
    assert plain["overall"]["acc"] == pytest.approx(1 / 3)
    for file in (gold, names):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + file.read_bytes()))
    predictions = tmp_path / "p.gz"
    for data in (text.encode("utf-8-sig"), gzip.compress(text.encode("utf-8-sig"))):
        predictions.write_bytes(data)
        options = ("--gold", tmp_path / "gold.json.gz", "--catalog", tmp_path / "names.txt.gz")
        assert score(*options, "--predictions", predictions) == plain

    released = [build_released(["a"], source_index=index) for index in ("7", 8.0)]
    gold.write_text(json.dumps(released))
    write_lines(predictions, [{"index": 8, "response": answer("a")}, {"index": 7, "response": ""}])
    assert score("--gold", gold, "--predictions", predictions)["overall"]["acc"] == 0.5

    write_lines(tmp_path / "g.jsonl", [{"id": 1, "output": USE}])
    write_lines(predictions, [{"id": 1.0, "response": USE}])
    options = ("--gold", tmp_path / "g.jsonl", "--predictions", predictions)
    assert score("--protocol", "gpt4tools", *options)["acc"] == 1.0


def test_packed_files_that_cannot_be_unpacked_are_errors(
    gold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(b'{"index": 0, "response": ""}\n' * 99)
    predictions = tmp_path / "p.jsonl.gz"
    for data in (packed[:-20], packed[:-6] + b"xxxxxx", packed[:10]):
        predictions.write_bytes(data)
        with pytest.raises(InputError, match=r"p.jsonl.gz: cannot be unpacked"):
            score("--gold", gold, "--predictions", predictions)
    predictions.write_bytes(packed)
    monkeypatch.setattr("ray_jobs.score.files.MAX_TEXT_BYTES", 2000)
    with pytest.raises(InputError, match="more than 2,000 bytes of text"):
        score("--gold", gold, "--predictions", predictions)


def test_half_a_character_in_an_answer_is_scored_and_written(gold: Path, tmp_path: Path) -> None:
    lines = [{"index": i, "response": answer("\ud83d")} for i in range(3)]
    predictions = write_lines(tmp_path / "p.jsonl", lines)
    scores = score("--gold", gold, "--predictions", predictions, "--per-item", tmp_path / "items.jsonl")
    assert scores["overall"]["hallu"] == 1.0
    assert json.loads((tmp_path / "items.jsonl").read_text().split("\n")[0])["parsed"] == "\ud83d"


def test_a_catalogue_decides_what_is_a_hallucination(
    gold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", [{"index": i, "response": answer("z")} for i in range(3)])
    names = tmp_path / "names.txt"
    names.write_text("a\r\n b \n\nc\nz\n")
    assert score("--gold", gold, "--predictions", predictions)["overall"]["hallu"] == 1.0
    assert score("--gold", gold, "--predictions", predictions, "--catalog", names)["overall"]["hallu"] == 0.0
    assert "Note:" not in capsys.readouterr().out
    names.write_text("z\n")
    score("--gold", gold, "--predictions", predictions, "--catalog", names)
    assert "the catalogue lacks 3 of the gold's right names, the first is 'a'" in capsys.readouterr().out


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    records = [
        ToolRecord("r0", "s", Modality.TEXT, "q", ("a",)),
        ToolRecord("r1", "s", Modality.AUDIO, "q", ("a", "b"), media_uri="m", ambiguity_type=AmbiguityType.CATEGORIES),
        ToolRecord("r2", "s", Modality.TEXT, "q", ("b",)),
    ]
    folder = tmp_path / "corpus"
    (folder / "test").mkdir(parents=True)
    for number, shard in enumerate((records[:2], records[2:])):
        table = pa.Table.from_pylist([record.to_row() for record in shard], CORPUS_SCHEMA)
        pq.write_table(table, folder / "test" / f"part-{number}.parquet")
    ToolCatalog.from_tool_ids(["a", "b", "other"]).save_jsonl(folder / "catalog.jsonl")
    return folder


def test_corpus_gold_counts_positions_over_its_shards(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [[answer("a"), answer("x")], [answer("other"), answer("b")], [answer("x"), answer("x")]]
    predictions = write_lines(tmp_path / "p.jsonl", [{"index": i, "responses": s} for i, s in enumerate(samples)])
    scores = score("--gold", corpus, "--predictions", predictions)
    assert scores["overall"] == {
        "n": 3,
        "acc": pytest.approx(1 / 3),
        "hallu": pytest.approx(1 / 3),  # "other" is in the corpus's catalogue, though no test record names it
        "format_acc": 1.0,
        "recall@2": 0.5,
    }
    assert scores["ambiguity:2"]["n"] == scores["modality:audio"]["n"] == scores["one_to_many"]["n"] == 1
    assert "Source: the corpus's catalog.jsonl." in capsys.readouterr().out
    one_shard = write_lines(tmp_path / "p1.jsonl", [{"index": 0, "response": answer("b")}])
    assert score("--gold", corpus / "test/part-1.parquet", "--predictions", one_shard)["overall"]["acc"] == 1.0


def test_corpus_gold_uses_the_source_index_where_there_is_one(tmp_path: Path) -> None:
    rows = [ToolRecord(f"r{i}", "s", Modality.TEXT, "q", ("a",), source_index=i).to_row() for i in (40, 7)]
    shard = tmp_path / "gold.parquet"
    pq.write_table(pa.Table.from_pylist(rows, CORPUS_SCHEMA), shard)
    right = [{"index": 7, "response": answer("a")}, {"index": 40, "response": "no"}]
    assert score("--gold", shard, "--predictions", write_lines(tmp_path / "p", right))["overall"]["acc"] == 0.5
    with pytest.raises(InputError, match="no record with index 0"):
        score("--gold", shard, "--predictions", write_lines(tmp_path / "p", [{"index": 0, "response": ""}]))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"index": 0, "response": "x"}, "{oops"], "line 2: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        ([[1]], "line 1: a JSON list"),
        (["", " "], "the file is empty"),
        ([{"index": 0, "response": "x"}], r"2 of 3 gold records have no prediction, the first is index 1"),
        ([{"index": 1, "response": "x"}, {"index": 1, "response": "y"}], "line 2: index 1 is predicted twice"),
        ([{"index": 9, "response": "x"}], "line 1: the gold has no record with index 9"),
        ([{"index": "a", "response": "x"}], 'line 1: "index" is "a"'),
        ([{"index": "1e0", "response": "x"}], 'line 1: "index" is "1e0"'),
        ([{"index": "-1", "response": "x"}], 'line 1: "index" is "-1"'),
        ([{"index": 0.5, "response": "x"}], 'line 1: "index" is 0.5'),
        (['{"index": NaN, "response": "x"}'], 'line 1: "index" is NaN'),
        (['{"index": 1e999, "response": "x"}'], 'line 1: "index" is Infinity'),
        ([{"index": "9" * 5000, "response": "x"}], 'line 1: "index" is "999'),
        ([{"response": "x"}], 'line 1: "index" is missing'),
        ([{"index": True, "response": "x"}], 'line 1: "index" is true'),
        ([{"index": 1, "response": "x"}, {"index": "1.0", "response": "y"}], "line 2: index 1 is predicted twice"),
        ([{"id": 0, "response": "x"}], "--protocol gpt4tools"),
        ([{"index": 0, "response": "x", "responses": ["x"]}], "line 1: both of"),
        ([{"index": 0}], "line 1: neither of"),
        (
            [{"index": 0, "response": None}],
            'line 1: "response" is null; give a string, "" where the model wrote nothing',
        ),
        (['{"index": 0, "response": NaN}'], 'line 1: "response" is NaN; give a string'),
        (
            [{"index": 0, "responses": ["x", None]}],
            'line 1: "responses" holds null; give a list of at least one string',
        ),
        ([{"index": 0, "responses": None}], 'line 1: "responses" is null; give a list'),
        ([{"index": 0, "responses": []}], "at least one string"),
        ([{"index": 0, "responses": ["x", 1]}], "at least one string"),
        ([{"index": 0, "responses": "xy"}], "at least one string"),
        (
            [{"index": 0, "responses": ["x", "y"]}, {"index": 1, "responses": ["x"]}],
            "line 2: 1 responses, but line 1 has 2",
        ),
    ],
)
def test_unusable_predictions_are_errors_that_name_the_line(
    gold: Path, tmp_path: Path, entries: list[Any], message: str
) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", entries)
    with pytest.raises(InputError, match=message):
        score("--gold", gold, "--predictions", predictions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1, column 1: not JSON"),
        ("[1,\n 2,,]", "line 2, column 4: not JSON"),
        ("[]", "not a list of records"),
        ("{}", "not a list of records"),
        ([{"id": 1, "output": "x"}], "record 0: this is a GPT4Tools item; score it with --protocol gpt4tools"),
        ([build_released(["a"]), {"id": 2}], "record 1: not in the released test format"),
        ([build_released(["a"], input_modality="smell")], "record 0: not in the released test format"),
        ([build_released(["a"], ambiguity=6)], "record 0: not in the released test format"),
        ([build_released([])], "record 0: .* lists no name"),
        ([build_released(["a"], source_index=-1)], "record 0: source_index is -1"),
        ([build_released(["a"], source_index=3)] * 2, "record 1: index 3 occurs twice"),
    ],
)
def test_unusable_gold_is_an_error_that_names_the_record(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "gold.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    predictions = write_lines(tmp_path / "p.jsonl", [{"index": 0, "response": "x"}])
    with pytest.raises(InputError, match=message):
        score("--gold", path, "--predictions", predictions)


def test_released_flags_win_over_what_could_be_derived(tmp_path: Path) -> None:
    path = tmp_path / "gold.json"
    path.write_text(json.dumps([build_released(["a", "a"], onetomulti=True, ambiguity=4, ifambiguity=True)]))
    scores = score("--gold", path, "--predictions", write_lines(tmp_path / "p", [{"index": 0, "response": ""}]))
    assert scores.keys() == {"overall", "ambiguity:4", "with_ambiguity", "modality:text", "one_to_many"}


def test_unusable_corpora_are_errors(corpus: Path, tmp_path: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", [{"index": 0, "response": "x"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Parquet shards"):
        score("--gold", tmp_path / "empty", "--predictions", predictions)
    with pytest.raises(InputError, match="no such file"):
        score("--gold", tmp_path / "absent.parquet", "--predictions", predictions)
    shard = corpus / "test/part-1.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"part-1.parquet: not a corpus shard"):
        score("--gold", corpus, "--predictions", predictions)
    pq.write_table(pa.table({"instruction": ["q"]}), shard)
    with pytest.raises(InputError, match=r"part-1.parquet: not a corpus shard"):
        score("--gold", corpus, "--predictions", predictions)


@pytest.mark.parametrize(
    ("gold_entries", "entries", "message"),
    [
        ([], [], "the file is empty"),
        ([build_released(["a"])], [], "score it with --protocol mllm-tool"),
        ([{"id": 1, "output": USE}] * 2, [], "line 2: id 1 occurs twice"),
        ([{"id": 1.5, "output": USE}], [], "no usable id"),
        ([{"id": 1}], [], '"output" is missing'),
        ([{"id": 1, "output": USE}], [{"id": "1", "response": ""}], "numbers and strings differ"),
        ([{"id": 1, "output": USE}], [{"id": 1, "response": ""}] * 2, "line 2: id 1 is predicted twice"),
        ([{"id": 1, "output": USE}], [{"id": 1, "response": ["x"]}], r'"response" is \["x"\]; give a string'),
        ([{"id": 1, "output": USE}], [{"id": 1, "response": None}], 'line 1: "response" is null; give a string, ""'),
        ([{"id": 1, "output": USE}], [{"id": 2, "response": ""}], "line 1: the gold has no record with id 2; correct"),
        ([1], [], "a JSON int"),
        ([{"id": 1, "output": None}], [], '"output" is null'),
        ([{"id": 1, "output": USE}, {"id": 2, "output": USE}], [{"id": 1, "response": ""}], "the first is id 2"),
        ([{"id": 1, "output": "Action: a\nAction Input:"}], [{"id": 1, "response": ""}], "gold item 1: 1 lines"),
    ],
)
def test_unusable_gpt4tools_files_are_errors(
    tmp_path: Path, gold_entries: list[Any], entries: list[Any], message: str
) -> None:
    gold = write_lines(tmp_path / "g.jsonl", gold_entries)
    predictions = write_lines(tmp_path / "p.jsonl", entries)
    with pytest.raises(InputError, match=message):
        score("--protocol", "gpt4tools", "--gold", gold, "--predictions", predictions)


def test_options_of_the_other_protocol_and_unusable_paths_are_errors(gold: Path, corpus: Path, tmp_path: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", [{"index": i, "response": ""} for i in range(3)])
    common = ("--predictions", predictions)
    with pytest.raises(InputError, match="--catalog belongs to --protocol mllm-tool"):
        score("--protocol", "gpt4tools", "--gold", gold, *common, "--catalog", gold)
    with pytest.raises(InputError, match="a corpus has no GPT4Tools texts"):
        score("--protocol", "gpt4tools", "--gold", corpus, *common)
    with pytest.raises(InputError, match=r"absent: cannot be read \(No such file"):
        score("--gold", gold, "--predictions", tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be written"):
        score("--gold", gold, *common, "--per-item", tmp_path / "no/such/folder/items.jsonl")
    with pytest.raises(InputError, match="cannot be made"):
        score("--gold", gold, *common, "--report", gold)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        score("--gold", gold, *common, "--catalog", tmp_path / "latin.txt")
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match="the catalogue is empty"):
        score("--gold", gold, *common, "--catalog", tmp_path / "blank.txt")


def test_bad_input_exits_with_2_and_one_sentence(
    gold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", ["{"])
    assert main(["score", "--gold", str(gold), "--predictions", str(predictions)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "line 1: not JSON" in printed.err
    assert "Traceback" not in printed.err
    with pytest.raises(SystemExit) as exit_info:
        main(["score", "--protocol", "bleu", "--gold", str(gold), "--predictions", str(predictions)])
    assert exit_info.value.code == 2
