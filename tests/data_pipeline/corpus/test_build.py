"""Building and reading a corpus: what is in it, that it is the same every time, and that bad input leaves nothing."""

from __future__ import annotations

import json
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_pipeline.corpus.build import Corpus, CorpusSummary, PrepareOptions, build_corpus
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import has_history, render_answer, render_call, render_dialogue_prompt
from data_pipeline.records.schema import CORPUS_SCHEMA, Turn
from data_pipeline.records.text import words_key
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def _options(**values: Any) -> PrepareOptions:
    return PrepareOptions.model_validate(values)


def _own_records(folder: Path) -> Path:
    """40 questions about 20 pictures (two with the same bytes), 20 texts, a repeat, a missing file."""
    (folder / "media").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(20):
        content = b"same bytes" if i in (3, 4) else f"picture {i}".encode()
        (folder / f"media/{i}.png").write_bytes(content)
        rows += [{"instruction": f"q{k}", "media": f"media/{i}.png", "tools": [f"t{i % 3}"]} for k in range(2)]
    rows += [{"instruction": f"text {i}", "tools": [f"t{i % 3}", "t3"]} for i in range(20)]
    rows.append({"instruction": "q0", "media": "media/0.png", "tools": ["t3"]})  # another answer to the first question
    rows.append({"instruction": "q", "media": "media/absent.png", "tools": ["t0"]})
    (folder / "catalog.txt").write_text("t0\nt1\nt2\nt3\n", encoding="utf-8")
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _own_records(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def built(own: Path, ray_session: None) -> CorpusSummary:
    return build_corpus(_options(source="jsonl", path=own, shard_rows=7), own.parent / "corpus", seed=1)


def test_corpus_holds_every_question_once(built: CorpusSummary) -> None:
    corpus = Corpus.open(built.path)
    records = [record for split in ("train", "val", "test") for record in corpus.records(split)]
    # 40 picture questions, of which the two about equal bytes are one each, 20 texts, one whose file is absent
    assert len(records) == 40 - 2 + 20 + 1
    assert built.manifest["duplicates_merged"] == 3
    keys = {(record.media_sha256 or record.media_uri, record.instruction) for record in records}
    assert len(keys) == len(records)
    first = next(r for r in records if r.media_uri == "media/0.png" and r.instruction == "q0")
    assert first.valid_tool_ids == ("t0", "t3")
    (absent,) = [record for record in records if record.has_media and not record.media_sha256]
    assert absent.media_uri == "media/absent.png"
    assert built.manifest["missing_media"] == {"files": 1, "records": 1, "policy": "keep"}
    assert corpus.media_root == built.path.parent
    assert "unknown" in corpus.catalog


def test_corpus_files_follow_the_contract(built: CorpusSummary) -> None:
    corpus = Corpus.open(built.path)
    shards = corpus.shards("train")
    assert len(shards) > 1, "shard_rows cuts the split into files"
    assert pq.ParquetFile(shards[0]).schema_arrow == CORPUS_SCHEMA
    assert corpus.table("train").num_rows == built.manifest["counts"]["train"]["questions"]
    assert corpus.dataset("train").count() == corpus.table("train").num_rows
    report = (built.path / "report.md").read_text()
    for heading in ("## Questions", "## Tools", "## Leaks", "## Missing, duplicate, mended, rejected"):
        assert heading in report
    for figure in ("modality", "ambiguity", "answers", "tools", "words"):
        assert (built.path / f"figures/{figure}.png").stat().st_size > 1000
        assert f"figures/{figure}.png" in report
    assert built.manifest["licences"]["jsonl"]
    assert built.manifest["counts"]["test"]["questions"] > 0
    assert not any(numbers["shared_media"] for numbers in built.manifest["leaks"]["test_vs_train_and_val"].values())


def test_same_input_gives_the_same_bytes(built: CorpusSummary, own: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    options = _options(source="jsonl", path=own, shard_rows=7)
    again = build_corpus(options, tmp_path / "again", seed=1, show=lambda *progress: told.append(progress))
    n_lines = len(own.read_text().splitlines())
    assert told[:n_lines] == [(done, None, "records") for done in range(1, n_lines + 1)]
    assert told[n_lines:] == [(done, 21, "media files") for done in range(1, 22)]
    names = sorted(str(p.relative_to(built.path)) for p in built.path.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(again.path)) for p in again.path.rglob("*") if p.is_file())
    for name in names:
        assert (built.path / name).read_bytes() == (again.path / name).read_bytes(), name
    whole = build_corpus(_options(source="jsonl", path=own), tmp_path / "whole", seed=1)
    assert whole.data_hash == built.data_hash, "the shards' size does not change the data"
    other = build_corpus(_options(source="jsonl", path=own), tmp_path / "other", seed=2)
    assert other.data_hash != built.data_hash


def test_missing_media_policies(own: Path, tmp_path: Path) -> None:
    dropped = build_corpus(_options(source="jsonl", path=own, missing_media="drop"), tmp_path / "dropped")
    assert dropped.manifest["rejected"] == {"the media file is missing": 1}
    assert "absent.png" in (dropped.path / "rejected.jsonl").read_text()
    assert "- `media/absent.png`" in (dropped.path / "report.md").read_text()
    with pytest.raises(InputError, match=r"absent\.png"):
        build_corpus(_options(source="jsonl", path=own, missing_media="error"), tmp_path / "refused")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dropped"]


def test_missing_media_are_named(own: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "q", "media": f"gone/{i}.png", "tools": ["t0"]} for i in range(130)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = build_corpus(_options(source="jsonl", path=path, catalog=own.parent / "catalog.txt"), tmp_path / "corpus")
    lines = [json.loads(line) for line in (built.path / "rejected.jsonl").read_text().splitlines()]
    reason = "the media file is missing; its questions are kept"
    assert lines == [{"where": row["media"], "reason": reason} for row in rows]
    assert built.manifest["rejected"] == {}, "they are in the corpus"
    report = (built.path / "report.md").read_text()
    assert report.count("- `gone/") == 100
    assert "And 30 more" in report


def test_a_file_is_found_under_its_other_unicode_spelling(own: Path, tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "grün.png") for form in ("NFC", "NFD"))
    (tmp_path / nfd).write_bytes(b"a picture")
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"instruction": "q", "media": nfc, "tools": ["t0"]}))
    built = build_corpus(_options(source="jsonl", path=path, catalog=own.parent / "catalog.txt"), tmp_path / "corpus")
    (record,) = Corpus.open(built.path).records("train")
    assert (record.media_uri, len(record.media_sha256)) == (nfd, 64)
    assert built.manifest["missing_media"]["files"] == 0
    assert sum(built.manifest["repairs"].values()) == 1


