"""The strings of GPT4Tools' protocol: prompts, calls, answers, and how a response falls into turns.

Reference: GPT4Tools, supplement Table 4; AILab-CVC/GPT4Tools, `eval/evaluate_result.py` at commit 643faa8. The lines
`Thought:`, `Action:`, `Action Input:`, `Observation:` and `AI:`, the tool lines `> name: usage` and the headings
`Previous conversation:` and `New input:` are the protocol's; the other words of the prompt are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.schema import ASSISTANT, OBSERVATION, Turn

DIALOGUE_FORMAT = "gpt4tools"
DIALOGUE_VERSION = 1

FILE_NAME = re.compile(r"\b(?P<modality>image|audio|video)/[\w-]+\.\w{2,4}")  # a file that a dialogue knows
# the same from its slash on: a pattern that begins with a character is looked for in a tenth of the time
_FILE_SLASH = re.compile(r"/(?<=\bimage/|\baudio/|\bvideo/)[\w-]+\.\w{2,4}")
_BEFORE_SLASH = len("image")
TURN_STOP = "\nObservation:"  # ends a turn that calls a tool; the last turn of a response ends with the eos token

_THOUGHT = "Thought: Do I need to use a tool?"
_FILE_RECEIVED = "Received."
_FILE_KINDS = {"image": "a picture", "audio": "a sound", "video": "a video"}
_BEGIN = "\nBegin with a thought."

_CALL = re.compile(
    rf"{re.escape(_THOUGHT)} Yes[ \t]*\nAction: (?P<name>[^\n]*)\nAction Input: (?P<arguments>[^\n]*){TURN_STOP}"
)
_ANSWER = re.compile(rf"{re.escape(_THOUGHT)} No[ \t]*\nAI: (?P<text>.*)", re.DOTALL)
PROTOCOL_STARTS = ("Thought:", "Action:", "Action Input:", "Observation:")  # of its lines; no answer's line has them
_PROTOCOL_LINE = re.compile(f"^({'|'.join(PROTOCOL_STARTS)})", re.MULTILINE)
_NEXT_THOUGHT = re.compile(r"^Thought:", re.MULTILINE)
_TOOL_LINE = re.compile(r"> (?<=^> )(?P<name>[^:\n]+):[ \t]*(?P<usage>[^\n]*)$", re.MULTILINE)
_TOOL_LIST = re.compile(r"should be one of \[([^\]\n]*)\]")
_HISTORY, _NEW_INPUT = "Previous conversation:", "New input:"
_EXCHANGE = re.compile(
    r"^Human:[ \t]*(?P<human>.*?)\nAI:[ \t]*(?P<reply>.*?)\s*(?=^Human:|\Z)", re.MULTILINE | re.DOTALL
)
_FILE_NOTE = re.compile(
    r"Provide (?:an image|a sound|a video) named (?P<name>\S+)\. Description:[ \t]*(?P<description>.*)", re.DOTALL
)


@dataclass(frozen=True)
class ToolCall:
    """A turn that calls a tool: its name and its arguments as one string, stripped."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """A turn that answers the user, stripped."""

    text: str


def render_dialogue_prompt(tools: Sequence[Tool], history: str, new_input: str) -> str:
    """Render the whole prompt in front of the first turn; it ends with a line break.

    Args:
        tools: those that may be called, in the order in which they are offered; at least one.
        history: earlier exchanges, as `render_exchange` writes them, joined by line breaks; "" at the beginning.
        new_input: the user's words.
    """
    usages = [tool.usage or " ".join(tool.description.splitlines()) for tool in tools]
    lines = "\n".join(f"> {tool.call_name}: {usage}" for tool, usage in zip(tools, usages, strict=True))
    names = ", ".join(tool.call_name for tool in tools)
    earlier = f"{history}\n\n" if history else ""
    return (
        "You help with text and images. Only tools see images. Keep to the file names that you are given.\n"
        f"\nTools:\n{lines}\n"
        f"\nTo use a tool, write:\n{_THOUGHT} Yes\nAction: its name, should be one of [{names}]\n"
        f"Action Input: its input\nObservation: its result\n"
        f"\nTo answer the user, write:\n{_THOUGHT} No\nAI: your answer\n"
        f"\nPrevious conversation:\n{earlier}New input: {new_input}{_BEGIN}\n"
    )


def render_exchange(human: str, reply: str) -> str:
    """One earlier exchange: what the user said and what was answered."""
    return f"Human: {human}\nAI: {reply}"


def render_image_note(image_name: str, description: str) -> str:
    """The exchange that makes an image known (supplement Table 4)."""
    return render_exchange(f"Provide an image named {image_name}. Description: {description}", _FILE_RECEIVED)


def render_file_note(modality: str, file_name: str, description: str) -> str:
    """The exchange that makes a file known: a picture's is GPT4Tools' own, a sound's and a video's are worded alike."""
    if modality == "image":
        return render_image_note(file_name, description)
    what = _FILE_KINDS[modality]
    return render_exchange(f"Provide {what} named {file_name}. Description: {description}", _FILE_RECEIVED)


def render_usage(description: str, inputs: Sequence[str]) -> str:
    """The line about a tool that was not written for dialogues: what it does, and what it takes, in order."""
    return " ".join(f"{description} Input: {', '.join(inputs)}".split())


def render_failure(reason: str) -> str:
    """What is read in place of a tool's result where it failed."""
    return f"The tool failed: {reason}"


