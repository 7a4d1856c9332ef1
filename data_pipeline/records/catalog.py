"""The tool catalogue: the closed set of tools that an answer may name."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.parameters import MAX_SCHEMA_CHARS, check_parameters, list_arguments
from data_pipeline.records.schema import Modality
from data_pipeline.records.text import check_encodable, parse_json, read_text

CATALOG_FILE = "catalog.jsonl"  # its name wherever it lies: in a corpus, a bundle, beside a user's records
UNKNOWN_TOOL_ID = "unknown"  # the answer "none of them" (MLLM-Tool section 3.1)
MAX_LABEL_CHARS = 200  # of a domain and of either functionality
MAX_EXAMPLE_CHARS = 4000  # of example code

_ALLOWED = {
    "input_modality": ("", *Modality),
    "output_modality": ("", *Modality),
    "backend": ("", "local", "huggingface"),
}


@dataclass(frozen=True)
class Tool:
    """One callable entry.

    Attributes:
        tool_id: its key, as the model writes it: no white space and none of ``{ } [ ] , ' "``.
        description: what it does, in one sentence.
        input_modality: "text", "image", "audio" or "video"; "" where the source does not say.
        output_modality: likewise.
        backend: "local" (a function of ours), "huggingface" (a hub model by its id) or "" (not callable from here).
        name: what a dialogue calls it; may hold spaces; "" where the tool_id is the name.
        usage: the line about it in a dialogue's prompt: when to use it and what to give it; "" = the description.
        arguments: what one call takes, in order, such as ("image_path", "text"); where they are not given, those of
            `parameters`; () where the source does not say.
        call: the code that calls it, such as "torch.hub.load('a/b', 'c')", on one line; "" where there is none.
        parameters: JSON Schema (2020-12) of an object that holds the arguments; {} where the source has none.
        domain: the field that it belongs to, such as "Computer Vision"; "" where the source does not say, as in the
            next three (MLLM-Tool, section 3.1, notes these four of each model).
        coarse_functionality: its task, such as "Image-to-Image".
        fine_functionality: its subtask, such as "Image Deraining"; tools of one subtask do the same.
        example_code: code that uses it, of any number of lines.
    """

    tool_id: str
    description: str = ""
    input_modality: str = ""
    output_modality: str = ""
    backend: str = ""
    name: str = ""
    usage: str = ""
    arguments: tuple[str, ...] = ()
    call: str = ""
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    domain: str = ""
    coarse_functionality: str = ""
    fine_functionality: str = ""
    example_code: str = ""

    def __post_init__(self) -> None:
        self._check_types()
        if not self.tool_id or any(c.isspace() or c in "{}[],'\"" for c in self.tool_id):
            raise InputError(
                f"tool id {self.tool_id!r} is empty or holds white space or one of {{ }} [ ] , ' \"; rename the tool."
            )
        if self.name != self.name.strip() or len(self.name.splitlines()) > 1 or any(c in ":,[]" for c in self.name):
            raise InputError(
                f"name {self.name!r} of tool {self.tool_id!r} begins or ends with white space or holds a line break or "
                "one of : , [ ]; a dialogue could not tell where it ends: rename the tool."
            )
        for key in ("usage", "call", *_LABELS):
            if len(getattr(self, key).splitlines()) > 1:
                raise InputError(f"the {key} of tool {self.tool_id!r} holds a line break; write it on one line.")
        for key, most in (*((label, MAX_LABEL_CHARS) for label in _LABELS), ("example_code", MAX_EXAMPLE_CHARS)):
            if len(getattr(self, key)) > most:
                raise InputError(f"the {key} of tool {self.tool_id!r} has more than {most:,} characters; shorten it.")
        arguments = tuple(self.arguments) or list_arguments(self.parameters)  # JSON has lists only
        object.__setattr__(self, "arguments", arguments)

    def _check_types(self) -> None:
        """What JSON may hold in a field and no file or program could use later."""
        for key, value in vars(self).items():
            if key == "parameters":
                try:
                    check_parameters(value)
                except InputError as error:
                    raise InputError(
                        f"the parameters of tool {reprlib.repr(self.tool_id)} {error}; give a JSON Schema of an object "
                        f"with at most {MAX_SCHEMA_CHARS:,} characters."
                    ) from error
                continue
            if key == "arguments":
                if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
                    raise InputError(
                        f"arguments of tool {self.tool_id!r} is {reprlib.repr(value)}; give a list of names."
                    )
            elif not isinstance(value, str):
                where = "" if key == "tool_id" else f" of tool {reprlib.repr(self.tool_id)}"
                raise InputError(f"{key}{where} is {reprlib.repr(value)}; give a text in quotation marks.")
            elif key in _ALLOWED and value not in _ALLOWED[key]:
                allowed = ", ".join(repr(str(choice)) for choice in _ALLOWED[key])
                raise InputError(f"{key} of tool {self.tool_id!r} is {value[:40]!r}; it must be one of {allowed}.")
            try:
                check_encodable("".join(value))
            except InputError as error:
                raise InputError(f"{key} of tool {self.tool_id!r}: {error}") from error

    @property
    def call_name(self) -> str:
        """What a dialogue calls the tool."""
        return self.name or self.tool_id

    def to_json(self) -> dict[str, Any]:
        """The entry as a JSON object; what only some sources have is left out where it is empty."""
        entry = asdict(self)
        return {key: value for key, value in entry.items() if value or key not in _OPTIONAL_FIELDS}


_LABELS = ("domain", "coarse_functionality", "fine_functionality")
_OPTIONAL_FIELDS = ("name", "usage", "arguments", "call", "parameters", *_LABELS, "example_code")


class ToolCatalog:
    """An ordered, closed set of tools with a content hash."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        by_call_name: dict[str, str] = {}
        for tool in tools:
            if tool.tool_id in self._tools:
                raise InputError(f"tool id {tool.tool_id!r} is in the catalogue twice; keep one entry.")
            self._tools[tool.tool_id] = tool
            twin = by_call_name.setdefault(tool.call_name, tool.tool_id)
            if twin != tool.tool_id:
                raise InputError(
                    f"a dialogue calls the tools {twin!r} and {tool.tool_id!r} both {tool.call_name!r}; rename one."
                )

    @classmethod
    def from_tool_ids(cls, tool_ids: Iterable[str]) -> ToolCatalog:
        return cls(Tool(tool_id) for tool_id in tool_ids)

    @property
    def tool_ids(self) -> tuple[str, ...]:
        return tuple(self._tools)

    @property
    def selection_tool_ids(self) -> tuple[str, ...]:
        """What a question may be answered with: tools with a name of their own are for dialogues only."""
        return tuple(tool_id for tool_id, tool in self._tools.items() if not tool.name)

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, tool_id: object) -> bool:
        return tool_id in self._tools

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __getitem__(self, tool_id: str) -> Tool:
        return self._tools[tool_id]

    @property
    def content_hash(self) -> str:
        """sha256 over the canonical JSON of all tools sorted by id: order does not matter, any other change does."""
        lines = sorted(json.dumps(tool.to_json(), sort_keys=True, ensure_ascii=False) for tool in self)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def save_jsonl(self, path: Location) -> None:
        lines = (json.dumps(tool.to_json(), ensure_ascii=False) + "\n" for tool in self)
        storage.write_file(path, "".join(lines))

    @classmethod
    def load_jsonl(cls, path: Location) -> ToolCatalog:
        """Read `catalog.jsonl`; a malformed line is an error that names its number."""
        if not storage.exists(path):
            raise InputError(f"no tool catalogue at {path}; run `prepare` first or correct the path.")
        tools = []
        # not splitlines(): JSON may hold U+2028 or U+0085 unescaped, and they end no line
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
                if not isinstance(entry, dict):
                    raise InputError(f"a {type(entry).__name__} instead of an object")
                # null is what pandas writes for a field that is absent
                tools.append(Tool(**{key: value for key, value in entry.items() if value is not None}))
            except (InputError, TypeError) as error:
                raise InputError(f"{path}, line {number}: {_describe(error)}") from error
        try:
            return cls(tools)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _describe(error: InputError | TypeError) -> str:
    """What is wrong with an entry; where the line is none at all, what one looks like."""
    if str(error).endswith("."):
        return str(error)
    keys = ", ".join(Tool.__dataclass_fields__)
    return f"not a tool entry ({error}); each line is a JSON object with the keys {keys}."
