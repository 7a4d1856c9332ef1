"""How a model of the Hub is loaded, by what its card tells, and the code that a card shows."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from data_pipeline.instruct.hub_calls import build_call, split_code
from data_pipeline.records.api_calls import name_api, render_tool_id


@pytest.mark.parametrize(
    ("entry", "call"),
    [
        ({"library_name": "transformers", "pipeline_tag": "fill-mask"}, "pipeline('fill-mask', model='lab/a.1')"),
        (
            {"tags": ["pytorch", "timm"], "pipeline_tag": "image-classification"},
            "timm.create_model('hf_hub:lab/a.1', p",
        ),
        (
            {
                "library_name": "transformers",
                "pipeline_tag": "audio-to-audio",
                "transformersInfo": {"auto_model": "AutoModelForSpeechSeq2Seq"},
            },
            "AutoModelForSpeechSeq2Seq.from_pretrained('lab/a.1')",
        ),
        ({"library_name": "open_clip", "pipeline_tag": "zero-shot-image-classification"}, "open_clip.create_model_and"),
        (
            {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"},
            "SentenceTransformer('lab/a",
        ),
    ],
)
def test_library_and_task_tell_the_call(entry: dict[str, Any], call: str) -> None:
    found, code = build_call(entry, "lab/a.1")
    assert found.startswith(call)
    assert code.endswith(f"model = {found}")
    ast.parse(code)
    assert render_tool_id(name_api(found, "")).rpartition(":")[2] == "lab/a.1", "the scorer of calls finds the model"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"pipeline_tag": "fill-mask"}, "lab/a"),
        ({"library_name": "speechbrain", "pipeline_tag": "audio-to-audio"}, "lab/a"),
        ({"library_name": "transformers", "pipeline_tag": "audio-to-audio"}, "lab/a"),
        (
            {
                "library_name": "transformers",
                "pipeline_tag": "audio-to-audio",
                "transformersInfo": {"auto_model": "x; import os"},
            },
            "lab/a",
        ),
        ({"library_name": "diffusers"}, "lab/a'); import os; ('"),
        ({"library_name": ["diffusers"], "tags": "diffusers"}, "lab/a"),
    ],
)
def test_nothing_is_made_up(entry: dict[str, Any], name: str) -> None:
    assert build_call(entry, name) == ("", "")


def test_a_cards_own_code() -> None:
    shown = "```python\nimport a\n\na.run()\n```\nMore.\n```bash\npip install a\n```\n```py\nb()\n```\n"
    text = f"Lifts fog.\n{shown}```python\nopen"
    words, code = split_code(text)
    assert code == "import a\n\na.run()\n\nb()"
    assert words.split() == ["Lifts", "fog.", "More.", "```python", "open"]
