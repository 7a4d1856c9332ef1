"""The two stages of `embed` that run on the cluster: decode a batch of files, encode a batch of tensors."""

from __future__ import annotations

import functools
import hashlib
import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.errors import MediaError
from data_pipeline.locations import locate
from data_pipeline.media.limits import describe_source
from data_pipeline.media.load import load_media
from data_pipeline.records.schema import Modality


def decode_batch(batch: pa.Table, recipe: str) -> pa.Table:
    """Read and decode the files of a batch.

    Args:
        batch: one row: modality, and lists sha256 and path.
        recipe: of `data_pipeline.media.load`.

    Returns:
        one row: the decoded media's sha256s and their stacked tensor (bytes and shape), the reasons why others are
        not usable, and how many files are gone or no longer have their hash.
    """
    started_s = time.perf_counter()
    row = batch.to_pylist()[0]
    modality = Modality(row["modality"])
    arrays, sha256s, faults, changed = [], [], {}, 0
    for sha256, path in zip(row["sha256"], row["path"], strict=True):
        try:
            content = storage.read_bytes(locate(path))
        except OSError:
            changed += 1
            continue
        if hashlib.sha256(content).hexdigest() != sha256:
            changed += 1
            continue
        try:
            arrays.append(load_media(modality, content, recipe))
            sha256s.append(sha256)
        except MediaError as error:
            faults[sha256] = str(error).replace(describe_source(content), f"file {locate(path).name!r}")
    tensor = np.stack(arrays) if arrays else np.zeros((0,), np.float32)  # (B, ...) float32
    return pa.table(
        {
            "modality": [row["modality"]],
            "sha256": [sha256s],
            "faults": [json.dumps(faults)],
            "changed": [changed],
            "shape": [list(tensor.shape)],
            "tensor": _to_binary(tensor),
            "decode_s": [time.perf_counter() - started_s],
        }
    )


class EncodeBatch:
    """Ray Data actor: encodes decoded batches. Calls may run in parallel.

    Args:
        encoder_name, precision: as `load_encoder` takes them.
        dtype: of the vectors, as the lake stores them.
        threads: of torch, on a CPU.
        use_gpu: encode on the actor's GPU.
    """

    def __init__(self, encoder_name: str, precision: str, dtype: str, threads: int, use_gpu: bool) -> None:
        import torch

        from model.imagebind.encoders import load_encoder

        # Batches may be views of Ray's object store, which is read-only; the encoder only reads them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._device = "cuda" if use_gpu else "cpu"
        self._encoder = load_encoder(encoder_name, device=self._device, dtype=getattr(torch, precision))
        self._dtype = np.dtype(dtype)
        # One thread encodes, whatever thread a call runs in: forwards do not compete, and there is one OpenMP team.
        initializer = None if use_gpu else functools.partial(torch.set_num_threads, threads)
        self._encode_thread = ThreadPoolExecutor(1, initializer=initializer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row from `decode_batch` to one row: vectors and faults, and what the batch took."""
        meta = batch.drop_columns(["tensor"]).to_pylist()[0]
        modality, sha256s, faults = meta["modality"], meta["sha256"], json.loads(meta["faults"])
        matrix, encode_s = np.zeros((0, self._encoder.embed_dim), self._dtype), 0.0
        if sha256s:
            array = _from_binary(batch["tensor"], meta["shape"])  # (B, ...) float32, a view
            found, encode_s = self._encode_thread.submit(self._encode, modality, array).result()  # (B, E)
            matrix = found.astype(self._dtype)
            is_finite = np.isfinite(matrix).all(axis=1)
            faults |= {sha256s[i]: "the encoder gave a vector that is not finite" for i in np.flatnonzero(~is_finite)}
            kept = np.flatnonzero(is_finite)
            matrix, sha256s = matrix[kept], [sha256s[i] for i in kept]
        return pa.table(
            {
                "modality": [modality],
                "sha256": pa.array([sha256s], pa.list_(pa.string())),
                "vectors": pa.array([matrix.tobytes()], pa.large_binary()),
                "faults": [json.dumps(faults)],
                "changed": [meta["changed"]],
                "decode_s": [meta["decode_s"]],
                "encode_s": [encode_s],
                "end_s": [time.time()],
            }
        )

    def _encode(self, modality: str, array: np.ndarray) -> tuple[np.ndarray, float]:
        """(B, ...) to float32 (B, E), and the seconds that it took."""
        import torch

        started_s = time.perf_counter()
        with torch.inference_mode():
            vectors = self._encoder.encode(modality, torch.from_numpy(array))
            matrix = vectors.float().cpu().numpy()
        return matrix, time.perf_counter() - started_s


def _to_binary(tensor: np.ndarray) -> pa.Array:
    """A column of one value: the bytes of a contiguous array, without a copy."""
    data = pa.py_buffer(tensor)
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _from_binary(column: pa.ChunkedArray, shape: list[int]) -> np.ndarray:
    return np.frombuffer(column.chunk(0)[0].as_buffer(), np.float32).reshape(shape)
