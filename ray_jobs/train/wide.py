"""The wide head of a training: fitted in the driver once the workers are done, kept beside their checkpoints."""

from __future__ import annotations

import hashlib
import json
import time

from data_pipeline import storage
from data_pipeline.corpus.files import Corpus
from data_pipeline.corpus.sample import draw_records
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate
from model.wide.fit import fit_wide
from model.wide.head import WideHead
from ray_jobs.config import RunSpec
from ray_jobs.train.features import load_media_vectors

_VERSION = 1  # of how a head is fitted
MAX_QUESTIONS = 50_000  # that it learns from: a minute or two of two cores, and some 3 GiB while it is fitted


def train_wide(spec: RunSpec, corpus: Corpus) -> Location:
    """Fit a wide head on the training split's questions, a sample where there are many, or find the one that was.

    It depends on the data and the seed alone, so the next training and the trials of a sweep have the same.

    Returns:
        its file, in the run's folder.

    Raises:
        InputError: there is no question that can be used.
    """
    start = time.perf_counter()
    vectors = load_media_vectors(spec, corpus, "train")
    made_of = [
        _VERSION,
        corpus.data_hash,
        corpus.catalog.content_hash,
        vectors.encoder_id,
        len(vectors.rows),
        spec.seed,
    ]
    path = spec.run_dir / "wide" / f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]}.safetensors"
    if storage.exists(path):
        print(f"wide head         found in {path}")
        return path
    questions, n_questions = draw_records(vectors.questions(corpus, "train"), MAX_QUESTIONS, spec.seed)
    head = fit_wide(questions, corpus.catalog.selection_tool_ids, vectors.map_of(questions), spec.seed)
    storage.write_file(path, head.to_bytes())
    of = f" of {n_questions:,}, a sample" if n_questions > len(questions) else ""
    print(f"wide head         of {len(questions):,} questions{of}, {time.perf_counter() - start:.0f} s: {path}")
    return path


def read_wide(path: str) -> WideHead | None:
    """The head at a path; None for "".

    Raises:
        InputError: it is gone or damaged.
    """
    if not path:
        return None
    try:
        return WideHead.from_bytes(storage.read_bytes(locate(path)))
    except FileNotFoundError:
        raise InputError(f"the wide head {path} is gone; run `train` again, it goes on where it was.") from None
