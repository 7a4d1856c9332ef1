"""The wordings of the dialogues: `dialogues.yaml` read and turned into what a user says and what tools return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_pipeline.records.catalog import Tool
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS

_EXTENSIONS = {"image": "png", "audio": "wav", "video": "mp4"}
_WORDINGS_PATH = Path(__file__).with_name("dialogues.yaml")


@dataclass(frozen=True)
class Picture:
    """An image that a dialogue speaks of: its file name, the objects in it and what the user says about it."""

    name: str
    objects: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class SmallTalk:
    """Words that need no tool and their answer, which may hold {name} and {description} of an image."""

    answer: str
    wordings: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class DialogueWordings:
    """`dialogues.yaml`, tools by their names replaced by catalogue entries.

    Attributes:
        name_parts: what image names begin and end with.
        slots: slot -> fillings, shared by the splits.
        frames, joins: split -> templates around one request and around two.
        references, results: what stands for the only image, and for the first tool's image.
        requests: tool id -> split -> templates; a tool without templates for training is asked for in test only.
        matched_chains: pairs that belong together.
        free_chains: first tools and second tools that go together freely; by whether they are unseen in training.
        small_talk, recall: what needs no tool, without and with an image.
    """

    name_parts: Mapping[str, Sequence[str]]
    slots: Mapping[str, Sequence[str]]
    frames: Mapping[str, Sequence[str]]
    joins: Mapping[str, Sequence[str]]
    references: Sequence[str]
    results: Sequence[str]
    requests: Mapping[str, Mapping[str, Sequence[str]]]
    matched_chains: Sequence[tuple[Tool, Tool]]
    free_chains: Mapping[bool, tuple[Sequence[Tool], Sequence[Tool]]]
    small_talk: Sequence[SmallTalk]
    recall: Sequence[SmallTalk]


@cache
def load_wordings() -> DialogueWordings:
    """Read `dialogues.yaml`."""
    content = yaml.safe_load(_WORDINGS_PATH.read_text(encoding="utf-8"))
    by_name = {tool.name: tool for tool in GPT4TOOLS_TOOLS}
    chains = content["chains"]

    def tools(key: str) -> list[Tool]:
        return [by_name[name] for name in chains[key]]

    return DialogueWordings(
        name_parts=content["name_parts"],
        slots=content["slots"],
        frames=content["frames"],
        joins=content["joins"],
        references=content["references"],
        results=content["results"],
        requests={by_name[entry["tool"]].tool_id: entry for entry in content["requests"]},
        matched_chains=[(by_name[first], by_name[second]) for first, second in chains["matched"]],
        free_chains={
            False: (tools("first"), tools("second")),
            True: (tools("unseen_first"), tools("unseen_second")),
        },
        small_talk=[SmallTalk(entry["answer"], entry) for entry in content["small_talk"]],
        recall=[SmallTalk(entry["answer"], entry) for entry in content["recall"]],
    )


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, as the object that it is (`Generator.choice` would make an array of them)."""
    return options[int(rng.integers(len(options)))]


def draw_file_name(rng: np.random.Generator, modality: str = "image") -> str:
    """A file name of eight characters that says nothing, as `serve.artifacts` has them.

    Names share their parts, which the digit keeps apart as tokens, so that a tiny model can learn to copy them.
    """
    parts = load_wordings().name_parts
    stem = f"{choose(rng, parts['head'])}{rng.integers(10)}{choose(rng, parts['tail'])}"
    return f"{modality}/{stem}.{_EXTENSIONS[modality]}"


def draw_picture(rng: np.random.Generator) -> Picture:
    """An image with two objects."""
    slots = load_wordings().slots
    first, second = (str(name) for name in rng.choice(slots["object"], size=2, replace=False))
    description = f"a {first} and a {second} {choose(rng, slots['place'])}"
    return Picture(draw_file_name(rng), (first, second), description)


def draw_arguments(tool: Tool, picture: Picture, rng: np.random.Generator) -> dict[str, str]:
    """The argument's name -> its value, in the order in which the tool takes them."""
    values: dict[str, str] = {}
    for argument in tool.arguments:
        if argument == "image_path":
            values[argument] = picture.name
        elif argument == "object":
            values[argument] = choose(rng, picture.objects)
        else:
            filling = choose(rng, load_wordings().slots[argument])
            values[argument] = filling.format(object=choose(rng, picture.objects))
    return values


def draw_request(tool: Tool, arguments: Mapping[str, str], image: str, split: str, rng: np.random.Generator) -> str:
    """The user's words for one call, not yet framed; `image` is what the words call the image."""
    template = choose(rng, load_wordings().requests[tool.tool_id][split])
    return template.format(image=image, **arguments)


def frame_request(request: str, split: str, rng: np.random.Generator) -> str:
    """A request as a sentence."""
    words = choose(rng, load_wordings().frames[split]).format(request=request)
    return words[0].upper() + words[1:]


def draw_result(tool: Tool, picture: Picture, rng: np.random.Generator) -> str:
    """What a tool returns: a file name, or words that fit the tool."""
    if tool.output_modality == "image":
        return draw_file_name(rng)
    slots = load_wordings().slots
    text_results = {
        "Get Photo Description": lambda: picture.description,
        "Answer Question About The Image": lambda: choose(rng, slots["answer"]),
        "Text Detection On Image": lambda: choose(rng, slots["written"]),
        "Detection": lambda: ", ".join(f"{name} {_draw_box(rng)}" for name in picture.objects),
        "Assess the Image Quality": lambda: f"{rng.uniform(0.1, 0.95):.2f}",
        "Recognize Face": lambda: choose(rng, slots["person"]),
    }
    return text_results[tool.name]()


def _draw_box(rng: np.random.Generator) -> str:
    x, y, width, height = rng.integers(10, 200, size=4)
    return f"({x}, {y}, {x + width}, {y + height})"


def render_result(tool: Tool, result: str) -> str:
    """The assistant's words about what a tool returned."""
    return f"The tool says: {result}." if tool.output_modality == "text" else f"The result is {result}."
