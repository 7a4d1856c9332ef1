"""Content sniffing: what a file is, is told by its bytes, and playlists never reach a decoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import MediaError
from data_pipeline.records.schema import Modality
from serve.decoding.decoder import DecoderUnavailableError, MediaDecoder, shared_decoder
from serve.http import uploads
from serve.http.schemas import RequestError


def sniff_modality(data: bytes, claimed: str | None) -> str:
    return uploads.sniff_modality(data, claimed, shared_decoder())


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def _clip(kind: str, *, video: str | None = None, audio: str | None = None) -> bytes:
    """A tenth of a second of black and silence."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        pictures: Any = container.add_stream(video, rate=10, width=32, height=32, pix_fmt="yuv420p") if video else None
        sound: Any = container.add_stream(audio, rate=48_000, layout="mono") if audio else None
        if pictures:
            for _ in range(2):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode(None))
        if sound:
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            wave.sample_rate = 48_000
            converter = av.AudioResampler(sound.format, "mono", 48_000, frame_size=sound.frame_size or None)
            for block in converter.resample(wave):
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP"])
def test_pictures(kind: str) -> None:
    assert sniff_modality(_picture(kind), None) == "image"


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("mp3", "libmp3lame"),
        ("ipod", "aac"),
        ("webm", "libopus"),
    ],
)
def test_sounds(kind: str, codec: str) -> None:
    assert sniff_modality(_clip(kind, audio=codec), None) == "audio"


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "avi"])
def test_videos(kind: str) -> None:
    data = _clip(kind, video="mpeg4", audio="aac")
    assert sniff_modality(data, None) == "video"
    assert sniff_modality(data, "audio") == "audio", "the sound of a video may be meant"


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"mif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"mif1\0\0\0\0mif1miaf", "HEIF"),
        (b"hevc\0\0\0\0msf1hevc", "HEIC"),
    ],
)
def test_a_still_in_the_container_of_films_is_no_film(brands: bytes, kind: str) -> None:
    """The rest is a film's: FFmpeg would play it."""
    film = _clip("mp4", video="mpeg4")
    size = int.from_bytes(film[:4], "big")
    still = (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + film[size:]
    with pytest.raises(RequestError, match=f"is a {kind} picture, which is not accepted; save it as JPEG") as caught:
        sniff_modality(still, "video")
    assert caught.value.status == 415
    also_a_still = (8 + 16).to_bytes(4, "big") + b"ftyp" + b"isom\0\0\0\0isomavif" + film[size:]
    assert sniff_modality(also_a_still, None) == "video", "a film by its major brand"


def test_the_motion_of_a_gif_may_be_meant() -> None:
    assert sniff_modality(_picture("GIF"), "video") == "video"


def test_claims_that_the_bytes_contradict_are_refused() -> None:
    with pytest.raises(RequestError, match="The medium is image, but the request calls it audio"):
        sniff_modality(_picture("PNG"), "audio")
    with pytest.raises(RequestError, match="The medium is audio, but the request calls it video"):
        sniff_modality(_clip("wav", audio="pcm_s16le"), "video")


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"ID3\x04\0\0\0\0\0\0#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/\n",  # FFmpeg skips the tag, then probes
        b"<?xml version='1.0'?><MPD/>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n",
        b"\x80\x04K\x01.",
        b"hello",
    ],
)
def test_playlists_and_strangers_are_refused(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        sniff_modality(data, None)
    assert caught.value.status == 415


def test_empty_and_damaged_media_are_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        sniff_modality(b"", None)
    with pytest.raises(RequestError) as caught:
        sniff_modality(_clip("mp4", video="mpeg4")[:60], None)
    assert (caught.value.status, caught.value.code) == (422, "bad_media")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MediaError("the given data (9 bytes) took long."), (422, "bad_media", "the given data (9 bytes) took long.")),
        (DecoderUnavailableError("Try again."), (503, "unavailable", "Try again.")),
    ],
)
def test_a_decoder_that_fails_is_told(error: Exception, told: tuple[int, str, str]) -> None:
    class Failing(MediaDecoder):
        def list_modalities(self, data: bytes, container_format: str) -> list[Modality]:
            raise error

    with pytest.raises(RequestError) as caught:
        uploads.sniff_modality(_clip("mp4", video="mpeg4"), None, Failing(1, 1.0))
    assert (caught.value.status, caught.value.code, caught.value.message) == told


def test_real_media(shared_dir: Path) -> None:
    expected = {".jpg": "image", ".png": "image", ".wav": "audio", ".mp4": "video"}
    files = [path for path in (shared_dir / "media").iterdir() if path.suffix in expected]
    assert len(files) > 5
    for path in files:
        assert sniff_modality(path.read_bytes(), None) == expected[path.suffix], path.name
