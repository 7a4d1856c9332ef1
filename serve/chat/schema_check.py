"""What JSON schemas of callers may hold, and whether values fit them.

Schemas come from callers, so their depth and what is spent on them is bounded: a kilobyte of references to references,
or a few patterns, can be made to take for ever. Nothing is fetched.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from datetime import time as clock_time
from typing import Any, NamedTuple
from uuid import UUID

import jsonschema_rs
import regex
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry

from data_pipeline.errors import InputError
from serve.artifact_files import ARTIFACT_ID

MAX_DEPTH = 32  # of a schema

_PATTERN_S = 0.05  # for one search
_ALL_PATTERNS_S = 0.2  # for the searches of one call
_MAX_STEPS = 30_000  # of one call: keywords that are looked at, and the entries of what they hold; a tenth of a second
_STEPS_OF = {"$ref": 20}  # it is looked up each time
# of schemas themselves; in Python it takes seconds for a hundred kilobytes
_META = jsonschema_rs.Draft202012Validator(
    {"$ref": "https://json-schema.org/draft/2020-12/schema"}, validate_formats=True
)
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d{2}:\d{2})?"


class _Format(NamedTuple):
    """How a format is found in words, and what raises a ValueError where what was found is none after all."""

    pattern: Any
    parse: Callable[[str], object]


# as loose as those who read them: OpenAI's client does so by pydantic
FORMATS = {
    name: _Format(regex.compile(pattern), parse)
    for name, pattern, parse in (
        ("date", r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)", date.fromisoformat),
        ("time", rf"\b{_CLOCK}(?!\w)", clock_time.fromisoformat),
        ("date-time", rf"\b\d{{4}}-\d{{2}}-\d{{2}}[Tt ]{_CLOCK}(?!\w)", datetime.fromisoformat),
        ("duration", r"\bP(?=[T\d])(?:\d+[YMWD])*(?:T(?:\d+(?:\.\d+)?[HMS])+)?\b", str),
        ("email", r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+", str),
        ("uri", r"\bhttps?://[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]", str),
        ("uuid", r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", UUID),
        ("ipv4", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)", ipaddress.IPv4Address),
        ("ipv6", r"(?<![\w:])[0-9a-fA-F:]{2,39}(?![\w:])", ipaddress.IPv6Address),
    )
}
_REFUSED_KEYS = ("patternProperties", "propertyNames", "$dynamicRef", "$recursiveRef", "$id", "$anchor")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that no arguments can be made for, in one sentence.

    Raises:
        InputError: it is no JSON schema, nests too deep, points out of itself, or uses a keyword that is not supported.
    """
    for keyword, value in _walk(schema):
        if keyword in _REFUSED_KEYS:
            raise InputError(f"uses {keyword!r}, which is not supported; leave it out")
        if keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise InputError(f"refers to {str(value)[:80]!r}, which is not in it; put the definition into $defs")
    try:
        fault = next(iter(_META.iter_errors(schema)), None)
    except UnicodeEncodeError:
        raise InputError("holds half of a surrogate pair, which is no character") from None
    if fault is not None:
        where = ".".join(map(str, fault.instance_path)) or "schema"
        raise InputError(f"is no JSON schema: {where}: {fault.message[:200]}")


def find_format(name: str, text: str) -> str | None:
    """The first of a text's parts that is of a format; None where none is, or the format is not known here."""
    form = FORMATS.get(name)
    if form is None:
        return None
    return next((found[0] for found in form.pattern.finditer(text) if _is_of(form, found[0])), None)


