"""Media for questions that need one: named by the user, found by their captions, or rendered as ToolMM-mini's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.instruct.captioned_media import CaptionedMedium, list_nearest, match_media, read_captioned_media
from data_pipeline.instruct.queries import Query
from data_pipeline.locations import Location
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import Modality
from data_pipeline.sources.read import GENERATED_LICENCE
from data_pipeline.sources.reading import relative_media_uri
from ray_jobs.config import RunSpec
from ray_jobs.generate_options import GenerateOptions

RENDERED = "rendered"  # in the run's folder: the media root of what is rendered
_VARIANTS = 4  # files of one kind


class MediaLibrary:
    """The files that questions may be about.

    Args:
        spec: of the run.
        licence_of: file -> terms, of files that are named beside those with captions.

    Attributes:
        root: the media root of the questions.
        by_file: file -> caption and licence, of those that are known.

    Raises:
        InputError: captions that cannot be read.
    """

    def __init__(self, spec: RunSpec, licence_of: Mapping[str, str]) -> None:
        options = spec.generate
        self._licence_of = licence_of
        self._spec = spec
        self._media: list[CaptionedMedium] = []
        self.root = spec.work_dir / RENDERED if options.render_media else _find_root(options)
        if options.media_captions:
            self._media = read_captioned_media(options.media_captions, self.root or options.media_captions.parent)
        self.by_file = {medium.file: medium for medium in self._media}

    def choose(self, queries: Sequence[Query], catalog: ToolCatalog) -> dict[Query, CaptionedMedium]:
        """A file for each query whose tool takes one; none for a query that no caption has to do with."""
        asked = [query for query in queries if takes_medium(catalog[query.tool_id])]
        kinds = [Modality(catalog[query.tool_id].input_modality) for query in asked]
        if self._spec.generate.render_media:
            return self._render(asked, kinds, catalog)
        places = match_media([(query.words, kind) for query, kind in zip(asked, kinds, strict=True)], self._media)
        chosen = zip(asked, places, strict=True)
        return {query: self._media[place] for query, place in chosen if place is not None}

    def list_for(self, tools: Sequence[Tool], n: int) -> list[list[CaptionedMedium]]:
        """For each tool, which takes a medium, at most `n` files that its description has to do with; where media are
        rendered, they are made."""
        is_rendered = self._spec.generate.render_media
        wanted = [(tool.description, Modality(tool.input_modality)) for tool in tools]
        found = list_nearest(wanted, _list_rendered() if is_rendered else self._media, n)
        return [list(map(self._write, media)) if is_rendered else media for media in found]

    @property
    def is_empty(self) -> bool:
        """Whether there are no files with captions, and none are rendered."""
        return not (self._media or self._spec.generate.render_media)

    def find(self, name: str) -> Path | None:
        """A file by the name that a row gives it, where it is at hand."""
        return find_file(self.root, name)

    def list_used(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of `media.jsonl`: every file that questions are about, with its caption and licence."""
        rows = []
        for name, n in sorted(Counter(names).items()):
            known = self.by_file.get(name)
            caption = known.caption if known else ""
            rows.append({"file": name, "caption": caption, "licence": self.find_licence(name), "questions": n})
        return rows

    def find_licence(self, name: str) -> str:
        """The terms of a file; "" where nobody states them, or for no file."""
        known = self.by_file.get(name)
        return (known.licence if known else "") or self._licence_of.get(name, "")

    def _render(
        self, queries: Sequence[Query], kinds: Sequence[Modality], catalog: ToolCatalog
    ) -> dict[Query, CaptionedMedium]:
        """What a kind's own tools do says what it is: a query for a tool that does the like gets it, others any."""
        offered = _list_rendered()
        wanted = [(f"{q.words} {catalog[q.tool_id].description}", kind) for q, kind in zip(queries, kinds, strict=True)]
        chosen: dict[Query, CaptionedMedium] = {}
        made: dict[str, CaptionedMedium] = {}
        for number, (query, place) in enumerate(zip(queries, match_media(wanted, offered), strict=True)):
            alike = [medium for medium in offered if medium.modality is kinds[number]]
            medium = offered[place] if place is not None else alike[number % len(alike)]
            if medium.file not in made:
                made[medium.file] = self._write(medium)
            chosen[query] = made[medium.file]
        return chosen

    def _write(self, medium: CaptionedMedium) -> CaptionedMedium:
        from data_pipeline.sources.toolmm_mini.media_files import file_suffix, render_media, seeded_generator

        kind, _, variant = medium.file.partition(":")
        data = render_media(medium.modality, kind, seeded_generator("generate", self._spec.seed, kind, variant))
        # the name must not give the kind away to anything that reads paths
        name = f"{medium.modality.value}/{hashlib.sha256(data).hexdigest()[:20]}{file_suffix(medium.modality, kind)}"
        folders: set[Location] = {self._spec.work_dir, self._spec.run_dir}  # two where the run is in a bucket
        for folder in folders:
            storage.write_file(folder / RENDERED / name, data)
        written = replace(medium, file=name)
        self.by_file[name] = written
        return written


def takes_medium(tool: Tool) -> bool:
    """Whether questions for a tool need a picture, a sound or a video."""
    return tool.input_modality in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)


def find_file(root: Path | None, name: str) -> Path | None:
    """A file below a root; None where there is none, or where the name leads out of it."""
    if root is None or not name:
        return None
    try:
        file = root / relative_media_uri(name)
    except InputError:
        return None
    return file if file.is_file() else None


def render_stand_in(folder: Path) -> Path:
    """A picture for calls whose own is not at hand."""
    from data_pipeline.sources.toolmm_mini.media_files import file_suffix, render_media, seeded_generator

    file = folder / f"street{file_suffix(Modality.IMAGE, 'street')}"
    storage.write_file(file, render_media(Modality.IMAGE, "street", seeded_generator("stand-in")))
    return file


def _find_root(options: GenerateOptions) -> Path | None:
    beside = options.media_captions or options.media
    return options.media_root or (beside.parent if beside else None)


@cache
def _list_rendered() -> tuple[CaptionedMedium, ...]:
    """What ToolMM-mini can render, as a folder with captions: the kind's name and what its right tools do."""
    from data_pipeline.sources.toolmm_mini import build_catalog
    from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS
    from data_pipeline.sources.toolmm_mini.questions import load_grammar

    catalog = build_catalog()
    says: dict[str, str] = {}
    for family in load_grammar().families:
        for kind, tool_ids in family.tools.items():
            words = " ".join(catalog[tool_id].description for tool_id in tool_ids if tool_id in catalog)
            says[kind] = f"{says.get(kind, '')} {words}"
    return tuple(
        CaptionedMedium(
            f"{kind}:{variant}", f"{kind.replace('_', ' ')} {says.get(kind, '')}", modality, GENERATED_LICENCE
        )
        for modality, kinds in MEDIA_KINDS.items()
        for kind in kinds
        for variant in range(_VARIANTS)
    )
