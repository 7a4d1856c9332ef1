"""The text of an answer that a dialogue's model writes: how it is trimmed at the end, and what is certain before."""

from __future__ import annotations

import re

from data_pipeline.records.dialogue import PROTOCOL_STARTS, Answer, parse_turn, render_answer
from model.decode.turn_types import MEDIA_KINDS

_BEGUN_NAMES = "|".join(rf"{kind}/\S*|{'|'.join(kind[:n] for n in range(len(kind), 0, -1))}" for kind in MEDIA_KINDS)
_OPEN_END = re.compile(rf"(?:{_BEGUN_NAMES})\Z")  # what may become the name of a file, and be put right then
_LOOSE_END = re.compile(r"[\s\ufffd]+\Z")  # what is trimmed at the end, and bytes that may yet become a character


def finish_answer(text: str) -> str:
    """An answer as it was written, trimmed, without broken bytes and from the first line on that is the protocol's."""
    text = text.replace("\ufffd", " ").strip()
    while text and not isinstance(parse_turn(render_answer(text)), Answer):
        text = text.rpartition("\n")[0].strip()
    return text


def settled_answer(text: str) -> str:
    """What of an answer that is being written its end begins with, whatever is written yet."""
    text = _OPEN_END.sub("", _LOOSE_END.sub("", text)).replace("\ufffd", " ").lstrip()
    before, _, line = text.rpartition("\n")
    is_open = any(start.startswith(line) for start in PROTOCOL_STARTS)
    return finish_answer(before if is_open else text)
