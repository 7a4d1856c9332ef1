"""Groups that nobody has declared: the teacher says which tools do the same, and which only a medium tells apart.

Asked are tools that take the same medium and give the same, whose descriptions or tasks are alike; of each the teacher
says how the others differ, by MLLM-Tool's five kinds of ambiguity (section 3.2). Two tools belong together where both
answers say so. What a medium's caption tells is judged likewise: which tools of a group are right for it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline.instruct.groups import AMBIGUITIES, AmbiguousGroup, ToolGroups
from data_pipeline.instruct.matching import find_similar, number_tools, read_verdicts
from data_pipeline.records.catalog import Tool
from data_pipeline.records.schema import AmbiguityType, Modality
from data_pipeline.records.text import words_key

N_CANDIDATES = 8  # tools that a tool is held against, at the most
SAME, APART = "same", "no"

_MEDIA = {Modality.IMAGE: "a picture", Modality.AUDIO: "a sound recording", Modality.VIDEO: "a video"}
_WORDS = (SAME, *AMBIGUITIES, APART)
_VERDICT = re.compile(
    rf"^\s*(?P<number>\d{{1,2}})\s*[.:)]\s*(?P<verdict>{'|'.join(_WORDS)})\b", re.IGNORECASE | re.MULTILINE
)
_MEANINGS = (
    (SAME, "it does exactly the same"),
    ("domains", "it does the same for what is attached from another domain (streets, rooms, medical scans)"),
    ("categories", "it does the same with other or finer categories (any animals, birds alone)"),
    ("quality", "both make it better, but other faults are mended (rain, haze, noise)"),
    ("conditions", "both make something of it, but it has another form (a sketch, a depth map, a pose)"),
    ("others", "there is another reason why only what is attached tells (the language that is spoken)"),
    (APART, "the user's words alone tell which of the two is meant"),
)


def list_candidates(tools: Sequence[Tool], same: Mapping[str, Sequence[str]]) -> dict[str, list[Tool]]:
    """Tool id -> the tools that may belong to its group, of tools that take a medium and have such.

    Args:
        tools: all that there are.
        same: tool id -> the tools that are known to do the same; they are not asked about.
    """
    with_medium = [tool for tool in tools if tool.input_modality in _MEDIA]
    if len(with_medium) < 2:
        return {}
    of_task: defaultdict[tuple[str, ...], list[Tool]] = defaultdict(list)
    for tool in with_medium:
        of_task[_task(tool)].append(tool)
    found: dict[str, list[Tool]] = {}
    for tool, similar in zip(with_medium, find_similar(with_medium).values(), strict=True):
        others = [*similar, *(of_task[_task(tool)] if tool.coarse_functionality else ())]
        known = {tool.tool_id, *same.get(tool.tool_id, ())}
        new = {other.tool_id: other for other in others if other.tool_id not in known}
        if new:
            found[tool.tool_id] = list(new.values())[:N_CANDIDATES]
    return found


def render_group_prompt(tool: Tool, others: Sequence[Tool]) -> str:
    """Ask the teacher how tools differ from one."""
    words = "\n".join(f"{word}: {meaning}" for word, meaning in _MEANINGS)
    return (
        f"A user attaches {_MEDIA[Modality(tool.input_modality)]} and says in a few words what shall come of it. One "
        f"tool does this: {' '.join(tool.description.split())}\n"
        f"Say of each tool below how it differs from that one, in one of these words.\n{words}\n\n"
        f"{number_tools(others)}\nAnswer with one line a tool, its number and the word: 1: {APART}"
    )


def parse_differences(text: str, others: Sequence[Tool]) -> dict[str, str] | None:
    """Tool id -> "same", a kind of ambiguity, or "no"; None where the teacher did not say it of each tool, once."""
    return read_verdicts(text, _VERDICT, others)


def build_groups(differences: Mapping[str, Mapping[str, str]], same: Mapping[str, Sequence[str]]) -> ToolGroups:
    """Groups out of pairs on which both answers agree; a pair that is apart is never in one group.

    Args:
        differences: tool id -> what was said of each that it was held against.
        same: tool id -> the tools that are known to do the same.

    Returns:
        what is known and what is new; a group of several kinds bears the one that most of its pairs have.
    """
    words: dict[frozenset[str], list[str]] = {}
    for tool, said in differences.items():
        for other, word in said.items():
            back = differences.get(other, {}).get(tool)
            if back is not None:
                words[frozenset((tool, other))] = [word, back]
    apart = {pair for pair, said in words.items() if APART in said}
    alike = [pair for pair in words if pair not in apart]
    is_same = [pair for pair in alike if words[pair] == [SAME, SAME]]
    known = [frozenset((tool, other)) for tool, others in same.items() for other in others]
    of_one_function = _join([*known, *is_same], {pair for pair in words if pair not in is_same})
    ambiguous: dict[str, AmbiguousGroup] = {}
    for members in _join([*known, *alike], apart):
        said = Counter(word for pair in alike if pair <= set(members) for word in words[pair] if word != SAME)
        if said:
            kind = max(AMBIGUITIES, key=lambda word: said[word])
            ambiguous |= dict.fromkeys(members, AmbiguousGroup(members, AmbiguityType(kind)))
    return ToolGroups(
        {tool: tuple(o for o in members if o != tool) for members in of_one_function for tool in members}, ambiguous
    )


def render_media_prompt(caption: str, modality: Modality, tools: Sequence[Tool]) -> str:
    """Ask the teacher which tools of an ambiguous group are right for a medium; `parse_matches` reads the answer."""
    return (
        f"A user attaches {_MEDIA[modality]}. What it is: {' '.join(caption.split())}\n"
        "The user's words fit all of the tools below, so what is attached decides. For each of these tools say whether "
        "it is right for what is attached: yes, or no where another one is.\n"
        f"{number_tools(tools)}\nAnswer with one line a tool, its number and yes or no: 1: yes"
    )


def _join(pairs: Iterable[frozenset[str]], apart: set[frozenset[str]]) -> list[tuple[str, ...]]:
    """Groups of tools that pairs hold together, in order; two groups stay two where a pair across them is apart."""
    group_of: dict[str, list[str]] = {}
    for pair in pairs:
        one, other = (group_of.setdefault(tool, [tool]) for tool in sorted(pair))
        if one is other or any(frozenset((a, b)) in apart for a in one for b in other):
            continue
        one += other
        group_of |= dict.fromkeys(other, one)
    return [
        tuple(sorted(members))
        for members in {id(each): each for each in group_of.values()}.values()
        if len(members) > 1
    ]


def _task(tool: Tool) -> tuple[str, ...]:
    return words_key(tool.coarse_functionality), tool.input_modality, tool.output_modality
