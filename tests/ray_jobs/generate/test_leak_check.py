"""What a prepared corpus's test split has already of what was generated: questions, media, and dialogues' new words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from scripted_teacher import scripted_teacher, write_captions

from data_pipeline.corpus.build import PrepareOptions, build_corpus
from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS
from data_pipeline.storage import hash_file
from ray_jobs.cli import main
from ray_jobs.generate.leak_check import find_leaks, read_test_questions


def test_questions_and_media_of_a_corpus(tmp_path: Path) -> None:
    for name, colour in (("train.png", "red"), ("test.png", "blue"), ("new.png", "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    (tmp_path / "renamed.png").write_bytes((tmp_path / "test.png").read_bytes())
    rows = [
        {"instruction": "Mend this picture", "media": "train.png", "tools": ["mend"], "split": "train"},
        {"instruction": "Count the trains", "tools": ["count"], "split": "train"},
        {"instruction": "Lift the fog here", "media": "test.png", "tools": ["mend"], "split": "test"},
        {"instruction": "Write an invoice", "tools": ["count"], "split": "test"},
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "catalog.txt").write_text("mend\ncount\n", encoding="utf-8")
    options = PrepareOptions(source="jsonl", path=tmp_path / "records.jsonl", media_root=tmp_path)
    build_corpus(options, tmp_path / "corpus")
    test = read_test_questions(tmp_path / "corpus")
    assert len(test) == 2

    def make(number: int, words: str, medium: str = "") -> ToolRecord:
        kind = Modality.IMAGE if medium else Modality.TEXT
        sha256 = hash_file(tmp_path / medium) if medium else ""
        return ToolRecord(str(number), "g", kind, words, ("mend",), media_uri=medium, media_sha256=sha256)

    generated = [
        make(0, "write AN  invoice"),
        make(1, "Count the trains"),
        make(2, "lift the fog here", "renamed.png"),
        make(3, "Sharpen it", "renamed.png"),
        make(4, "Lift the fog here", "new.png"),
        make(5, "Mend this picture", "train.png"),
    ]
    assert find_leaks(test, generated) == ["question", "none", "question", "medium", "none", "none"]


def test_a_corpus_without_a_test_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(
        '{"instruction": "Mend it", "tools": ["mend"], "split": "train"}\n', encoding="utf-8"
    )
    (tmp_path / "catalog.txt").write_text("mend\n", encoding="utf-8")
    build_corpus(PrepareOptions(source="jsonl", path=tmp_path / "records.jsonl"), tmp_path / "corpus")
    with pytest.raises(InputError, match="holds no test question"):
        read_test_questions(tmp_path / "corpus")


def test_dialogues_of_a_corpus_are_told_by_their_new_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their prompts name files that no other prompt names, and offer other tools."""
    captions = write_captions(tmp_path, ["A dog at a lake."] * 30)
    given = [f"runs_dir={tmp_path / 'runs'}", f"generate.captions={captions}"]
    with scripted_teacher() as teacher:
        given.append(f"generate.teacher={{url: {teacher.url}, model: scripted, api_key_env: ''}}")
        assert main(["generate", *given, "name=first", "seed=1"]) == 0
        options = PrepareOptions(source="gpt4tools", path=tmp_path / "runs/first/generated")
        build_corpus(options, tmp_path / "corpus")
        capsys.readouterr()
        # now training asks for all tools but one that the first run held out, in the same words, of other files
        held_out = f"generate.unseen_tools=[{GPT4TOOLS_TOOLS[-1].call_name}]"
        again = (*given, "name=second", "seed=2", held_out, f"generate.leak_check={tmp_path / 'corpus'}")
        assert main(["generate", *again]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    first = {record.instruction for record in read_test_questions(tmp_path / "corpus")}
    rows = [
        row
        for file in (tmp_path / "runs/second/generated").glob("*.json")
        for row in json.loads(file.read_text(encoding="utf-8"))
    ]
    leaks = [row for row in rows if row["check_leak"] == "question"]
    assert counts["checks"]["check_leak"] == {"none": len(rows) - len(leaks), "question": len(leaks)}
    assert 0 < len(leaks) < len(rows) / 2
    for row in rows:
        words = row["instruction"].rpartition("New input: ")[2].partition("\n")[0]
        assert (row["check_leak"] == "question") == (words in first)
