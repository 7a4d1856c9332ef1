"""The store of uploads and results: media by unguessable ids, in a local directory or behind an fsspec URI.

An artifact is two files, `<id>.data` and `<id>.json`. The second is written last, so an id exists only with its whole
data. What an artifact is, its bytes tell (`serve/http/uploads.py`); an id is checked before it becomes a file name.

Ids come from the content under the store's own secret: nobody can guess one, and a client that sends its pictures again
with every message of a chat finds them under the names that the chat has already used.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import posixpath
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.errors import InputError
from data_pipeline.locations import BUCKET_SCHEMES, filesystem_of, locate
from data_pipeline.records.schema import Modality
from serve.config import ServeArgs
from serve.http.schemas import RequestError
from serve.http.uploads import sniff_modality
from serve.tools.run import DEFAULT_LIMITS

ARTIFACT_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

_DIALOGUE_EXTENSIONS = {Modality.IMAGE: "png", Modality.AUDIO: "wav", Modality.VIDEO: "mp4"}
DIALOGUE_NAME = re.compile(r"\b(?:image|audio|video)/(?P<id>[0-9a-f]{32})\.(?:png|wav|mp4)\b", re.ASCII)
_DATA, _META, _PARTIAL = ".data", ".json", ".partial"
_SECRET = "secret.key"
_USAGE_AGE_S = 30.0  # how long this process believes its own count of what all replicas have written


class ArtifactError(RequestError):
    """An artifact that is not there, or that cannot be taken. Unknown and expired ids are told alike."""


@dataclass(frozen=True)
class Artifact:
    """What is known about a stored medium.

    Attributes:
        id: 32 hexadecimal digits that cannot be guessed; whoever knows it may read the artifact.
        media_type: told by the bytes.
        modality: "image", "audio" or "video".
        n_bytes, sha256: of the data.
        created_s, expires_s: Unix times.
        name: what the sender called it, cleaned; for people only.
    """

    id: str
    media_type: str
    modality: str
    n_bytes: int
    sha256: str
    created_s: float
    expires_s: float
    name: str = ""

    @property
    def dialogue_name(self) -> str:
        """What a dialogue calls it, whatever its format: GPT4Tools' `image/<id>.png`, and likewise sounds, videos."""
        return f"{self.modality}/{self.id}.{_DIALOGUE_EXTENSIONS[Modality(self.modality)]}"

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers under which the data is served: no browser may take it for anything but this media type."""
        age_s = max(0, int(self.expires_s - time.time()))
        extension = _FILE_EXTENSIONS.get(self.media_type, "bin")
        return {
            "Content-Type": self.media_type,
            "Content-Disposition": f'inline; filename="{self.id}.{extension}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cache-Control": f"private, max-age={age_s}, immutable",
            "ETag": f'"{self.sha256}"',
        }


class ArtifactStore:
    """Blocking; call it from a thread. Several replicas may share one location."""

    def __init__(self, uri: str, ttl_s: float, max_bytes: int, max_total_bytes: int = 10 * 2**30) -> None:
        """Open or make the location.

        Args:
            uri: a local directory or an fsspec URI such as `s3://bucket/folder`.
            ttl_s: how long an artifact lives.
            max_bytes: of one artifact.
            max_total_bytes: of all artifacts together; what other replicas write is counted every half minute.
        """
        self._fs, root = _open_filesystem(uri)
        self._root = root.rstrip("/")
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._usage_bytes = 0
        self._counted_s = float("-inf")
        self._fs.makedirs(self._root, exist_ok=True)
        if isinstance(self._fs, LocalFileSystem):
            os.chmod(self._root, 0o700)  # a folder of this user's alone; OSError where it is another's
        self._secret = self._load_secret()

    def put(self, data: bytes, media_type: str = "", name: str = "") -> Artifact:
        """Store a medium.

        Args:
            data: the whole file.
            media_type: what its sender calls it ("audio/mp4"), or "". It decides only where the bytes leave it open
                whether sound or pictures are meant; a claim that the bytes belie is refused.
            name: the sender's file name; kept for people, never used as a path.

        Returns:
            what is stored; the same data under the same name is one artifact, which lives on from now.

        Raises:
            ArtifactError: too large (413), or the store is full (507).
            RequestError: the bytes are of no accepted kind, or not of the claimed one.
        """
        if len(data) > self._max_bytes:
            raise ArtifactError(
                f"The medium has {len(data)} bytes; at most {self._max_bytes} are stored.", 413, "media_too_large"
            )
        claimed = media_type.partition("/")[0].lower()
        modality = sniff_modality(data, claimed if claimed in _DIALOGUE_EXTENSIONS else None)
        self._make_room(len(data))
        name, created_s = _clean_name(name), time.time()
        artifact = Artifact(
            id=self._id_of(data, modality, name),
            media_type=_media_type(data, modality),
            modality=modality.value,
            n_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_s=created_s,
            expires_s=created_s + self._ttl_s,
            name=name,
        )
        meta = json.dumps(asdict(artifact)).encode()
        self._write(artifact.id + _DATA, data)
        self._write(artifact.id + _META, meta)
        self._usage_bytes += len(data) + len(meta)
        return artifact

    def info(self, artifact_id: str) -> Artifact:
        """What is known about an artifact; `ArtifactError` (404) where there is none of this id, or no more."""
        artifact = self._read(artifact_id) if ARTIFACT_ID.fullmatch(artifact_id) else None
        if artifact is None or artifact.expires_s <= time.time():
            raise _not_found(artifact_id)
        return artifact

    def open(self, artifact_id: str) -> tuple[Artifact, bytes]:
        """An artifact and its data; errors as in `info`."""
        artifact = self.info(artifact_id)
        try:
            return artifact, self._fs.cat_file(self._path(artifact.id + _DATA))
        except FileNotFoundError:  # deleted since
            raise _not_found(artifact_id) from None

    def locate(self, artifact_id: str) -> tuple[Artifact, Path | None]:
        """An artifact and the file with its data, or None where the store is no directory; errors as in `info`."""
        artifact = self.info(artifact_id)
        if not isinstance(self._fs, LocalFileSystem):
            return artifact, None
        path = Path(self._path(artifact.id + _DATA))
        if not path.is_file():  # deleted since
            raise _not_found(artifact_id)
        return artifact, path

    def delete_expired(self) -> int:
        """Delete what has expired and what an interrupted write left behind; returns how many artifacts went."""
        now = time.time()
        n_deleted, known = 0, set()
        for artifact_id, suffix, path in self._files():
            if suffix == _META:
                artifact = self._read(artifact_id)
                if artifact is None or artifact.expires_s <= now:
                    self._delete(path)  # first: an id without its metadata is gone
                    self._delete(self._path(artifact_id + _DATA))
                    n_deleted += 1
                else:
                    known.add(artifact_id)
        for artifact_id, suffix, path in self._files():
            is_stray = suffix != _META and artifact_id not in known
            if is_stray and now - self._fs.modified(path).timestamp() > self._ttl_s:
                self._delete(path)
        self._counted_s = float("-inf")
        return n_deleted

    def _id_of(self, data: bytes, modality: Modality, name: str) -> str:
        code = hmac.new(self._secret, f"{modality.value}\n{name}\n".encode(), "sha256")
        code.update(data)
        return code.hexdigest()[:32]

    def _load_secret(self) -> bytes:
        """The store's secret, made by the first who opens it. Two who do so at once may differ: ids then do too."""
        try:
            return self._fs.cat_file(self._path(_SECRET))
        except FileNotFoundError:
            self._write(_SECRET, secrets.token_bytes(32))
            return self._fs.cat_file(self._path(_SECRET))

    def _make_room(self, n_bytes: int) -> None:
        if time.monotonic() - self._counted_s > _USAGE_AGE_S:
            self._count()
        if self._usage_bytes + n_bytes > self._max_total_bytes:
            self.delete_expired()
            self._count()
        if self._usage_bytes + n_bytes > self._max_total_bytes:
            raise ArtifactError("The artifact store is full; try again later.", 507, "artifact_store_full")

    def _count(self) -> None:
        self._fs.invalidate_cache()
        entries: Mapping[str, Any] = self._fs.find(self._root, detail=True)
        self._usage_bytes = sum(entry["size"] or 0 for entry in entries.values())
        self._counted_s = time.monotonic()

    def _files(self) -> Iterator[tuple[str, str, str]]:
        """(artifact id, suffix, path) of every file that is ours; others are left alone."""
        self._fs.invalidate_cache()  # remote file systems remember listings
        for path in list(self._fs.find(self._root)):
            stem, dot, suffix = posixpath.basename(path).partition(".")
            is_ours = suffix in ("data", "json") or suffix.endswith(_PARTIAL)
            if ARTIFACT_ID.fullmatch(stem) and is_ours:
                yield stem, dot + suffix, path

    def _read(self, artifact_id: str) -> Artifact | None:
        """The metadata; None where it is missing or no metadata of ours."""
        try:
            return Artifact(**json.loads(self._fs.cat_file(self._path(artifact_id + _META))))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self, name: str, data: bytes) -> None:
        partial = self._path(f"{name}.{secrets.token_hex(4)}{_PARTIAL}")  # others may write the same
        if isinstance(self._fs, LocalFileSystem):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(partial, flags, 0o600), "wb") as stream:
                stream.write(data)
        else:
            self._fs.pipe_file(partial, data)
        self._fs.mv(partial, self._path(name))

    def _delete(self, path: str) -> None:
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            return  # another replica was faster

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_artifacts(args: ServeArgs) -> ArtifactStore:
    """The store that ingress and tools share; it takes whatever a tool may give back."""
    return ArtifactStore(args.artifacts_uri, args.artifact_ttl_s, DEFAULT_LIMITS.max_output_bytes)


