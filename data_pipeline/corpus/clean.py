"""From a source to distinct records: read them, hash their media, join those of one question.

Records lie in parts in a work folder; this process knows of each record its facts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.corpus.attach import FactsForm, Media, MissingMedia, attach_media
from data_pipeline.corpus.collect import ShowProgress, collect
from data_pipeline.corpus.digests import DIGEST_BYTES, digest_text, number_digests, to_digests
from data_pipeline.corpus.facts import Facts, read_column
from data_pipeline.corpus.join import join_questions
from data_pipeline.corpus.parts import Parts, Rejections, read_rows, to_records
from data_pipeline.locations import Location
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.reading import Rejected, SourceReading

__all__ = ["Cleaning", "MissingMedia", "ShowProgress", "clean_records"]


@dataclass
class Cleaning:
    """Records on their way into the corpus, and what was found wrong with the others.

    Attributes:
        parts: distinct questions, in the sources' order.
        facts: of them; None where there is none, or where they name tools that the catalogue lacks.
        rejected: what is not among them, and why.
        missing_tools: some tools that records name and the catalogue lacks, sorted.
        media: of the records before they were joined; None where there are none.
        n_duplicates: records that were joined to an earlier one.
        n_missing_records: records whose medium is missing.
    """

    parts: Parts
    facts: Facts | None
    rejected: Rejections
    missing_tools: Sequence[str]
    media: Media | None
    n_duplicates: int = 0
    n_missing_records: int = 0

    @property
    def n_missing_media(self) -> int:
        return 0 if self.media is None else int(self.media.is_missing.sum())

    def records(self) -> Iterator[ToolRecord]:
        """The distinct questions."""
        for part in range(len(self.parts)):
            yield from to_records(read_rows(self.parts.rows(part)))

    def missing_but_kept(self) -> Iterator[Rejected]:
        """Files that are missing, where their questions stay: nothing else names them all."""
        if not self.n_missing_media or self.media is None:
            return
        kept = [to_digests(column) for column in read_column(self.parts.facts, "file")]
        missing = b"".join(map(digest_text, self.media.missing_uris()))
        digests = np.frombuffer(missing, ">u8").astype(np.uint64).reshape(-1, DIGEST_BYTES // 8)
        numbers, n_distinct = number_digests(np.concatenate([*kept, digests]))
        is_kept = np.zeros(n_distinct + 1, bool)
        is_kept[numbers[: -len(digests)]] = True
        for uri, number in zip(self.media.missing_uris(), numbers[-len(digests) :], strict=True):
            if is_kept[number]:
                yield Rejected("the media file is missing; its questions are kept", uri)


def clean_records(
    reading: SourceReading,
    folder: Location,
    missing_media: MissingMedia,
    resplit: bool,
    seed: int = 0,
    show: ShowProgress = lambda done, total, unit: None,
) -> Cleaning:
    """Read a source to its end.

    Args:
        reading: the source; what is mended here is counted there.
        folder: an empty one for the records, which every Ray node can read and write.
        missing_media: what becomes of records whose file is absent.
        resplit: forget the splits that the source prescribes.
        seed: of the splits that will be made.
        show: is told how many records are read and how many media files are hashed.

    Raises:
        InputError: a record id is used twice, or media are missing and may not be.
    """
    collected = collect(reading, folder, show)
    form = FactsForm(seed, reading.catalog.tool_ids)
    attached = attach_media(collected, reading, missing_media, resplit, form, show)
    cleaning = Cleaning(attached.parts, None, collected.rejected, attached.missing_tools, attached.media)
    cleaning.n_missing_records = attached.n_missing_records
    if attached.parts.n_rows and not attached.missing_tools:
        cleaning.parts, cleaning.n_duplicates = join_questions(attached.parts, reading, form)
        cleaning.facts = Facts.of_files(cleaning.parts.facts, form.tool_ids)
    return cleaning
