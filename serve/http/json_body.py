"""JSON bodies read as types: every fault in one sentence that names the field as its sender wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, Discriminator, ValidationError

from serve.http.schemas import RequestError

_Body = TypeVar("_Body", bound=BaseModel)

# pydantic's words speak of its own types; these speak of JSON
_WORDS = {
    "missing": "it is missing",
    "extra_forbidden": "it is not known here; leave it out",
    "none_required": "it is not supported here; leave it out",
    "string_type": "it must be a string",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "finite_number": "it must be a finite number",
    "list_type": "it must be a list",
    "dict_type": "it must be an object",
    "model_type": "it must be an object",
    "model_attributes_type": "it must be an object",
    "string_unicode": "it holds half of a surrogate pair, which is no character",
    "string_too_short": "it must have {min_length} or more characters",
    "string_too_long": "it must have {max_length} or fewer characters",
    "too_short": "it must have {min_length} or more entries",
    "too_long": "it must have {max_length} or fewer entries",
    "greater_than_equal": "it must be at least {ge}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
}


def form(name: str) -> str:
    """The tag of one form of a field that has several; its brackets keep it out of the path of a field."""
    return f"<{name}>"


def told_by(key: str | Callable[[dict[str, Any]], str] | None, allowed: str) -> Discriminator:
    """Tells the forms of a field apart: text by being one (form "text"), lists and truth values likewise ("list",
    "bool"), an object by the text under a key, or else likewise ("object").

    Args:
        key: of the object, such as "type", or what tells its form; None where there is one form of object.
        allowed: what is said of a value of no known form, after "it must be".
    """

    def read(value: Any) -> str | None:
        if isinstance(value, str):
            return form("text")
        if isinstance(value, bool):
            return form("bool")
        if isinstance(value, list):
            return form("list")
        if isinstance(value, BaseModel):  # one that was made here
            value = vars(value)
        if not isinstance(value, dict) or key is None:
            return form("object") if isinstance(value, dict) else None
        return form(key(value) if callable(key) else str(value.get(key)))

    return Discriminator(read, custom_error_type="form", custom_error_message=f"it must be {allowed}")


def parse_body(model: type[_Body], body: bytes) -> _Body:
    """Read a body.

    Raises:
        RequestError: it is no JSON, or not of this type (400); `param` is the path of the field at fault.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
    reason = " ".join(_say(fault).split())[:300]  # it may quote what was sent
    if fault["type"] == "json_invalid":
        raise RequestError(f"The body is not valid JSON: {reason}.", code="bad_json")
    param = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("<"))[:200]
    where = f"The field {param!r}" if param else "The body"
    raise RequestError(f"{where} is wrong: {reason}.", code="bad_field", param=param or None)


def _say(fault: Any) -> str:
    if fault["type"] in _WORDS:
        words = _WORDS[fault["type"]].format(**fault.get("ctx", {}))
        return words.replace("False", "false").replace("True", "true")  # a literal's, in Python's spelling
    return fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be").rstrip(".")


def describe_body(model: type[BaseModel]) -> dict[str, Any]:
    """The body's schema with its parts inlined, as FastAPI's own schemas do not know them."""
    schema = model.model_json_schema(ref_template="#/x/{model}")
    parts = schema.pop("$defs", {})
    text = json.dumps(schema)
    for _ in range(8):  # parts refer to parts
        for name, part in parts.items():
            text = text.replace(json.dumps({"$ref": f"#/x/{name}"}), json.dumps(part))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": json.loads(text)}}}}
