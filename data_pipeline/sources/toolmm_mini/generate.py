"""ToolMM-mini as records: media rendered into files and questions put to them, all from one seed (DESIGN section 5)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import Location
from data_pipeline.records.schema import SPLITS, Modality, ToolRecord
from data_pipeline.sources.toolmm_mini.media_files import file_suffix, render_media, seeded_generator
from data_pipeline.sources.toolmm_mini.questions import Family, Grammar, Task, load_grammar

SOURCE = "toolmm-mini"


@dataclass(frozen=True)
class MiniSize:
    """How much is made; every triple is (train, val, test).

    Attributes:
        pictures, sounds, clips: media per kind; those of one split are shared by its questions, never between splits.
        asked: questions per kind in every ambiguous family, the same for each kind, so that media classes are balanced.
        task_share: questions per unit of a task's share; at least one per task and split.
    """

    pictures: tuple[int, int, int]
    sounds: tuple[int, int, int]
    clips: tuple[int, int, int]
    asked: tuple[int, int, int]
    task_share: tuple[float, float, float]

    def media_per_kind(self, modality: Modality) -> tuple[int, int, int]:
        return {Modality.IMAGE: self.pictures, Modality.AUDIO: self.sounds, Modality.VIDEO: self.clips}[modality]


SIZES = {
    "demo": MiniSize((17, 2, 6), (9, 1, 4), (6, 1, 3), (20, 2, 6), (4.5, 0.4, 1.4)),
    "test": MiniSize((1, 1, 1), (1, 1, 1), (1, 1, 1), (3, 1, 1), (0.5, 0.1, 0.1)),
}


@dataclass(frozen=True)
class _Medium:
    uri: str
    sha256: str


class _MediaStore:
    """Renders media on demand into `out_dir/media` and remembers them."""

    def __init__(self, out_dir: Location, size: MiniSize, seed: int) -> None:
        self._out_dir, self._size, self._seed = out_dir, size, seed
        self._known: dict[tuple[str, str, int], _Medium] = {}
        self._next: dict[tuple[str, str], int] = defaultdict(int)

    def take(self, modality: Modality, kind: str, split: str) -> _Medium:
        """The next medium of a kind in a split, in turn, so that all are used about equally often."""
        index = self._next[kind, split] % self._size.media_per_kind(modality)[SPLITS.index(split)]
        self._next[kind, split] += 1
        key = (kind, split, index)
        if key not in self._known:
            self._known[key] = self._render(modality, kind, split, index)
        return self._known[key]

    def _render(self, modality: Modality, kind: str, split: str, index: int) -> _Medium:
        data = render_media(modality, kind, seeded_generator("corpus", self._seed, split, kind, index))
        sha256 = hashlib.sha256(data).hexdigest()
        # The name must not give the kind away to anything that reads paths.
        uri = f"media/{modality.value}/{sha256[:20]}{file_suffix(modality, kind)}"
        storage.write_file(self._out_dir / uri, data)
        return _Medium(uri, sha256)


def _draw_wordings(wordings: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` different wordings, repeated only where there are fewer."""
    order = [wordings[i] for i in rng.permutation(len(wordings))]
    return [order[i % len(order)] for i in range(count)]


def _family_records(
    family: Family, split: str, size: MiniSize, media: _MediaStore, rng: np.random.Generator
) -> Iterator[ToolRecord]:
    """Every drawn wording with every kind of medium: identical words, different right answers."""
    for words in _draw_wordings(family.wordings[split], size.asked[SPLITS.index(split)], rng):
        for kind, tool_ids in family.tools.items():
            medium = media.take(family.modality, kind, split)
            yield ToolRecord(
                record_id="",
                source=SOURCE,
                modality=family.modality,
                instruction=words,
                valid_tool_ids=tool_ids,
                media_uri=medium.uri,
                media_sha256=medium.sha256,
                ambiguity_type=family.ambiguity_type,
                candidate_tool_ids=family.candidate_tool_ids,
                split=split,
            )


def _count_asked(task: Task, split: str, size: MiniSize) -> int:
    return max(1, round(task.share * size.task_share[SPLITS.index(split)]))


def _task_records(
    task: Task, split: str, size: MiniSize, media: _MediaStore, rng: np.random.Generator
) -> Iterator[ToolRecord]:
    for words in _draw_wordings(task.wordings[split], _count_asked(task, split, size), rng):
        medium = _Medium("", "")
        if task.modality is not Modality.TEXT:
            medium = media.take(task.modality, str(rng.choice(task.kinds)), split)
        yield ToolRecord(
            record_id="",
            source=SOURCE,
            modality=task.modality,
            instruction=words,
            valid_tool_ids=task.tools,
            media_uri=medium.uri,
            media_sha256=medium.sha256,
            candidate_tool_ids=task.tools,
            split=split,
        )


def _split_records(grammar: Grammar, split: str, size: MiniSize, media: _MediaStore, seed: int) -> Iterator[ToolRecord]:
    for family in grammar.families:
        yield from _family_records(family, split, size, media, seeded_generator("words", seed, split, family.name))
    for index, task in enumerate(grammar.tasks):
        yield from _task_records(task, split, size, media, seeded_generator("words", seed, split, "task", index))


def generate(out_dir: Location, size: str | MiniSize = "demo", seed: int = 0) -> Iterator[ToolRecord]:
    """Render the media under `out_dir/media` and yield the records, train first, then val and test.

    The same `size` and `seed` give the same records and bytes. Val and test use templates and media of their own.

    Args:
        out_dir: folder that `media_uri` is relative to.
        size: a name in `SIZES`, or sizes of your own.
        seed: of words and media.

    Yields:
        distinct records whose `split`, `media_sha256` and `candidate_tool_ids` are set.

    Raises:
        InputError: `size` is no name in `SIZES`.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise InputError(f"ToolMM-mini has no size {size!r}; choose one of {', '.join(SIZES)}.")
        size = SIZES[size]
    return _generate(out_dir, size, seed)


def count_questions(size: str) -> int:
    """How many questions `generate` draws at a size of `SIZES`; of equal ones it yields one."""
    grammar, mini = load_grammar(), SIZES[size]
    n_ambiguous = sum(count * len(family.tools) for count in mini.asked for family in grammar.families)
    return n_ambiguous + sum(_count_asked(task, split, mini) for split in SPLITS for task in grammar.tasks)


def _generate(out_dir: Location, size: MiniSize, seed: int) -> Iterator[ToolRecord]:
    media = _MediaStore(out_dir, size, seed)
    seen = set()
    for split in SPLITS:
        for record in _split_records(load_grammar(), split, size, media, seed):
            question = (record.instruction, record.media_sha256)
            if question in seen:  # small sizes run out of media or words
                continue
            yield replace(record, record_id=f"mini-{len(seen):05d}")
            seen.add(question)
