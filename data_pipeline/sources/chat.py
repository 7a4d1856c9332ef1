"""A chat as other trainers write it, and the record that it becomes.

Where the assistant calls tools, or answers a user to whom tools are offered, it becomes a dialogue in GPT4Tools' form,
worded as the service words its own (`serve/agent`). Where a single answer is one tool's name, it becomes a question of
tool selection.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.dialogue import (
    read_turns,
    render_answer,
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_image_note,
    render_observation,
)
from data_pipeline.records.schema import ASSISTANT, OBSERVATION, SPLITS, Modality, ToolRecord, Turn
from data_pipeline.sources.reading import relative_media_uri

PLACEHOLDERS = ("<image>", "<video>", "<audio>")  # of LLaMA-Factory and TRL, where a medium stands in the words


@dataclass(frozen=True)
class ChatCall:
    """A call of a tool: its name, its arguments by name, and the id that its result refers to; "" = none."""

    name: str
    arguments: Mapping[str, Any]
    call_id: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """One message; role is "system", "user", "assistant" or "tool", and only the assistant calls.

    `call_id` is that of the call whose result a tool's message is; "" = the first one without.
    """

    role: str
    text: str
    calls: tuple[ChatCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True)
class Chat:
    """A whole chat.

    Attributes:
        messages: in order.
        tools: those that are offered, with `arguments`; () where the chat does not say.
        media: (modality, path) of what comes with it.
        split: that the row prescribes, or "".
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    media: tuple[tuple[Modality, str], ...] = ()
    split: str = ""


class KnownTools:
    """Tools that have been seen, by id and by what a dialogue calls them; the first entry of an id stands."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self.by_id: dict[str, Tool] = {}
        self.by_name: dict[str, Tool] = {}
        self.add(tools)

    def add(self, tools: Iterable[Tool]) -> None:
        for tool in tools:
            if tool.tool_id not in self.by_id:
                self.by_id[tool.tool_id] = self.by_name[tool.call_name] = tool


@dataclass
class _Step:
    """A call of the assistant's and its result, or an answer."""

    call: ChatCall | None
    text: str | None = None


@dataclass
class _Exchange:
    """What follows one question of the user's."""

    words: list[str] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)

    @property
    def calls(self) -> list[ChatCall]:
        return [step.call for step in self.steps if step.call is not None]


def build_record(
    chat: Chat, record_id: str, source: str, known: KnownTools, repairs: Counter[str]
) -> tuple[ToolRecord, tuple[Tool, ...]]:
    """Map a chat.

    Args:
        chat: as one of the forms' readers gives it.
        record_id, source: of the record.
        known: the tools that an answer may name besides the offered ones.
        repairs: where what is left out is counted.

    Returns:
        the record, and the tools that it brings.

    Raises:
        InputError: it cannot be mapped; equal faults have equal words.
    """
    chat = replace(chat, tools=_adopt(chat.tools, known))
    if n_unknown := sum(bool(tool.arguments) and not tool.parameters for tool in chat.tools):
        repairs["an offered tool's parameters left out: no JSON schema"] += n_unknown
    exchanges, system = _cut_exchanges(chat.messages, repairs)
    if not exchanges or not any(exchange.steps for exchange in exchanges):
        raise InputError("the chat holds no answer of an assistant")
    named = _named_tool(exchanges[-1], chat.tools, known)
    if named and not any(exchange.calls for exchange in exchanges):
        if len(exchanges) > 1:
            raise InputError("the answer is a tool's name, but earlier messages stand before the question")
        if system:
            repairs["system message of a tool selection left out"] += 1
        return _build_selection(chat, exchanges[0], named, record_id, source), chat.tools
    return _build_dialogue(chat, exchanges, system, record_id, source, known, repairs)


def _adopt(tools: Sequence[Tool], known: KnownTools) -> tuple[Tool, ...]:
    """Offered tools under the ids of the known tools of the same names; their words stay the chat's."""
    adopted = []
    for tool in tools:
        entry = known.by_name.get(tool.call_name)
        if entry is None and tool.tool_id in known.by_id:
            raise InputError("a tool's name differs from another's only in white space or signs")
        adopted.append(tool if entry is None else replace(tool, tool_id=entry.tool_id, name=entry.name))
    return tuple(adopted)