class SchemaWork:
    """What is done with one call's schema, and how much may be spent on it.

    Every method raises an InputError once that is spent.
    """

    def __init__(self) -> None:
        self._steps_left = _MAX_STEPS
        self._pattern_s_left = _ALL_PATTERNS_S
        checks: dict[str, Any] = {
            **Draft202012Validator.VALIDATORS,
            "pattern": self._check_pattern,
            "format": _check_format,
        }
        self._validator: Any = extend(
            Draft202012Validator, {keyword: self._counted(keyword, check) for keyword, check in checks.items()}
        )

    def spend(self, n_steps: int = 1) -> None:
        """Take note of what is about to be done."""
        self._steps_left -= n_steps
        if self._steps_left < 0:
            raise InputError("its schema takes too long to work through; simplify it.")

    def build_validator(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
        """Of a part of a schema, which may refer to what the whole defines; nothing is fetched."""
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root and key not in schema}
        return self._validator({**schema, **definitions}, registry=Registry())

    def find_fault(self, schema: Mapping[str, Any], values: Any, missing: set[str]) -> str:
        """In one sentence what is wrong with the values; "" where they are valid but for the missing."""
        try:
            faults = [
                error
                for error in self.build_validator(schema, schema).iter_errors(values)
                if not (missing and error.validator == "required" and not error.path)
            ]
        except RecursionError:
            raise InputError("its schema refers to itself without end; simplify it.") from None
        fault: ValidationError | None = best_match(iter(faults))
        if fault is None:
            return ""
        where = ".".join(map(str, fault.absolute_path)) or "the arguments"
        wanted = {str(fault.validator): fault.validator_value}
        return f"{where} must fit {json.dumps(wanted, default=str)[:200]}, and your words give nothing that does"

    def search(self, pattern: str, text: str) -> Any:
        """A caller's pattern in a text; None where it is none, is not found, or takes too long."""
        if self._pattern_s_left <= 0:
            raise InputError("its schema's patterns take too long to search for; simplify them.")
        start = time.perf_counter()
        try:
            return regex.search(pattern, text, timeout=min(_PATTERN_S, self._pattern_s_left))
        except (regex.error, TimeoutError):
            return None
        finally:
            self._pattern_s_left -= time.perf_counter() - start

    def _check_pattern(self, _: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and self.search(pattern, instance) is None:
            yield ValidationError(f"{instance!r} does not match {pattern!r}")

    def _counted(self, keyword: str, check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def run(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            n_entries = _count(instance)
            self.spend(_STEPS_OF.get(keyword, 1) + _count(value) + n_entries)
            if keyword == "uniqueItems":  # each is compared with each
                self.spend(n_entries**2)
            yield from check(validator, value, instance, schema) or ()

        return run


def _is_of(form: _Format, text: str) -> bool:
    try:
        form.parse(text)
    except ValueError:
        return False
    return True


def _check_format(_: Any, name: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Of the formats that are known here. What the schema's author put into it is theirs to know, and the id of an
    artifact stands wherever a medium is meant."""
    form = FORMATS.get(name) if isinstance(name, str) and isinstance(instance, str) else None
    is_theirs = instance in [schema.get("default"), schema.get("const"), *(schema.get("enum") or ())]
    if form is None or is_theirs or ARTIFACT_ID.fullmatch(instance):
        return
    if not form.pattern.fullmatch(instance) or not _is_of(form, instance):
        yield ValidationError(f"{instance!r} is no {name}")


def _count(value: Any) -> int:
    """Entries of a list or an object."""
    return len(value) if isinstance(value, list | dict) else 0


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every keyword of a schema and of what lies in it; what properties are called is no keyword."""
    waiting: list[tuple[Any, int, bool]] = [(schema, 0, False)]
    while waiting:
        value, depth, is_named = waiting.pop()
        if depth > 2 * MAX_DEPTH:
            raise InputError(f"nests deeper than {MAX_DEPTH} levels; simplify it")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not is_named:
                    yield key, inner
                if is_named or key not in ("enum", "const", "default", "examples"):
                    names = not is_named and key in ("properties", "$defs", "definitions")
                    waiting.append((inner, depth + 1, names))
        elif isinstance(value, list):
            waiting += [(inner, depth + 1, False) for inner in value]
