"""Catalogues from what others say of their tools (MLLM-Tool, sections 3.1, 8.2 and 8.3).

Read are the Hugging Face Hub's list of models (``/api/models``, with `description` where it is known), a folder of
model cards (`model_cards.py`), Gorilla's API database, the tools of an MCP server (`tools/list`), functions as OpenAI's
API takes them, an OpenAPI file, a plain object of names and descriptions, and entries of a catalogue. What is left out
is counted by its reason: cards that say too little, unsafe ones, parameters that are no JSON Schema, licences that were
not asked for, repetitions, and more than a few tools of one function. How a model of the Hub is called, its library and
its task tell; what an API of Gorilla's takes, its card.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import InputError
from data_pipeline.instruct.card_arguments import build_schema
from data_pipeline.instruct.categories import find_category, list_stems
from data_pipeline.instruct.hub_calls import build_call, split_code
from data_pipeline.instruct.model_cards import read_model_cards
from data_pipeline.instruct.openapi import build_parameters, read_operations
from data_pipeline.records.catalog import MAX_EXAMPLE_CHARS, MAX_LABEL_CHARS, Tool
from data_pipeline.records.parameters import check_parameters
from data_pipeline.records.text import cut_words, parse_json, read_text, words_key
from data_pipeline.records.unsafe import find_unsafe_words
from data_pipeline.sources.apibench import build_tool, read_card
from data_pipeline.sources.rows import read_rows

MIN_WORDS = 4  # of a description
MAX_DESCRIPTION_CHARS = 400
MAX_PER_FUNCTION = 5  # tools, those with the most downloads (section 8.2)

_HUB_KEYS = frozenset(["modelId", "pipeline_tag", "tags"])  # the second is missing where a model states no task
_FUNCTION_KEYS = frozenset(["function", "parameters", "inputSchema"])
_MAX_CODE_DEPTH = 4  # of lists and objects in which a card gives its code; released ones have two
_FOREIGN = re.compile(r"[\s{}\[\],'\"]+")
_DOMAINS = (
    "Audio",
    "Computer Vision",
    "Multimodal",
    "Natural Language Processing",
    "Tabular",
    "Reinforcement Learning",
)
# before a task, as Gorilla's cards of the Hub's models have it: "Computer Vision Depth Estimation"
_DOMAIN = re.compile(rf"(?P<domain>{'|'.join(_DOMAINS)})\s+(?P<task>.+)")


@dataclass(frozen=True)
class Card:
    """What is known of a tool: its entry, downloads, and its licences, all of which hold; () = not stated."""

    tool: Tool
    downloads: int = 0
    licences: tuple[str, ...] = ()

    @property
    def function(self) -> str:
        """What kind of tool it is: the task, and the subtask where that is known; "" = unknown."""
        return ": ".join(filter(None, (self.tool.coarse_functionality, self.tool.fine_functionality)))


@dataclass(frozen=True)
class LeftOut:
    """A card that does not come into the catalogue."""

    name: str
    reason: str


def read_cards(path: Path) -> list[Card | LeftOut]:
    """Read cards, whatever their form, told by its keys; of a folder those of models.

    Raises:
        InputError: no such file, or none of the forms.
    """
    if path.is_dir():
        models = list(read_model_cards(path))
        if not models:
            raise InputError(f"{path} holds no model cards; put them there as LAB/MODEL/README.md.")
        return [LeftOut(n, each) if isinstance(each, str) else _read_hub(each, n) for n, each in models]
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the cards that a catalogue shall be made of.")
    text = read_text(path) if path.suffix in (".json", ".yaml", ".yml") else ""
    if text.lstrip()[:1] == "{" or path.suffix in (".yaml", ".yml"):
        try:
            content = parse_json(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (InputError, yaml.YAMLError) as error:
            if path.suffix == ".json" and "\n{" in text:  # JSON Lines under that name
                return [card for row in read_rows(path) for card in _read_row(row.content, row.place)]
            raise InputError(f"{path}: {error}; copy the file again.") from error
        return list(_read_object(content, path))
    return [card for row in read_rows(path) for card in _read_row(row.content, row.place)]


def choose_cards(
    cards: list[Card | LeftOut], licences: Collection[str] = (), max_per_function: int = MAX_PER_FUNCTION
) -> tuple[list[Tool], list[LeftOut]]:
    """Leave out what a catalogue should not hold; of cards that say the same the most downloaded one is kept (8.2).

    Args:
        cards: of `read_cards`.
        licences: the ones that are allowed, lower case; () = any.
        max_per_function: tools of one function, those with the most downloads; unknown functions have no limit.

    Returns:
        the tools in their order, and what was left out.
    """
    left_out = [card for card in cards if isinstance(card, LeftOut)]
    order = {id(card): place for place, card in enumerate(cards)}
    kept: list[Card] = []
    ids: set[str] = set()
    described: dict[str, str] = {}
    for card in sorted((card for card in cards if isinstance(card, Card)), key=lambda card: -card.downloads):
        tool, key = card.tool, words_key(card.tool.description)
        reason = ""
        if tool.tool_id in ids:
            reason = "another card is of the same tool, and no less downloaded"
        elif len(tool.description.split()) < MIN_WORDS:
            reason = f"it says too little: its description has fewer than {MIN_WORDS} words"
        elif find_unsafe_words(f"{tool.tool_id} {tool.description}"):
            reason = "unsafe content"
        elif licences and not (card.licences and {each.casefold() for each in card.licences} <= set(licences)):
            reason = f"its licence is {' and '.join(card.licences) or 'not stated'}"
        elif key in described:
            reason = f"it says the same as {described[key]}"
        if reason:
            left_out.append(LeftOut(tool.tool_id, reason))
            continue
        ids.add(tool.tool_id)
        described[key] = tool.tool_id
        kept.append(card)
    kept.sort(key=lambda card: order[id(card)])
    by_function: defaultdict[str, list[Card]] = defaultdict(list)
    for card in kept:
        by_function[card.function or card.tool.tool_id].append(card)
    chosen = {
        card.tool.tool_id
        for own in by_function.values()
        for card in sorted(own, key=lambda card: -card.downloads)[:max_per_function]
    }
    left_out += [
        LeftOut(card.tool.tool_id, f"{max_per_function} tools for {card.function} have more downloads")
        for card in kept
        if card.tool.tool_id not in chosen
    ]
    return [card.tool for card in kept if card.tool.tool_id in chosen], left_out


def _read_object(content: Any, path: Path) -> Iterator[Card | LeftOut]:
    if isinstance(content, Mapping):
        listed = content.get("result", content)
        if isinstance(listed, Mapping) and isinstance(listed.get("tools"), list):
            for number, each in enumerate(listed["tools"]):
                yield _read_function(each, f"tool {number}")
            return
        if "openapi" in content and isinstance(content.get("paths"), Mapping):
            yield from _read_openapi(content)
            return
        if content and all(isinstance(value, str) for value in content.values()):
            for name, description in content.items():
                yield _build(str(name), description)
            return
        if set(content) & {"tool_id", "api_data", "api_name", *_HUB_KEYS, *_FUNCTION_KEYS}:
            yield from _read_row(content, "line 1")
            return
    raise InputError(
        f"{path} is in no known form; give the Hub's list of models, API cards, an MCP server's tools/list, "
        "functions in OpenAI's form, an OpenAPI file, an object of names and descriptions, or catalogue entries."
    )


def _read_row(content: Any, place: str) -> list[Card | LeftOut]:
    if not isinstance(content, Mapping):
        return [LeftOut(place, "no object")]
    if "tool_id" in content:
        known = {field.name for field in fields(Tool)}
        try:
            return [Card(Tool(**{key: value for key, value in content.items() if key in known and value is not None}))]
        except InputError as error:
            return [LeftOut(str(content["tool_id"]), str(error))]
    if "api_data" in content or "api_name" in content:
        try:
            return [Card(_build_gorilla(dict(content)))]
        except InputError as error:
            return [LeftOut(place, str(error))]
    if set(content) & _FUNCTION_KEYS:
        return [_read_function(content, place)]
    name = content.get("modelId") or content.get("id")
    if isinstance(name, str) and set(content) & _HUB_KEYS:
        return [_read_hub(content, name)]
    return [LeftOut(place, "in no known form")]


def _read_hub(content: Mapping[str, Any], name: str) -> Card | LeftOut:
    """A model of the Hub: its tags say the licence, its task what goes in and comes out."""
    task = content.get("pipeline_tag")
    details = content.get("cardData")
    listed = content.get("tags")
    tags = [tag for tag in listed if isinstance(tag, str)] if isinstance(listed, list) else []
    if content.get("disabled") is True:
        return LeftOut(name, "the Hub has disabled it")
    licences = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    if isinstance(details, Mapping):
        licences = _list_licences(details) or licences
    stated = content.get("description") or (details.get("summary") if isinstance(details, Mapping) else "") or ""
    description, code = split_code(str(stated))
    category = find_category(str(task), " ".join([name, description[:MAX_DESCRIPTION_CHARS], *tags]))
    if category is None:
        return LeftOut(name, f"its task is {task or 'not stated'}")
    card = _build(name, description, category.input_modality, category.gives, "huggingface", category.parameters)
    if isinstance(card, LeftOut):
        return card
    call, loading = build_call(content, name)
    try:
        tool = replace(
            card.tool,
            call=call,
            domain=category.domain,
            coarse_functionality=category.task,
            fine_functionality=category.subtask,
            example_code=_cut_code(code or loading),
        )
    except InputError as error:
        return LeftOut(name[:100], str(error))
    downloads = content.get("downloads")
    return Card(tool, downloads if isinstance(downloads, int) else 0, tuple(licences))


def _list_licences(details: Mapping[str, Any]) -> list[str]:
    """Those of a card's YAML: a text or a list; what the Hub has no name for has one of its own beside "other"."""
    stated = details.get("license")
    own = details.get("license_name")
    listed = [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, str)]
    return [own if each == "other" and isinstance(own, str) else each for each in listed]


