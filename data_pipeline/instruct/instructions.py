"""What the teacher is asked, and what of its answer is kept (GPT4Tools, supplement Tables 3 and 5).

The teacher sees a picture in words and some tools, and writes one line for each tool: an instruction, and the call that
solves it, ``<instruction>, [<tool name>, "<arguments>"]``. Lines of another form, with arguments that the tool does not
take, or for the wrong tool are noise, and are left out with their reason. The wording of the prompt is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from data_pipeline.instruct.captions import CaptionedImage
from data_pipeline.records.catalog import Tool
from data_pipeline.records.text import words_key

IMAGE = "example.png"  # the picture's name in the teacher's prompt
MIN_CHARS, MAX_CHARS = 8, 400  # of an instruction
IMAGE_ARGUMENT = "image_path"

_MADE = "text"  # the argument in which a tool is told what to make

Reason = Literal["format", "arguments", "tool"]

_LEAD = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s*")
_LINE = re.compile(r"^(?P<words>.*?)\s*(?P<comma>,?)\s*\[(?P<call>[^\[\]]*)\]\s*[.;]?\s*$", re.DOTALL)
_QUOTES = "\"'“”‘’`"
_FILE = re.compile(r"\S*\.(?:png|jpe?g)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9]+")
_FEW = 2  # tools that a word may speak of and still mark them
# words of tools that tell nothing of what they do
_COMMON = frozenset(
    [
        "a",
        "all",
        "an",
        "and",
        "by",
        "condition",
        "conditioned",
        "detect",
        "detection",
        "every",
        "find",
        "for",
        "from",
        "generate",
        "get",
        "given",
        "image",
        "images",
        "in",
        "input",
        "it",
        "its",
        "make",
        "named",
        "new",
        "object",
        "of",
        "on",
        "one",
        "photo",
        "picture",
        "real",
        "text",
        "that",
        "the",
        "this",
        "to",
        "user",
        "using",
        "whole",
        "with",
    ]
)


@dataclass(frozen=True)
class Instruction:
    """A line that is kept.

    Attributes:
        words: what the user says.
        tool: what solves it.
        arguments: as the tool takes them, in order; `IMAGE` stands for the picture.
    """

    words: str
    tool: Tool
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Noise:
    """A line that is left out: of Table 5's three kinds, and in words."""

    line: str
    reason: Reason
    why: str


def render_teacher_prompt(image: CaptionedImage, tools: Sequence[Tool]) -> str:
    """The teacher's prompt for one picture (after supplement Table 3).

    Args:
        image: in words.
        tools: that instructions are wanted for; each says what it takes.
    """
    listed = "\n".join(
        f"{number}. {tool.call_name}: {_usage(tool)}. Arguments: {', '.join(tool.arguments)}"
        for number, tool in enumerate(tools, start=1)
    )
    return (
        f"There is an image whose path is {IMAGE}. What it shows: {image.render()}\n"
        "A box is given as (x1, y1, x2, y2): its upper left and its lower right corner, in pixels.\n\n"
        f"Below are {len(tools)} visual tools. Write one instruction that a user of the image could give for each "
        f"tool: {len(tools)} in all, one a line, in exactly this form:\n"
        '<instruction>, [<tool name>, "<arguments, separated by commas>"]\n'
        f"An argument image_path is {IMAGE}. Each instruction is about this image and is solved by its tool alone. "
        "Keep the tools' names as they are and their arguments in their order; use no tool that is not listed.\n\n"
        f"Tools:\n{listed}\n\n"
        "Make the instructions varied and hard to guess: a user seldom says the name of a tool."
    )


def _usage(tool: Tool) -> str:
    """What the tool is for, without the clause about its input; on one line, so that it begins no other tool's."""
    words = tool.usage.partition(" Input:")[0] or tool.description
    return " ".join(words.split()).rstrip(". ")


def parse_reply(text: str, tools: Sequence[Tool], known: Sequence[Tool] = ()) -> list[Instruction | Noise]:
    """Read a teacher's answer line by line.

    Args:
        text: the answer.
        tools: those that its prompt listed.
        known: all tools, by whose words an instruction for another one is told; () = the same.
    """
    lines = (_LEAD.sub("", line).strip() for line in text.splitlines())
    by_name = {words_key(tool.call_name): tool for tool in tools}
    marks = _find_marks(tuple(known or tools))
    return [_parse_line(line, by_name, marks) for line in lines if line]


