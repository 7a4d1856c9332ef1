"""Uploads that mean harm or are odd, and what the service says to each of them."""

from __future__ import annotations

import io
import random
import struct
import wave
import zipfile
import zlib
from dataclasses import dataclass, replace

import av
import numpy as np
from PIL import Image
from small_service import picture, sound, video

ENCODED = (200,)
REFUSED_KIND = (415,)
DAMAGED = (422,)


@dataclass(frozen=True)
class Upload:
    """A file and the statuses that are right for it.

    Attributes:
        stored: of `POST /v1/artifacts`, which looks at the beginning and at a container's head.
        encoded: of `POST /v1/tools/select`, which decodes it.
        modality: what the selection request calls it, or None.
        kind: what a chat calls it, which must call it something.
    """

    name: str
    data: bytes
    stored: tuple[int, ...]
    encoded: tuple[int, ...]
    modality: str | None = None
    kind: str = "image"


def list_uploads() -> list[Upload]:
    """All of them; each name once."""
    return [*_pictures(), *_sounds_and_videos(), *_other_kinds()]


def mutated(n: int) -> list[bytes]:
    """Valid media with bytes overwritten, cut out or doubled; the same ones every time."""
    chance = random.Random(4)
    files = [picture(), _saved("JPEG"), _saved("GIF"), _saved("WEBP"), _saved("BMP"), sound(), video(), _flac()]
    found = []
    for i in range(n):
        data = bytearray(files[i % len(files)])
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(8, len(data))  # the first bytes say what it is
            if chance.random() < 0.2:
                data[at : at + chance.randrange(20)] = b""
            elif chance.random() < 0.2:
                data[at:at] = data[max(0, at - 30) : at]
            else:
                data[at] = chance.choice((0, 0xFF, 0x7F, 0x80, chance.randrange(256)))
        found.append(bytes(data))
    return found