def _build_gorilla(content: dict[str, Any]) -> Tool:
    """An API card's entry. Its domain names the task, with the field before it or alone; its functionality is the
    subtask, where it is more than the task or the framework once again, as on many cards.

    Raises:
        InputError: see `read_card` and `build_tool`.
    """
    card = read_card(content)
    stated = content.get("api_data", content)
    found = _DOMAIN.fullmatch(card.domain)
    domain, task = (found["domain"], found["task"]) if found else (card.domain, card.domain)
    said = list_stems(f"{task} {stated.get('framework', '')}")
    subtask = "" if list_stems(card.functionality) <= said else card.functionality
    return replace(
        build_tool(card),
        domain=cut_words(domain, MAX_LABEL_CHARS),
        coarse_functionality=cut_words(task, MAX_LABEL_CHARS),
        fine_functionality=cut_words(subtask, MAX_LABEL_CHARS),
        example_code=_cut_code("\n".join(_list_code(stated.get("example_code")))),
        parameters=build_schema(stated.get("api_arguments"), card.call),
    )


def _list_code(code: Any, depth: int = 0) -> Iterator[str]:
    """The lines of example code, which cards give as a text, a list of texts, or an object of steps; what lies deeper
    than `_MAX_CODE_DEPTH` is no code."""
    if isinstance(code, str):
        yield from code.splitlines()
    elif isinstance(code, list | dict) and depth < _MAX_CODE_DEPTH:
        for part in code.values() if isinstance(code, dict) else code:
            yield from _list_code(part, depth + 1)


