"""A teacher's lines: what is kept, what is noise, and of which kind (GPT4Tools, supplement Table 5)."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.instruct.captions import CaptionedImage
from data_pipeline.instruct.instructions import (
    IMAGE,
    Instruction,
    Noise,
    parse_reply,
    render_teacher_prompt,
)
from data_pipeline.records.catalog import Tool
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS

BY_NAME = {tool.call_name: tool for tool in GPT4TOOLS_TOOLS}
OBJECTS = ("the dog", "a red kite", "the line of cars", "an old man, smiling")


def render(words: str, name: str, *arguments: str) -> str:
    return f'{words}, [{name}, "{", ".join(arguments)}"]'


def arguments_of(tool: Tool, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(
        IMAGE if name == "image_path" else OBJECTS[int(rng.integers(3 + (name == tool.arguments[-1])))]
        for name in tool.arguments
    )


def words_for(tool: Tool, arguments: tuple[str, ...], number: int) -> str:
    task = tool.usage.partition(" Input:")[0].removeprefix("to ")
    about = " ".join(value for value in arguments if value != IMAGE)
    return f"Please {task} {about} for my album number {number}"


def parse(line: str) -> Instruction | Noise:
    (found,) = parse_reply(line, GPT4TOOLS_TOOLS)
    return found


def test_the_prompt_names_picture_tools_and_form() -> None:
    image = CaptionedImage("c.jpg", "A dog at a lake.", (("dog", (1, 2, 30, 40)),))
    prompt = render_teacher_prompt(image, GPT4TOOLS_TOOLS[:2])
    assert "A dog at a lake. Objects: dog (1, 2, 30, 40)." in prompt
    assert (
        "2. Answer Question About The Image: to answer a question about an image. Arguments: image_path, question"
        in prompt
    )
    assert '<instruction>, [<tool name>, "<arguments, separated by commas>"]' in prompt


def test_the_supplements_cases_of_noise() -> None:
    """Table 5: no comma before the call, an argument that is missing, a tool that is not the one the words are for."""
    name = "Segment the Given Object"
    bad = parse(f'Segment the young boy swinging the bat [{name}, "{IMAGE}, young boy swinging the bat"]')
    good = parse(f'Segment the young boy swinging the bat, [{name}, "{IMAGE}, young boy swinging the bat"]')
    assert isinstance(bad, Noise)
    assert bad.reason == "format"
    assert good == Instruction(
        "Segment the young boy swinging the bat", BY_NAME[name], (IMAGE, "young boy swinging the bat")
    )
    bad = parse('Make the image look like a painting, [Instruct Image Using Text, "painting"]')
    good = parse(f'Make the image look like a painting, [Instruct Image Using Text, "{IMAGE}, painting"]')
    assert isinstance(bad, Noise)
    assert bad.reason == "arguments"
    assert isinstance(good, Instruction)
    words = "Generate a real image of a cake and pie display from a sketch"
    bad = parse(f'{words}, [Generate Image Condition On Canny Image, "{IMAGE}, sketch of a cake and pie display"]')
    good = parse(f'{words}, [Generate Image Condition On Sketch Image, "{IMAGE}, sketch of a cake and pie display"]')
    assert isinstance(bad, Noise)
    assert bad.reason == "tool"
    assert isinstance(good, Instruction)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("What a lovely dog!", "format"),
        (render("Crop it", "Crop the Given Object", IMAGE, "the dog"), "format"),
        (f'Crop the dog out of it, [Crop the Given Object, "{IMAGE}, the dog]', "format"),
        (render("w" * 500, "Crop the Given Object", IMAGE, "the dog"), "format"),
        (render("Make it blue and green", "Paint It All", IMAGE), "tool"),
        (render("Crop the dog out of it", "Crop the Given Object", IMAGE), "arguments"),
        (render("Crop the dog out of it", "Crop the Given Object", "the dog", IMAGE), "arguments"),
        (render("Crop the dog out of it", "Crop the Given Object", "image/other.png", "dog"), "arguments"),
        (render("Crop the dog out of it", "Crop the Given Object", IMAGE, "<object>"), "arguments"),
        (render("Find the edges of the picture", "Edge Detection On Image", IMAGE, "edges"), "arguments"),
        (render("Tell me what is written in it", "Text Detection On Image", ""), "arguments"),
        (render("Estimate how deep the valley is, as a depth map", "Pose Detection On Image", IMAGE), "tool"),
        (render("Estimate the depth map of this valley", "Predict Normal Map On Image", IMAGE), "tool"),
    ],
)
def test_other_noise(line: str, reason: str) -> None:
    found = parse(line)
    assert isinstance(found, Noise)
    assert (found.line, found.reason) == (line, reason)
    assert found.why


def test_forms_that_teachers_like_are_read() -> None:
    expected = Instruction("Where are the edges in this photo?", BY_NAME["Edge Detection On Image"], (IMAGE,))
    for line in (
        f'1. "Where are the edges in this photo?", [Edge Detection On Image, "{IMAGE}"]',
        f"- Where are the edges in this photo?, ['edge detection on image', {IMAGE}]",
        f"(3) Where are the edges in this photo?,[Edge Detection On Image,  “{IMAGE}”].",
    ):
        assert parse(line) == expected
    lines = parse_reply(
        f"Here you are:\n\n{render('Show the edges here', 'Edge Detection On Image', IMAGE)}\n", GPT4TOOLS_TOOLS
    )
    assert [type(line) for line in lines] == [Noise, Instruction]
    asked = parse('Write [Detect Face], then find everybody, [Detect Face, "example.png"]')
    assert isinstance(asked, Noise)


def test_a_thousand_lines_of_each_kind() -> None:
    """Clean ones are kept, noisy ones are left out for the right reason."""
    rng = np.random.default_rng(0)
    kept = 0
    for number in range(1000):
        tool = GPT4TOOLS_TOOLS[number % len(GPT4TOOLS_TOOLS)]
        arguments = arguments_of(tool, rng)
        words = words_for(tool, arguments, number)
        found = parse(render(words, tool.call_name, *arguments))
        kept += found == Instruction(words, tool, arguments)
        no_comma = parse(render(words, tool.call_name, *arguments).replace(", [", " [", 1))
        cut = parse(render(words, tool.call_name, *arguments)[:-2])
        fewer = parse(render(words, tool.call_name, *arguments[:-1]))
        made_up = parse(render(words, f"{tool.call_name} Quickly", *arguments))
        reasons = [found.reason if isinstance(found, Noise) else "" for found in (no_comma, cut, fewer, made_up)]
        assert reasons == ["format", "format", "arguments", "tool"], words
    assert kept >= 990


def test_words_for_another_tool_are_told_by_what_marks_it() -> None:
    """Each tool's own words under the name of each tool that takes the same: a tool for something else is found out."""
    rng = np.random.default_rng(0)
    missed, n = [], 0
    for tool in GPT4TOOLS_TOOLS:
        for other in GPT4TOOLS_TOOLS:
            if other is tool or other.arguments != tool.arguments:
                continue
            arguments = arguments_of(tool, rng)
            found = parse(render(words_for(tool, arguments, 1), other.call_name, *arguments))
            n += 1
            if not (isinstance(found, Noise) and found.reason == "tool"):
                missed.append((tool.call_name, other.call_name))
    assert len(missed) <= 0.05 * n, missed