def _pictures() -> list[Upload]:
    whole = picture(size=(60, 80))
    jpeg = _saved("JPEG")
    seen, bomb = (200,), DAMAGED
    return [
        Upload("png of 50000 x 50000 in its header", _png(50_000, 50_000, b"\0" * 999), seen, bomb),
        Upload("png that unfolds to 112 MB", _png(30_000, 30_000, b"\0" * (30_000 * 3751)), seen, bomb),
        Upload("png of 2^31 x 2^31", _png(2**31 - 1, 2**31 - 1, b""), seen, bomb),
        Upload("png without pixels", _png(0, 0, b""), seen, bomb),
        Upload("png whose text unfolds to 100 MB", _png_with_text(100 * 2**20), seen, (200, 422)),
        Upload("png cut off", whole[: len(whole) // 2], seen, bomb),
        Upload("png signature alone", whole[:8], seen, bomb),
        Upload("jpeg cut off", jpeg[: len(jpeg) // 2], seen, bomb),
        Upload("jpeg of 65500 x 65500", _jpeg_header(65_500, 65_500), seen, bomb),
        Upload("jpeg marker alone", b"\xff\xd8\xff", seen, bomb),
        Upload("bmp of -2^31 lines", b"BM" + struct.pack("<IHHIIiiHHIIiiII", *_BMP), seen, bomb),
        Upload("gif with a script", b"GIF89a/*" + b"*/=1;alert(1)//" * 9, seen, bomb),
        Upload("gif as a video", _animation("GIF", 3), seen, ENCODED, "video"),
        Upload("gif of 2000 frames", _animation("GIF", 2000), seen, ENCODED),
        Upload("gif of 2000 frames as a video", _animation("GIF", 2000), seen, DAMAGED, "video"),
        Upload("animated webp", _animation("WEBP", 30), seen, ENCODED),
        Upload("webp of nothing", b"RIFF\x10\0\0\0WEBPVP8 \x04\0\0\0\0\0\0\0", seen, bomb),
        Upload("16 bits a channel", _saved("PNG", np.full((9, 9), 40_000, np.uint16)), seen, ENCODED),
        Upload("one bit a pixel", _saved("PNG", mode="1"), seen, ENCODED),
        Upload("palette", _saved("PNG", mode="P"), seen, ENCODED),
        Upload("see-through", _saved("PNG", mode="RGBA"), seen, ENCODED),
        Upload("cmyk", _saved("JPEG", mode="CMYK"), seen, ENCODED),
        Upload("one pixel", picture(size=(1, 1)), seen, ENCODED),
        Upload("one line of 40000 pixels", _saved("PNG", np.zeros((1, 40_000), np.uint8)), seen, (200, 422)),
        Upload("picture and web page", whole + b"<html><script>alert(1)</script>", seen, ENCODED),
        Upload("picture and archive", whole + _zip_bomb(1000), seen, ENCODED),
        Upload("picture called a sound", whole, seen, (400,), "audio"),
    ]


def _sounds_and_videos() -> list[Upload]:
    wav, mp4, flac = sound(), video(), _flac()
    stored, seen = (200,), (200, 422)
    uploads = [
        Upload("wav that announces 4 GiB", _wav(8000, 1, 2, 9000, announced=2**32 - 16), stored, seen),
        Upload("wav header alone", wav[:44], seen, DAMAGED),
        Upload("wav cut in its header", wav[:30], DAMAGED, DAMAGED),
        Upload("wav of 20 s", _wav(8000, 1, 1, 160_000), stored, DAMAGED),
        Upload("wav of one sample a second", _wav(1, 1, 2, 200), seen, DAMAGED),
        Upload("wav of 4 GHz", _wav(2**32 - 1, 1, 2, 9000), seen, seen),
        Upload("wav without a rate", _wav(0, 1, 2, 9000), seen, DAMAGED),
        Upload("wav of 60000 channels", _wav(8000, 60_000, 2, 240_000), seen, seen),
        Upload("wav without channels", _wav(8000, 0, 2, 8000), seen, DAMAGED),
        Upload("wav of one sample", _wav(8000, 1, 2, 2), stored, seen),
        Upload("wav of not-a-numbers", _wav(8000, 1, 4, 32_000, b"\0\0\xc0\x7f", 3), stored, seen),
        Upload("flac cut off", flac[: len(flac) // 2], seen, seen),
        Upload("mp4 cut off", mp4[: len(mp4) // 2], (200, 422), DAMAGED),
        Upload("mp4 head alone", mp4[:32], DAMAGED, DAMAGED),
        Upload("mp4 of 20 s", _video(20, 1, 32), stored, DAMAGED),
        Upload("mp4 of one frame", _video(1, 1, 32), stored, seen),
        Upload("mp4 called a sound", mp4, stored, (400,), "audio"),
        Upload("frames of mp3 without end", b"\xff\xfb\x90\x00" * 5000, seen, DAMAGED),
        Upload("mp3 behind an endless tag", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + b"\0" * 999, (415, 422), (415, 422)),
        Upload("ogg of nothing", b"OggS" + b"\0" * 4000, DAMAGED, DAMAGED),
        Upload("matroska of nothing", b"\x1aE\xdf\xa3" + b"\xff" * 4000, DAMAGED, DAMAGED),
        Upload("avi of nothing", b"RIFF\xff\xff\xff\xffAVI " + b"LIST" * 999, DAMAGED, DAMAGED),
        Upload("atoms within atoms", b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\xff\xffmoov" * 5000, DAMAGED, DAMAGED),
    ]
    videos = ("mp4", "avi", "matroska", "atoms")
    return [replace(upload, kind="video" if upload.name.startswith(videos) else "audio") for upload in uploads]


def _other_kinds() -> list[Upload]:
    kinds = {
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>',
        "html": b"<!doctype html><script>alert(1)</script>",
        "xml of a billion laughs": b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>',
        "playlist of local files": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "playlist of addresses": b"#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest/meta-data\n",
        "concat script": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "archive that unfolds to 100 MB": _zip_bomb(100 * 2**20),
        "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + zlib.compress(b"\0" * 10**7),
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file",
        "tiff": b"II*\0\x08\0\0\0" + b"\xff" * 200,
        "pickle": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
        "program": b"\x7fELF\x02\x01\x01" + b"\0" * 500,
        "shell script": b"#!/bin/sh\nid\n",
        "zeros": b"\0" * 200_000,
        "one byte": b"\xff",
    }
    return [
        Upload("empty", b"", (400,), (400,)),
        Upload("more than may be uploaded", picture() + b"\0" * 300_000, (413,), (413,)),
        *(Upload(name, data, REFUSED_KIND, REFUSED_KIND) for name, data in kinds.items()),
    ]


# fields after "BM": file size, two reserved, offset; header size, width, height, planes, bits, compression, ...
_BMP = (100, 0, 0, 54, 40, 8, -(2**31), 1, 24, 0, 0, 1, 1, 0, 0)


def _png(width: int, height: int, rows: bytes, extra: bytes = b"") -> bytes:
    """One bit a pixel."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _png_with_text(n_bytes: int) -> bytes:
    return _png(8, 1, b"\0\0", _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * n_bytes, 9)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _jpeg_header(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0"
    return (
        b"\xff\xd8\xff\xc0"
        + struct.pack(">H", len(frame) + 2)
        + frame
        + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
        + b"\0" * 99
    )


def _saved(kind: str, pixels: np.ndarray | None = None, mode: str | None = None) -> bytes:
    image = Image.fromarray(np.full((24, 32, 3), 90, np.uint8) if pixels is None else pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, kind)
    return file.getvalue()


def _animation(kind: str, n_frames: int) -> bytes:
    frames = [Image.new("L", (4, 4), i % 250) for i in range(n_frames)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def _wav(
    rate: int,
    channels: int,
    width: int,
    n_bytes: int,
    samples: bytes = b"\1",
    form: int = 1,
    announced: int | None = None,
) -> bytes:
    """Whatever the numbers; `wave` refuses most of them."""
    align = channels * width % 2**16
    head = struct.pack("<HHIIHH", form, channels, rate, rate * align % 2**32, align, 8 * width)
    data = (samples * n_bytes)[:n_bytes]
    length = len(data) if announced is None else announced
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _flac() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container, wave.open(io.BytesIO(sound())) as wav:
        samples = np.frombuffer(wav.readframes(wav.getnframes()), np.int16)[None]
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def _video(n_frames: int, fps: int, side: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps, width=side, height=side, pix_fmt="yuv420p")
        for i in range(n_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((side, side, 3), i, np.uint8))))
        container.mux(stream.encode(None))
    return file.getvalue()


def _zip_bomb(n_bytes: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../etc/passwd", b"\0" * n_bytes)
    return file.getvalue()
