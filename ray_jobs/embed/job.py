"""Encode every distinct medium of a corpus once, into the feature lake (DESIGN idea 1).

Ray Data: batches of files are decoded by parallel tasks and encoded by actors; the driver writes their vectors, which
are small, as they come. A row of the dataset is a whole batch, planned by the driver, so tensors travel as one buffer
without being cut or joined.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.exceptions import RayTaskError

from data_pipeline.corpus.build import Corpus
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate
from data_pipeline.media.feature_lake import FeatureLake
from data_pipeline.records.schema import CORPUS_SCHEMA, SPLITS, Modality
from ray_jobs.cluster import connect, tagged
from ray_jobs.config import RunSpec
from ray_jobs.embed.stages import EncodeBatch, decode_batch
from ray_jobs.embed.writing import LakeWriter
from ray_jobs.progress import Progress
from ray_jobs.train.features import save_embed_info
from ray_jobs.train.run_folder import prove_shared

# Forward passes of the vision or audio trunk that one medium costs: clips of its tensor (DESIGN 4.5).
CLIPS = {Modality.IMAGE: 1, Modality.AUDIO: 3, Modality.VIDEO: 15}
_COLUMNS = ["media_sha256", "modality", "media_uri", "source"]  # of the corpus: what a medium is
PAPER_SOURCE = "toolmmbench"  # whose numbers are compared with the paper's: its media are loaded as the paper does


@dataclass
class _Totals:
    """Of a pass so far, and when its batches were done."""

    started_s: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    batches: list[tuple[float, int]] = field(default_factory=list)  # (end of the batch on the actor's clock, media)

    def add(self, row: dict[str, Any]) -> None:
        n_encoded = len(row["sha256"])
        self.counts.update(encoded=n_encoded, quarantined=len(json.loads(row["faults"])), changed=row["changed"])
        for key in ("decode_s", "encode_s"):
            self.seconds[key] += row[key]
        self.batches.append((row["end_s"], n_encoded))

    @property
    def n_done(self) -> int:
        return self.counts.total()

    def render_faults(self) -> str:
        faults = [f"quarantined={self.counts['quarantined']}"] if self.counts["quarantined"] else []
        if self.counts["changed"]:
            faults.append(f"gone_or_changed={self.counts['changed']}: run prepare again")
        return " ".join(faults)

    def to_json(self) -> dict[str, Any]:
        return {
            "encoded": self.counts["encoded"],
            "quarantined": self.counts["quarantined"],
            "changed": self.counts["changed"],
            "seconds": round(time.monotonic() - self.started_s, 3),
            "media_per_s_after_first_batch": self.rate_after_first_batch(),
            **{key: round(self.seconds[key], 3) for key in ("decode_s", "encode_s", "write_s")},
        }

    def rate_after_first_batch(self) -> float | None:
        """Media per second between the end of the first batch and the end of the last; None for a single batch."""
        ordered = sorted(self.batches)
        if len(ordered) < 2 or ordered[-1][0] <= ordered[0][0]:
            return None
        return sum(n for _, n in ordered[1:]) / (ordered[-1][0] - ordered[0][0])


def embed_corpus(
    corpus: Corpus,
    lake_path: str | Location,
    encoder_name: str,
    *,
    dtype: str = "float16",
    batch_size: int = 16,
    num_actors: int = 1,
    num_gpus: float = 0,
    node_resource: str | None = None,
    threads_per_actor: int = 1,
    precision: str | None = None,
) -> dict[str, Any]:
    """Encode the media of all splits that the lake lacks.

    Args:
        corpus: its media root must be readable by every node.
        lake_path: root of the lake, in a bucket or on a file system that all nodes share.
        encoder_name: as `model.imagebind.encoders.load_encoder` takes it.
        dtype: of the stored vectors.
        batch_size: clips of one forward: an image is one, a sound three, a video fifteen.
        num_actors: encoder replicas.
        num_gpus: per actor; 0 = CPU.
        node_resource: custom resource of the nodes that actors may run on, of which each takes as much as of a GPU.
        threads_per_actor: torch threads of a CPU actor.
        precision: "float32" or "bfloat16", in which the encoder runs; None = bfloat16 on a GPU.

    Returns:
        encoder_id, embed_dim, media (distinct, with a hash), known, encoded, quarantined (now), quarantined_before,
        changed (file is gone or no longer has its hash), records_without_file, seconds and rates.

    Raises:
        InputError: unknown encoder, damaged lake, or a lake of another encoder.
    """
    media, n_without_file = _distinct_media(corpus)
    if Path(encoder_name).is_dir():  # workers may have another working directory
        encoder_name = str(Path(encoder_name).absolute())
    lake_path = locate(lake_path).absolute()
    precision = precision or ("bfloat16" if num_gpus else "float32")
    recipe = _default_recipe(media["source"].unique().to_pylist())
    with _unwrapped_input_errors():
        identity = ray.get(ray.remote(_describe_encoder).remote(encoder_name, precision, recipe))
    lake = FeatureLake.create(lake_path, identity["encoder_id"], identity["embed_dim"], dtype)
    has_vector = _check_modalities(corpus, media, lake)
    is_quarantined = _find(media["media_sha256"], pa.array(lake.quarantined(), pa.string())) >= 0
    todo = media.filter(pa.array(~has_vector & ~is_quarantined))
    totals = _Totals()
    n_known = int(has_vector.sum())
    if len(todo):
        print(f"encoder {lake.encoder_id}: {len(media)} media, {len(todo)} to encode, {n_known} known", flush=True)
        actor = _ActorResources(num_actors, num_gpus, node_resource, threads_per_actor)
        with _unwrapped_input_errors(), Progress("embed") as progress:
            progress.show(0, len(todo), "media")
            with LakeWriter(lake) as writer:
                plan = _plan(corpus, todo, batch_size)
                for row in _stream_batches(plan, lake, encoder_name, precision, identity, actor):
                    writer.add(row)
                    totals.add(row)
                    progress.show(totals.n_done, len(todo), "media", totals.render_faults())
            totals.seconds["write_s"] = writer.write_s
        lake.merge_files()
    else:
        print(f"encoder {lake.encoder_id}: all {len(media)} media are in the lake or quarantined; nothing to encode")
    return {
        "encoder_id": lake.encoder_id,
        "embed_dim": lake.embed_dim,
        "media": len(media),
        "known": n_known,
        "quarantined_before": int(is_quarantined.sum()),
        "records_without_file": n_without_file,
        **totals.to_json(),
    }


@dataclass(frozen=True)
class _ActorResources:
    num_actors: int
    num_gpus: float
    node_resource: str | None
    threads: int


def _distinct_media(corpus: Corpus) -> tuple[pa.Table, int]:
    """Media by content, ordered by modality and first appearance; and how many records have no file.

    Returns:
        rows of `_COLUMNS`, each medium once, and the count.
    """
    tables, n_without_file = [CORPUS_SCHEMA.empty_table().select(_COLUMNS)], 0
    for table in (table for split in SPLITS for table in corpus.tables(split, _COLUMNS)):
        named = table.filter(pc.field("media_uri") != "")
        present = named.filter(pc.field("media_sha256") != "") if corpus.media_root is not None else named[:0]
        n_without_file += len(named) - len(present)
        tables.append(present)
    media = pa.concat_tables(tables).combine_chunks()
    codes = media["media_sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    media = media.take(np.sort(np.unique(codes, return_index=True)[1]))
    order = _find(media["modality"], pa.array([modality.value for modality in Modality]))
    return media.take(np.argsort(order, kind="stable")), n_without_file


def _default_recipe(sources: list[str]) -> str:
    """How media are loaded for an encoder that prescribes no recipe; at most one source of a corpus has media."""
    return "mllm_tool" if PAPER_SOURCE in sources else "robust"


def _check_modalities(corpus: Corpus, media: pa.Table, lake: FeatureLake) -> np.ndarray:
    """bool (N,): which of N media the lake has a vector of; InputError if it has one under another modality."""
    known = lake.read_modalities()
    place = _find(media["media_sha256"], known["media_sha256"])
    has_vector = np.flatnonzero(place >= 0)
    as_here, as_there = media["modality"].take(has_vector), known["modality"].take(place[has_vector])
    for number in np.flatnonzero(pc.not_equal(as_here, as_there).to_numpy())[:1]:  # pyright: ignore[reportAttributeAccessIssue]
        path = corpus.media_root / media["media_uri"][int(has_vector[number])].as_py()
        raise InputError(
            f"{path} is used as {as_here[int(number)]}, but feature lake {lake.path} holds it as "
            f"{as_there[int(number)]}; use another lake folder for this corpus."
        )
    return place >= 0


def _find(values: pa.ChunkedArray, among: Any) -> np.ndarray:
    """int64 [N]: where each value is first among others, -1 where it is not."""
    return pc.index_in(values, value_set=among).fill_null(-1).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]


def _plan(corpus: Corpus, media: pa.Table, batch_size: int) -> list[pa.Table]:
    """Batches of one modality each, as tables of one row."""
    tables = []
    for modality, clips in CLIPS.items():
        group = media.filter(pc.field("modality") == modality.value)
        size = max(1, batch_size // clips)
        for start in range(0, len(group), size):
            batch = group[start : start + size]
            tables.append(
                pa.table(
                    {
                        "modality": [modality.value],
                        "sha256": [batch["media_sha256"].to_pylist()],
                        "path": [[str(corpus.media_root / uri) for uri in batch["media_uri"].to_pylist()]],
                    }
                )
            )
    return tables


def _stream_batches(
    plan: list[pa.Table],
    lake: FeatureLake,
    encoder_name: str,
    precision: str,
    identity: dict[str, Any],
    resources: _ActorResources,
) -> Iterator[dict[str, Any]]:
    """Run the pipeline and yield the numbers of each batch as it is done.

    On CPUs both stages claim the same resources, so Ray Data fuses them into the actor: tensors never leave it, and its
    extra concurrent calls decode the next batches while one encodes. With a GPU, all of the cluster's CPUs decode.
    """
    use_gpu = resources.num_gpus > 0
    decode = functools.partial(decode_batch, recipe=identity["recipe"])
    with _quiet_ray_data():
        done = (
            ray.data.from_arrow(plan)
            .map_batches(
                decode,
                batch_format="pyarrow",
                batch_size=None,
                num_cpus=1,
            )
            .map_batches(
                EncodeBatch,
                fn_constructor_kwargs={
                    "encoder_name": encoder_name,
                    "precision": precision,
                    "dtype": lake.dtype,
                    "threads": resources.threads,
                    "use_gpu": use_gpu,
                },
                batch_format="pyarrow",
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(
                    size=resources.num_actors,
                    max_concurrent_calls_per_actor=2 if use_gpu else 1 + resources.threads,
                    enable_true_multi_threading=True,
                ),
                num_cpus=1,
                num_gpus=resources.num_gpus or None,
                **_node_arguments(resources),
            )
        )
        yield from done.iter_rows()


def _node_arguments(resources: _ActorResources) -> dict[str, Any]:
    """Nothing where any node will do: stages are fused only where they ask for the same."""
    asked = tagged(resources.node_resource, resources.num_gpus)
    return {"resources": asked} if asked else {}


def _describe_encoder(encoder_name: str, precision: str, default_recipe: str) -> dict[str, Any]:
    """Runs as a task: the driver needs the encoder's identity, not the encoder."""
    import torch

    from model.imagebind.encoders import load_encoder

    encoder = load_encoder(encoder_name, "cpu", getattr(torch, precision), default_recipe)
    return {"encoder_id": encoder.encoder_id, "embed_dim": encoder.embed_dim, "recipe": encoder.recipe}


@contextmanager
def _unwrapped_input_errors() -> Iterator[None]:
    """Raise the InputError of a worker as itself."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Our own progress line replaces Ray Data's bars and start-up log."""
    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.print_on_execution_start)
    data_logger = logging.getLogger("ray.data")
    level = data_logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # its own wrapper loses the InputError inside
    data_logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        data_logger.setLevel(level)


def run(spec: RunSpec) -> dict[str, Any]:
    """Encode the media of the run's corpus, and note in the run's folder which encoder did it."""
    connect(spec.ray)
    prove_shared(spec.run_dir)
    corpus = Corpus.open(spec.corpus_dir)
    result = embed_corpus(
        corpus,
        spec.lake_path,
        spec.embed.encoder,
        dtype=spec.embed.dtype,
        batch_size=spec.embed.batch_size,
        num_actors=spec.embed.num_actors,
        num_gpus=spec.embed.num_gpus,
        node_resource=spec.embed.node_resource,
        threads_per_actor=spec.embed.threads_per_actor,
        precision=spec.embed.precision,
    )
    save_embed_info(spec.run_dir, result["encoder_id"], corpus.catalog.content_hash, spec.embed.encoder)
    return result
