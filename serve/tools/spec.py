"""What a tool is: its id, words, typed arguments, result, limits and the function that does the work."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from data_pipeline.errors import InputError
from data_pipeline.media.limits import MediaLimits

ArgumentKind = Literal["image", "audio", "video", "text", "number", "integer"]
ResultKind = Literal["text", "image", "audio", "video"]
Method = Literal["exact", "classical", "learned", "model", "remote"]
ErrorCode = Literal[
    "bad_arguments", "bad_media", "timeout", "out_of_memory", "weights_not_available", "interrupted", "failed"
]

MEDIA_KINDS = ("image", "audio", "video")
MAX_TEXT_CHARS = 20_000
_JSON_TYPES = {"number": "number", "integer": "integer"}


def _is_finite(checker: TypeChecker, value: Any, kind: str) -> bool:
    """JSON has no NaN and no infinity, but Python's numbers do, and integers that no float can hold."""
    return Draft202012Validator.TYPE_CHECKER.is_type(value, kind) and abs(value) <= sys.float_info.max


_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {kind: partial(_is_finite, kind=kind) for kind in ("number", "integer")}
    ),
)


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
    """A decoded sound: `samples` float32 [T], the mean of its channels, in [-1, 1]; `rate_hz` its sampling rate;
    `channels` float32 [C, T] where there are several, else None."""

    samples: np.ndarray
    rate_hz: int
    channels: np.ndarray | None = None

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True)
class ClipSound:
    """The sound of a clip, still encoded, as most tools need none of it.

    Attributes:
        data: the whole file that the clip came from.
        limits: of what is decoded.
        start_s: where in the sound the first frame lies; below 0 where the sound begins after it.
    """

    data: bytes
    limits: MediaLimits
    start_s: float


