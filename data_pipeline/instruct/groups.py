"""What a user knows of tools beside their descriptions: which do the same, which a medium tells apart, and the media.

Rows of groups are ``{"tools": ["a", "b"]}`` for tools of one function, and ``{"tools": ["a", "b"], "ambiguity":
"quality"}`` for tools whose questions may be worded alike (MLLM-Tool, section 3.2 names five such kinds). Rows of media
are ``{"media": "rain/1.png", "tools": ["a"], "licence": "CC0-1.0"}``: a file below the media root, every tool that is
right for it, and its terms, where they are known.
Where nobody says which tools do the same, the catalogue tells it of those whose subtask it knows, and the teacher is
asked of others that take a medium (`group_proposals.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.schema import AmbiguityType
from data_pipeline.records.text import words_key
from data_pipeline.sources.rows import SourceRow, read_rows

AMBIGUITIES = tuple(kind.value for kind in AmbiguityType if kind is not AmbiguityType.NONE)


@dataclass(frozen=True)
class AmbiguousGroup:
    """Tools that only the medium tells apart."""

    tools: tuple[str, ...]
    ambiguity: AmbiguityType


@dataclass(frozen=True)
class ToolGroups:
    """How tools belong together.

    Attributes:
        same: tool id -> the other tools of its function.
        ambiguous: tool id -> the group of tools that only the medium tells from it.
    """

    same: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ambiguous: Mapping[str, AmbiguousGroup] = field(default_factory=dict)

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows that `read_groups` reads, each group once."""
        same = dict.fromkeys(tuple(sorted((tool, *others))) for tool, others in self.same.items())
        ambiguous = dict.fromkeys(self.ambiguous.values())
        return [
            *({"tools": list(tools)} for tools in same),
            *({"tools": list(group.tools), "ambiguity": group.ambiguity.value} for group in ambiguous),
        ]


def read_groups(path: Path, tool_ids: Collection[str]) -> ToolGroups:
    """Read the groups of a catalogue's tools.

    Raises:
        InputError: a row is no group, names a tool that the catalogue lacks, or a tool is in two groups of one kind.
    """
    same: dict[str, tuple[str, ...]] = {}
    ambiguous: dict[str, AmbiguousGroup] = {}
    for row, tools in _read(path, tool_ids):
        kind = row.content.get("ambiguity")
        if kind is not None and kind not in AMBIGUITIES:
            raise InputError(
                f"{path}, {row.place}: ambiguity is {kind!r}; it is one of {', '.join(AMBIGUITIES)}, or absent."
            )
        if len(tools) < 2:
            raise InputError(f"{path}, {row.place}: a group has two tools or more; this one has {len(tools)}.")
        for tool in tools:
            if tool in (same if kind is None else ambiguous):
                raise InputError(f"{path}, {row.place}: {tool!r} is in an earlier group of this kind; name it once.")
            if kind is None:
                same[tool] = tuple(other for other in tools if other != tool)
            else:
                ambiguous[tool] = AmbiguousGroup(tools, AmbiguityType(kind))
    return ToolGroups(same, ambiguous)


def group_by_functionality(tools: Iterable[Tool]) -> ToolGroups:
    """Tools of the same fine functionality, of one task, that take and give the same media; those whose fine
    functionality is not known belong to no group."""
    members: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for tool in tools:
        if fine := words_key(tool.fine_functionality):
            task = words_key(tool.coarse_functionality)
            members[task, fine, tool.input_modality, tool.output_modality].append(tool.tool_id)
    return ToolGroups(
        {
            tool_id: tuple(other for other in own if other != tool_id)
            for own in members.values()
            for tool_id in own
            if len(own) > 1
        }
    )


def read_media(
    path: Path, tool_ids: Collection[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]], dict[str, str]]:
    """Read which tools are right for which files.

    Returns:
        file -> tools, tool -> files, and file -> licence, of those whose row states it.

    Raises:
        InputError: a row has no medium, a licence that is no text, or a tool that the catalogue lacks, or a file is
            named twice.
    """
    tools_of: dict[str, tuple[str, ...]] = {}
    licence_of: dict[str, str] = {}
    media_of: defaultdict[str, list[str]] = defaultdict(list)
    for row, tools in _read(path, tool_ids):
        medium = row.content.get("media")
        if not isinstance(medium, str) or not medium.strip():
            raise InputError(f"{path}, {row.place}: media is {medium!r}; give the path of a file below the media root.")
        if medium in tools_of:
            raise InputError(f"{path}, {row.place}: {medium!r} is in an earlier row; name all of its tools in one.")
        licence = row.content.get("licence") or ""
        if not isinstance(licence, str):
            raise InputError(
                f"{path}, {row.place}: licence is {licence!r}; write the terms as a text, or leave it out."
            )
        if licence := " ".join(licence.split()):
            licence_of[medium] = licence
        tools_of[medium] = tools
        for tool in tools:
            media_of[tool].append(medium)
    return tools_of, dict(media_of), licence_of


def _read(path: Path, tool_ids: Collection[str]) -> Iterator[tuple[SourceRow, tuple[str, ...]]]:
    if not path.is_file():
        raise InputError(f"there is no file {path}; correct the path.")
    for row in read_rows(path):
        tools: Any = row.content.get("tools") if isinstance(row.content, dict) else None
        if not isinstance(tools, list) or not tools or not all(isinstance(tool, str) for tool in tools):
            raise InputError(f"{path}, {row.place}: tools is {tools!r}; give a list of tool ids.")
        if strangers := [tool for tool in tools if tool not in tool_ids]:
            raise InputError(f"{path}, {row.place}: the catalogue has no tool {strangers[0]!r}; correct the id.")
        yield row, tuple(dict.fromkeys(tools))
