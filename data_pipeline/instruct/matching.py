"""Which other tools a query fits: one question, many answers (MLLM-Tool, section 3.3).

Tools of identical function share their queries. Of tools that are merely similar the teacher judges, tool by tool,
whether a query keeps to what the tool does (broad words) or asks for what only another one does (strict words).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from data_pipeline.instruct.queries import Query
from data_pipeline.records.catalog import Tool

N_SIMILAR = 4  # tools that a query is held against, at the most
MIN_SIMILARITY = 0.1  # of descriptions (cosine of tf-idf) from which tools count as similar

_VERDICT = re.compile(r"^\s*(?P<number>\d{1,2})\s*[.:)]\s*(?P<verdict>yes|no)\b", re.IGNORECASE | re.MULTILINE)


def find_similar(tools: Sequence[Tool]) -> dict[str, list[Tool]]:
    """Tool id -> the tools of the same media whose descriptions are nearest, at most `N_SIMILAR`, the nearest first."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second of import time

    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(
        [tool.description or tool.tool_id for tool in tools]
    )
    similarity = (vectors @ vectors.T).toarray()  # [tools, tools]
    found: dict[str, list[Tool]] = {}
    for number, tool in enumerate(tools):
        alike = [
            other
            for other in similarity[number].argsort()[::-1].tolist()
            if other != number
            and similarity[number, other] >= MIN_SIMILARITY
            and (tools[other].input_modality, tools[other].output_modality)
            == (tool.input_modality, tool.output_modality)
        ]
        found[tool.tool_id] = [tools[other] for other in alike[:N_SIMILAR]]
    return found


def render_match_prompt(query: Query, tools: Sequence[Tool]) -> str:
    """Ask the teacher which tools solve a query as well."""
    return (
        f'A user asks: "{query.words}"\n'
        "For each of these tools say whether it solves exactly that: yes where the request is broad enough for it, no "
        "where the request names something that the tool does not do.\n"
        f"{number_tools(tools)}\nAnswer with one line a tool, its number and yes or no: 1: yes"
    )


def parse_matches(text: str, tools: Sequence[Tool]) -> list[str] | None:
    """The ids of the tools that fit; None where the teacher did not say it of each tool, once."""
    verdicts = read_verdicts(text, _VERDICT, tools)
    return None if verdicts is None else [tool.tool_id for tool in tools if verdicts[tool.tool_id] == "yes"]


def number_tools(tools: Sequence[Tool]) -> str:
    """What tools do, a line each behind its number, for a teacher who is to say something of each."""
    return "\n".join(f"{number}. {' '.join(tool.description.split())}" for number, tool in enumerate(tools, start=1))


def read_verdicts(text: str, verdict: re.Pattern[str], tools: Sequence[Tool]) -> dict[str, str] | None:
    """Tool id -> what the teacher said of it; None where it was not said of each tool that was numbered, once.

    Args:
        text: the answer.
        verdict: finds a `number` and a `verdict`.
        tools: in the order of their numbers.
    """
    found = [(int(each["number"]), each["verdict"].casefold()) for each in verdict.finditer(text)]
    if sorted(number for number, _ in found) != list(range(1, len(tools) + 1)):
        return None
    return {tools[number - 1].tool_id: said for number, said in found}


def share_answers(query: Query, same: Mapping[str, Sequence[str]], matched: Sequence[str]) -> tuple[str, ...]:
    """Every right tool of a query: its own, those of the same function, those that were judged to fit, and theirs."""
    tools = [query.tool_id, *matched]
    return tuple(dict.fromkeys(answer for tool_id in tools for answer in (tool_id, *same.get(tool_id, ()))))