def _open_filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a folder or URI, and the folder's name in it; InputError where it is not installed."""
    if uri.partition("://")[0] in BUCKET_SCHEMES:
        filesystem, root = filesystem_of(locate(uri))
        return ArrowFSWrapper(filesystem), root
    try:
        return url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"artifacts {uri!r}: its file system is not installed ({error}); give a folder, or a URI of "
            f"{', '.join(BUCKET_SCHEMES)} or of another file system of fsspec whose package is installed."
        ) from error


def find_dialogue_names(text: str) -> dict[str, str]:
    """Name -> artifact id of every `Artifact.dialogue_name` in a text; whether the artifacts exist is not asked."""
    return {found[0]: found["id"] for found in DIALOGUE_NAME.finditer(text)}


_FILE_EXTENSIONS = {
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


def _not_found(artifact_id: str) -> ArtifactError:
    return ArtifactError(
        f"There is no artifact {artifact_id[:64]!r}, or it has expired; send the medium again.",
        404,
        "artifact_not_found",
    )


def _media_type(data: bytes, modality: Modality) -> str:
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


def _clean_name(name: str) -> str:
    """The last part of a file name, harmless characters alone."""
    return re.sub(r"[^\w .()-]+", "_", re.split(r"[/\\]", name)[-1])[-80:].strip(". ")
