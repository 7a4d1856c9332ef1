"""A catalogue without declared groups gets ambiguous questions of all kinds, and groups that a person corrects."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from scripted_teacher import ScriptedTeacher, answer_each, question_settings, read_generated, scripted_teacher

from data_pipeline.instruct.groups import AMBIGUITIES
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.jsonl import read_jsonl
from ray_jobs.cli import main

KIND_OF = {
    "Segments": "domains",
    "Names": "categories",
    "Removes": "quality",
    "Paints": "conditions",
    "Writes": "others",
}
TOOLS = [
    Tool("own/rain", "Removes rain from a picture.", "image", "image"),
    Tool("own/haze", "Removes haze from a picture.", "image", "image"),
    Tool("own/french", "Writes down French speech.", "audio", "text"),
    Tool("own/german", "Writes down German speech.", "audio", "text"),
    Tool("own/rooms", "Segments rooms inside of a picture.", "image", "image"),
    Tool("own/streets", "Segments streets inside of a picture.", "image", "image"),
    Tool("own/animals", "Names animals inside of a picture.", "image", "text"),
    Tool("own/birds", "Names birds inside of a picture.", "image", "text"),
    Tool("own/sketch", "Paints a picture after a sketch.", "image", "image"),
    Tool("own/pose", "Paints a picture after a pose.", "image", "image"),
    Tool("own/invoice", "Writes an invoice for a customer.", "text", "text"),
]
MARKS = ("rooms", "streets", "animals", "birds", "rain", "haze", "sketch", "pose", "French", "German")


def say_differences(prompt: str) -> str:
    """Tools that begin with the same verb belong together."""
    verb = prompt.partition("One tool does this: ")[2].split()[0]
    return answer_each(prompt, lambda words: KIND_OF[verb] if words.split()[0] == verb else "no")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    ToolCatalog(TOOLS).save_jsonl(tmp_path / "tools.jsonl")
    captions = []
    for mark in MARKS:
        file = f"{mark}.wav" if mark[0].isupper() else f"{mark}.png"
        captions.append({"file": file, "caption": f"What is there: {mark}", "licence": "CC0-1.0"})
        if file.endswith("png"):
            Image.new("RGB", (8, 8)).save(tmp_path / file)
        else:
            (tmp_path / file).write_bytes(b"RIFF")
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions), encoding="utf-8")
    return tmp_path


def generate(own: Path, teacher: ScriptedTeacher, *more: str) -> int:
    return main(["generate", *question_settings(own, teacher, *more)])


def test_all_five_kinds_without_a_declared_group(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = f"generate.media_captions={own / 'captions.jsonl'}"
    with scripted_teacher() as teacher:
        write, teacher.differences = teacher.queries, say_differences
        teacher.queries = lambda prompt: "\n".join(write(prompt).splitlines()[:2])
        assert generate(own, teacher, captions, "--dry-run") == 0
        dry = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert teacher.prompts == []
        assert generate(own, teacher, captions) == 0
        n_asked = len(teacher.prompts)
        assert generate(own, teacher, captions) == 0
        assert len(teacher.prompts) == n_asked, "a second run pays nothing"
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert n_asked <= dry["requests"]
    assert result["groups"] == {"same": 0, "ambiguous": dict.fromkeys(sorted(AMBIGUITIES), 1), "unclear": 0}
    assert (result["kept"], result["ambiguous"]) == (42, 20), "as many as others, of each tool that has a twin"
    items = list(read_jsonl(own / "runs/q/generated/records.jsonl", own, None).items)
    records = [item for item in items if isinstance(item, ToolRecord)]
    assert len(records) == len(items) == 42
    kinds = Counter(record.ambiguity_type.value for record in records)
    assert kinds == Counter({"none": 22} | dict.fromkeys(AMBIGUITIES, 4))
    for record in records:
        if record.is_ambiguous:
            (right,) = record.valid_tool_ids
            assert record.media_uri.partition(".")[0].casefold() == right.removeprefix("own/"), "the medium decides"
            assert right in record.candidate_tool_ids
            assert len(record.candidate_tool_ids) == 2
            assert not any(mark.casefold() in record.instruction.casefold().split() for mark in MARKS)


def test_a_person_corrects_what_was_proposed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = f"generate.media_captions={own / 'captions.jsonl'}"
    with scripted_teacher() as teacher:
        teacher.differences = say_differences
        assert generate(own, teacher, captions, "generate.limit=4") == 0
        rows = read_generated(own, "groups.jsonl")
        assert {"tools": ["own/haze", "own/rain"], "ambiguity": "quality"} in rows
        corrected = [{"tools": row["tools"]} if row["ambiguity"] == "others" else row for row in rows]
        (own / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corrected), encoding="utf-8")
        media = read_generated(own, "media_tools.jsonl")
        assert {"media": "rain.png", "tools": ["own/rain"], "licence": "CC0-1.0"} in media
        media = [row | {"tools": ["own/haze", "own/rain"]} if row["media"] == "haze.png" else row for row in media]
        (own / "media.jsonl").write_text("".join(json.dumps(row) + "\n" for row in media), encoding="utf-8")
        said = [f"generate.{name}={own / name}.jsonl" for name in ("groups", "media")]
        n_before = len(teacher.prompts)
        assert generate(own, teacher, *said, "generate.limit=4", "name=again") == 0
        new = teacher.prompts[n_before:]
    assert not any("differs from" in prompt or "what is attached decides" in prompt for prompt in new)
    capsys.readouterr()
    again = read_generated(own, "records.jsonl", "again")
    assert not any(row.get("ambiguity") == "others" for row in again)
    assert any(row["tools"] == ["own/haze", "own/rain"] and row.get("ambiguity") == "quality" for row in again)
    spoken = [row for row in again if row.get("media", "").endswith(".wav")]
    assert spoken
    assert all(set(row["tools"]) == {"own/french", "own/german"} for row in spoken), "they do the same now"


def test_nothing_is_proposed_where_nothing_could_decide(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without media no tools are asked about; and a caption that fits all tools of a group, or none, tells nothing."""
    with scripted_teacher() as teacher:
        teacher.differences = say_differences
        assert generate(own, teacher, "generate.limit=2") == 0
        assert not any("differs from" in prompt for prompt in teacher.prompts)
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["ambiguous"] == 0
        teacher.files = lambda prompt: answer_each(prompt, lambda _: "yes" if "rain" in prompt else "no")
        captions = f"generate.media_captions={own / 'captions.jsonl'}"
        assert generate(own, teacher, captions, "generate.limit=2", "name=vague") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["ambiguous"], result["groups"]["ambiguous"]["quality"]) == (0, 1)
    assert read_generated(own, "media_tools.jsonl", "vague") == []


def test_an_answer_in_no_form_leaves_tools_apart(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_teacher() as teacher:
        teacher.differences = lambda prompt: "They are all wonderful."
        assert generate(own, teacher, f"generate.media_captions={own / 'captions.jsonl'}", "generate.limit=2") == 0
    groups = json.loads(capsys.readouterr().out.splitlines()[-1])["groups"]
    assert groups["ambiguous"] == {}
    assert groups["unclear"] > 0