def _cut_exchanges(messages: Sequence[ChatMessage], repairs: Counter[str]) -> tuple[list[_Exchange], list[str]]:
    """The chat question by question, and what the system says."""
    exchanges: list[_Exchange] = []
    system: list[str] = []
    for message in messages:
        if message.role == "system":
            system.append(message.text)
            continue
        if not exchanges or (message.role == "user" and exchanges[-1].steps):
            exchanges.append(_Exchange())
        exchange = exchanges[-1]
        if message.role == "user":
            exchange.words.append(message.text)
        elif message.role == "tool":
            _give_result(exchange, message)
        elif message.calls:
            if message.text.strip():
                repairs["words beside a call left out"] += 1
            exchange.steps += [_Step(call) for call in message.calls]
        else:
            exchange.steps.append(_Step(None, message.text))
    return exchanges, system


def _give_result(exchange: _Exchange, message: ChatMessage) -> None:
    open_steps = [step for step in exchange.steps if step.call is not None and step.text is None]
    if message.call_id:
        open_steps = [step for step in open_steps if step.call and step.call.call_id in ("", message.call_id)]
    if not open_steps:
        raise InputError("a tool's result follows no call of the tool")
    open_steps[0].text = message.text


def _named_tool(exchange: _Exchange, offered: Sequence[Tool], known: KnownTools) -> str:
    """The id of the tool that the last answer names and holds nothing beside; "" = none."""
    if len(exchange.steps) != 1 or exchange.steps[0].call is not None:
        return ""
    answer = (exchange.steps[0].text or "").strip()
    if answer == UNKNOWN_TOOL_ID:
        return answer
    tool = known.by_name.get(answer) or next((tool for tool in offered if tool.call_name == answer), None)
    if tool is None:
        return ""
    if tool.name:
        raise InputError("the answer is the name of a tool that is for dialogues only, as it has white space or signs")
    return answer


def _build_selection(chat: Chat, exchange: _Exchange, tool_id: str, record_id: str, source: str) -> ToolRecord:
    if len(chat.media) > 1:
        raise InputError("a question of tool selection has more than one medium")
    modality, path = chat.media[0] if chat.media else (Modality.TEXT, "")
    words = "\n".join(exchange.words)
    for placeholder in PLACEHOLDERS if chat.media else ():
        words = words.replace(placeholder, "").strip() if placeholder in words else words
    if not words.strip():
        raise InputError("the user's words are empty")
    return ToolRecord(
        record_id=record_id,
        source=source,
        modality=modality,
        instruction=words,
        valid_tool_ids=(tool_id,),
        media_uri=_media_uri(path) if path else "",
        candidate_tool_ids=tuple(dict.fromkeys(tool.tool_id for tool in chat.tools)),
        split=chat.split,
    )


def _build_dialogue(
    chat: Chat,
    exchanges: Sequence[_Exchange],
    system: Sequence[str],
    record_id: str,
    source: str,
    known: KnownTools,
    repairs: Counter[str],
) -> tuple[ToolRecord, tuple[Tool, ...]]:
    """The last question whose answer calls tools, or the last one at all; what was said before is its history."""
    tools = chat.tools or _called_tools(exchanges, known)
    if not tools:
        raise InputError("no tool is offered or called, and the answer is no name of a tool of the catalogue")
    offered = {tool.call_name: tool for tool in tools}
    calling = [position for position, exchange in enumerate(exchanges) if exchange.calls]
    last = calling[-1] if calling else len(exchanges) - 1
    if last < len(exchanges) - 1:
        repairs["messages behind the answer to the last call left out"] += 1
    if not {call.name for exchange in exchanges[: last + 1] for call in exchange.calls} <= set(offered):
        raise InputError("a tool is called that is not offered")
    words = _one_line(exchanges[last].words)
    if not words:
        raise InputError("the user's words are empty")
    history = [render_exchange(_one_line([text]), "Understood.") for text in system]
    history += [_render_medium(modality, path) for modality, path in chat.media]
    history += [_render_earlier(exchange) for exchange in exchanges[:last]]
    turns = _build_turns(exchanges[last], offered, repairs)
    read_turns(turns)
    called = dict.fromkeys(offered[call.name].tool_id for call in exchanges[last].calls)
    record = ToolRecord(
        record_id=record_id,
        source=source,
        modality=Modality.TEXT,
        instruction=render_dialogue_prompt(tools, "\n".join(history), words),
        valid_tool_ids=tuple(called) or (UNKNOWN_TOOL_ID,),
        candidate_tool_ids=tuple(dict.fromkeys(tool.tool_id for tool in tools)),
        turns=turns,
        split=chat.split,
    )
    return record, tuple(tools)


