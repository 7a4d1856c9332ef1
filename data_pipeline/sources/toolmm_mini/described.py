"""ToolMM-mini's tools as an agent meets them: each offered with what it does and takes, in GPT4Tools' protocol.

The dialogues of `dialogues.py` speak of GPT4Tools' 31 tools and pictures. Here the questions of ToolMM-mini, with a
picture, a sound or a video, are put to a few tools of its catalogue that are told apart by their descriptions: single
calls, chains of two, tools that fail, and requests that no offered tool can meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.dialogue import (
    parse_turns,
    render_answer,
    render_call,
    render_failure,
    render_file_note,
    render_observation,
    render_usage,
)
from data_pipeline.records.schema import SPLITS, Modality, ToolRecord
from data_pipeline.sources.toolmm_mini.catalog import build_catalog
from data_pipeline.sources.toolmm_mini.dialogue_wordings import (
    choose,
    draw_file_name,
    frame_request,
    load_wordings,
    render_result,
)
from data_pipeline.sources.toolmm_mini.drafts import Draft, group_drafts, list_called
from data_pipeline.sources.toolmm_mini.media_files import seeded_generator
from data_pipeline.sources.toolmm_mini.questions import load_grammar

SOURCE = "toolmm-mini-described"

_WORDINGS_PATH = Path(__file__).with_name("described.yaml")
_KINDS = ("single", "chain", "failed", "none")
_OFFERED = (3, 8)  # smallest and largest number of tools in a prompt; more where a group of dialogues calls more
_ALIKE_FRAC = 0.5  # of the other tools take the same kind of medium
_UNASKED_FRAC = 0.5  # of what no tool can do is a request for a tool that is not offered
_NEEDS_WORDS = ("Salesforce/blip-vqa-base", "dandelin/vilt-b32-finetuned-vqa", "timbrooks/instruct-pix2pix")


@dataclass(frozen=True)
class DescribedSize:
    """How many dialogues are made; every triple is (train, val, test).

    Attributes:
        single, chain: with one call, with two.
        failed: with a call that fails.
        none: with no tool offered that can do it.
    """

    single: tuple[int, int, int]
    chain: tuple[int, int, int]
    failed: tuple[int, int, int]
    none: tuple[int, int, int]


DESCRIBED_SIZES = {
    "demo": DescribedSize((600, 16, 60), (700, 12, 40), (100, 4, 10), (180, 8, 20)),
    "test": DescribedSize((12, 2, 3), (6, 2, 2), (4, 1, 1), (6, 1, 2)),
}


@dataclass(frozen=True)
class _Request:
    """What a user may ask for.

    Attributes:
        modality: of the medium that it is about; TEXT = none.
        right: the tools that do it, with that medium alone; () = none does.
        barred: tools that must not be offered beside the right one: they may be right too.
        words: split -> wordings that are not sentences yet.
        sentences: split -> wordings that are.
    """

    modality: Modality
    right: tuple[str, ...]
    barred: frozenset[str]
    words: Mapping[str, Sequence[str]]
    sentences: Mapping[str, Sequence[str]]


def described_catalog() -> ToolCatalog:
    """ToolMM-mini's catalogue, and the tools that only its described dialogues have, before the entry for none."""
    tools = list(build_catalog())
    extra = [
        Tool(entry["tool"], entry["description"], entry["modality"], "text", "local")
        for entry in _load_wordings()["tools"]
    ]
    return ToolCatalog([*tools[:-1], *extra, tools[-1]])


def generate_described(size: str | DescribedSize = "demo", seed: int = 0) -> Iterator[ToolRecord]:
    """Yield the dialogues, train first, then val and test; the same `size` and `seed` give the same records.

    Args:
        size: a name in `DESCRIBED_SIZES`, or sizes of your own.
        seed: of everything that is drawn.

    Raises:
        InputError: `size` is no name in `DESCRIBED_SIZES`.
    """
    if isinstance(size, str):
        if size not in DESCRIBED_SIZES:
            raise InputError(
                f"ToolMM-mini's described tools have no size {size!r}; choose one of {', '.join(DESCRIBED_SIZES)}."
            )
        size = DESCRIBED_SIZES[size]
    return _generate(size, seed)


