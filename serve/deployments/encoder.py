"""The deployment that turns a medium's bytes into one vector: has it decoded, encodes in batches, remembers."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from ray import serve as ray_serve

from data_pipeline.media.load import MediaLimits
from data_pipeline.records.schema import Modality
from model.imagebind.encoders import FrozenImageBind, load_encoder
from model.llm.bundle import check_encoder, load_bundle
from serve.config import ServeArgs
from serve.decoding.decoder import MediaDecoder
from serve.engine.batching import Batcher
from serve.engine.messages import EncodedMedium
from serve.http.schemas import RequestError
from serve.http.uploads import sniff_modality, telling_of_decoders

DECODING_SHARE = 0.5  # of a request's time, that one medium may take to be decoded
_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


@ray_serve.deployment
class MediaEncoder:
    """The frozen encoder; media of one modality that arrive together go through it together."""

    def __init__(self, args: ServeArgs) -> None:
        self._decoder = MediaDecoder(args.encoder_threads, DECODING_SHARE * args.request_timeout_s)
        bundle = load_bundle(args.bundle)  # further models were checked to share its encoder
        self._device = args.resolve_device()
        self._encoder: FrozenImageBind | None = None  # for a model of words alone
        if bundle.encoder_id:
            self._encoder = load_encoder(
                args.encoder or bundle.encoder_name, device=self._device, dtype=_DTYPES[args.dtype]
            )
            check_encoder(bundle, self._encoder.encoder_id)
        self._limits = MediaLimits(
            max_bytes=args.max_upload_bytes, max_pixels=args.max_pixels, max_duration_s=args.max_duration_s
        )
        if self._encoder is not None:
            self._decoder.start()
        self._threads = ThreadPoolExecutor(args.encoder_threads, thread_name_prefix="decode")  # they wait for it
        self._vectors: OrderedDict[tuple[str, Modality], np.ndarray] = OrderedDict()
        self._max_vectors = args.media_cache_entries
        self._batchers = {
            modality: Batcher(
                partial(self._forward, modality.value), args.encoder_max_batch_size, args.batch_wait_timeout_s
            )
            for modality in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
        }

    async def encode(self, data: bytes, claimed_modality: str | None) -> EncodedMedium:
        """Encode one medium.

        Args:
            data: the whole file.
            claimed_modality: what the request calls it, or None.

        Raises:
            RequestError: the bytes are of no accepted kind, or not of the claimed modality, or the model sees no media;
                or nobody can decode them now (503).
            MediaError: they cannot be decoded, or exceed a limit.
        """
        if self._encoder is None:
            raise RequestError(
                "This model was trained on words alone and sees no media; send the words alone, or ask the agent.",
                status=415,
                code="unsupported_media",
                param="media",
            )
        loop = asyncio.get_running_loop()
        modality = await loop.run_in_executor(self._threads, sniff_modality, data, claimed_modality, self._decoder)
        key = (hashlib.sha256(data).hexdigest(), modality)
        if key in self._vectors:
            self._vectors.move_to_end(key)
            return EncodedMedium(modality.value, self._vectors[key], cached=True)
        array = await loop.run_in_executor(self._threads, self._decode, self._encoder.recipe, modality, data)
        vector = await self._batchers[modality].ask(array)  # [E] float32
        if self._max_vectors:
            self._vectors[key] = vector
            while len(self._vectors) > self._max_vectors:
                self._vectors.popitem(last=False)
        return EncodedMedium(modality.value, vector, cached=False)

    async def describe(self) -> dict[str, object]:
        """What this replica runs; answered only when it can answer requests too."""
        return {
            "encoder_id": "" if self._encoder is None else self._encoder.encoder_id,
            "device": self._device,
            "vectors": len(self._vectors),
            "largest_batch": max(batcher.largest_batch for batcher in self._batchers.values()),
        }

    def _decode(self, recipe: str, modality: Modality, data: bytes) -> np.ndarray:
        with telling_of_decoders():
            return self._decoder.load(modality, data, recipe, self._limits)

    def _forward(self, modality: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
        assert self._encoder is not None, "media are refused before they get here"
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(arrays)).to(self._device)  # [B, ...] as DESIGN 4.5 says per modality
            vectors = self._encoder.encode(modality, batch).float().cpu().numpy()  # [B, E]
        return [vector.copy() for vector in vectors]  # copies: a cached row must not keep its whole batch alive

    def __del__(self) -> None:
        self._decoder.close()
