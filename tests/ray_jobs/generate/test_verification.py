"""What is checked of generated rows, and what people decide, from a teacher over HTTP to a corpus's source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import ScriptedTeacher, scripted_teacher, write_captions

from data_pipeline.records.checks import DROPPED
from data_pipeline.records.dialogue import parse_dialogue_prompt
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.gpt4tools import read_gpt4tools
from ray_jobs.cli import main

N_IMAGES = 6
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path, (f"A dog number {n} {HOSTILE} at a lake." for n in range(N_IMAGES)))


def generate(captions: Path, teacher: ScriptedTeacher, *more: str) -> int:
    settings = f"{{url: {teacher.url}, model: scripted, api_key_env: ''}}"
    given = [f"runs_dir={captions.parent / 'runs'}", "name=v", f"generate.captions={captions}"]
    return main(["generate", *given, f"generate.teacher={settings}", "generate.judge=true", *more])


def read_rows(captions: Path) -> dict[str, dict[str, Any]]:
    files = sorted((captions.parent / "runs/v/generated").glob("*.json"))
    return {f"{file.stem}/{row['id']}": row for file in files for row in json.loads(file.read_text(encoding="utf-8"))}


def doubts_number_two(prompt: str) -> str:
    return "No." if "number 2" in prompt and "Be strict" in prompt else "Yes."


def test_what_people_decide_survives(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    review = captions.parent / "runs/v/review"
    with scripted_teacher() as teacher:
        teacher.judge = doubts_number_two
        assert generate(captions, teacher) == 0
        rows = read_rows(captions)
        doubted = {name for name, row in rows.items() if (row["check_strict"], row["check_broad"]) == ("no", "yes")}
        assert {name.split("/")[1][:6] for name in doubted} == {"000002"}
        assert {row["check_format"] for row in rows.values()} == {"ok"}
        assert all(
            row["check_strict"] == row["check_broad"] == "yes" for name, row in rows.items() if name not in doubted
        )
        report = (captions.parent / "runs/v/generated/report.md").read_text(encoding="utf-8")
        kept = report.partition("## Kept")[2].partition("## Left out")[0]
        shown = [line for line in kept.splitlines() if line.startswith("  - ")]
        assert len(shown) == kept.count("\n- ") == 20, "each example has its verdict"
        assert set(shown) == {"  - form: ok; strict judge: yes; generous judge: yes"}
        lines = [json.loads(line) for line in (review / "review.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {line["key"] for line in lines} == {rows[name]["review_key"] for name in doubted}
        assert "review: " in capsys.readouterr().out
        page = (review / "review.html").read_text(encoding="utf-8")
        assert HOSTILE not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        # a person drops one, words another anew and keeps a third
        lines[0] |= {"decision": "drop", "note": "dull"}
        lines[1] |= {"decision": "edit", "words": "Do that to image/1.png, please"}
        lines[2] |= {"decision": "keep"}
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (review / "review.jsonl").write_text(text, encoding="utf-8")
        n_prompts = len(teacher.prompts)
        assert generate(captions, teacher) == 0
        assert 0 < len(teacher.prompts) - n_prompts <= 6, "only the new words are judged"
        decided = read_rows(captions)
        assert decided.keys() == rows.keys(), "nothing is deleted"
        by_key = {row["review_key"]: row for row in decided.values()}
        dropped, edited, kept = (by_key[lines[n]["key"]] for n in range(3))
        assert (dropped["review"], dropped["review_note"]) == ("drop", "dull")
        assert kept["review"] == "keep"
        assert parse_dialogue_prompt(edited["instruction"]).new_input.startswith("Do that to image/")
        assert "image/1.png" not in edited["instruction"]
        # what reads them leaves out what was dropped
        reading = read_gpt4tools(captions.parent / "runs/v/generated")
        left_out = [item for item in reading.items if not isinstance(item, ToolRecord)]
        assert {item.reason for item in left_out} == {DROPPED}
        assert all(item.where.endswith(": dull") for item in left_out)
        assert len(left_out) == sum(row["review"] == "drop" for row in decided.values()) >= 1
        # fewer rows for once, and then all again: the decisions are there
        assert generate(captions, teacher, "generate.limit=1") == 0
        n_prompts = len(teacher.prompts)
        assert generate(captions, teacher) == 0
        assert len(teacher.prompts) == n_prompts, "a third run pays nothing"
    assert read_rows(captions) == decided
    after = [json.loads(line) for line in (review / "review.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line for line in after if line["decision"]] == lines[:3]
    assert {line["key"] for line in after} == {line["key"] for line in lines}


def test_a_mistake_in_the_review_costs_nothing(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    review = captions.parent / "runs/v/review/review.jsonl"
    review.parent.mkdir(parents=True)
    review.write_text('{"key": "k", "decision": "perhaps"}\n', encoding="utf-8")
    with scripted_teacher() as teacher:
        assert generate(captions, teacher) == 2
        assert teacher.prompts == []
        assert "line 1: the decision is 'perhaps'" in capsys.readouterr().err
        review.unlink()
        teacher.judge = lambda prompt: "Hm."
        assert generate(captions, teacher, "generate.limit=2") == 0
        line = json.loads(review.read_text(encoding="utf-8").splitlines()[0])
        assert "unclear" in line["why"]
        review.write_text(json.dumps(line | {"decision": "edit", "answer": "Just do it."}) + "\n", encoding="utf-8")
        capsys.readouterr()
        assert generate(captions, teacher, "generate.limit=2") == 2
    assert "line 1: the edit cannot be taken" in capsys.readouterr().err


def test_leaks_are_told_by_the_words(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_teacher() as teacher:
        assert generate(captions, teacher) == 0
        name, row = next(
            (name, row) for name, row in read_rows(captions).items() if "New input: Please" in row["instruction"]
        )
        words = parse_dialogue_prompt(row["instruction"]).new_input
        test = captions.parent / "test.jsonl"
        test.write_text(json.dumps({"instruction": f"  {words.upper()} "}) + "\n", encoding="utf-8")
        assert generate(captions, teacher, f"generate.leak_check={test}") == 0
        rows = read_rows(captions)
        assert rows[name]["check_leak"] == "question"
        assert sum(row["check_leak"] == "question" for row in rows.values()) < len(rows) / 2
        assert {row["check_leak"] for row in rows.values()} == {"question", "none"}
        assert generate(captions, teacher, "generate.leak_check=nowhere") == 2
    assert "neither a prepared corpus nor a file of rows" in capsys.readouterr().err
