"""Questions of tool selection from a tool's description (MLLM-Tool, sections 3.2 and 8.4).

A teacher is asked for 20 queries that the tool solves, with words that it may not use. Where only the medium tells the
tool from others of its kind, half of the queries are asked for in words that fit all of them. What it writes is
checked; ten queries of a tool are kept, as many of either kind as there are. The wording of the prompts is ours.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.instruct.languages import find_language, is_foreign
from data_pipeline.records.catalog import Tool
from data_pipeline.records.text import words_key

ASKED, KEPT = 20, 10  # queries of one prompt, and those that a tool keeps
MIN_CHARS, MAX_CHARS = 12, 500
ALWAYS_PROHIBITED = ("API", "tool", "tools", "model", "models")
_ALIKE = 0.8  # share of common words from which two queries of a tool are one

Fault = Literal["format", "prohibited", "length", "repeated", "language"]

_QUERY = re.compile(r"^\s*(?:Query\s*)?\d{1,2}\s*[.:)]\s*(?P<words>.+?)\s*$", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_PART = re.compile(r"[^\W_]+")
_LATIN = "LATIN"
_ASIAN = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}  # Japanese mixes the three
_MEDIA = {"image": "a picture", "audio": "a sound recording", "video": "a video"}

# what a prompt shows; two of them at a time
_EXAMPLES = (
    ("Translates English text into German.", ("How do I say 'the train is late' to my host in Berlin?",)),
    ("Tells how many people a picture shows.", ("I took this at our reunion. How many of us are on it?",)),
    ("Writes down what is said in a recording.", ("My interview of this morning is attached; I need it as text.",)),
)
_OPEN_EXAMPLES = (
    ("Removes rain from a picture.", ("This shot came out badly, can you mend it?", "Please make my photo better.")),
    ("Makes a picture that follows a pose.", ("Use my picture to make a knight in a forest.",)),
    ("Names the chords of a piece of music.", ("What can you tell me about this recording?",)),
)


@dataclass(frozen=True)
class Query:
    """A query that is kept: the words, the tool that they were asked for, and whether only the medium decides."""

    words: str
    tool_id: str
    is_ambiguous: bool


@dataclass(frozen=True)
class Refused:
    """A line that is left out, and why."""

    line: str
    reason: Fault
    why: str


def list_prohibited(tool: Tool, others: Sequence[Tool] = ()) -> tuple[str, ...]:
    """The words that queries for a tool may not hold.

    Args:
        tool: what they are for.
        others: of an ambiguous query, the tools that its words have to fit as well; () for others.

    Returns:
        what no query may say, parts of the tool's name that its description does not say (they are names), and of an
        ambiguous one every word of its description that not all of the others have: it would give the tool away.
    """
    described = _list_words(tool.description)
    names = [part for part in _PART.findall(tool.tool_id) if part.casefold() not in described and len(part) > 2]
    telling: list[str] = []
    if others:
        common = set.intersection(*(_list_words(other.description) for other in others))
        telling = [word for word in dict.fromkeys(_WORD.findall(tool.description)) if len(word) > 3]
        telling = [word for word in telling if word.casefold() not in common | _PLAIN]
    return tuple(dict.fromkeys([*ALWAYS_PROHIBITED, *names, *telling]))


def render_query_prompt(tool: Tool, prohibited: Sequence[str], examples: Iterable[int], is_ambiguous: bool) -> str:
    """The teacher's prompt for one tool (after Figures 8 and 9).

    Args:
        tool: that the queries are for.
        prohibited: of `list_prohibited`.
        examples: which two of the examples it shows, by number below `N_EXAMPLES`.
        is_ambiguous: whether the words shall fit all tools of the tool's kind.
    """
    pool = _OPEN_EXAMPLES if is_ambiguous else _EXAMPLES
    shown = "\n".join(
        f"Description: {description}\n" + "\n".join(f"Query{n}: {query}" for n, query in enumerate(queries, start=1))
        for description, queries in (pool[number % len(pool)] for number in examples)
    )
    medium = _MEDIA.get(tool.input_modality)
    attached = f"The user attaches {medium} to each query. " if medium else ""
    description = " ".join(tool.description.split())  # which could otherwise go on in the prompt's own form
    hint = (
        "Say nothing of what is wrong with what is attached, what kind it is or what it shows: the words alone must "
        "not tell which of many tools is meant. "
        if is_ambiguous
        else ""
    )
    return (
        f"Write {ASKED} different queries that a user may put to an assistant and that one tool solves, each on a line "
        f"of its own that begins with its number: Query1: ... Query{ASKED}: ...\n"
        f"{attached}{hint}Vary situation, tone and length. Never use one of the prohibited words.\n\n"
        f"Examples, of other tools:\n{shown}\n\n"
        f"Name: {tool.tool_id}\nDescription: {description}\nProhibited words: {', '.join(prohibited)}\n"
    )


N_EXAMPLES = min(len(_EXAMPLES), len(_OPEN_EXAMPLES))


def parse_queries(text: str, tool: Tool, prohibited: Sequence[str], is_ambiguous: bool) -> list[Query | Refused]:
    """Read a teacher's answer.

    Args:
        text: the answer.
        tool, prohibited, is_ambiguous: as of its prompt.
    """
    banned = {word.casefold() for word in prohibited}
    script = _find_script(tool.description)
    language = find_language(tool.description) if script == _LATIN else ""
    found: list[Query | Refused] = []
    shown = [frozenset(_list_words(query)) for _, queries in (*_EXAMPLES, *_OPEN_EXAMPLES) for query in queries]
    said: list[frozenset[str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _QUERY.match(line)
        words = match["words"].strip().strip('"“”').strip() if match else ""
        own = frozenset(_list_words(words))
        if not words:
            found.append(Refused(line, "format", "the line does not begin with a query's number"))
        elif not MIN_CHARS <= len(words) <= MAX_CHARS:
            found.append(Refused(line, "length", f"a query has {MIN_CHARS} to {MAX_CHARS} characters"))
        elif _find_script(words) != script:
            found.append(Refused(line, "language", "it is in another script than the tool's description"))
        elif is_foreign(words, language):
            found.append(Refused(line, "language", "it is in another language than the tool's description"))
        elif hits := sorted(own & banned):
            found.append(Refused(line, "prohibited", f"it says {', '.join(hits)}"))
        elif any(_share(own, other) >= _ALIKE for other in shown):
            found.append(Refused(line, "repeated", "the prompt's examples have almost the same words"))
        elif any(_share(own, other) >= _ALIKE for other in said):
            found.append(Refused(line, "repeated", "an earlier query has almost the same words"))
        else:
            said.append(own)
            found.append(Query(words, tool.tool_id, is_ambiguous))
    return found


def keep_best(queries: Sequence[Query], earlier: Sequence[Query] = ()) -> tuple[list[Query], list[Refused]]:
    """The first `KEPT` queries of a tool: as many ambiguous ones as others, more of one kind where the other lacks.

    Args:
        queries: of all answers for the tool, in a fixed order.
        earlier: kept ones of tools that share their queries with it.

    Returns:
        the kept ones, and those that have almost the same words as one before them or an earlier one.
    """
    said = [_key_words(query) for query in earlier]
    new: list[Query] = []
    repeated: list[Refused] = []
    for query in queries:
        own = _key_words(query)
        if any(_share(own, other) >= _ALIKE for other in said):
            why = "a query of another answer has almost the same words"
            repeated.append(Refused(query.words, "repeated", why))
            continue
        said.append(own)
        new.append(query)
    open_, plain = ([query for query in new if query.is_ambiguous is kind] for kind in (True, False))
    n_open = min(len(open_), max(KEPT // 2, KEPT - len(plain)))
    return [*open_[:n_open], *plain[: KEPT - n_open]], repeated


def _key_words(query: Query) -> frozenset[str]:
    return frozenset(_list_words(words_key(query.words)))


def _share(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _find_script(text: str) -> str:
    """What most letters of a text are, as Unicode names them: LATIN, CYRILLIC, CJK (with its kana), ...; "" of none."""
    names = (unicodedata.name(char, "").partition(" ")[0] for char in text if char.isalpha())
    scripts = Counter(_ASIAN.get(name, name) for name in names)
    return max(scripts, key=scripts.__getitem__, default="")


def _list_words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


_PLAIN = frozenset(["from", "that", "this", "with", "into", "picture", "image", "photo", "sound", "recording", "video"])
