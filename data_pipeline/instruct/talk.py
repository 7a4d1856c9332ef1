"""Words that need no tool: what GPT4Tools calls negative samples (section 3). The teacher writes these as well."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_pipeline.instruct.captions import CaptionedImage
from data_pipeline.records.text import words_key

N_EXCHANGES = 4  # that one prompt asks for
MAX_CHARS = 600  # of the words, and of the answer

_EXCHANGE = re.compile(
    r"^\s*(?:\d{1,2}[.)]\s*)?User:[ \t]*(?P<words>\S.*?)\s*\n\s*Assistant:[ \t]*(?P<answer>\S[^\n]*)", re.MULTILINE
)
_TOOL_WORDS = re.compile(r"\b(?:Thought|Action|Action Input|Observation):|\.png\b|\.jpe?g\b", re.IGNORECASE)


@dataclass(frozen=True)
class Talk:
    """What a user says and what is answered without a tool."""

    words: str
    answer: str


def render_talk_prompt(image: CaptionedImage) -> str:
    """Ask the teacher for exchanges that need no tool, about what a picture is about."""
    return (
        f"Somebody talks with an assistant that also has tools for images. The talk is about this: {image.caption}\n"
        f"Write {N_EXCHANGES} short exchanges in which no tool is needed: greetings, thanks, opinions, or questions "
        "that general knowledge answers. Nothing may have to be looked up in an image. Use this form for each:\n"
        "User: <what is said>\nAssistant: <the answer, in one or two sentences>"
    )


def parse_talk(text: str) -> tuple[list[Talk], int]:
    """The exchanges of a teacher's answer, and how many were left out: they speak of files or of the protocol, only say
    the user's words again, or were there before."""
    found = [Talk(" ".join(each["words"].split()), each["answer"].strip()) for each in _EXCHANGE.finditer(text)]
    kept = [
        talk
        for talk in dict.fromkeys(found)
        if words_key(talk.words) != words_key(talk.answer)
        and len(talk.words) <= MAX_CHARS
        and len(talk.answer) <= MAX_CHARS
        and not _TOOL_WORDS.search(f"{talk.words} {talk.answer}")
    ]
    return kept, len(found) - len(kept)