def _parse_line(line: str, tools: dict[str, Tool], marks: dict[str, _Marks]) -> Instruction | Noise:
    found = _LINE.match(line)
    if found is None:
        return Noise(line, "format", "there is no call in brackets behind the instruction")
    words = found["words"].strip().strip(_QUOTES).strip()
    if not found["comma"]:
        return Noise(line, "format", "no comma stands between instruction and call")
    if not MIN_CHARS <= len(words) <= MAX_CHARS or "[" in words:
        return Noise(line, "format", "the instruction is empty, too short or too long")
    name, comma, rest = found["call"].partition(",")
    tool = tools.get(words_key(name.strip().strip(_QUOTES)))
    if tool is None:
        return Noise(line, "tool", f"the prompt lists no tool {name.strip()[:60]!r}")
    inner = rest.strip()
    if comma and inner[:1] in _QUOTES and inner[:1] and inner[-1:] not in _QUOTES:
        return Noise(line, "format", "a quotation mark around the arguments is missing")
    arguments = _split_arguments(inner, len(tool.arguments))
    if arguments is None:
        return Noise(line, "arguments", f"{tool.call_name} takes {len(tool.arguments)}: {', '.join(tool.arguments)}")
    fault = _check_arguments(arguments, tool)
    if fault:
        return Noise(line, "arguments", fault)
    other = _find_other(words, tool, arguments, marks)
    if other:
        return Noise(line, "tool", f"the words are for {other}, not for {tool.call_name}")
    return Instruction(words, tool, arguments)


def _split_arguments(text: str, n: int) -> tuple[str, ...] | None:
    """n values; the last may hold commas itself. None where there are fewer, or one is empty."""
    bare = text.strip(_QUOTES).strip()
    if n == 0:
        return () if not bare else None
    values = [value.strip().strip(_QUOTES).strip() for value in bare.split(",", n - 1)]
    return tuple(values) if len(values) == n and all(values) else None


def _check_arguments(arguments: Sequence[str], tool: Tool) -> str:
    """Why the values are not what the tool takes, or ""."""
    for value, name in zip(arguments, tool.arguments, strict=True):
        is_file = bool(_FILE.fullmatch(value))
        if name == IMAGE_ARGUMENT:
            if value != IMAGE:
                return f"image_path is {value[:60]!r} and not {IMAGE}"
        elif is_file or "<" in value or ">" in value:
            return f"{name} is {value[:60]!r}, a file or a place holder"
    if tool.arguments and tool.arguments[-1] == IMAGE_ARGUMENT and "," in arguments[-1]:
        return f"{tool.call_name} takes nothing behind the image"
    return ""


@dataclass(frozen=True)
class _Marks:
    """Words by which users speak of a tool: those of its name, and those beside of its usage, that few others have."""

    name: frozenset[str]
    usage: frozenset[str]


@lru_cache(maxsize=8)  # the same tools with every answer of a run
def _find_marks(tools: tuple[Tool, ...]) -> dict[str, _Marks]:
    """Call name -> marks."""
    words = {
        tool.call_name: tuple(_list_words(text) - _COMMON for text in (tool.call_name, _usage(tool))) for tool in tools
    }
    counts = Counter(word for name, usage in words.values() for word in name | usage)
    rare = {word for word, n in counts.items() if n <= _FEW}
    return {key: _Marks(frozenset(name & rare), frozenset(usage & rare)) for key, (name, usage) in words.items()}


def _find_other(words: str, tool: Tool, arguments: Sequence[str], marks: dict[str, _Marks]) -> str:
    """The tool that an instruction speaks of while it says no word that marks its own; or "".

    It speaks of a tool by all marks of its name, or by two of name and usage.
    """
    said = _list_words(words)
    own = marks[tool.call_name]
    own_said = (own.name | own.usage) & said
    # "remove the face in the window" speaks of an object; what is to be made may say how: "a pie, from a sketch"
    content = (value for value, name in zip(arguments, tool.arguments, strict=True) if name != _MADE)
    said -= _list_words(" ".join(content))
    for name, other in marks.items():
        other_said = (other.name | other.usage) & said
        if own_said:  # "estimate the depth map" has words of two tools, and all that are of maps of normals are of both
            if own_said < other_said:
                return name
        elif (other.name and other.name <= said) or len(other_said) >= 2:
            return name
    return ""


def _list_words(text: str) -> set[str]:
    """The words of a text, in the singular."""
    return {word.removesuffix("s") for word in _WORD.findall(text.casefold())}
