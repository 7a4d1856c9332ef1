"""What an uploaded medium is, told by its bytes: file names and content types of a request are not believed.

Only the kinds listed here reach a decoder. FFmpeg would also open playlists (HLS, concat, DASH), and a playlist names
other files and addresses that it would then read on this machine's behalf.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import FILE_TYPE_BYTES, picture_container
from data_pipeline.records.schema import Modality
from serve.decoding.decoder import DecoderUnavailableError, MediaDecoder
from serve.http.schemas import RequestError

ALLOWED_KINDS = (
    "JPEG, PNG, GIF, WebP, AVIF or BMP pictures; WAV, FLAC, Ogg, MP3 or M4A sounds; MP4, MOV, WebM, MKV or AVI videos"
)


FILE_EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/webp": "webp",
    "image/avif": "avif",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/webm": "weba",
    "audio/x-matroska": "mka",
    "video/ogg": "ogv",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
}


@contextmanager
def telling_of_decoders() -> Iterator[None]:
    """That no decoder is free is told with 503."""
    try:
        yield
    except DecoderUnavailableError as error:
        raise RequestError(str(error), status=503, code="unavailable") from error


def sniff_modality(data: bytes, claimed: str | None, decoder: MediaDecoder) -> Modality:
    """Tell a medium's modality from its bytes.

    Args:
        data: the whole file.
        claimed: the modality that the request names, or None; it decides only where a file has more than one.
        decoder: asked what a container of sound or video holds. What else there is, the first bytes tell.

    Raises:
        RequestError: empty (400), unknown kind (415), unreadable container (422), not of the claimed modality (400), or
            no decoder is free (503).
    """
    if not data:
        raise RequestError("The medium is empty; send the file's bytes.", code="empty_media", param="media")
    available = _available_modalities(data, decoder)
    if claimed is None:
        return available[0]
    if claimed not in available:
        raise RequestError(
            f"The medium is {' and '.join(available)}, but the request calls it {claimed[:20]}; "
            "correct the modality or leave it out.",
            code="modality_mismatch",
            param="modality",
        )
    return Modality(claimed)


def media_type_of(data: bytes, modality: Modality) -> str:
    """The media type of data that `sniff_modality` has let through, told by its first bytes."""
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if modality == Modality.IMAGE:
        known = (
            (b"\xff\xd8\xff", "image/jpeg"),
            (b"\x89PNG", "image/png"),
            (b"BM", "image/bmp"),
            (b"RIFF", "image/webp"),
        )
        return next((media_type for magic, media_type in known if data.startswith(magic)), "image/avif")
    if data.startswith(b"RIFF"):
        return "audio/wav" if data[8:12] == b"WAVE" else "video/x-msvideo"
    if data.startswith(b"fLaC"):
        return "audio/flac"
    if data.startswith(b"OggS"):
        return f"{modality.value}/ogg"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return f"{modality.value}/{'webm' if b'webm' in data[:64] else 'x-matroska'}"
    if data[4:8] == b"ftyp":
        is_quicktime = modality == Modality.VIDEO and data[8:10] == b"qt"
        return "video/quicktime" if is_quicktime else f"{modality.value}/mp4"
    return "audio/mpeg"


def _available_modalities(data: bytes, decoder: MediaDecoder) -> list[Modality]:
    if data.startswith((b"GIF87a", b"GIF89a")):
        return [Modality.IMAGE, Modality.VIDEO]  # a still, unless the request says that the motion is meant
    picture = picture_container(data[:FILE_TYPE_BYTES])
    if picture is not None and picture != "AVIF":
        raise RequestError(
            f"The medium is a {picture} picture, which is not accepted; save it as JPEG or PNG.",
            status=415,
            code="unsupported_media",
            param="media",
        )
    if picture or _is_picture(data):
        return [Modality.IMAGE]
    container_format = _container_format(data)
    if container_format is None:
        raise RequestError(
            f"The medium is of no kind that is accepted; send one of: {ALLOWED_KINDS}.",
            status=415,
            code="unsupported_media",
            param="media",
        )
    try:
        with telling_of_decoders():
            available = decoder.list_modalities(data, container_format)
    except MediaError as error:
        raise RequestError(str(error), status=422, code="bad_media", param="media") from error
    if not available:
        raise RequestError(
            "The medium holds neither pictures nor sound; send a file that does.",
            status=422,
            code="bad_media",
            param="media",
        )
    return available


def _is_picture(data: bytes) -> bool:
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")) or (
        data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    )


def _container_format(data: bytes) -> str | None:
    """FFmpeg's name of the container, or None where it is none of the accepted ones."""
    if data[:4] == b"RIFF":
        return {b"WAVE": "wav", b"AVI ": "avi"}.get(data[8:12])
    if data.startswith(b"fLaC"):
        return "flac"
    if data.startswith(b"OggS"):
        return "ogg"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if data[4:8] == b"ftyp":
        return "mov"
    if _is_mp3(data):
        return "mp3"
    return None


def _is_mp3(data: bytes) -> bool:
    """An MPEG audio frame header at the start, or behind an ID3v2 tag: FFmpeg probes what follows the tag."""
    start = 0
    if data.startswith(b"ID3") and len(data) >= 10 and max(data[6:10]) < 0x80:
        size = data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9]
        start = 10 + size + (10 if data[5] & 0x10 else 0)
    header = data[start : start + 4].ljust(4, b"\0")
    # 11 sync bits, version not reserved, layer not reserved, bit rate and sample rate not invalid
    return (
        header[0] == 0xFF
        and header[1] & 0xE0 == 0xE0
        and header[1] & 0x18 != 0x08
        and header[1] & 0x06 != 0
        and header[2] & 0xF0 != 0xF0
        and header[2] & 0x0C != 0x0C
    )
