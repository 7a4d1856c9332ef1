"""Alpaca's form: `{"instruction", "input", "output", "system", "history": [[question, answer], ...], "images": []}`.

It has no calls, so a row is a question of tool selection: its output is one tool's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.sources.chat import Chat, ChatMessage, read_split
from data_pipeline.sources.functions import parse_functions, parse_list, parse_media


def parse_alpaca(row: Mapping[str, Any]) -> Chat:
    """Read one row.

    Raises:
        InputError: it does not follow the form; equal faults have equal words.
    """
    words, more, output, system = (row.get(key) or "" for key in ("instruction", "input", "output", "system"))
    if not all(isinstance(text, str) for text in (words, more, output, system)):
        raise InputError("instruction, input, output or system is no text")
    if output.lstrip().startswith("Thought: "):
        raise InputError("the output is a turn in GPT4Tools' form; read such rows with prepare.source=gpt4tools")
    messages = [ChatMessage("system", system)] if system.strip() else []
    for pair in parse_list(row.get("history"), "history"):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InputError("history is no list of [question, answer]")
        messages += [ChatMessage("user", pair[0]), ChatMessage("assistant", pair[1])]
    messages.append(ChatMessage("user", "\n".join(text for text in (words, more) if text)))
    messages.append(ChatMessage("assistant", output))
    return Chat(tuple(messages), parse_functions(row.get("tools")), parse_media(row), read_split(row))
