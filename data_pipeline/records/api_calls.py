"""Calls of APIs in text: a model's code, or the catalogue's, well formed or not. Nothing is ever executed.

What Python's `ast` can read is read by it. The rest is split at its commas, as released calls of APIBench hold
positional arguments behind keywords and names without quotation marks, and what a model writes may break off.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

MAX_CALL_CHARS = 2000  # one call is searched no further for its closing bracket, so that a text of brackets ends soon

_FUNCTION = re.compile(r"(?<![\w.])[A-Za-z_][\w.]*(?=\()")
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)")
_VERSION = re.compile(r":v?\d+(\.\d+)*$")
_FILE = re.compile(r"\.(joblib|pkl|h5|pt|pth|csv|zip|bin)$")
_QUOTED_MODEL = re.compile(r"['\"]([\w.-]+/[\w.-]+)['\"]")
_OUTSIDE_ID = re.compile(r"[\s{}\[\],'\"]")
_HOSTS = ("https://tfhub.dev/", "https://huggingface.co/")
_MODEL_KEYWORDS = ("model", "source", "repo_id", "model_tag", "pretrained_model_name_or_path", "handle")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        keyword: its name; "" for a positional one, "*" or "**" for one that is unpacked.
        text: the value as it is written.
        value: the string that the text spells; the text itself, without quotation marks, where it spells none.
    """

    keyword: str
    text: str
    value: str


@dataclass(frozen=True)
class ApiCall:
    """One call: `text` from the function's name to the closing bracket, or as far as the text goes."""

    function: str
    arguments: tuple[Argument, ...]
    text: str


def find_calls(text: str) -> list[ApiCall]:
    """Every call in a text, by where it begins: one inside another comes after it. `f (x)` is prose and no call."""
    calls = []
    for found in _FUNCTION.finditer(text):
        if keyword.iskeyword(found[0]):  # `not(x)`
            continue
        end = _find_end(text, found.end())
        calls.append(_read_call(found[0], text[found.start() : end]))
    return calls


def name_api(text: str, name: str) -> tuple[str, ...]:
    """What tells the API that a released text calls from others; see `name_target`.

    Args:
        text: its call, or a command line that names a model in quotation marks.
        name: what its card calls it, which decides where the call names several models.

    Returns:
        () where the text names none, so that only its card does.
    """
    calls = find_calls(text)
    if not calls:
        quoted = _QUOTED_MODEL.search(text)
        return (quoted[1],) if quoted else ()
    target = name_target(calls[0])
    return (name,) if len(target) == 1 and name in read_values(calls[0]) else target


def read_values(call: ApiCall) -> set[str]:
    """Every argument's value, those of calls inside it too; repositories also without their version."""
    values = {argument.value for each in find_calls(call.text) for argument in each.arguments}
    return values | {drop_version(value) for value in values}


def drop_version(repository: str) -> str:
    """A repository without the version that may follow it (":v0.10.0"); a branch (":torchhub") belongs to its name."""
    return _VERSION.sub("", repository)


def name_target(call: ApiCall) -> tuple[str, ...]:
    """What tells an API from others: (repository, model) of PyTorch Hub, (repository,) of it, (model,) elsewhere.

    Returns:
        () where the call names none: a bare class, a variable, a local file.
    """
    if call.function.endswith("hub.load") and (call.function.startswith("torch") or len(call.arguments) > 1):
        return _name_torch_target(call)
    by_keyword = {argument.keyword: argument for argument in call.arguments}
    positional = [argument for argument in call.arguments if not argument.keyword]
    chosen = [by_keyword[name] for name in _MODEL_KEYWORDS if name in by_keyword]
    chosen += positional[1:2] if call.function == "pipeline" else []
    chosen += positional[:1] if call.function != "pipeline" else []
    for argument in chosen[:1]:
        inner = find_calls(argument.text)
        if inner:
            return name_target(inner[0])
        if _is_model(argument):
            return (argument.value,)
    return ()


def render_tool_id(target: tuple[str, ...]) -> str:
    """The tool id of a target: its parts joined by ":", hosts left out, what an id may not hold as "-"."""
    parts = [drop_version(part) for part in target]
    for host in _HOSTS:
        parts = [part.removeprefix(host) for part in parts]
    return ":".join(_OUTSIDE_ID.sub("-", part.strip()) for part in parts)


def _name_torch_target(call: ApiCall) -> tuple[str, ...]:
    by_keyword = {argument.keyword: argument.value for argument in call.arguments}
    positional = [argument.value for argument in call.arguments if not argument.keyword]
    repository = by_keyword.get("repo_or_dir") or (positional.pop(0) if positional else "")
    model = by_keyword.get("model") or (positional.pop(0) if positional else "")
    return tuple(drop_version(part) for part in (repository, model) if part)


def _is_model(argument: Argument) -> bool:
    is_literal = argument.text.strip()[:1] in ("'", '"') or "/" in argument.text
    return is_literal and bool(argument.value) and " " not in argument.value and not _FILE.search(argument.value)


@lru_cache(maxsize=16384)  # a catalogue's calls and a model's favourites come again and again
def _read_call(function: str, text: str) -> ApiCall:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a model's string
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all that `ast.parse` says of text that is no code
        return ApiCall(function, tuple(_split_arguments(text[len(function) + 1 :])), text)
    assert isinstance(tree, ast.Call), text
    nodes = [("*" if isinstance(n, ast.Starred) else "", n) for n in tree.args]
    nodes += [(named.arg or "**", named.value) for named in tree.keywords]
    nodes.sort(key=lambda entry: (entry[1].lineno, entry[1].col_offset))
    return ApiCall(function, tuple(_read_argument(name, node, text) for name, node in nodes), text)


def _read_argument(name: str, node: ast.expr, text: str) -> Argument:
    source = ast.get_source_segment(text, node) or ast.unparse(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return Argument(name, source, node.value)
    return Argument(name, source, source)


def _split_arguments(inside: str) -> Iterator[Argument]:
    """The arguments of a call that is no Python; `inside` begins behind the bracket."""
    start = 0
    for end, character in _iterate_code(inside):
        if character not in (",", ")"):
            continue
        if inside[start:end].strip():
            yield _split_argument(inside[start:end])
        start = end + 1
        if character == ")":
            return
    if inside[start:].strip():
        yield _split_argument(inside[start:])


def _split_argument(text: str) -> Argument:
    named = _KEYWORD.match(text)
    name, value = (named[1], text[named.end() :]) if named else ("", text)
    return Argument(name, value.strip(), value.strip().strip("'\""))


def _find_end(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`; where the text goes no further, its end."""
    text = text[start : start + MAX_CALL_CHARS]
    for position, character in _iterate_code(text[1:]):
        if character == ")":
            return start + 1 + position + 1
    return start + len(text)


def _iterate_code(inside: str) -> Iterator[tuple[int, str]]:
    """The commas of one level and the bracket that ends it, with their positions; strings do not count."""
    expected: list[str] = []
    quote = ""
    is_escaped = False
    for position, character in enumerate(inside):
        if quote:
            if character == quote and not is_escaped:
                quote = ""
            is_escaped = character == "\\" and not is_escaped
        elif character in "'\"":
            quote = character
        elif character in _CLOSING:
            expected.append(_CLOSING[character])
        elif expected and character == expected[-1]:
            expected.pop()
        elif not expected and character in ",)":
            yield position, character
            if character == ")":
                return