def _called_tools(exchanges: Sequence[_Exchange], known: KnownTools) -> tuple[Tool, ...]:
    """What a chat that offers nothing calls: the catalogue's entries, else entries of what the calls show."""
    called: dict[str, Tool] = {}
    for call in (call for exchange in exchanges for call in exchange.calls):
        called.setdefault(call.name, known.by_name.get(call.name) or build_tool(call.name, "", tuple(call.arguments)))
    return _adopt(tuple(called.values()), known)


def build_tool(
    name: str, description: str, arguments: tuple[str, ...], parameters: dict[str, Any] | None = None
) -> Tool:
    """A function of somebody's as a tool: its usage is worded as the service words it.

    Raises:
        InputError: no catalogue can hold such a tool.
    """
    usage = " ".join(f"{description} Input: {', '.join(arguments)}".split())
    if name == UNKNOWN_TOOL_ID:
        raise InputError("a tool is called 'unknown', which stands for none of them")
    try:
        has_sign = any(c.isspace() or c in "{}[],'\"" for c in name)
        tool_id = "".join("-" if c.isspace() or c in "{}[],'\"" else c for c in name)
        return Tool(
            tool_id,
            description,
            name=name if has_sign else "",
            usage=usage,
            arguments=arguments,
            parameters=parameters or {},
        )
    except InputError as error:
        raise InputError("a tool's name, description or arguments cannot stand in a prompt") from error


def _render_medium(modality: Modality, path: str) -> str:
    if modality is not Modality.IMAGE:
        raise InputError("a dialogue comes with a sound or a video; GPT4Tools' form makes pictures known only")
    name = _media_uri(path)
    if "," in name or any(c.isspace() for c in name):
        raise InputError("the name of a dialogue's picture holds white space or a comma, so no call could give it")
    return render_image_note(name, "none given")


def _media_uri(path: str) -> str:
    try:
        return relative_media_uri(path)
    except InputError as error:
        raise InputError("a medium is an address or does not lie below the media root; fetch it there") from error


def _render_earlier(exchange: _Exchange) -> str:
    replies = [f"{step.call.name}: {step.text or ''}" if step.call else step.text or "" for step in exchange.steps]
    return render_exchange(_one_line(exchange.words), _one_line(replies))


def _build_turns(exchange: _Exchange, offered: Mapping[str, Tool], repairs: Counter[str]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for position, step in enumerate(exchange.steps):
        is_last = position == len(exchange.steps) - 1
        if step.call is None:
            turns.append(Turn(ASSISTANT, render_answer((step.text or "").strip())))
            if not is_last:
                raise InputError("an answer is followed by another turn; only the last turn may answer.")
            continue
        turns.append(Turn(ASSISTANT, render_call(step.call.name, _one_line_input(step.call, offered, repairs))))
        if is_last and step.text is not None:
            repairs["observation after the last call left out"] += 1
        elif not is_last and step.text is None:
            raise InputError("a call has no result, but something follows it")
        elif not is_last:
            turns.append(Turn(OBSERVATION, render_observation(_one_line([step.text or ""]))))
    return tuple(turns)


def _one_line_input(call: ChatCall, offered: Mapping[str, Tool], repairs: Counter[str]) -> str:
    """The action input: the values in the order in which the tool takes them, separated by commas."""
    declared = offered[call.name].arguments
    names = [name for name in declared if name in call.arguments]
    if names != list(declared[: len(names)]):
        raise InputError("a call leaves out an argument before one that it gives; the order alone could not tell")
    names += [name for name in call.arguments if name not in declared]
    values = [_one_line([_spell(call.arguments[name])]) for name in names]
    plain = [value.replace(",", " ") for value in values[:-1]] + values[-1:]
    if plain != values:
        repairs["comma in an argument before the last left out"] += 1
    return ", ".join(_one_line([value]) for value in plain)


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _one_line(texts: Sequence[str]) -> str:
    """On one line, as no line of a prompt may pass for the protocol's."""
    return " ".join(" ".join(texts).split())


def read_split(row: Mapping[str, Any]) -> str:
    """The split that a row prescribes, or ""."""
    split = row.get("split") or ""
    if split and split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}")
    return split
