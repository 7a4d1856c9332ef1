"""Rendered media as the bytes of real files, the same bytes for the same name and seed."""

from __future__ import annotations

import hashlib
import io
import wave

import av
import cv2
import numpy as np

from data_pipeline.records.schema import Modality
from data_pipeline.sources.toolmm_mini.clips import CLIP_RENDERERS, RATE_FPS
from data_pipeline.sources.toolmm_mini.pictures import PICTURE_RENDERERS
from data_pipeline.sources.toolmm_mini.sounds import RATE_HZ, SOUND_RENDERERS

MEDIA_KINDS: dict[Modality, tuple[str, ...]] = {
    Modality.IMAGE: tuple(PICTURE_RENDERERS),
    Modality.AUDIO: tuple(SOUND_RENDERERS),
    Modality.VIDEO: tuple(CLIP_RENDERERS),
}
# Drawings keep their hard edges only without loss.
_LOSSLESS = frozenset({"canny", "scribble", "line_drawing", "segments", "pose", "barcode", "digit", "score"})


def seeded_generator(*names: object) -> np.random.Generator:
    """A random generator that depends on all `names` and on nothing else; equal names give equal numbers anywhere."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def file_suffix(modality: Modality, kind: str) -> str:
    """The suffix with its dot of a medium's file."""
    if modality is Modality.IMAGE:
        return ".png" if kind in _LOSSLESS else ".jpg"
    return ".wav" if modality is Modality.AUDIO else ".mp4"


def render_media(modality: Modality, kind: str, rng: np.random.Generator) -> bytes:
    """Render one medium as the bytes of its file (PNG or JPEG, 16-bit WAV, MP4)."""
    if modality is Modality.IMAGE:
        return _encode_picture(PICTURE_RENDERERS[kind](rng), file_suffix(modality, kind))
    if modality is Modality.AUDIO:
        return _encode_sound(SOUND_RENDERERS[kind](rng))
    return _encode_clip(CLIP_RENDERERS[kind](rng))


def _encode_picture(picture: np.ndarray, suffix: str) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, picture[..., ::-1], options)  # OpenCV wants BGR
    assert done
    return data.tobytes()


def _encode_sound(sound: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _encode_clip(frames: np.ndarray) -> bytes:
    """H.264 on one thread and without look-ahead: with either, x264 gives other bytes from one call to the next."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE_FPS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "tune": "zerolatency"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
