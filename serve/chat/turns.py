"""A chat with a caller's own functions as the next turn of a dialogue, for models that were trained on dialogues.

The functions stand in the prompt with what they do and take; the system message and the earlier exchanges are its
history; calls that the caller made since the user's last words, and what came of them, are the turns before. The model
weighs every function against an answer. The arguments of a call are made from the words (`serve.chat.arguments`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.dialogue import (
    render_call,
    render_dialogue_prompt,
    render_observation,
    render_usage,
)
from data_pipeline.records.schema import Turn
from model.decode.turn_types import ANSWER, TurnRequest, TurnTool, WrittenTurn
from serve.chat.content import Conversation
from serve.chat.memory import render_history
from serve.chat.tools import OfferedTool

_MAX_RESULT_CHARS = 500  # of one call's result; as much as the agent reads


@dataclass(frozen=True)
class CallerDialogue:
    """What the next turn is written from.

    Attributes:
        tools: the functions, in the order in which they are offered.
        history: earlier exchanges, oldest first.
        words: the user's last.
        turns: calls and results since.
        called: names of the functions that were called since: the same words give the same arguments again.
    """

    tools: tuple[OfferedTool, ...]
    history: tuple[str, ...]
    words: str
    turns: tuple[Turn, ...]
    called: frozenset[str]

    @classmethod
    def read(cls, conversation: Conversation, tools: Sequence[OfferedTool]) -> CallerDialogue:
        """Of a chat whose last words are the user's, or results of calls for them."""
        before = replace(conversation, turns=conversation.turns[: conversation.last_user + 1])
        since = conversation.turns[conversation.last_user + 1 :]
        arguments = {call.call_id: call.arguments for turn in since for call in turn.calls}
        names = {tool.client_name: tool.name for tool in tools}
        turns: list[Turn] = []
        called = []
        for result in (turn for turn in since if turn.role == "tool" and turn.call_id in arguments):
            name = conversation.call_name(result.call_id)
            name = names.get(name, name)
            called.append(name)
            turns.append(Turn("assistant", render_call(_one_line(name), _render_input(arguments[result.call_id]))))
            turns.append(Turn("observation", render_observation(_one_line(result.text) or "Done.")))
        words = _one_line(conversation.words, None)
        return cls(tuple(tools), render_history(before), words, tuple(turns), frozenset(called))

    def ask(self, *, must_call: bool, max_answer_tokens: int | None) -> TurnRequest:
        """The turn that is to be written. A function that was called is not called again unless a call is required."""
        left = [tool for tool in self.tools if must_call or tool.name not in self.called]
        return TurnRequest(
            prompt=render_dialogue_prompt([describe(tool) for tool in self.tools], "\n".join(self.history), self.words),
            turns=self.turns,
            tools=tuple(TurnTool(tool.name, (), tool.description) for tool in left),
            fallback_text=self.words,
            may_call=bool(left),
            may_answer=not must_call,
            max_answer_tokens=max_answer_tokens,
        )

    def without_oldest(self) -> CallerDialogue:
        """The same without the oldest exchange, where the prompt is too long."""
        return replace(self, history=self.history[1:])


def describe(tool: OfferedTool) -> Tool:
    """A function as a dialogue's prompt offers it: what it does, and the names of what it takes."""
    properties = tool.parameters.get("properties")
    inputs = list(properties) if isinstance(properties, dict) else []
    return Tool(tool.name, tool.description, usage=render_usage(tool.description, inputs))


def read_choices(written: WrittenTurn) -> list[tuple[str, float]]:
    """The functions and their probabilities, likeliest first; `unknown` stands for an answer in words."""
    return [(UNKNOWN_TOOL_ID if name == ANSWER else name, math.exp(score)) for name, score in written.choices]


def _render_input(arguments: str) -> str:
    """A call's arguments as an action input: the values, separated by commas, or what stands there if it is no JSON."""
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return _one_line(arguments)
    return _one_line(", ".join(value if isinstance(value, str) else json.dumps(value) for value in values.values()))


def _one_line(text: str, limit: int | None = _MAX_RESULT_CHARS) -> str:
    """Words of others on one line: none of them may begin like a line of the protocol."""
    return " ".join(text.split())[:limit]