def _cut_code(code: str) -> str:
    """At most `MAX_EXAMPLE_CHARS`, whole lines."""
    code = code.strip("\n")
    return code if len(code) <= MAX_EXAMPLE_CHARS else code[: MAX_EXAMPLE_CHARS + 1].rpartition("\n")[0].rstrip()


def _read_function(content: Any, place: str) -> Card | LeftOut:
    """A tool of `tools/list`, or a function as OpenAI's API takes it."""
    function = content.get("function", content) if isinstance(content, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return LeftOut(place, "it has no name")
    words = str(function.get("description") or function.get("title") or "")
    parameters = function.get("inputSchema", function.get("parameters"))
    return _build(function["name"], words, parameters=parameters)


def _read_openapi(content: Mapping[str, Any]) -> Iterator[Card | LeftOut]:
    for operation in read_operations(content):
        try:
            parameters = build_parameters(content, operation)
        except InputError as error:
            yield LeftOut(operation.name[:100], f"its parameters {error}")
            continue
        yield _build(operation.name, operation.words, parameters=parameters)


def _build(
    name: str,
    description: str,
    given: str = "",
    made: str = "",
    backend: str = "",
    parameters: Any = None,
) -> Card | LeftOut:
    tool_id = _FOREIGN.sub("-", name.strip()).strip("-")
    words = cut_words(" ".join(description.split()), MAX_DESCRIPTION_CHARS)
    parameters = {} if parameters is None else parameters
    try:
        check_parameters(parameters)
    except InputError as error:
        return LeftOut(name[:100], f"its parameters {error}")
    try:
        return Card(Tool(tool_id, words, given, made, backend, parameters=parameters))
    except InputError as error:
        return LeftOut(name[:100], str(error))