def render_file_wish(modality: str) -> str:
    """What a user is answered whose words need a file that is not there."""
    return f"Please attach {_FILE_KINDS[modality]}: I need one for this."


def render_call(name: str, arguments: str) -> str:
    """Render a turn that calls a tool, `TURN_STOP` included."""
    return f"{_THOUGHT} Yes\nAction: {name}\nAction Input: {arguments}{TURN_STOP}"


def render_answer(text: str) -> str:
    """Render a turn that answers the user."""
    return f"{_THOUGHT} No\nAI: {text}"


def render_observation(result: str) -> str:
    """Render what stands between a call and the next turn."""
    return f" {result}\n"


def parse_turn(text: str) -> ToolCall | Answer | None:
    """Read one assistant turn; None where it does not follow the protocol.

    White space around the turn, after the thought and around name, arguments and answer is forgiven. A call must end in
    `TURN_STOP`, name a tool on one line and give the arguments on one line. An answer may have several lines, but none
    that begins like a line of the protocol.
    """
    stripped = text.strip()
    call = _CALL.fullmatch(stripped)
    if call is not None and call["name"].strip():
        return ToolCall(call["name"].strip(), call["arguments"].strip())
    answer = _ANSWER.fullmatch(stripped)
    if answer is not None and answer["text"].strip() and not _PROTOCOL_LINE.search(answer["text"]):
        return Answer(answer["text"].strip())
    return None


def parse_turns(output: str) -> tuple[Turn, ...]:
    """Cut a response into turns; their texts joined are the response, whatever it is.

    What follows "Observation:" (at the beginning of a line) up to the next line that begins with "Thought:" is an
    observation, the rest is the assistant's.
    """
    turns: list[Turn] = []
    position = 0
    while position < len(output):
        stop = output.find(TURN_STOP, position)
        end = len(output) if stop < 0 else stop + len(TURN_STOP)
        turns.append(Turn(ASSISTANT, output[position:end]))
        thought = _NEXT_THOUGHT.search(output, end)
        position = len(output) if thought is None else thought.start()
        if position > end:
            turns.append(Turn(OBSERVATION, output[end:position]))
    return tuple(turns)


def check_turn_order(turns: Sequence[Turn]) -> None:
    """Refuse turns that do not alternate from assistant to assistant.

    Raises:
        InputError: always in the same words.
    """
    roles = [turn.role for turn in turns]
    if len(turns) % 2 == 0 or roles != [OBSERVATION if i % 2 else ASSISTANT for i in range(len(turns))]:
        raise InputError("the turns do not go assistant, observation, assistant, ..., assistant; order them so.")


def find_files(text: str) -> list[str]:
    """The names of files that a text holds, each once, in order."""
    return list(dict.fromkeys(text[start:end] for start, end in _find_file_names(text)))


def rename_files(text: str, names: Mapping[str, str]) -> str:
    """The text with other names for the files that the mapping knows."""
    parts, position = [], 0
    for start, end in _find_file_names(text):
        parts += [text[position:start], names.get(text[start:end], text[start:end])]
        position = end
    return "".join([*parts, text[position:]])


