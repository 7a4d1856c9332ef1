"""What a judge and a person see of a row, whether it reads as it was meant, and edits put back."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.cases import DialogueForm, QuestionForm, strip_dialogue
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.dialogue import (
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_image_note,
    render_observation,
)

EDGES = Tool(
    "lab/edges", "Draws edges.", "image", "image", name="Edges", usage="to draw edges", arguments=("image_path",)
)
CROP = Tool("lab/crop", "Crops.", "image", "image", name="Crop", usage="to crop", arguments=("image_path", "object"))
FORM = DialogueForm([EDGES, CROP])


def row(
    name: str, made: str, values: str = "{made}, the dog, please", words: str = "Edges of {name}, then cut"
) -> dict[str, Any]:
    note = f"{render_image_note(name, 'A dog.')}\n{render_exchange('Hello.', 'Hi.')}"
    output = render_call("Edges", name) + render_observation(made) + render_call("Crop", values.format(made=made))
    prompt = render_dialogue_prompt([CROP, EDGES], note, words.format(name=name, made=made))
    return {"id": "1", "instruction": prompt, "input": "", "output": output}


def test_a_dialogue_is_the_same_case_whatever_its_files_are_called() -> None:
    case = FORM.describe(row("image/abcdefgh.png", "image/zyxwvuts.png"))
    assert case == FORM.describe(row("image/qqqqqqqq.png", "image/pppppppp.png"))
    assert case.words == "Edges of image/1.png, then cut"
    assert "image/1.png. It shows: A dog." in case.situation
    assert "Hello." in case.situation
    assert "Action Input: image/2.png, the dog, please" in case.answer
    assert case.proposal == (
        '1. calls Edges (to draw edges) with "image/1.png"\n2. calls Crop (to crop) with "image/2.png, the dog, please"'
    )
    assert not case.fault
    other = FORM.describe(row("image/abcdefgh.png", "image/zyxwvuts.png", words="Other words on {name}"))
    assert other.key != case.key


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("{made}", "takes 2 values"),
        ("image/stranger.png, the dog", "image/stranger.png is used, which nobody gave"),
    ],
)
def test_a_call_that_cannot_be_meant_is_a_fault(values: str, fault: str) -> None:
    assert fault in FORM.describe(row("image/abcdefgh.png", "image/zyxwvuts.png", values)).fault


def test_an_edit_is_written_under_the_rows_own_names() -> None:
    given = row("image/abcdefgh.png", "image/zyxwvuts.png")
    case = FORM.describe(given)
    edited = FORM.edit(
        given, "Edges of image/1.png;\ncut out the cat", case.answer.replace("the dog, please", "the cat")
    )
    again = FORM.describe(edited)
    assert "New input: Edges of image/abcdefgh.png; cut out the cat\n" in edited["instruction"]
    assert "Action Input: image/zyxwvuts.png, the cat" in edited["output"]
    assert again.words == "Edges of image/1.png; cut out the cat"
    assert edited["id"] == given["id"]
    assert strip_dialogue(edited["instruction"]) == "Edges of image/file; cut out the cat"
    for answer in (case.answer.replace("Action: Crop", "Action: Fly"), "Cut it.", ""):
        with pytest.raises(InputError):
            FORM.edit(given, case.words, answer)
    with pytest.raises(InputError, match="says nothing"):
        FORM.edit(given, "  ", case.answer)


def test_a_question_with_its_medium_and_an_edit() -> None:
    form = QuestionForm(ToolCatalog([Tool("a", "Mends."), Tool("b"), Tool("unknown")]), {"x.png": "A wet street."})
    given = {"instruction": "Mend it", "tools": ["a"], "media": "x.png", "candidates": ["a", "b"]}
    case = form.describe(given)
    assert "a picture, which shows: A wet street." in case.situation
    assert case.proposal.endswith("1. a: Mends.")
    assert form.edit(given, " Mend this ", "b, a,") == given | {"instruction": "Mend this", "tools": ["b", "a"]}
    with pytest.raises(InputError, match="no tool 'c'"):
        form.edit(given, "Mend it", "c")
    with pytest.raises(InputError, match="'unknown' where none"):
        form.edit(given, "Mend it", "")
