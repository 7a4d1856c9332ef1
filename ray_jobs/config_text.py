"""The text of run configs: YAML files and `key.path=value` overrides, without YAML 1.1's surprises.

Numbers, true, false and null are what YAML 1.2's core schema calls so, with exponents as people write them (5e-4);
`on`, `no`, 012 and dates are words. A key that stands twice is an error. An override's value is the whole text behind
the `=`, and YAML only where it begins as a list, a mapping or a quoted text does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from data_pipeline.errors import InputError

MAX_BYTES = 2**20  # of a config file

Tree = dict[str, Any]


@dataclass
class Written:
    """What a user has set: once with its values, and once with every scalar as the text that stands there."""

    values: Tree = field(default_factory=dict)
    texts: Tree = field(default_factory=dict)


class _KeyTwice(yaml.YAMLError):
    """A mapping has a key twice."""


class _ValueLoader(yaml.SafeLoader):
    """See the module's docstring."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f" (lines {lines[key.value]} and {line})" if lines[key.value] != line else ""
                raise _KeyTwice(f"the key {key.value!r} stands twice{where}")
            lines[key.value] = line
        return node


class _TextLoader(_ValueLoader):
    """Every scalar is its text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9]\d{0,18})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _ValueLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_TextLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def read_config(path: Path) -> Written:
    """Read a config file.

    Raises:
        InputError: it cannot be read, is no YAML, has a key twice, or holds no mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"the run config {path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES} bytes, which no run config has; give a YAML file.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; give a YAML file saved as UTF-8.") from error
    try:
        written = Written(_load(text, _ValueLoader), _load(text, _TextLoader))
    except _KeyTwice as error:
        raise InputError(f"{path}: {error}; leave one of them.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if written.values is None:
        return Written()
    if not isinstance(written.values, dict):
        raise InputError(f"{path} must hold a mapping of config keys, not a {type(written.values).__name__}.")
    return written


def apply_override(written: Written, override: str, sections: frozenset[str]) -> None:
    """Set what a `key.path=value` says; a mapping for a whole section sets the keys that it names.

    Raises:
        InputError: it is not of that form, or its value is no YAML.
    """
    path, separator, text = (part.strip() for part in override.partition("="))
    if not separator or not path:
        raise InputError(f"override {override!r} is not of the form key.path=value, for example train.epochs=3.")
    if not text:
        raise InputError(f"override {override!r} has no value; give one, or write {path}=null for none.")
    try:
        value, as_text = (_parse_value(text, loader) for loader in (_ValueLoader, _TextLoader))
    except _KeyTwice as error:
        raise InputError(f"override {override!r}: {error}; leave one of them.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"override {override!r}: the value is not valid YAML, which a list, a mapping or a quoted text must be."
        ) from error
    for tree, content in ((written.values, value), (written.texts, as_text)):
        if path in sections and isinstance(content, dict):
            for key, part in content.items():
                _set(tree, [path, key], part, override)
        else:
            _set(tree, path.split("."), content, override)


def _load(text: str, loader: type[yaml.SafeLoader]) -> Any:
    return yaml.load(text, Loader=loader)


def _parse_value(text: str, loader_class: type[yaml.SafeLoader]) -> Any:
    if text[0] not in "[{\"'":
        loader = loader_class("")
        return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    loader = loader_class(text)
    node = loader.get_single_node()
    if node is None or node.end_mark.index < len(text):  # behind it is a comment
        raise yaml.YAMLError("something stands behind the value")
    return loader.construct_document(node)


def _set(tree: Tree, keys: list[Any], content: Any, override: str) -> None:
    *parents, leaf = keys
    for key in parents:
        if tree.get(key) in (None, ""):  # missing, or a section without keys
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise InputError(f"override {override!r}: {key!r} is a value, not a section.")
    tree[leaf] = content
