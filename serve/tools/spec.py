"""What a tool is: its id, words, typed arguments, result, limits and the function that does the work."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_pipeline.errors import InputError

ArgumentKind = Literal["image", "audio", "video", "text", "number", "integer"]
ResultKind = Literal["text", "image", "audio", "video"]
Method = Literal["exact", "classical", "model"]
ErrorCode = Literal["bad_arguments", "bad_media", "timeout", "out_of_memory", "weights_not_available", "failed"]

MEDIA_KINDS = ("image", "audio", "video")
MAX_TEXT_CHARS = 20_000
_JSON_TYPES = {"number": "number", "integer": "integer"}


class ToolError(Exception):
    """A call that gave no result.

    Attributes:
        code: what kind of failure, for programs.
        message: one sentence for a person, without paths, traces or contents of media.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message


@dataclass(frozen=True)
class Sound:
    """A decoded sound: `samples` float32 [T], mono, in [-1, 1]; `rate_hz` its sampling rate."""

    samples: np.ndarray
    rate_hz: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True)
class Clip:
    """A decoded clip: `frames` uint8 [T, H, W, 3] RGB; `fps` its mean frame rate."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class ToolFile:
    """A result as a file: `data` its bytes, `media_type` such as "image/png", "audio/wav" or "video/mp4"."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class ToolOutput:
    """What a tool gives back: `text` says in words what was found and by which method, `file` is the medium if any."""

    text: str = ""
    file: ToolFile | None = None


