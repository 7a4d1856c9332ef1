"""Media by their captions: the file that suits a question's words best (MLLM-Tool, section 3.2), and its licence.

Rows are ``{"file": "dogs/1.png", "caption": "A dog at a lake.", "licence": "CC0-1.0"}``, the file below the media root.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality
from data_pipeline.sources.jsonl import EXTENSIONS
from data_pipeline.sources.reading import relative_media_uri
from data_pipeline.sources.rows import read_rows

MIN_SIMILARITY = 0.05  # cosine of tf-idf from which a caption has to do with words
_BLOCK = 1024  # questions that are compared with all captions at once
_TIE = 1e-6  # similarities that differ by less are one


@dataclass(frozen=True)
class CaptionedMedium:
    """A file below the media root, what it shows or what is heard, and its terms ("" = not stated)."""

    file: str
    caption: str
    modality: Modality
    licence: str = ""


def read_captioned_media(path: Path, root: Path) -> list[CaptionedMedium]:
    """Read the captions of a folder's files.

    Args:
        path: JSON Lines, a JSON list, CSV or Parquet with `file`, `caption` and, where it is known, `licence`.
        root: that `file` is relative to.

    Raises:
        InputError: no such file, or a row that names no file of a known kind below the root, or one twice.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the captions of the media, one row a file.")
    found: dict[str, CaptionedMedium] = {}
    for row in read_rows(path):
        content = row.content if isinstance(row.content, dict) else {}
        where = f"{path}, {row.place}"
        file, caption, licence = (content.get(key) or "" for key in ("file", "caption", "licence"))
        if not all(isinstance(text, str) for text in (file, caption, licence)) or not file or not caption:
            raise InputError(f"{where}: file or caption is missing or no text; write both, and the licence.")
        try:
            uri = relative_media_uri(file)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        modality = find_modality(uri)
        if modality is None:
            raise InputError(f"{where}: {uri!r} is no picture, sound or video by its ending; rename or drop it.")
        if uri in found:
            raise InputError(f"{where}: {uri!r} is in an earlier row; keep one of them.")
        if not (root / uri).is_file():
            raise InputError(f"{where}: there is no file {root / uri}; correct the path, or set generate.media_root.")
        found[uri] = CaptionedMedium(uri, " ".join(caption.split()), modality, licence)
    if not found:
        raise InputError(f"{path} names no file; give rows with file, caption and licence.")
    return list(found.values())


def find_modality(file: str) -> Modality | None:
    """Of a file, by its ending; None for one that is not known."""
    return next((kind for kind, endings in EXTENSIONS.items() if file.lower().endswith(endings)), None)


def match_media(wanted: Sequence[tuple[str, Modality]], media: Sequence[CaptionedMedium]) -> list[int | None]:
    """For each question the file of its modality whose caption is nearest; among equals the one that is used least.

    Args:
        wanted: (words, modality) of each question.
        media: to choose from.

    Returns:
        a place in `media` for each; None where no caption has to do with the words (`MIN_SIMILARITY`).
    """
    chosen: list[int | None] = [None] * len(wanted)
    uses: Counter[int] = Counter()
    for number, places, row in _compare(wanted, media):
        best = float(row.max())
        if best < MIN_SIMILARITY:
            continue
        equal = [places[place] for place in np.flatnonzero(row >= best - _TIE).tolist()]
        least_used = min(equal, key=lambda place: (uses[place], place))
        chosen[number] = least_used
        uses[least_used] += 1
    return chosen


def list_nearest(
    wanted: Sequence[tuple[str, Modality]], media: Sequence[CaptionedMedium], n: int
) -> list[list[CaptionedMedium]]:
    """For each of the words at most `n` files of the modality whose captions have to do with them, nearest first."""
    found: list[list[CaptionedMedium]] = [[] for _ in wanted]
    for number, places, row in _compare(wanted, media):
        best = np.argsort(-row, kind="stable")[:n].tolist()
        found[number] = [media[places[place]] for place in best if row[place] >= MIN_SIMILARITY]
    return found


def _compare(
    wanted: Sequence[tuple[str, Modality]], media: Sequence[CaptionedMedium]
) -> Iterator[tuple[int, list[int], np.ndarray]]:
    """For each of the words, by number, the places of its modality's media and float64 [places], their similarities."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second of import time

    by_modality: defaultdict[Modality, list[int]] = defaultdict(list)
    for place, medium in enumerate(media):
        by_modality[medium.modality].append(place)
    for modality, places in by_modality.items():
        asked = [number for number, (_, kind) in enumerate(wanted) if kind is modality]
        vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
        try:
            captions = vectorizer.fit_transform([media[place].caption for place in places])  # [places, words]
        except ValueError:  # scikit-learn's word for captions of stop words alone: they suit nothing
            continue
        for start in range(0, len(asked), _BLOCK):
            block = asked[start : start + _BLOCK]
            similarity = (vectorizer.transform([wanted[number][0] for number in block]) @ captions.T).toarray()
            for number, row in zip(block, similarity, strict=True):
                yield number, places, row