def test_no_words_are_in_training_and_test_whatever_source_and_spelling(own: Path, tmp_path: Path) -> None:
    def write(name: str, questions: list[str]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"instruction": text, "tools": ["t0"]}) + "\n" for text in questions))
        return str(path)

    questions = [f"Wo ist Größe {i}?" for i in range(200)]
    again = [unicodedata.normalize("NFD", text).upper().replace(" ", "  ") for text in questions[100:]]
    catalog = own.parent / "catalog.txt"
    options = _options(
        source="jsonl",
        path=write("a.jsonl", questions),
        catalog=catalog,
        also=[{"source": "jsonl", "path": write("b.jsonl", [*again, "another"]), "catalog": catalog}],
    )
    built = build_corpus(options, tmp_path / "corpus")
    splits = {split: list(Corpus.open(built.path).records(split)) for split in ("train", "val", "test")}
    words = {split: {words_key(record.instruction) for record in records} for split, records in splits.items()}
    assert sum(map(len, words.values())) == len(words["train"] | words["val"] | words["test"]) == 201
    assert len(words["test"]) == 40
    assert built.manifest["duplicates_merged"] == 100


def test_the_audit_counts_what_prescribed_splits_share(own: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Question {i}", "tools": ["t0"], "split": "train"} for i in range(5)]
    rows += [{"instruction": f" question  {i}", "tools": ["t0"], "split": "test"} for i in range(3, 8)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"source": "jsonl", "path": path, "catalog": own.parent / "catalog.txt"}
    leaks = build_corpus(_options(**options), tmp_path / "corpus").manifest["leaks"]
    assert leaks["test_vs_train_and_val"]["text"]["exact_pairs"] == 2
    assert build_corpus(_options(**options, leak="drop"), tmp_path / "corpus").manifest["leaks"]["dropped"] == 2


def test_bad_input_leaves_nothing_and_spares_an_older_corpus(tmp_path: Path) -> None:
    path = _own_records(tmp_path / "own")
    out = tmp_path / "corpus"
    good = build_corpus(_options(source="jsonl", path=path), out)
    path.write_text(path.read_text() + "not json\n")
    with pytest.raises(InputError, match="line 63"):
        build_corpus(_options(source="jsonl", path=path), out)
    assert Corpus.open(out).data_hash == good.data_hash
    with pytest.raises(InputError, match="line 63"):
        build_corpus(_options(source="jsonl", path=path), tmp_path / "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "own"]
    path.write_text("")
    with pytest.raises(InputError, match="no usable record"):
        build_corpus(_options(source="jsonl", path=path), tmp_path / "fresh")
    with pytest.raises(InputError, match="exists and is not a corpus"):
        build_corpus(_options(source="jsonl", path=path), tmp_path / "own")
    assert path.exists()


def test_rebuilding_replaces_the_corpus(tmp_path: Path) -> None:
    path = _own_records(tmp_path / "own")
    out = tmp_path / "corpus"
    build_corpus(_options(source="jsonl", path=path, shard_rows=1), out)
    (tmp_path / ".corpus.0.partial").mkdir()  # of a killed build
    rebuilt = build_corpus(_options(source="jsonl", path=path), out)
    assert len(Corpus.open(out).shards("train")) == 1
    assert rebuilt.path == out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "own"]


def test_builds_at_once_leave_a_whole_corpus(tmp_path: Path) -> None:
    path, out = _own_records(tmp_path / "own"), tmp_path / "corpus"
    options = [_options(source="jsonl", path=path, shard_rows=rows) for rows in (1, 7, 50)]
    first = build_corpus(options[0], out)
    with ThreadPoolExecutor(3) as threads:
        built = list(threads.map(lambda each: build_corpus(each, out), options))
    corpus = Corpus.open(out)
    assert {one.data_hash for one in built} == {corpus.data_hash} == {first.data_hash}
    assert sum(corpus.table(split).num_rows for split in ("train", "val", "test")) == 59
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "own"]