@dataclass(frozen=True)
class Argument:
    """One typed argument of a tool.

    Attributes:
        name: as the tool's function and the caller call it.
        kind: what it is; a medium is given by the id of its artifact and reaches the function decoded.
        description: what it means, with its unit.
        default: value where the caller gives none; None = the caller must give one.
        choices: allowed values of a text; () = any.
        minimum, maximum: bounds of a number, both allowed themselves; None = unbounded.
    """

    name: str
    kind: ArgumentKind
    description: str
    default: str | float | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def is_media(self) -> bool:
        return self.kind in MEDIA_KINDS

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the value."""
        schema: dict[str, Any] = {"type": _JSON_TYPES.get(self.kind, "string"), "description": self.description}
        if self.is_media:
            schema["description"] += f" (id of {'an' if self.kind in ('image', 'audio') else 'a'} {self.kind} artifact)"
        if self.kind == "text":
            schema["maxLength"] = MAX_TEXT_CHARS
        optional = {
            "default": self.default,
            "enum": list(self.choices) or None,
            "minimum": self.minimum,
            "maximum": self.maximum,
        }
        return schema | {key: value for key, value in optional.items() if value is not None}

    def parse(self, value: Any, tool: str) -> Any:
        """Check one value and return it as the function takes it.

        Raises:
            InputError: wrong type, out of bounds or not among the choices.
        """
        where = f"argument {self.name!r} of tool {tool}"
        if self.kind in _JSON_TYPES:
            return self._parse_number(value, where)
        if not isinstance(value, str):
            what = f"the id of an artifact with {self.kind}" if self.is_media else "text"
            raise InputError(f"{where} is {_describe(value)}; give {what} as a string.")
        if not value.strip() or len(value) > MAX_TEXT_CHARS:
            raise InputError(f"{where} has {len(value):,} characters; give 1 to {MAX_TEXT_CHARS:,} that are not blank.")
        if self.choices and value not in self.choices:
            raise InputError(f"{where} is {value[:40]!r}; give one of {', '.join(self.choices)}.")
        return value

    def _parse_number(self, value: Any, where: str) -> int | float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not is_number or (self.kind == "integer" and value != int(value)):
            kind = "a whole number" if self.kind == "integer" else "a finite number"
            raise InputError(f"{where} is {_describe(value)}; give {kind}.")
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not low <= value <= high:
            raise InputError(f"{where} is {value}; give a number from {low:g} to {high:g}.")
        return int(value) if self.kind == "integer" else float(value)


def _describe(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"


@dataclass(frozen=True)
class ToolSpec:
    """One tool: everything that a caller, a model and the service need to know, and the function itself.

    Attributes:
        tool_id: its key in the catalogue.
        run: a function at the top level of a module, called with the arguments by name: image = uint8 [H, W, 3] RGB,
            audio = `Sound`, video = `Clip`, text = str, numbers as they are. A tool with `method` "model" gets the
            cache of loaded models and `model_ids` in front of them.
        description: what it does, in one or two sentences, the method included.
        arguments: in the order in which a dialogue gives them.
        result: what kind of thing it gives back.
        name: what a dialogue calls it; "" = the tool_id.
        usage: when to use it and what to give it; "" = the description.
        method: "exact" computes what it says; "classical" stands where a learned model would do better, and says so;
            "model" runs a Hugging Face model.
        model_id: hub id or local folder of that model; None for the other methods.
        partner: a tool with a model, which this one runs behind its own; None = no second model.
        num_cpus, num_gpus: what a replica that runs it reserves.
        memory_mb: what a call may allocate on top of the idle process.
        timeout_s: wall time after which a call is killed.
    """

    tool_id: str
    run: Callable[..., ToolOutput]
    description: str
    arguments: tuple[Argument, ...]
    result: ResultKind
    name: str = ""
    usage: str = ""
    method: Method = "classical"
    model_id: str | None = None
    partner: ToolSpec | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_mb: int = 2048
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if (self.method == "model") != (self.model_id is not None):
            raise InputError(f"tool {self.tool_id}: a model_id belongs to method 'model' and to no other; give both.")
        names = [argument.name for argument in self.arguments]
        if len(set(names)) != len(names):
            raise InputError(f"tool {self.tool_id} has two arguments of one name; rename one of {', '.join(names)}.")

    @property
    def model_ids(self) -> tuple[str, ...]:
        """Every model that a call runs: its own, then its partner's."""
        own = () if self.model_id is None else (self.model_id,)
        return own if self.partner is None else (*own, *self.partner.model_ids)

    @property
    def call_name(self) -> str:
        """What a dialogue calls the tool."""
        return self.name or self.tool_id

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the arguments, as OpenAI's `function.parameters` wants it."""
        return {
            "type": "object",
            "properties": {argument.name: argument.json_schema() for argument in self.arguments},
            "required": [argument.name for argument in self.arguments if argument.default is None],
            "additionalProperties": False,
        }

    def parse(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check names, types, bounds and choices, and fill in defaults.

        Returns:
            argument name -> value; media arguments are still artifact ids.

        Raises:
            InputError: one sentence about the first fault.
        """
        known = ", ".join(argument.name for argument in self.arguments) or "none"
        if not isinstance(values, Mapping):
            raise InputError(
                f"the arguments of tool {self.tool_id} are {_describe(values)}; give an object of {known}."
            )
        for name in values:
            if name not in {argument.name for argument in self.arguments}:
                raise InputError(f"tool {self.tool_id} has no argument {str(name)[:40]!r}; it takes {known}.")
        parsed = {}
        for argument in self.arguments:
            value = values.get(argument.name)
            if value is None:
                if argument.default is None:
                    raise InputError(
                        f"tool {self.tool_id} needs the argument {argument.name!r} ({argument.description}); add it."
                    )
                value = argument.default
            parsed[argument.name] = argument.parse(value, self.tool_id)
        return parsed


def picture_argument(name: str = "image") -> Argument:
    """The picture that a tool works on."""
    return Argument(name, "image", "the picture to work on")


def sound_argument() -> Argument:
    """The sound that a tool works on."""
    return Argument("audio", "audio", "the sound to work on")


def clip_argument() -> Argument:
    """The clip that a tool works on."""
    return Argument("video", "video", "the clip to work on")
