"""The operations of an OpenAPI file (3.0 and 3.1) as functions, each with one JSON Schema of all that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.parameters import MAX_SCHEMA_CHARS, MAX_SCHEMA_DEPTH

_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMAS = "#/components/schemas/"
_MAX_HOPS = 8  # of a reference to a reference


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: its id, or one made of method and path.
        words: what the file says of it.
        listed: its parameters and those of its path, as they stand there.
        body: likewise, what it is sent.
    """

    name: str
    words: str
    listed: list[Any]
    body: Any


def read_operations(content: Mapping[str, Any]) -> Iterator[Operation]:
    """All operations, in order; what has not the form of one is passed over."""
    for path, item in content["paths"].items():
        if not isinstance(item, Mapping):
            continue
        for method, operation in item.items():
            if method not in _METHODS or not isinstance(operation, Mapping):
                continue
            name = operation.get("operationId") or f"{method}-{str(path).strip('/').replace('/', '-')}"
            words = [str(operation.get(key) or "").strip() for key in ("summary", "description")]
            listed = [*(operation.get("parameters") or []), *(item.get("parameters") or [])]
            said = ". ".join(word.rstrip(".") for word in words if word)
            yield Operation(str(name), said, listed, operation.get("requestBody"))


def build_parameters(content: Mapping[str, Any], operation: Operation) -> dict[str, Any]:
    """One schema of its parameters and of the fields of its body, which is JSON; {} where it takes nothing.

    Args:
        content: the file, which references point into.
        operation: of it.

    Raises:
        InputError: they are too large, to follow "the parameters ...".
    """
    properties: dict[str, Any] = {}
    required: list[str] = []
    for each in operation.listed:
        parameter = _follow(content, each)
        name = parameter.get("name")
        if not isinstance(name, str) or name in properties:  # an operation's own one stands before its path's
            continue
        schema = parameter.get("schema", _find_schema(parameter))
        words = {"description": parameter["description"]} if parameter.get("description") else {}
        properties[name] = {**words, **schema} if isinstance(schema, Mapping) else words
        if parameter.get("required") is True:
            required.append(name)
    body = _follow(content, operation.body)
    sent = _find_schema(body)
    fields = _follow(content, sent)
    inner = fields.get("properties")
    if isinstance(inner, Mapping):
        properties = {**inner, **properties}
        needed = fields.get("required") or []
    else:
        properties |= {"body": sent} if sent else {}
        needed = ["body"] if sent else []
    if body.get("required") is True:
        required += needed
    if not properties:
        return {}
    parameters = {"type": "object", "properties": properties, "required": list(dict.fromkeys(required))}
    return _SelfContained(content).build({key: value for key, value in parameters.items() if value})


class _SelfContained:
    """Writes a schema so that what it refers to lies in its own `$defs`, in today's JSON Schema."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        components = content.get("components")
        schemas = components.get("schemas") if isinstance(components, Mapping) else None
        self._schemas = schemas if isinstance(schemas, Mapping) else {}
        self._is_old = str(content["openapi"]).startswith("3.0")
        self._names: list[str] = []
        self._n_left = MAX_SCHEMA_CHARS

    def build(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        written = self._write(schema, 0)
        definitions: dict[str, Any] = {}
        for name in self._names:  # grows while they are written
            definitions[name] = self._write(self._schemas[name], 0)
        return {**written, "$defs": definitions} if definitions else written

    def _write(self, value: Any, depth: int) -> Any:
        self._n_left -= 1
        if depth > MAX_SCHEMA_DEPTH or self._n_left < 0:
            raise InputError(f"have more than {MAX_SCHEMA_CHARS:,} parts or are nested too deep")
        if isinstance(value, list):
            return [self._write(each, depth + 1) for each in value]
        if not isinstance(value, Mapping):
            return value
        written = {key: self._write(each, depth + 1) for key, each in value.items()}
        name = str(written.get("$ref")).removeprefix(_SCHEMAS)
        if written.get("$ref") == f"{_SCHEMAS}{name}" and name in self._schemas:
            written["$ref"] = f"#/$defs/{name}"
            if name not in self._names:
                self._names.append(name)
        return _modernise(written) if self._is_old else written


def _modernise(schema: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI 3.0 writes otherwise than JSON Schema: null as a type, and exclusive bounds."""
    if schema.get("nullable") is True and isinstance(schema.get("type"), str):
        del schema["nullable"]
        schema["type"] = [schema["type"], "null"]
    for bound in ("Minimum", "Maximum"):
        if isinstance(schema.get(f"exclusive{bound}"), bool):
            is_exclusive = schema.pop(f"exclusive{bound}")
            if is_exclusive and bound.lower() in schema:
                schema[f"exclusive{bound}"] = schema.pop(bound.lower())
    return schema


def _find_schema(part: Mapping[str, Any]) -> Any:
    """Of what is sent as JSON, or else in the first form that is listed; {} where none is."""
    forms = part.get("content")
    if not isinstance(forms, Mapping) or not forms:
        return {}
    form = forms.get("application/json", next(iter(forms.values())))
    schema = form.get("schema") if isinstance(form, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def _follow(content: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """What a reference into the file points to, or the value itself; {} where that is no object."""
    for _ in range(_MAX_HOPS):
        target = value.get("$ref") if isinstance(value, Mapping) else None
        if not isinstance(target, str):
            break
        value = content
        for part in target.removeprefix("#/").split("/"):
            value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