def test_released_benchmark_reports_and_drops_its_leaks(shared_dir: Path, tmp_path: Path) -> None:
    options = {"source": "toolmmbench", "path": shared_dir / "toolmmbench"}
    reported = build_corpus(_options(**options), tmp_path / "reported").manifest
    leaks = reported["leaks"]
    assert {m: (n["exact_pairs"], n["shared_media"]) for m, n in leaks["test_vs_train_and_val"].items()} == {
        "text": (0, 0),
        "image": (0, 0),
        "audio": (29, 59),
        "video": (2, 4),
    }
    counts = reported["counts"]
    assert counts["test"]["questions"] == 1433
    assert counts["train"]["questions"] + counts["val"]["questions"] == 562 + 82
    assert counts["val"]["questions"] > 0
    assert reported["missing_media"]["records"] == 562 + 82 + 456 + 97 + 13, (
        "no media came with the files: all are reported"
    )
    assert all(n["shared_media"] == 0 for n in leaks["val_vs_train"].values())
    dropped = build_corpus(_options(**options, leak="drop"), tmp_path / "dropped").manifest
    assert dropped["counts"]["test"]["questions"] == 1433 - 59 - 4
    assert dropped["leaks"]["dropped"] == 63
    assert "exact (instruction, medium) pair or a medium" in dropped["leaks"]["drop_rule"]


def test_resplitting_the_released_benchmark_joins_its_halves(shared_dir: Path, tmp_path: Path) -> None:
    options = {"source": "toolmmbench", "path": shared_dir / "toolmmbench", "resplit": True}
    manifest = build_corpus(_options(**options), tmp_path / "corpus").manifest
    assert sum(manifest["counts"][split]["questions"] for split in ("train", "val", "test")) == 1433 + 644 - 29 - 2
    assert manifest["duplicates_merged"] == 31, "the test questions that training holds too"
    assert manifest["tools"]["in_test_but_not_in_train"] == 0
    assert not any(n["shared_media"] for n in manifest["leaks"]["test_vs_train_and_val"].values())


