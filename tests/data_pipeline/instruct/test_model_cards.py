"""Model cards in the shape of real ones: YAML with its freedoms, badges and comments before the first sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.cards import Card, LeftOut, choose_cards, read_cards
from data_pipeline.instruct.model_cards import MAX_FRONT_CHARS, parse_model_card

DERAIN = """---
language: en
license: mit
tags:
- image-to-image
- rain
datasets:
- own-rain
model-index:
- name: derain
  results:
  - task: {type: image-to-image, name: Deraining}
    metrics:
    - {type: psnr, value: 31.2}
---

<!-- filled in by hand -->
[![Paper](https://img.example/paper.svg)](https://example.org/paper)
<p align="center"><img src="rain.png" width="400"/></p>

# Derain Tiny

## Model description

| size | seconds |
|---|---|
| small | 0.2 |

**Derain Tiny** takes [streaks of rain](https://example.org/rain) out of a photo
taken in the street.

Use it so:

```python
from transformers import pipeline

mend = pipeline("image-to-image", model="lab/derain-tiny")
```

```bash
pip install transformers
```
"""
# an entry of /api/models?full=true, by its fields
LISTED: dict[str, Any] = {
    "_id": "65f0c0ffee0000000000abcd",
    "id": "lab/derain-tiny",
    "author": "lab",
    "gated": False,
    "lastModified": "2024-03-12T10:00:00.000Z",
    "likes": 3,
    "trendingScore": 0,
    "private": False,
    "sha": "0123456789abcdef0123456789abcdef01234567",
    "downloads": 1234,
    "tags": ["transformers", "safetensors", "image-to-image", "rain", "en", "license:mit", "region:us"],
    "pipeline_tag": "image-to-image",
    "library_name": "transformers",
    "createdAt": "2024-03-01T09:00:00.000Z",
    "modelId": "lab/derain-tiny",
    "siblings": [{"rfilename": "README.md"}, {"rfilename": "model.safetensors"}],
}


def write(folder: Path, cards: dict[str, str], lists: dict[str, Any] | None = None) -> Path:
    for name, text in cards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name, content in (lists or {}).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_card_says_what_the_api_does_not(tmp_path: Path) -> None:
    """The API's list alone has no words, so nothing of it can be used; with the cards beside it has both."""
    (tmp_path / "list").mkdir()
    alone = read_cards(write(tmp_path / "list", {}, {"models.json": [LISTED]}) / "models.json")
    assert "too little" in choose_cards(alone)[1][0].reason
    cards = {"lab/derain-tiny/README.md": DERAIN, "lab/derain-tiny/config.json": "{"}
    (card,) = read_cards(write(tmp_path / "cards", cards, {"models.json": [LISTED]}))
    assert isinstance(card, Card)
    assert card.tool.description == "Derain Tiny takes streaks of rain out of a photo taken in the street."
    assert (card.downloads, card.licences) == (1234, ("mit",))
    assert (card.tool.tool_id, card.tool.input_modality) == ("lab/derain-tiny", "image")
    assert card.tool.fine_functionality == "Image Deraining"
    assert card.tool.example_code.startswith("from transformers import pipeline")
    assert "pip install" not in card.tool.example_code
    assert [tool.tool_id for tool in choose_cards([card], {"mit"})[0]] == ["lab/derain-tiny"]


def test_a_card_without_the_api(tmp_path: Path) -> None:
    """Its task is that of its tags, as the Hub tells it too; the path names the model, also in the Hub's cache."""
    cached = "models--lab--derain-tiny/snapshots/0123abcd/"
    cards = read_cards(
        write(tmp_path, {cached + "README.md": DERAIN, cached + "NOTES.md": "Notes.", "bert.md": DERAIN})
    )
    assert [card.tool.tool_id for card in cards if isinstance(card, Card)] == ["bert", "lab/derain-tiny"]
    assert all(isinstance(card, Card) and card.tool.coarse_functionality == "Image-to-Image" for card in cards)


@pytest.mark.parametrize(
    ("front", "licences"),
    [
        ("license: apache-2.0", ("apache-2.0",)),
        ("license: [mit, cc-by-nc-4.0]", ("mit", "cc-by-nc-4.0")),
        ("license: other\nlicense_name: own-terms\nlicense_link: LICENSE", ("own-terms",)),
        ("license: other", ("other",)),
        ("language: no", ()),
        ("tags: rain\nlicense:", ()),
    ],
)
def test_licences_in_the_forms_that_cards_have(tmp_path: Path, front: str, licences: tuple[str, ...]) -> None:
    words = "Takes streaks of rain out of photos."
    (card,) = read_cards(write(tmp_path, {"lab/a.md": f"---\npipeline_tag: image-to-image\n{front}\n---\n{words}\n"}))
    assert isinstance(card, Card)
    assert (card.licences, card.tool.description) == (licences, words)
    kept, _ = choose_cards([card], {"apache-2.0", "mit"})
    assert bool(kept) == (licences == ("apache-2.0",)), "each of them has to be allowed"


def test_lines_that_are_no_description() -> None:
    def describe(body: str) -> str:
        return parse_model_card(f"---\n{{}}\n---\n{body}")["description"]

    assert describe("# A title of as many words as this\n\n- a list of as many words as this") == ""
    assert (
        describe("- **Developed by:** [More Information Needed]\n\nThis says: [More Information Needed], not more.")
        == ""
    )
    assert (
        describe("How to use it, in a few steps:\n\nIt names the birds of a garden.")
        == "It names the birds of a garden."
    )
    heading = '<h2 align="center">\n  <a href="x">A heading of\n as many words as this</a>\n</h2>'
    assert describe(f"{heading}\n\n1. A list of as many words as this\n\nIt names the birds of a garden.") == (
        "It names the birds of a garden."
    )
    assert describe("## Title\r\nIt names the birds  of `a` garden.\r\n") == "It names the birds of a garden."
    assert parse_model_card("It names the birds of a garden.")["description"] == "It names the birds of a garden."


def test_what_cannot_be_read_is_said_of_its_model(tmp_path: Path) -> None:
    long = f"---\nx: {'y' * MAX_FRONT_CHARS}\n---\n"
    cards = {
        "lab/a.md": "---\na: [\n---\nWords.",
        "lab/b.md": "---\n- a\n---\n",
        "lab/c.md": long,
        "lab/d.md": "Words.",
    }
    gone = LISTED | {"id": "lab/e", "modelId": "lab/e", "disabled": True}
    left_out = read_cards(write(tmp_path, cards, {"models.json": [gone]}))
    assert all(isinstance(each, LeftOut) for each in left_out)
    assert [each.reason for each in left_out if isinstance(each, LeftOut)] == [
        "its YAML cannot be read",
        "its YAML is no object",
        f"its YAML has more than {MAX_FRONT_CHARS:,} characters",
        "its task is not stated",
        "the Hub has disabled it",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no model cards; put them there as LAB/MODEL/README\.md"):
        read_cards(tmp_path / "empty")


@pytest.mark.parametrize("left", [{"modelId"}, {"modelId", "pipeline_tag"}, {"id"}])
def test_entries_with_fewer_fields_are_the_hubs_too(tmp_path: Path, left: set[str]) -> None:
    """`expand[]` gives what was asked for, and `/api/models/ID` one object."""
    entry = {key: value for key, value in LISTED.items() if key not in left}
    entry["description"] = "Takes streaks of rain out of photos."
    for content in (entry, [entry]):
        path = tmp_path / "models.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        (card,) = read_cards(path)
        if "pipeline_tag" in left:
            assert card == LeftOut("lab/derain-tiny", "its task is not stated")
        else:
            assert isinstance(card, Card)
            assert card.licences == ("mit",)
