"""From the bytes that a chat server sends to an answer. What is in the answer is nobody's business here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.teacher.requests import TeacherReply

BYTES_PER_TOKEN = 4  # of English text, roughly: where a server does not count
MAX_PROBLEM_CHARS = 200  # of a server's own words in an error


class NoAnswerError(Exception):
    """The body of a response with status 200 holds no answer; the message says why.

    Attributes:
        tokens: (prompt, completion) that the server has counted, and wants paid, all the same.
    """

    def __init__(self, why: str, tokens: tuple[int, int] = (0, 0)) -> None:
        super().__init__(why)
        self.tokens = tokens


def decode_body(body: bytes) -> str:
    """The text of a response's body, exactly as it was sent; NoAnswerError where it is none."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise NoAnswerError("the answer is no UTF-8 text") from None


def parse_reply(raw: str, from_cache: bool = False) -> TeacherReply:
    """The answer in a chat completion as the server sent it.

    Raises:
        NoAnswerError: there is none.
    """
    try:
        completion = json.loads(raw)
    except (ValueError, RecursionError):
        raise NoAnswerError("the answer is cut short or no JSON") from None
    if not isinstance(completion, dict):
        raise NoAnswerError("the answer is no chat completion")
    tokens = _read_usage(completion.get("usage"))
    if completion.get("error"):
        raise NoAnswerError(f"the server answered with an error: {describe_problem(completion)}", tokens)
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices:
        raise NoAnswerError("the answer has no choices", tokens)
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise NoAnswerError("the answer has no message", tokens)
    content = message.get("content")
    if content is None:  # declined, or all its tokens went into reasoning: finish_reason tells
        content = ""
    if not isinstance(content, str):
        raise NoAnswerError("the answer's content is no text", tokens)
    return TeacherReply(
        text=_mend(content),
        finish_reason=str(choices[0].get("finish_reason") or "stop"),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        from_cache=from_cache,
    )


def describe_problem(body: object, hide: Callable[[str], str] = str) -> str:
    """A server's own words about what went wrong, on one line and cut; what it sent may have any form.

    Args:
        hide: takes out what must not be shown, before the rest is cut.
    """
    error = body.get("error", body) if isinstance(body, Mapping) else body
    message = error.get("message", error) if isinstance(error, Mapping) else error
    words = " ".join(_mend(hide(str(message))).split()).rstrip(".")
    return words if len(words) <= MAX_PROBLEM_CHARS else words[:MAX_PROBLEM_CHARS] + "…"


def estimate_tokens(text: str) -> int:
    """Roughly how many tokens a text has."""
    return 1 + len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN


def _read_usage(usage: Any) -> tuple[int, int]:
    """(prompt, completion) tokens; 0 for what the server does not say."""
    if not isinstance(usage, dict):
        return 0, 0
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt, completion = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return prompt, completion


def _mend(text: str) -> str:
    """Half of a surrogate pair, which JSON can express, could not be written to any file later: it becomes "?"."""
    return text.encode("utf-8", "replace").decode()