def _generate(size: DescribedSize, seed: int) -> Iterator[ToolRecord]:
    drawn: set[str] = set()

    def name(record: ToolRecord) -> ToolRecord:
        drawn.add(record.instruction)
        return replace(record, record_id=f"mini-described-{len(drawn) - 1:05d}")

    for index, split in enumerate(SPLITS):
        rngs = {kind: seeded_generator("described", seed, split, kind) for kind in _KINDS}
        counts = {kind: getattr(size, kind)[index] for kind in _KINDS}
        if split == "train":
            drafts = [_draw_draft(kind, split, rngs[kind]) for kind in _KINDS for _ in range(counts[kind])]
            rng = seeded_generator("described", seed, split, "offers")
            for group in group_drafts(drafts, rng):
                records = _offer_tools(group, split, rng)
                while any(record.instruction in drawn for record in records):
                    records = _offer_tools(group, split, rng)
                yield from map(name, records)
            continue
        for kind, rng in rngs.items():
            for _ in range(counts[kind]):
                record = _draw_record(kind, split, rng)
                while record.instruction in drawn:
                    record = _draw_record(kind, split, rng)
                yield name(record)


def _draw_record(kind: str, split: str, rng: np.random.Generator) -> ToolRecord:
    (record,) = _offer_tools([_draw_draft(kind, split, rng)], split, rng)
    return record


def _offer_tools(drafts: Sequence[Draft], split: str, rng: np.random.Generator) -> list[ToolRecord]:
    """The records of drafts that are offered the same tools."""
    offered = _draw_offer(drafts, rng)
    return [draft.offer(offered, SOURCE, split) for draft in drafts]


def _draw_draft(kind: str, split: str, rng: np.random.Generator) -> Draft:
    tools = _load_tools()
    if kind == "none":
        request = _draw_impossible(rng)
        file_name = draw_file_name(rng, request.modality) if request.modality is not Modality.TEXT else ""
        answer = render_answer(_load_wordings()["answers"]["none"])
        words = choose(rng, request.sentences[split])
        return _build_draft([], request.barred, request.modality, file_name, words, answer, rng)
    requests = [_draw_request(kind == "chain", rng)]
    if kind == "chain":
        requests.append(_draw_second(requests[0], rng))
    first = requests[0]
    file_name = draw_file_name(rng, first.modality)
    called = [tools[choose(rng, request.right)] for request in requests]
    output, name, result = "", file_name, ""
    for tool in called:
        output += render_call(tool.call_name, name)
        if kind == "failed":
            result = choose(rng, _load_wordings()["failures"])
            output += render_observation(render_failure(result))
            continue
        is_file = tool.output_modality != "text"
        result = draw_file_name(rng, tool.output_modality) if is_file else _draw_words(rng)
        name = result if is_file else name
        output += render_observation(result)
    if kind == "failed":
        output += render_answer(_load_wordings()["answers"]["failed"].format(reason=result))
    else:
        output += render_answer(render_result(called[-1], result.rstrip(".")))
    barred = frozenset[str]().union(*(request.barred for request in requests))
    if kind == "chain":
        parts = [choose(rng, request.words[split]) for request in requests]
        joined = choose(rng, _load_wordings()["joins"][split]).format(first=parts[0], second=parts[1])
        words = frame_request(joined, split, rng)
    else:
        words = choose(rng, first.sentences[split])
    return _build_draft(called, barred, first.modality, file_name, words, output, rng)


def _draw_impossible(rng: np.random.Generator) -> _Request:
    """What no tool of the catalogue does, or a request whose tools are not offered."""
    unasked = rng.random() < _UNASKED_FRAC
    return choose(rng, [request for request in _load_requests() if bool(request.right) == unasked])


def _draw_request(makes_file: bool, rng: np.random.Generator) -> _Request:
    """A request for one call; the first of a chain is one whose tools all make a file."""
    requests = [request for request in _load_requests() if request.right]
    if makes_file:
        requests = [request for request in requests if request.words and "text" not in _outputs(request)]
    return choose(rng, requests)


