"""How a user's tools belong together, and which are right for which files: as is said, and as the teacher proposes.

Both are written in the form in which a user says them: a person corrects a proposal and gives it to the next run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline.instruct.group_proposals import (
    build_groups,
    list_candidates,
    parse_differences,
    render_group_prompt,
    render_media_prompt,
)
from data_pipeline.instruct.groups import ToolGroups, group_by_functionality, read_groups, read_media
from data_pipeline.instruct.matching import parse_matches
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import Modality
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.generate.asking import ask
from ray_jobs.generate.media import MediaLibrary, takes_medium
from ray_jobs.generate_options import GenerateOptions

FILES_PER_TOOL = 4  # that are judged for a tool of an ambiguous group
_MAX_TOKENS = 100


@dataclass(frozen=True)
class Grouping:
    """What is known of tools beside their descriptions.

    Attributes:
        groups: how they belong together.
        tools_of: file -> tools that are right for it.
        media_of: tool -> files.
        licence_of: file -> its terms.
        named: the tools whose files the user has named.
        n_unclear: judgements of the teacher that were in no form.
    """

    groups: ToolGroups
    tools_of: Mapping[str, tuple[str, ...]]
    media_of: Mapping[str, Sequence[str]]
    licence_of: Mapping[str, str]
    named: frozenset[str]
    n_unclear: int = 0

    def media_rows(self) -> list[dict[str, Any]]:
        """The rows that `read_media` reads."""
        return [
            {"media": file, "tools": list(tools), "licence": self.licence_of.get(file, "")}
            for file, tools in self.tools_of.items()
        ]

    def count(self) -> dict[str, Any]:
        """What a report tells of it."""
        rows = self.groups.to_rows()
        kinds = Counter(row["ambiguity"] for row in rows if "ambiguity" in row)
        return {"same": len(rows) - kinds.total(), "ambiguous": dict(sorted(kinds.items())), "unclear": self.n_unclear}


def read_grouping(options: GenerateOptions, catalog: ToolCatalog) -> Grouping:
    """What the user says, and else the catalogue's functionality.

    Raises:
        InputError: files that do not fit the catalogue.
    """
    ids = catalog.tool_ids
    groups = read_groups(options.groups, ids) if options.groups else group_by_functionality(catalog)
    tools_of, media_of, licence_of = read_media(options.media, ids) if options.media else ({}, {}, {})
    return Grouping(groups, tools_of, media_of, licence_of, frozenset(media_of))


def list_group_requests(
    options: GenerateOptions, tools: Sequence[Tool], said: Grouping
) -> tuple[list[tuple[Tool, list[Tool]]], list[TeacherRequest]]:
    """What the teacher is asked of tools whose groups nobody has said: (tool, others) and the request, as many.

    Without media nothing tells such tools apart, so nothing is asked.
    """
    has_media = bool(options.media or options.media_captions or options.render_media)
    if options.groups is not None or not has_media:
        return [], []
    candidates = list_candidates(tools, said.groups.same)
    asked = [(tool, candidates[tool.tool_id]) for tool in tools if tool.tool_id in candidates]
    return asked, [_request(render_group_prompt(tool, others)) for tool, others in asked]


def complete_grouping(
    options: GenerateOptions,
    tools: Sequence[Tool],
    said: Grouping,
    library: MediaLibrary,
    teacher: Teacher,
    errors: list[str],
) -> Grouping:
    """With what the teacher proposes where the user has said nothing: groups, and files for ambiguous ones."""
    asked, requests = list_group_requests(options, tools, said)
    differences: dict[str, dict[str, str]] = {}

    def take(number: int, text: str) -> list[str]:
        found = parse_differences(text, asked[number][1])
        if found is None:
            return ["unclear"]
        differences[asked[number][0].tool_id] = found
        return []

    ask(teacher, requests, "groups", take, errors)
    if asked:
        ordered = {tool.tool_id: differences[tool.tool_id] for tool, _ in asked if tool.tool_id in differences}
        said = replace(
            said,
            groups=build_groups(ordered, said.groups.same),
            n_unclear=len(asked) - len(differences),
        )
    return said if options.media or library.is_empty else _find_files(tools, said, library, teacher, errors)


def _find_files(
    tools: Sequence[Tool], said: Grouping, library: MediaLibrary, teacher: Teacher, errors: list[str]
) -> Grouping:
    """Files for the tools of ambiguous groups, by their captions, and which tools of the group each is right for."""
    by_id = {tool.tool_id: tool for tool in tools}
    asked: dict[tuple[str, tuple[str, ...]], tuple[str, list[Tool]]] = {}  # one request for a file and a group
    grouped = [tool for tool in tools if tool.tool_id in said.groups.ambiguous and takes_medium(tool)]
    for tool, media in zip(grouped, library.list_for(grouped, FILES_PER_TOOL), strict=True):
        group = said.groups.ambiguous[tool.tool_id]
        members = [by_id[other] for other in group.tools if other in by_id]
        for medium in media:
            prompt = render_media_prompt(medium.caption, Modality(tool.input_modality), members)
            asked[medium.file, group.tools] = (prompt, members)
    places = list(asked)
    right: dict[int, list[str]] = {}

    def take(number: int, text: str) -> list[str]:
        found = parse_matches(text, asked[places[number]][1])
        if found is None:
            return ["unclear"]
        right[number] = found
        return []

    ask(teacher, [_request(prompt) for prompt, _ in asked.values()], "files", take, errors)
    tools_of: defaultdict[str, list[str]] = defaultdict(list)
    media_of: defaultdict[str, list[str]] = defaultdict(list)
    for number in sorted(right):
        file, group = places[number]
        if not 0 < len(right[number]) < len(group):  # it tells none of them from the others
            continue
        tools_of[file] += right[number]
        for tool_id in right[number]:
            media_of[tool_id].append(file)
    return replace(
        said,
        tools_of={file: tuple(ids) for file, ids in tools_of.items()},
        media_of=dict(media_of),
        licence_of={file: library.find_licence(file) for file in tools_of},
        n_unclear=said.n_unclear + len(asked) - len(right),
    )


def _request(prompt: str) -> TeacherRequest:
    return TeacherRequest((("user", prompt),), max_tokens=_MAX_TOKENS, temperature=0.0)
