"""A generated row as a judge, a person and a test corpus see it: words, answer, situation; and edits put back.

What is drawn for each run (names of files, tools that are offered beside) is no part of it. Its key is a hash of the
content, so a decision about it holds in every run that writes the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_pipeline.errors import InputError
from data_pipeline.instruct.captioned_media import find_modality
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.dialogue import (
    FILE_NAME,
    Answer,
    ToolCall,
    find_files,
    parse_dialogue_prompt,
    parse_offered_tools,
    parse_turns,
    read_turns,
    rename_files,
)
from data_pipeline.records.schema import OBSERVATION, Modality, ToolRecord
from data_pipeline.records.text import check_encodable

_ATTACHED: dict[Modality | None, str] = {
    Modality.IMAGE: "a picture",
    Modality.AUDIO: "a sound",
    Modality.VIDEO: "a video",
}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        key: sha256 (hex) of situation, words and answer.
        situation: what is known before the user speaks; "" or lines that each end with a line break.
        words: the user's.
        answer: as a person may edit it: a dialogue's turns, or the ids of right tools, separated by commas.
        proposal: the answer in words, for a judge.
        fault: why the row could not be read as it was meant, in a sentence; "" = it can.
    """

    key: str
    situation: str
    words: str
    answer: str
    proposal: str
    fault: str = ""


class Form(Protocol):
    """What differs between rows of dialogues and of questions."""

    def describe(self, row: Mapping[str, Any]) -> Case:
        """A row that a recipe wrote."""
        ...

    def edit(self, row: Mapping[str, Any], words: str, answer: str) -> dict[str, Any]:
        """The row with other words and another answer, given as `describe` shows them; InputError for what is none."""
        ...

    def to_record(self, row: Mapping[str, Any], record_id: str, sha256: str) -> ToolRecord:
        """What a test corpus is searched for; sha256 is of the row's medium, "" where it has none."""
        ...