def _draw_second(first: _Request, rng: np.random.Generator) -> _Request:
    """A request about what the first one's tools make, for other tools."""
    (made,) = _outputs(first)
    return choose(
        rng,
        [
            request
            for request in _load_requests()
            if request.words and request.modality == made and request.right and first.barred.isdisjoint(request.right)
        ],
    )


def _outputs(request: _Request) -> set[str]:
    """What the tools that do it give."""
    return {_load_tools()[tool_id].output_modality for tool_id in request.right}


def _build_draft(
    called: Sequence[Tool],
    barred: frozenset[str],
    modality: Modality,
    file_name: str,
    words: str,
    output: str,
    rng: np.random.Generator,
) -> Draft:
    note = ""
    if file_name:
        note = render_file_note(modality, file_name, choose(rng, _load_wordings()["file_descriptions"]))
    return Draft(tuple(called), note, words, parse_turns(output), modality, barred)


def _draw_offer(drafts: Sequence[Draft], rng: np.random.Generator) -> list[Tool]:
    """The tools that are called and some others, about half of them for the same kinds of media, in any order."""
    called = list_called(drafts)
    barred = frozenset[str]().union(*(draft.barred for draft in drafts))
    others = [tool for tool in _load_tools().values() if tool not in called and tool.tool_id not in barred]
    alike = [tool for tool in others if tool.input_modality in {draft.modality for draft in drafts}]
    n_others = max(1, int(rng.integers(_OFFERED[0], _OFFERED[1] + 1)) - len(called))
    n_alike = int(rng.binomial(n_others, _ALIKE_FRAC))
    drawn = [alike[i] for i in rng.permutation(len(alike))[:n_alike]]
    rest = [tool for tool in others if tool not in drawn]
    offered = [*called, *drawn, *(rest[i] for i in rng.permutation(len(rest))[: n_others - len(drawn)])]
    return [offered[i] for i in rng.permutation(len(offered))]


def _draw_words(rng: np.random.Generator) -> str:
    wordings = _load_wordings()
    template: str = choose(rng, wordings["results"])
    while "{word}" in template:
        template = template.replace("{word}", choose(rng, wordings["words"]), 1)
    return template.format(n=int(rng.integers(1, 999)), x=f"{rng.uniform(0, 2):.2f}")


@cache
def _load_wordings() -> dict[str, Any]:
    return yaml.safe_load(_WORDINGS_PATH.read_text(encoding="utf-8"))


@cache
def _load_tools() -> dict[str, Tool]:
    """The tools that may be offered, by id, with their lines for the prompt."""
    return {
        tool.tool_id: replace(tool, usage=render_usage(tool.description, [tool.input_modality]))
        for tool in described_catalog()
        if tool.tool_id != UNKNOWN_TOOL_ID
    }


@cache
def _load_requests() -> tuple[_Request, ...]:
    """What can be asked for: tasks whose words decide, and families, where only one kind of tool may be offered."""
    grammar, frames = load_grammar(), load_wordings().frames
    requests = []
    for task in grammar.tasks:
        is_none = task.tools == (UNKNOWN_TOOL_ID,)
        right = () if is_none else tuple(tool_id for tool_id in task.tools if tool_id not in _NEEDS_WORDS)
        if is_none or (right and task.modality is not Modality.TEXT):
            barred = frozenset(task.tools)
            requests.append(_Request(task.modality, right, barred, {} if is_none else task.requests, task.wordings))
    for family in grammar.families:
        if family.modality is Modality.TEXT:
            continue
        for tool_ids in family.tools.values():
            right = tuple(tool_id for tool_id in tool_ids if tool_id in _load_tools())
            if right:
                barred = frozenset(family.candidate_tool_ids)
                requests.append(_Request(family.modality, right, barred, {}, family.wordings))
    for entry in _load_wordings()["requests"]:
        words = {split: tuple(entry[split]) for split in SPLITS}
        sentences = {
            split: tuple(
                framed[0].upper() + framed[1:]
                for frame in frames[split]
                for framed in (frame.format(request=request) for request in words[split])
            )
            for split in SPLITS
        }
        right = tuple(entry["tools"])
        requests.append(_Request(Modality(entry["modality"]), right, frozenset(right), words, sentences))
    return tuple(requests)