def test_several_sources_make_one_corpus(own: Path, tmp_path: Path) -> None:
    options = _options(
        source="jsonl", path=own, also=[{"source": "toolmm-mini-dialogues", "size": "test"}], shard_rows=10
    )
    built = build_corpus(options, tmp_path / "corpus", seed=1)
    corpus = Corpus.open(built.path)
    records = [record for split in ("train", "val", "test") for record in corpus.records(split)]
    dialogues = [record for record in records if record.is_dialogue]
    assert (len(records) - len(dialogues), len(dialogues)) == (40 - 2 + 20 + 1, 37 + 7 + 21)
    assert corpus.media_root == own.parent
    assert list(built.manifest["licences"]) == ["jsonl", "toolmm-mini-dialogues"]
    assert built.manifest["dialogues"]["test"] == {
        "dialogues": 21,
        "single_call": 14,
        "chain": 4,
        "no_tool": 3,
        "with_history": sum(has_history(r.instruction) for r in dialogues if r.split == "test"),
        "seen_tools": 8,
        "unseen_tools": 10,
    }
    report = (built.path / "report.md").read_text()
    assert "## Dialogues" in report
    assert ["unseen", "tools", "0", "0", "10"] in [line.replace("|", "").split() for line in report.splitlines()]
    alone = build_corpus(_options(source="jsonl", path=own), tmp_path / "alone", seed=1)
    splits = {record.record_id: record.split for record in records}
    for split in ("train", "val", "test"):
        assert all(splits[record.record_id] == split for record in Corpus.open(alone.path).records(split))
    assert "## Dialogues" not in (alone.path / "report.md").read_text()


def test_two_dialogues_with_one_prompt_are_one_and_stay_as_they_are(tmp_path: Path) -> None:
    prompt = render_dialogue_prompt(GPT4TOOLS_TOOLS[:3], "", "Hello.")
    outputs = [render_answer("Hi."), render_call(GPT4TOOLS_TOOLS[0].name, "image/a.png")]
    rows = [{"instruction": prompt, "input": "", "output": output} for output in outputs]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    built = build_corpus(_options(source="gpt4tools", path=tmp_path), tmp_path / "corpus")
    assert built.manifest["duplicates_merged"] == 2
    (record,) = Corpus.open(built.path).records("train")
    assert (record.valid_tool_ids, record.turns) == (("unknown",), (Turn("assistant", outputs[0]),))
    assert built.manifest["leaks"]["test_vs_train_and_val"]["text"]["exact_pairs"] == 1


@pytest.fixture
def copy(built: CorpusSummary, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.path, tmp_path / "copy"))


def test_damage_is_found_and_named(copy: Path) -> None:
    shard = Corpus.open(copy).shards("train")[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)
    corpus = Corpus.open(copy)
    for read in (corpus.table, corpus.dataset, lambda split: list(corpus.records(split))):
        with pytest.raises(InputError, match=r"train/part-00000\.parquet.*run `prepare` again"):
            read("train")
    assert corpus.table("test").num_rows > 0, "the other splits can be read"
    shard.write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"part-00000\.parquet.*bytes instead of"):
        Corpus.open(copy)
    shard.unlink()
    with pytest.raises(InputError, match="it is missing"):
        Corpus.open(copy)


def test_altered_catalogue_and_manifest_are_refused(copy: Path) -> None:
    catalog = copy / "catalog.jsonl"
    catalog.write_text(catalog.read_text().replace('"t3"', '"t4"'))
    with pytest.raises(InputError, match="altered"):
        Corpus.open(copy)
    manifest = copy / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(InputError, match="schema version 99"):
        Corpus.open(copy)
    manifest.write_text(text[:50])
    with pytest.raises(InputError, match="damaged"):
        Corpus.open(copy)
    manifest.unlink()
    with pytest.raises(InputError, match="run `prepare` first"):
        Corpus.open(copy)


def test_unknown_option_and_split_are_errors(built: CorpusSummary) -> None:
    with pytest.raises(ValueError, match="colour"):
        _options(colour="red")
    with pytest.raises(InputError, match="must be one of train, val, test"):
        Corpus.open(built.path).table("dev")