class DialogueForm:
    """Rows of GPT4Tools' form. Files are called image/1.png, image/2.png, ..., in the order in which they appear."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.call_name: tool for tool in tools}

    def describe(self, row: Mapping[str, Any]) -> Case:
        names = _short_names(row)
        prompt = parse_dialogue_prompt(rename_files(row["instruction"], names))
        output = rename_files(row["output"], names)
        lines = [f"There is a file {name}. It shows: {text}\n" for name, text in prompt.files.items()]
        lines += [f'Earlier the user said: "{human}" The answer was: "{reply}"\n' for human, reply in prompt.exchanges]
        situation = "".join(lines)
        return Case(
            _hash(situation, prompt.new_input, output),
            situation,
            prompt.new_input,
            output,
            self._propose(output),
            self._find_fault(row),
        )

    def edit(self, row: Mapping[str, Any], words: str, answer: str) -> dict[str, Any]:
        own_names = {short: name for name, short in _short_names(row).items()}
        before = parse_dialogue_prompt(row["instruction"]).new_input
        head, mark, rest = row["instruction"].rpartition(f"New input: {before}")
        edited = {**row, "instruction": head + "New input: " + " ".join(rename_files(words, own_names).split()) + rest}
        edited["output"] = rename_files(answer.strip(), own_names)
        fault = self._find_fault(edited) if mark and words.strip() else "the user says nothing"
        if fault:
            raise InputError(fault)
        return edited

    def to_record(self, row: Mapping[str, Any], record_id: str, sha256: str) -> ToolRecord:
        del sha256  # what is compared are the user's words: whose file it is, they do not say
        return text_record(record_id, strip_dialogue(row["instruction"]))

    def _propose(self, output: str) -> str:
        try:
            steps = read_turns(parse_turns(output))
        except InputError:
            return output
        lines = []
        for number, step in enumerate(steps, start=1):
            if isinstance(step, Answer):
                lines.append(f'{number}. uses no tool and answers "{step.text}"')
            else:
                tool = self._tools.get(step.name)
                usage = f" ({tool.usage or tool.description})" if tool else ""
                lines.append(f'{number}. calls {step.name}{usage} with "{step.arguments}"')
        return "\n".join(lines)

    def _find_fault(self, row: Mapping[str, Any]) -> str:
        try:
            self._check(row)
        except InputError as error:
            return str(error)
        return ""

    def _check(self, row: Mapping[str, Any]) -> None:
        prompt, turns = row["instruction"], parse_turns(row["output"].strip())
        check_encodable(prompt + row["output"])
        if not parse_dialogue_prompt(prompt).new_input:
            raise InputError("the user says nothing")
        if not turns:
            raise InputError("the assistant says nothing")
        steps = read_turns(turns[:-1] if turns[-1].role == OBSERVATION and len(turns) > 1 else turns)
        offered = parse_offered_tools(prompt)
        known = set(find_files(prompt[prompt.index("Previous conversation:") :]))
        for step, seen in zip(steps, [*turns[1::2], None], strict=False):
            if not isinstance(step, ToolCall):
                continue
            if step.name not in offered:
                raise InputError(f"{step.name[:80]!r} is called, which the prompt does not offer")
            tool = self._tools.get(step.name)
            n = len(tool.arguments) if tool is not None else 0
            values = [value for value in step.arguments.split(",", max(0, n - 1)) if value.strip()]
            if tool is not None and len(values) != n:
                raise InputError(f"{step.name} takes {n} values ({', '.join(tool.arguments)}); it got {len(values)}")
            if strangers := set(find_files(step.arguments)) - known:
                raise InputError(f"{min(strangers)} is used, which nobody gave")
            known.update(find_files(seen.text) if seen is not None else ())


class QuestionForm:
    """Rows as `prepare.source=jsonl` reads them, with tools of one catalogue."""

    def __init__(self, catalog: ToolCatalog, captions: Mapping[str, str]) -> None:
        self._catalog = catalog
        self._captions = captions

    def describe(self, row: Mapping[str, Any]) -> Case:
        medium = row.get("media", "")
        candidates = row.get("candidates", [])
        situation = ""
        if medium:
            kind = _ATTACHED.get(find_modality(medium), "a file")
            caption = self._captions.get(medium, "")
            situation = f"The user attaches {kind}{f', which shows: {caption}' if caption else ''}\n"
        if candidates:
            situation += f"It is what is attached that tells which of these tools is right: {', '.join(candidates)}\n"
        answer = ", ".join(row["tools"])
        listed = [f"{number}. {self._describe_tool(tool)}" for number, tool in enumerate(row["tools"], start=1)]
        proposal = "takes any of these tools, as each of them solves it:\n" + "\n".join(listed)
        words = row["instruction"]
        return Case(_hash(situation, medium, words, answer), situation, words, answer, proposal, self._find_fault(row))

    def edit(self, row: Mapping[str, Any], words: str, answer: str) -> dict[str, Any]:
        tools = list(dict.fromkeys(filter(None, (tool.strip() for tool in answer.split(",")))))
        edited = {**row, "instruction": words.strip(), "tools": tools}
        if fault := self._find_fault(edited):
            raise InputError(fault)
        return edited

    def to_record(self, row: Mapping[str, Any], record_id: str, sha256: str) -> ToolRecord:
        return ToolRecord(
            record_id,
            "generated",
            find_modality(row.get("media", "")) or Modality.TEXT,
            row["instruction"],
            tuple(row["tools"]),
            media_uri=row.get("media", ""),
            media_sha256=sha256,
        )

    def _find_fault(self, row: Mapping[str, Any]) -> str:
        try:
            check_encodable(row["instruction"])
        except InputError as error:
            return str(error)
        if not row["instruction"].strip():
            return "the user says nothing"
        if not row["tools"]:
            return f"no tool is right; name {UNKNOWN_TOOL_ID!r} where none of them is"
        strangers = [tool for tool in row["tools"] if tool not in self._catalog]
        return f"the catalogue has no tool {strangers[0][:80]!r}" if strangers else ""

    def _describe_tool(self, tool_id: str) -> str:
        description = self._catalog[tool_id].description if tool_id in self._catalog else ""
        return f"{tool_id}: {description}" if description else tool_id


def strip_dialogue(prompt: str) -> str:
    """The user's new words of a dialogue's prompt, any file called the same; a text that is no prompt stays."""
    try:
        words = parse_dialogue_prompt(prompt).new_input
    except InputError:
        return prompt
    return FILE_NAME.sub(lambda found: f"{found['modality']}/file", words) or prompt


def text_record(record_id: str, words: str) -> ToolRecord:
    """A question in words alone, to be compared with others."""
    return ToolRecord(record_id, "compared", Modality.TEXT, words, (UNKNOWN_TOOL_ID,))


def _short_names(row: Mapping[str, Any]) -> dict[str, str]:
    names = find_files(f"{row['instruction']}\n{row['output']}")
    return {name: f"{name.partition('/')[0]}/{number}.png" for number, name in enumerate(names, start=1)}


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
