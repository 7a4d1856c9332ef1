"""The arguments of a call, made from what the user gave, by the tool's JSON schema.

The model chooses the tool; no value is made up: a medium is the id of the attached artifact, a choice or a number is
one that the words name, a text the words themselves or a part of them (`serve/chat/texts.py`), everything else its
default or what the schema leaves no choice in. What comes out is checked against the schema. Schemas come from callers,
so their size and depth, and what is spent on them, is bounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from data_pipeline.errors import InputError
from serve.artifacts import Artifact
from serve.chat.schema_check import FORMATS, MAX_DEPTH, SchemaWork, find_format

ANY_MEDIUM = "any"

_MAX_VALUES = 64  # of what is made for a schema
_MAX_NESTING = 8  # of the values
_LARGEST = 1e300
_NUMBER = regex.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class TextArgument:
    """A text that the words hold somewhere, under no pattern.

    Attributes:
        name: of the argument.
        about: its description; "" where there is none.
        min_length, max_length: in characters.
    """

    name: str
    about: str
    min_length: int
    max_length: int


@dataclass(frozen=True)
class Arguments:
    """What a call is made with.

    Attributes:
        text: the arguments as JSON.
        fault: what the schema wants and the user's words do not give, in one sentence; "" where they are valid. Media
            that nobody attached are no fault: they are left out, so that the call says what is missing.
        texts: the values for which all of the words stand, unless `build_arguments` is given them, in its order.
    """

    text: str
    fault: str = ""
    texts: tuple[TextArgument, ...] = ()


def build_arguments(
    parameters: Mapping[str, Any],
    media: Mapping[str, str],
    words: str,
    artifacts: Sequence[Artifact],
    texts: Sequence[str] = (),
) -> Arguments:
    """The arguments of a call.

    Args:
        parameters: JSON schema of the tool's arguments, checked by `check_schema`.
        media: which of them are media, and of which modality: argument name -> "image", "audio", "video" or "any".
        words: the user's.
        artifacts: the media that may be meant, likeliest first (`Conversation.artifacts`).
        texts: values for `Arguments.texts`, as many.

    Raises:
        InputError: the schema wants too many values or too much work, or refers to what is not there.
    """
    filler = _Filler(words, parameters, texts)
    schema = filler.resolve(parameters)
    required = set(_names(schema.get("required")))
    left, missing = list(artifacts), set[str]()
    values: dict[str, Any] = {}
    for name, inner in _properties(schema):
        if name in media:
            wanted = media[name]
            found = next((artifact for artifact in left if wanted in (ANY_MEDIUM, artifact.modality)), None)
            if found is not None:
                left.remove(found)
                values[name] = found.id
            elif name in required and filler.allows_null(inner):
                values[name] = None
            else:
                missing.add(name)
            continue
        said, value = filler.find_said_choice(inner)
        if said:
            values[name] = value
        elif "default" in inner:
            values[name] = inner["default"]
        elif name in required:
            values[name] = filler.fill(inner, name=name)
    text = json.dumps(_without_infinities(values), ensure_ascii=False, allow_nan=False)
    fault = filler.work.find_fault(parameters, json.loads(text), missing & required)
    return Arguments(text, fault, tuple(filler.asked))


class _Filler:
    """Values for a schema's required arguments, at most `_MAX_VALUES` of them; `asked` are the texts among them."""

    def __init__(self, words: str, root: Mapping[str, Any], texts: Sequence[str]) -> None:
        self.asked: list[TextArgument] = []
        self.work = SchemaWork()
        self._name = ""  # of the argument that is being filled
        self._texts = iter(texts)
        self._words = words
        self._root = root
        self._numbers = [float(text) for text in _NUMBER.findall(words)]
        self._n_left = _MAX_VALUES
        self._filling: list[str] = []  # what the branches that are being filled refer to
        self._n_said = 0  # values that stand in the words

    def resolve(self, schema: Any, depth: int = 0) -> dict[str, Any]:
        """The schema with its reference followed and its `allOf` merged into it."""
        if not isinstance(schema, Mapping):
            return {}
        self.work.spend()
        if depth > MAX_DEPTH:
            raise InputError("its schema refers to itself without end; simplify it.")
        merged = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        parts = schema.get("allOf")
        parts = list(parts) if isinstance(parts, list) else []
        if "$ref" in schema:
            parts.append(self._look_up(schema["$ref"]))
        for part in parts:
            merged = _merge(merged, self.resolve(part, depth + 1))
        return merged

    def allows_null(self, schema: Any) -> bool:
        """Whether null is a value of the schema, as far as its type or one of its branches says it."""
        schema = self.resolve(schema)
        branches = [self.resolve(branch) for key in ("anyOf", "oneOf") for branch in _list(schema.get(key))]
        return any(
            kinds == "null" or "null" in _list(kinds) for kinds in (part.get("type") for part in [schema, *branches])
        )

    def find_said_choice(self, schema: Any) -> tuple[bool, Any]:
        """Whether the words name one of the schema's choices, and which: the longest."""
        lower = self._words.lower()
        choices = [choice for choice in _list(self.resolve(schema).get("enum")) if isinstance(choice, str) and choice]
        choices = [choice for choice in choices if choice.lower() in lower]
        self.work.spend(len(choices) * (1 + len(lower) // 50))
        said = [choice for choice in choices if regex.search(rf"(?<!\w){regex.escape(choice.lower())}(?!\w)", lower)]
        return bool(said), max(said, key=len, default=None)

    def fill(self, schema: Any, nesting: int = 0, name: str = "") -> Any:
        """A value of the schema, from the user's words where they give one; `name`: of the argument, if it has one."""
        self._name = name or self._name
        self._n_left -= 1
        if self._n_left < 0 or nesting > _MAX_NESTING:
            raise InputError(
                f"its schema requires more than {_MAX_VALUES} values or nests deeper than {_MAX_NESTING} levels; "
                "simplify it."
            )
        schema = self.resolve(schema)
        for key in ("default", "const"):
            if key in schema:
                return schema[key]
        said, value = self.find_said_choice(schema)
        if said:
            self._n_said += 1
            return value
        if _list(schema.get("enum")):
            return None if None in schema["enum"] else schema["enum"][0]
        branches = [branch for key in ("anyOf", "oneOf") for branch in _list(schema.get(key))]
        kinds = schema.get("type")
        if not branches and isinstance(kinds, list) and kinds:
            branches = [{"type": kind} for kind in kinds]
        if branches:
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
            if isinstance(kinds, list):
                rest.pop("type")
            # a list or a tree ends where it may: it does not go on within itself while there is another branch
            within = set(self._filling) - {""}
            ends = [branch for branch in branches if _reference(branch) not in within] or branches
            return self._fill_branch([(_reference(each), _merge(rest, self.resolve(each))) for each in ends], nesting)
        return self._fill_kind(schema, kinds if isinstance(kinds, str) else _guess_kind(schema), nesting)

    def _fill_branch(self, branches: Sequence[tuple[str, dict[str, Any]]], nesting: int) -> Any:
        """The first branch that the words give a value for; else null where it may be, else the first valid one.

        Each branch comes with what it refers to.
        """
        values = []
        for reference, branch in branches:
            said, numbers = self._n_said, list(self._numbers)
            self._filling.append(reference)
            value = self.fill(branch, nesting)
            self._filling.pop()
            is_valid = self.work.build_validator(branch, self._root).is_valid(value)
            if is_valid and self._n_said > said:
                return value
            self._numbers = numbers
            values.append((not is_valid, value is not None, len(values), value))
        return min(values, key=lambda entry: entry[:3])[3]

    def _fill_kind(self, schema: Mapping[str, Any], kind: str, nesting: int) -> Any:
        match kind:
            case "integer" | "number":
                return self._number(schema, kind == "integer")
            case "boolean":
                return False
            case "array":
                return self._array(schema, nesting)
            case "object":
                required = _names(schema.get("required"))
                wanted = [(name, inner) for name, inner in _properties(schema) if name in required]
                return {name: self.fill(inner, nesting + 1, name) for name, inner in wanted}
            case "null":
                return None
        return self._string(schema)

    def _string(self, schema: Mapping[str, Any]) -> str:
        """What of the words fits the pattern or the format, or else the text that is given for it or all of them."""
        text = self._words
        pattern, form = schema.get("pattern"), schema.get("format")
        found = None
        if isinstance(pattern, str) and not self.work.search(pattern, text):
            inner = pattern.removeprefix("^").removesuffix("$")
            match = self.work.search(rf"(?<!\w)(?:{inner})(?!\w)", text)
            found = None if match is None else match[0]
        elif isinstance(form, str):
            found = find_format(form, text)
        if found is not None:
            self._n_said += 1
            text = found
        elif not isinstance(pattern, str) and form not in FORMATS:
            about = schema.get("description")
            lengths = _length(schema, "minLength", 0), _length(schema, "maxLength", len(text))
            self.asked.append(TextArgument(self._name, about if isinstance(about, str) else "", *lengths))
            text = next(self._texts, text)
        return text[: _length(schema, "maxLength", len(text))]

    def _array(self, schema: Mapping[str, Any], nesting: int) -> list[Any]:
        items, n_items = self.resolve(schema.get("items")), schema.get("minItems", 0)
        n_items = n_items if isinstance(n_items, int) else 0
        lower = self._words.lower()
        said = [choice for choice in _list(items.get("enum")) if isinstance(choice, str) and choice.lower() in lower]
        if len(said) >= max(1, n_items):
            self._n_said += 1
            longest = schema.get("maxItems")
            return said[:longest] if isinstance(longest, int) else said
        return [self.fill(items, nesting + 1) for _ in range(min(n_items, _MAX_VALUES + 1))]

    def _number(self, schema: Mapping[str, Any], is_integer: bool) -> int | float:
        """The first number in the words that fits and was not used yet, or else the one that is nearest to zero."""
        check = self.work.build_validator({**schema, "type": "integer" if is_integer else "number"}, self._root)
        for number in self._numbers:
            value: int | float = int(number) if is_integer and number == int(number) else number
            if not any(check.iter_errors(value)):
                self._numbers.remove(number)
                self._n_said += 1
                return value
        low, high = _bound(schema, "minimum", -_LARGEST), _bound(schema, "maximum", _LARGEST)
        above, below = _bound(schema, "exclusiveMinimum", -_LARGEST), _bound(schema, "exclusiveMaximum", _LARGEST)
        step = 1.0 if is_integer else 0.0
        low = max(low, above + step if step else math.nextafter(above, math.inf))
        high = min(high, below - step if step else math.nextafter(below, -math.inf))
        nearest = min(max(0.0, low), high)
        multiple = schema.get("multipleOf")
        if isinstance(multiple, int | float) and 0 < multiple < _LARGEST and abs(nearest) < _LARGEST:
            nearest = math.ceil(nearest / multiple) * multiple
        return math.ceil(nearest) if is_integer else nearest

    def _look_up(self, reference: Any) -> Any:
        """What a reference into the schema points to."""
        found: Any = self._root
        for part in str(reference).removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if key:
                found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            raise InputError(f"its schema refers to {str(reference)[:80]!r}, which is not there; add it to $defs.")
        return found


def _merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two schemas that both hold, as one, as far as keywords can be united."""
    merged = {**other, **one}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(one.get(key), Mapping) and isinstance(other.get(key), Mapping):
            merged[key] = {**other[key], **one[key]}
    if "required" in one and "required" in other:
        merged["required"] = [*_list(one["required"]), *_list(other["required"])]
    for key, pick in (("minimum", max), ("maximum", min), ("minLength", max), ("maxLength", min)):
        if key in one and key in other:
            merged[key] = pick(one[key], other[key])
    return merged


def _reference(schema: Any) -> str:
    """What a schema refers to; "" where it is one itself."""
    return str(schema.get("$ref", "")) if isinstance(schema, Mapping) else ""


def _guess_kind(schema: Mapping[str, Any]) -> str:
    """The type of a schema that does not say it."""
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(value: Any) -> list[str]:
    return [name for name in _list(value) if isinstance(name, str)]


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, schema) of an object's properties; what is malformed is left out."""
    properties = schema.get("properties")
    return list(properties.items()) if isinstance(properties, Mapping) else []


def _bound(schema: Mapping[str, Any], key: str, default: float) -> float:
    value = schema.get(key)
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else default


def _length(schema: Mapping[str, Any], key: str, default: int) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) and value >= 0 else default


def _without_infinities(value: Any) -> Any:
    """A caller's defaults may hold NaN and infinities, which are no JSON: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    return [_without_infinities(inner) for inner in value] if isinstance(value, list) else value
