"""ToolMM-mini's dialogues: GPT4Tools' protocol over its 31 tools, made from a seed.

Single calls, chains of two calls, answers that need no tool, earlier exchanges as context, and in each prompt another
few tools in another order. Eight tools are called in the test split only, as in GPT4Tools (supplement 1.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    parse_turns,
    render_answer,
    render_call,
    render_exchange,
    render_image_note,
    render_observation,
)
from data_pipeline.records.schema import SPLITS, ToolRecord, Turn
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, UNSEEN_TOOL_IDS
from data_pipeline.sources.toolmm_mini.dialogue_wordings import (
    Picture,
    choose,
    draw_arguments,
    draw_picture,
    draw_request,
    draw_result,
    frame_request,
    load_wordings,
    render_result,
)
from data_pipeline.sources.toolmm_mini.drafts import Draft
from data_pipeline.sources.toolmm_mini.media_files import seeded_generator

SOURCE = "toolmm-mini-dialogues"

_SEEN_TOOLS = tuple(tool for tool in GPT4TOOLS_TOOLS if tool.tool_id not in UNSEEN_TOOL_IDS)
_UNSEEN_TOOLS = tuple(tool for tool in GPT4TOOLS_TOOLS if tool.tool_id in UNSEEN_TOOL_IDS)

_IMAGE_TOOLS = tuple(tool for tool in _SEEN_TOOLS if "image_path" in tool.arguments and tool.output_modality == "image")

_OFFERED = (3, 6)  # smallest and largest number of tools in a prompt
_HISTORY_FRAC = 0.35  # of the dialogues with an image have an earlier exchange
_SMALL_TALK_FRAC = 0.4  # of these exchanges need no tool
_ABOUT_RESULT_FRAC = 0.5  # of the others: the new words are about the image that came out
_REFERENCE_FRAC = 0.25  # of the images are called "the image" and not by their names
_CLOSED_FRAC = 0.5  # of the calls are answered; the others end where the tool is called, as GPT4Tools' test items do
_MATCHED_FRAC = 0.6  # of the chains are pairs that belong together
_RECALL_FRAC = 0.25  # of what needs no tool is about an image
_NO_IMAGE_FRAC = 0.5  # of the dialogues that need no image have none


@dataclass(frozen=True)
class DialogueSize:
    """How many dialogues are made; every triple is (train, val, test).

    Attributes:
        single, chain, no_tool: with one call, with two, with none; of tools seen in training.
        unseen_single, unseen_chain: of the other tools, in the test split.
    """

    single: tuple[int, int, int]
    chain: tuple[int, int, int]
    no_tool: tuple[int, int, int]
    unseen_single: int
    unseen_chain: int


DIALOGUE_SIZES = {
    "demo": DialogueSize((450, 20, 44), (180, 8, 16), (270, 12, 24), 30, 6),
    "test": DialogueSize((23, 3, 6), (6, 2, 2), (8, 2, 3), 8, 2),
}


@dataclass(frozen=True)
class _Call:
    """One call of a dialogue.

    Attributes:
        tool: what is called.
        request: the user's words for it, not yet framed.
        arguments: as the tool takes them.
        result: what comes back.
    """

    tool: Tool
    request: str
    arguments: str
    result: str


@dataclass(frozen=True)
class _Context:
    """What was said before the new words: the text, the image that they are about, and whether it is the only one."""

    history: str
    picture: Picture
    is_only_image: bool = True


def generate_dialogues(size: str | DialogueSize = "demo", seed: int = 0) -> Iterator[ToolRecord]:
    """Yield the dialogues, train first, then val and test; the same `size` and `seed` give the same records.

    Args:
        size: a name in `DIALOGUE_SIZES`, or sizes of your own.
        seed: of everything that is drawn.

    Raises:
        InputError: `size` is no name in `DIALOGUE_SIZES`.
    """
    if isinstance(size, str):
        if size not in DIALOGUE_SIZES:
            raise InputError(
                f"ToolMM-mini's dialogues have no size {size!r}; choose one of {', '.join(DIALOGUE_SIZES)}."
            )
        size = DIALOGUE_SIZES[size]
    return _generate(size, seed)


def _generate(size: DialogueSize, seed: int) -> Iterator[ToolRecord]:
    instructions: set[str] = set()
    for index, split in enumerate(SPLITS):
        counts = {"single": size.single[index], "chain": size.chain[index], "no_tool": size.no_tool[index]}
        if split == "test":
            counts |= {"unseen_single": size.unseen_single, "unseen_chain": size.unseen_chain}
        for kind, count in counts.items():
            rng = seeded_generator("dialogues", seed, split, kind)
            for turn in range(count):
                record = _draw_record(kind, turn, split, rng)
                while record.instruction in instructions:  # small talk without an image may repeat
                    record = _draw_record(kind, turn, split, rng)
                yield replace(record, record_id=f"mini-dialogue-{len(instructions):05d}")
                instructions.add(record.instruction)


def _draw_record(kind: str, turn: int, split: str, rng: np.random.Generator) -> ToolRecord:
    if kind == "no_tool":
        return _draw_talk(split, rng)
    is_unseen = kind.startswith("unseen_")
    pool = _UNSEEN_TOOLS if is_unseen else _SEEN_TOOLS
    # single calls in turn: each tool is called about equally often
    tools = [pool[turn % len(pool)]] if kind.endswith("single") else _draw_chain(is_unseen, rng)
    has_image = "image_path" in tools[0].arguments or rng.random() >= _NO_IMAGE_FRAC
    context = _draw_context(tools, has_image, split, rng)
    calls = _draw_calls(tools, context, split, rng)
    words = calls[0].request
    if len(calls) > 1:
        words = choose(rng, load_wordings().joins[split]).format(first=words, second=calls[1].request)
    output = ""
    for call in calls:
        output += render_call(call.tool.name, call.arguments) + render_observation(call.result)
    output += render_answer(render_result(calls[-1].tool, calls[-1].result))
    is_closed = rng.random() < _CLOSED_FRAC
    turns = parse_turns(output) if is_closed else parse_turns(output)[:-2]
    words = frame_request(words, split, rng)
    return _build_record(split, tools, GPT4TOOLS_TOOLS if is_unseen else _SEEN_TOOLS, context, words, turns, rng)


def _draw_talk(split: str, rng: np.random.Generator) -> ToolRecord:
    """New words that need no tool."""
    is_recall = rng.random() < _RECALL_FRAC
    context = _draw_context((), is_recall or rng.random() >= _NO_IMAGE_FRAC, split, rng)
    talk = choose(rng, load_wordings().recall if is_recall else load_wordings().small_talk)
    answer = talk.answer.format(name=context.picture.name, description=context.picture.description)
    words = choose(rng, talk.wordings[split])
    return _build_record(split, (), _SEEN_TOOLS, context, words, parse_turns(render_answer(answer)), rng)


def _build_record(
    split: str,
    tools: Sequence[Tool],
    pool: Sequence[Tool],
    context: _Context,
    words: str,
    turns: tuple[Turn, ...],
    rng: np.random.Generator,
) -> ToolRecord:
    """Offer the tools that are called and some others of the pool, in any order."""
    others = [tool for tool in pool if tool not in tools]
    count = max(int(rng.integers(_OFFERED[0], _OFFERED[1] + 1)), len(tools) + 1)
    offered = [*tools, *(others[i] for i in rng.permutation(len(others))[: count - len(tools)])]
    offered = [offered[i] for i in rng.permutation(len(offered))]
    return Draft(tuple(tools), context.history, words, turns).offer(offered, SOURCE, split)


def _draw_chain(is_unseen: bool, rng: np.random.Generator) -> list[Tool]:
    wordings = load_wordings()
    if not is_unseen and rng.random() < _MATCHED_FRAC:
        return list(choose(rng, wordings.matched_chains))
    first, second = wordings.free_chains[is_unseen]
    return [choose(rng, first), choose(rng, second)]


def _draw_context(tools: Sequence[Tool], has_image: bool, split: str, rng: np.random.Generator) -> _Context:
    """An image made known and, in some dialogues, an exchange after it: small talk, or a request and its result."""
    picture = draw_picture(rng)
    if not has_image:
        return _Context("", picture)
    note = render_image_note(picture.name, f"{picture.description}.")
    if rng.random() >= _HISTORY_FRAC:
        return _Context(note, picture)
    if not tools or rng.random() < _SMALL_TALK_FRAC:
        talk = choose(rng, load_wordings().small_talk)
        return _Context(f"{note}\n{render_exchange(choose(rng, talk.wordings[split]), talk.answer)}", picture)
    earlier = choose(rng, [tool for tool in _IMAGE_TOOLS if tool not in tools])
    call = _draw_call(earlier, picture, picture.name, split, rng)
    exchange = render_exchange(frame_request(call.request, split, rng), render_result(earlier, call.result))
    current = replace(picture, name=call.result) if rng.random() < _ABOUT_RESULT_FRAC else picture
    return _Context(f"{note}\n{exchange}", current, is_only_image=False)


def _draw_calls(tools: Sequence[Tool], context: _Context, split: str, rng: np.random.Generator) -> list[_Call]:
    """One call or a chain, in which the second tool works on what the first one returned."""
    is_by_name = not context.is_only_image or rng.random() >= _REFERENCE_FRAC
    image = context.picture.name if is_by_name else choose(rng, load_wordings().references)
    calls = [_draw_call(tools[0], context.picture, image, split, rng)]
    for tool in tools[1:]:
        picture = replace(context.picture, name=calls[-1].result)
        calls.append(_draw_call(tool, picture, choose(rng, load_wordings().results), split, rng))
    return calls


def _draw_call(tool: Tool, picture: Picture, image: str, split: str, rng: np.random.Generator) -> _Call:
    """A call on `picture`, which the user's words call `image`."""
    arguments = draw_arguments(tool, picture, rng)
    request = draw_request(tool, arguments, image, split, rng)
    return _Call(tool, request, ", ".join(arguments.values()), draw_result(tool, picture, rng))
