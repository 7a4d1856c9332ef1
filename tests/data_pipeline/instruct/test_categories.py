"""MLLM-Tool's tasks and subtasks, and what tells them of a model of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from data_pipeline.instruct.categories import find_category, load_categories, load_subtasks
from data_pipeline.records.schema import Modality

PAPER = Path(__file__).parents[4] / "shared" / "papers" / "mllm-tool.txt"


@pytest.mark.parametrize(
    ("tag", "text", "task", "subtask"),
    [
        ("image-to-image", "google/maxim-s3-deblurring-gopro", "Image-to-Image", "Image Deblurring"),
        ("image-to-image", "Removes rain (deraining) from photos", "Image-to-Image", "Image Deraining"),
        (
            "image-to-image",
            "lllyasviel/control_v11p_sd15_canny guides by Canny edges",
            "Multimodal-to-Image",
            "Canny-Edges-Conditioned Prompt-guided Image Generation",
        ),
        ("image-to-image", "makes pictures better", "Image-to-Image", ""),
        (
            "image-to-image",
            "caidas/swin2SR super-resolution, twice as large",
            "Image-to-Image",
            "Image Super-Resolution",
        ),
        (
            "audio-classification",
            "superb/wav2vec2: who speaks? speaker verification",
            "Audio Classification",
            "Speaker Verification",
        ),
        ("text-classification", "finds irony in tweets: irony detection", "Text Classification", "Irony Detection"),
        (
            "visual-question-answering",
            "answers about charts",
            "Visual Question Answering",
            "Chart Question Answering",
        ),
        ("document-question-answering", "any", "Visual Question Answering", "Document Question Answering"),
        ("automatic-speech-recognition", "speech recognition of Hindi", "Audio-to-Text", ""),
        ("translation", "translation of text", "Translation", ""),
        ("token-classification", "finds names", "token-classification", ""),
    ],
)
def test_a_models_tag_and_words_tell_its_task_and_subtask(tag: str, text: str, task: str, subtask: str) -> None:
    category = find_category(tag, text)
    assert category is not None
    assert (category.task, category.subtask) == (task, subtask)
    assert (task in load_subtasks()) == (task != tag), "tags that the paper's table has not stay as they are"


def test_what_takes_a_prompt_beside_its_picture_says_so() -> None:
    plain, guided = (find_category("image-to-image", text) for text in ("dehazing", "guided by canny edges, a line"))
    assert plain is not None
    assert guided is not None
    assert (plain.takes, guided.takes) == (("image_path",), ("image_path", "prompt"))
    assert find_category("robotics", "anything") is None


def test_every_task_of_the_hub_is_whole() -> None:
    known = [category for own in load_categories().values() for category in own]
    assert len(known) > 35
    for category in known:
        assert category.input_modality in ("", *Modality)
        assert category.gives in ("", *Modality)
        Draft202012Validator.check_schema(category.parameters)
        if category.subtask:
            assert category.subtask in load_subtasks()[category.task]


def test_the_tasks_are_those_of_table_2() -> None:
    named = {each.task for tag, own in load_categories().items() for each in own if each.task != tag}
    assert named == set(load_subtasks())
    if not PAPER.is_file():
        pytest.skip(f"no {PAPER}: the paper's tables are read there")
    text = PAPER.read_text(encoding="utf-8")
    table_2 = text[: text.index("Table 2:")].rpartition("\n\n")[2].replace("\n", " ").split()
    rest = " ".join(table_2)
    for task in sorted(load_subtasks(), key=len, reverse=True):
        assert task in rest, task
        rest = " ".join(rest.replace(task, " ").split())
    assert rest == ""
    table_10 = text[text.index("Task Subtask Api Names") : text.index("Table 10:")].replace("Seperate", "Separate")
    for subtasks in load_subtasks().values():
        for name in subtasks:
            assert name in table_10, name