@dataclass(frozen=True)
class Clip:
    """A decoded clip: `frames` uint8 [T, H, W, 3] RGB; `fps` its mean frame rate; `sound` what is heard with them.

    Tools that give frames back keep it: `dataclasses.replace(clip, frames=...)`.
    """

    frames: np.ndarray
    fps: float
    sound: ClipSound | None = None


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
        name: what the caller calls it.
        kind: what it is; a medium is given by the id of its artifact and reaches the function decoded.
        description: what it means, with its unit.
        default: value where the caller gives none; None = the caller must give one.
        choices: allowed values of a text; () = any.
        minimum, maximum: bounds of a number, both allowed themselves; None = unbounded.
        parameter: what the tool's function calls it, where tools of several names share one; "" = the same.
    """

    name: str
    kind: ArgumentKind
    description: str
    default: str | float | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    parameter: str = ""

    @property
    def is_media(self) -> bool:
        return self.kind in MEDIA_KINDS

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the value."""
        schema: dict[str, Any] = {"type": _JSON_TYPES.get(self.kind, "string"), "description": self.description}
        if self.is_media:
            schema["description"] += f" (id of {'an' if self.kind in ('image', 'audio') else 'a'} {self.kind} artifact)"
            schema["contentMediaType"] = f"{self.kind}/*"
        if schema["type"] == "string":
            schema |= {"pattern": r"\S", "maxLength": MAX_TEXT_CHARS}  # one character at least that is not blank
        optional = {
            "default": self.default,
            "enum": list(self.choices) or None,
            "minimum": self.minimum,
            "maximum": self.maximum,
        }
        return schema | {key: value for key, value in optional.items() if value is not None}

    def convert(self, value: Any) -> Any:
        """A value that fits the schema, as the function takes it: whole numbers as int, others as float."""
        if self.kind == "number":
            return float(value)
        return int(value) if self.kind == "integer" else value

    def describe_fault(self, value: Any, fault: str, tool: str) -> str:
        """What is wrong with a value and what is allowed, in one sentence.

        Args:
            value: as it was given.
            fault: the keyword of the JSON schema that it breaks.
            tool: whose argument it is.
        """
        where = f"argument {self.name!r} of tool {tool}"
        if fault == "type":
            wanted = {"integer": "a whole number", "number": "a finite number", "text": "text as a string"}
            medium = f"the id of an artifact with {self.kind} as a string"
            return f"{where} is {_describe(value)}; give {wanted.get(self.kind, medium)}."
        if fault == "enum":
            return f"{where} is {str(value)[:40]!r}; give one of {', '.join(self.choices)}."
        if fault in ("minimum", "maximum"):
            low = -math.inf if self.minimum is None else self.minimum
            high = math.inf if self.maximum is None else self.maximum
            return f"{where} is {value}; give a number from {low:g} to {high:g}."
        return f"{where} has {len(value):,} characters; give 1 to {MAX_TEXT_CHARS:,} that are not blank."


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
            "learned" runs a small network from a package of the extra `tools`, and a classical method without it;
            "model" runs a Hugging Face model; "remote" runs on another's server.
        model_id: hub id or local folder of that model; None for the other methods.
        partner: a tool with a model, which this one runs behind its own; None = no second model.
        num_cpus, num_gpus: what a replica that runs it reserves.
        memory_mb: what a call may allocate on top of the idle process.
        timeout_s: wall time after which a call is killed.
        has_side_effects: whether a call changes anything outside of the service, such as sending a mail: it is then not
            made again where the process dies that was making it.
        needs_network: whether its process may open connections, to wherever this machine may; others have no network.
        reads: files and folders that its process may read; beside these it finds Python, this code and the system's
            programs, its own file, its model's folder, and an empty folder of its own to write in.
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
    has_side_effects: bool = False
    needs_network: bool = False
    reads: tuple[str, ...] = ()

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
        return self._schema_of_arguments()

    def _schema_of_arguments(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {argument.name: argument.json_schema() for argument in self.arguments},
            "required": [argument.name for argument in self.arguments if argument.default is None],
            "additionalProperties": False,
        }

    def parse(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check the arguments against the JSON schema, and fill in defaults.

        Returns:
            argument name -> value; media arguments are still artifact ids.

        Raises:
            InputError: one sentence about the fault that tells most.
        """
        given: Any = values
        if isinstance(values, Mapping):
            names = {argument.name for argument in self.arguments}
            defaults = {argument.name: argument.default for argument in self.arguments if argument.default is not None}
            given = defaults | {name: value for name, value in values.items() if value is not None or name not in names}
        fault = best_match(_Validator(self._schema_of_arguments()).iter_errors(given))
        if fault is not None:
            raise InputError(self._describe_fault(given, fault))
        return {argument.name: argument.convert(given[argument.name]) for argument in self.arguments}

    def _describe_fault(self, given: Any, fault: ValidationError) -> str:
        if fault.path:
            argument = next(argument for argument in self.arguments if argument.name == fault.path[0])
            return argument.describe_fault(fault.instance, str(fault.validator), self.tool_id)
        known = ", ".join(argument.name for argument in self.arguments) or "none"
        if fault.validator == "type":
            return f"the arguments of tool {self.tool_id} are {_describe(given)}; give an object of {known}."
        missing = [argument for argument in self.arguments if argument.name not in given]
        if fault.validator == "required":
            return f"tool {self.tool_id} needs the argument {missing[0].name!r} ({missing[0].description}); add it."
        extra = next(name for name in given if name not in {argument.name for argument in self.arguments})
        return f"tool {self.tool_id} has no argument {str(extra)[:40]!r}; it takes {known}."


def picture_argument(name: str = "image", parameter: str = "") -> Argument:
    """The picture that a tool works on; names as of `Argument`."""
    return Argument(name, "image", "the picture to work on", parameter=parameter)


def sound_argument() -> Argument:
    """The sound that a tool works on."""
    return Argument("audio", "audio", "the sound to work on")


def clip_argument() -> Argument:
    """The clip that a tool works on."""
    return Argument("video", "video", "the clip to work on")
