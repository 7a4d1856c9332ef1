"""Where media come from and what is allowed: sources, limits, clip times (DESIGN 4.5)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import av.container
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from data_pipeline.errors import InputError, MediaError

MediaSource = str | Path | bytes

CLIP_DURATION_S = 2
PAPER_RECIPES = ("mllm_tool", "imagebind")
RECIPES = (*PAPER_RECIPES, "robust")

# Formats that a file may have, whatever its name. Playlists and the like are absent: they make FFmpeg open other files
# and addresses.
FFMPEG_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,gif,apng,ogg,wav,w64,aiff,au,caf,flac,mp3,"
    "aac,ac3,eac3,amr,h264,hevc,m4v,av1,ivf"
)

# Pictures in the container that films come in too (ISO base media file format), by the major brand of its first box.
_PICTURE_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"mif1": "HEIF", b"msf1": "HEIF", b"mif2": "HEIF", b"crx ": "CR3"}
_PICTURE_BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC")
FILE_TYPE_BYTES = 256  # of a file's beginning, in which its brands are looked for


@dataclass(frozen=True)
class MediaLimits:
    """What a medium may measure; checked before it is decoded as far as the file says, and while it is decoded.

    Attributes:
        max_pixels: width times height of an image or a video frame, before and after resizing.
        max_duration_s: length of a sound or a video.
        max_bytes: size of the file.
        max_samples: samples of a sound over all channels, which sit in memory at four bytes each.
    """

    max_pixels: int = 50_000_000
    max_duration_s: float = 600.0
    max_bytes: int = 256 * 2**20
    max_samples: int = 200_000_000


DEFAULT_LIMITS = MediaLimits()


def describe_source(source: MediaSource) -> str:
    """How an error message calls `source`."""
    return f"the given data ({len(source):,} bytes)" if isinstance(source, bytes) else f"file {str(source)!r}"


def check_pixels(width: int, height: int, name: str, limits: MediaLimits, what: str) -> None:
    """Raise MediaError where `what` of `name` has more than `limits.max_pixels`."""
    if width * height > limits.max_pixels:
        raise MediaError(
            f"{name}: {what} of {width:,} x {height:,} has {width * height:,} pixels; at most {limits.max_pixels:,} "
            "are allowed, so scale it down first."
        )


def check_duration(duration_s: float, name: str, limits: MediaLimits) -> None:
    """Raise MediaError where `name` is longer than `limits.max_duration_s`."""
    if duration_s > limits.max_duration_s:
        raise MediaError(
            f"{name} lasts {duration_s:,.1f} s; at most {limits.max_duration_s:,.1f} s are allowed, so cut it first."
        )


def check_codec(stream: AudioStream | VideoStream, name: str) -> None:
    """Raise MediaError where FFmpeg has no decoder for `stream`: PyAV then gives it no codec context."""
    if stream.codec_context is None:
        raise MediaError(
            f"{name}: no decoder is known for its {stream.type} stream; re-encode it, as H.264 or AAC say."
        )


def picture_container(head: bytes) -> str | None:
    """What kind of picture is in an ISO base media file, told by its brands: FFmpeg takes stills for films.

    Args:
        head: the first bytes of the file; `FILE_TYPE_BYTES` are enough.

    Returns:
        "AVIF", "HEIC", "HEIF" or "CR3"; None for a film and for whatever is in no such container.
    """
    if head[4:8] != b"ftyp":
        return None
    kind = _PICTURE_BRANDS.get(head[8:12])
    box = head[16 : min(int.from_bytes(head[:4], "big"), FILE_TYPE_BYTES)]
    compatible = {_PICTURE_BRANDS.get(box[start : start + 4]) for start in range(0, len(box), 4)}
    # The general brands of HEIF leave the codec open; the compatible ones name it.
    return next((known for known in ("AVIF", "HEIC") if known in compatible), kind) if kind == "HEIF" else kind


@contextmanager
def open_source(source: MediaSource, limits: MediaLimits) -> Iterator[IO[bytes]]:
    """Open a path or bytes for reading.

    Raises:
        MediaError: no such file, an empty one, or one over `limits.max_bytes`.
    """
    name = describe_source(source)
    if isinstance(source, bytes):
        size, file = len(source), io.BytesIO(source)
    else:
        path = Path(source)
        if not path.is_file():
            raise MediaError(f"{name} does not exist or is no ordinary file; check the path and the media root.")
        try:
            size, file = path.stat().st_size, path.open("rb")
        except OSError as error:
            raise MediaError(f"{name} cannot be opened ({error.strerror}); check its permissions.") from error
    with file:
        if size == 0:
            raise MediaError(f"{name} is empty; give a file with content.")
        if size > limits.max_bytes:
            raise MediaError(
                f"{name} has {size:,} bytes; at most {limits.max_bytes:,} are allowed, so shrink it first."
            )
        yield file


@contextmanager
def open_container(file: IO[bytes], name: str, kind: str) -> Iterator[av.container.InputContainer]:
    """Open audio or video by its content alone, without leave to open anything else.

    Args:
        file: the open file; read from its beginning.
        name: for messages.
        kind: "audio" or "video", for messages.

    Raises:
        MediaError: not in one of `FFMPEG_FORMATS`, a picture, or too damaged to open; also for FFmpeg errors in the
            block.
    """
    file.seek(0)
    head = file.read(FILE_TYPE_BYTES)
    file.seek(0)
    if picture := picture_container(head):
        raise MediaError(f"{name} cannot be read as {kind}: it is a picture ({picture}); use it as one.")
    options = {"format_whitelist": FFMPEG_FORMATS, "protocol_whitelist": "none"}
    if head[8:12] == b"WAVE":
        options["probesize"] = str(
            2**15
        )  # by default FFmpeg searches five megabytes of samples for hidden surround sound
    try:
        container = av.open(file, mode="r", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise MediaError(
            f"{name} cannot be read as {kind} ({_reason(error)}): it is damaged, incomplete or in another format; "
            f"give {'WAV, FLAC, MP3, OGG or M4A' if kind == 'audio' else 'MP4, WebM, MOV, AVI or GIF'}."
        ) from error
    with container:
        try:
            yield container
        except MediaError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{name}: the {kind} stream is damaged ({_reason(error)}); re-encode it or give another file."
            ) from error


def _reason(error: Exception) -> str:
    strerror: Any = getattr(error, "strerror", None)
    return str(strerror or error)


def clip_starts_s(duration_s: float, clips: int, recipe: str) -> list[Fraction]:
    """Start times of `clips` clips of two seconds, as pytorchvideo's ConstantClipsPerVideoSampler gives them.

    "mllm_tool" (pytorchvideo 0.1.5) divides the room for starts by `clips`, so the end is never reached, and so does
    "robust"; "imagebind" (the commit that ImageBind pins) divides by `clips - 1`. The difference is taken in floats and
    then exact, as there: that decides on which side of a sample or frame a start falls.

    Raises:
        InputError: an unknown recipe.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown media recipe {recipe!r}; use one of {list(RECIPES)}.")
    room = Fraction(max(duration_s - float(CLIP_DURATION_S), 0.0))
    return [room * number / (clips - 1 if recipe == "imagebind" else clips) for number in range(clips)]