def _find_file_names(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each `FILE_NAME`, in order, none within another."""
    last = 0
    for found in _FILE_SLASH.finditer(text):
        start = found.start() - _BEFORE_SLASH
        if start >= last:
            last = found.end()
            yield start, last


def read_observations(turns: Sequence[Turn]) -> list[str]:
    """What the tools gave, in order."""
    return [turn.text for turn in turns if turn.role == OBSERVATION]


def count_calls(turns: Sequence[Turn]) -> int:
    """How many of the assistant's turns call a tool."""
    return sum(turn.role == ASSISTANT and isinstance(parse_turn(turn.text), ToolCall) for turn in turns)


def read_turns(turns: Sequence[Turn]) -> list[ToolCall | Answer]:
    """The assistant's turns of a dialogue, parsed.

    Raises:
        InputError: the turns are not those of a dialogue; equal faults have equal words.
    """
    if not turns:
        raise InputError("the dialogue has no turn; give at least one assistant turn.")
    check_turn_order(turns)
    parsed: list[ToolCall | Answer] = []
    for turn in turns[::2]:
        step = parse_turn(turn.text)
        if step is None:
            raise InputError("an assistant turn is neither a tool call nor an answer; write one of the two forms.")
        parsed.append(step)
    if any(isinstance(step, Answer) for step in parsed[:-1]):
        raise InputError("an answer is followed by another turn; only the last turn may answer.")
    return parsed


def parse_offered_tools(prompt: str) -> dict[str, str]:
    """Name -> usage of every tool that a prompt offers, in order; "" where only the list of names has it."""
    cut = _cut_prompt(prompt)
    head = prompt if cut is None else cut[0]  # a user's words may look like a tool line
    offered = {found["name"].strip(): found["usage"].strip() for found in _TOOL_LINE.finditer(head)}
    for names in _TOOL_LIST.findall(head):
        for name in names.split(","):
            if name.strip():
                offered.setdefault(name.strip(), "")
    return offered


@dataclass(frozen=True)
class DialoguePrompt:
    """What stands behind the instructions of a prompt.

    Attributes:
        files: name -> description of the files made known, in order.
        exchanges: (what the user said, what was answered) before that, without those.
        new_input: the user's words.
    """

    files: dict[str, str]
    exchanges: tuple[tuple[str, str], ...]
    new_input: str


def parse_dialogue_prompt(prompt: str) -> DialoguePrompt:
    """Take apart what `render_dialogue_prompt` put together.

    Raises:
        InputError: it has no "Previous conversation:" and "New input:".
    """
    cut = _cut_prompt(prompt)
    if cut is None:
        raise InputError("the prompt has no 'Previous conversation:' and 'New input:'; render it as a dialogue's.")
    files: dict[str, str] = {}
    exchanges = []
    _, history, rest = cut
    for exchange in _EXCHANGE.finditer(history):
        note = _FILE_NOTE.fullmatch(exchange["human"])
        if note is None:
            exchanges.append((exchange["human"], exchange["reply"]))
        else:
            files[note["name"]] = note["description"]
    new_input = rest.rpartition(_BEGIN)[0] or rest  # other people's prompts end otherwise
    return DialoguePrompt(files, tuple(exchanges), new_input.strip())


def has_history(prompt: str) -> bool:
    """Whether a prompt holds earlier turns: a reply other than to a file being made known, or a call after the
    user's new words, as the released training rows have it."""
    cut = _cut_prompt(prompt)
    if cut is None:
        return False
    _, history, rest = cut
    replies = [exchange["reply"] for exchange in _EXCHANGE.finditer(history)]
    return any(reply != _FILE_RECEIVED for reply in replies) or f"\n{_THOUGHT} " in rest


def _cut_prompt(prompt: str) -> tuple[str, str, str] | None:
    """What stands before, behind and after the first lines beginning with `_HISTORY` and `_NEW_INPUT`, or None."""
    begin = 0 if prompt.startswith(_HISTORY) else prompt.find(f"\n{_HISTORY}") + 1
    history = begin + len(_HISTORY)
    end = prompt.find(f"\n{_NEW_INPUT}", history) + 1
    if not prompt.startswith(_HISTORY, begin) or end == 0:
        return None
    return prompt[:begin], prompt[history:end], prompt[end + len(_NEW_INPUT) :]
