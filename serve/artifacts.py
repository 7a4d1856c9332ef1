"""The store of uploads and results: media by unguessable ids, in a local directory or behind an fsspec URI.

An artifact belongs to the API key that made it. It is two files in the folder of that key, `<id>.data` and `<id>.json`.
The second is written last, so an id exists only with its whole data. What an artifact is, its bytes tell
(`serve/http/uploads.py`); an id is checked before it becomes a file name.

Ids come from owner and content under the store's own secret: nobody can guess one, equal files of two keys have two,
and a client that sends its pictures again with every message of a chat finds them under the names that the chat has
already used.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.records.schema import Modality
from serve.artifact_files import ARTIFACT_ID, DATA, META, ArtifactFiles
from serve.config import ServeArgs
from serve.decoding.decoder import shared_decoder
from serve.http.schemas import RequestError
from serve.http.uploads import FILE_EXTENSIONS, media_type_of, sniff_modality
from serve.tools.run import DEFAULT_LIMITS

logger = logging.getLogger("ray.serve")

_DIALOGUE_EXTENSIONS = {Modality.IMAGE: "png", Modality.AUDIO: "wav", Modality.VIDEO: "mp4"}
DIALOGUE_NAME = re.compile(r"\b(?:image|audio|video)/(?P<id>[0-9a-f]{32})\.(?:png|wav|mp4)\b", re.ASCII)
_SECRET, _SECRET_BYTES = "secret.key", 32
_SWEEP_S = 300.0  # between two sweeps of a process
_USAGE_AGE_S = 30.0  # how long this process believes its own count of what all replicas have written


class ArtifactError(RequestError):
    """An artifact that is not there, or that cannot be taken. Unknown and expired ids are told alike."""


@dataclass(frozen=True)
class Artifact:
    """What is known about a stored medium.

    Attributes:
        id: 32 hexadecimal digits that cannot be guessed.
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
        extension = FILE_EXTENSIONS.get(self.media_type, "bin")
        return {
            "Content-Type": self.media_type,
            "Content-Disposition": f'inline; filename="{self.id}.{extension}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cache-Control": f"private, max-age={age_s}, immutable",
            "ETag": f'"{self.sha256}"',
        }


class ArtifactStore:
    """All artifacts; `of` gives those of one caller. Blocking; call it from a thread. Several replicas may share it."""

    def __init__(
        self,
        uri: str,
        ttl_s: float,
        max_bytes: int,
        max_total_bytes: int = 10 * 2**30,
        max_bytes_per_caller: int | None = None,
    ) -> None:
        """Open or make the location.

        Args:
            uri: a local directory or an fsspec URI such as `s3://bucket/folder`.
            ttl_s: how long an artifact lives.
            max_bytes: of one artifact.
            max_total_bytes: of all artifacts together; what other replicas write is counted every half minute.
            max_bytes_per_caller: of all artifacts of one caller together; None: no limit but those above.
        """
        self.files = ArtifactFiles(uri)
        self.ttl_s = ttl_s
        self.max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._max_bytes_per_caller = max_total_bytes if max_bytes_per_caller is None else max_bytes_per_caller
        self._used_bytes = Counter[str]()  # by owner
        self._counted_s = float("-inf")
        self._expiries: dict[str, float] = {}  # of what the last sweep has seen; they only grow
        self.secret = self._load_secret()

    def of(self, caller: str) -> CallerArtifacts:
        """The artifacts of one caller (`serve/http/access.py`); without keys, all callers are one."""
        return CallerArtifacts(self, hashlib.sha256(caller.encode()).hexdigest()[:32])

    def make_room(self, owner: str, n_bytes: int) -> None:
        """Count what an owner is about to write; `ArtifactError` where it is more than they (413) or all (507) may."""
        if time.monotonic() - self._counted_s > _USAGE_AGE_S:
            self._count()
        if self._refusal(owner, n_bytes) is not None:
            self.delete_expired()
            self._count()
        refusal = self._refusal(owner, n_bytes)
        if refusal is not None:
            raise refusal
        self._used_bytes[owner] += n_bytes

    def give_back(self, owner: str, n_bytes: int) -> None:
        """Count what an owner has deleted."""
        self._used_bytes[owner] -= n_bytes

    def read(self, stem: str) -> Artifact | None:
        """What is known about `owner/id`; None where there is nothing, or nothing of ours."""
        try:
            return Artifact(**json.loads(self.files.read(stem + META)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def delete_expired(self) -> int:
        """Delete what has expired and what an interrupted write left behind; returns how many artifacts went.

        Other replicas may do the same at the same time, and put anew what is about to go.
        """
        now, n_deleted, listed = time.time(), 0, self.files.list()
        expiries: dict[str, float] = {}
        for stem in [file.stem for file in listed if file.suffix == META]:
            expires_s = self._expiries.get(stem, 0.0)
            if expires_s <= now:  # unknown, or it was to go by now unless it was put anew
                with self.files.lock(exclusive=True):
                    artifact = self.read(stem)
                    expires_s = 0.0 if artifact is None else artifact.expires_s
                    if expires_s <= now:
                        n_deleted += self.files.delete(stem + META)  # first: an id without its metadata is gone
                        self.files.delete(stem + DATA)
                        continue
            expiries[stem] = expires_s
        for file in listed:
            if file.suffix != META and file.stem not in expiries:
                with self.files.lock(exclusive=True):
                    age_s = self.files.age_s(file.stem + file.suffix)
                    if age_s > self.ttl_s and not self.files.exists(file.stem + META):
                        self.files.delete(file.stem + file.suffix)
        self._expiries = expiries
        return n_deleted

    def _count(self) -> None:
        self._used_bytes = Counter()
        for file in self.files.list():
            self._used_bytes[file.stem.rpartition("/")[0]] += file.n_bytes
        self._counted_s = time.monotonic()

    def _refusal(self, owner: str, n_bytes: int) -> ArtifactError | None:
        own = self._used_bytes[owner]
        if own + n_bytes > self._max_bytes_per_caller:
            return ArtifactError(
                f"The artifacts of this caller hold {own} bytes, and with these {n_bytes} more than the "
                f"{self._max_bytes_per_caller} that are allowed; delete some (DELETE /v1/artifacts/{{id}}), or wait "
                f"until they expire, {self.ttl_s:g} s after they were stored.",
                413,
                "artifact_quota_exceeded",
            )
        if self._used_bytes.total() + n_bytes > self._max_total_bytes:
            return ArtifactError("The artifact store is full; try again later.", 507, "artifact_store_full")
        return None

    def _load_secret(self) -> bytes:
        """The store's secret, made by the first who opens it."""
        with self.files.lock(exclusive=True):  # in a bucket, two who do so at once may differ: ids then do too
            try:
                secret = self.files.read(_SECRET)
            except FileNotFoundError:
                secret = b""
            if len(secret) < _SECRET_BYTES:  # missing, or cut by a full disk: ids could be guessed
                self.files.write(_SECRET, secrets.token_bytes(_SECRET_BYTES))
                secret = self.files.read(_SECRET)
            return secret


@dataclass(frozen=True)
class CallerArtifacts:
    """What one caller has stored, and tools for them: another's artifacts cannot be told from what was never there.

    Attributes:
        store: of everyone.
        owner: the folder of this caller's, named by the hash of their name.
    """

    store: ArtifactStore
    owner: str

    def put(self, data: bytes, media_type: str = "", name: str = "") -> Artifact:
        """Store a medium.

        Args:
            data: the whole file.
            media_type: what its sender calls it ("audio/mp4"), or "". It decides only where the bytes leave it open
                whether sound or pictures are meant; a claim that the bytes belie is refused.
            name: the sender's file name; kept for people, never used as a path.

        Returns:
            what is stored; the same data under the same name is one artifact of a caller, which lives on from now.

        Raises:
            ArtifactError: too large or beyond the caller's share (413), or the store is full (507).
            RequestError: the bytes are of no accepted kind, or not of the claimed one; or nobody can tell now (503).
        """
        store = self.store
        if len(data) > store.max_bytes:
            raise ArtifactError(
                f"The medium has {len(data)} bytes; at most {store.max_bytes} are stored.", 413, "media_too_large"
            )
        claimed = media_type.partition("/")[0].lower()
        modality = sniff_modality(data, claimed if claimed in _DIALOGUE_EXTENSIONS else None, shared_decoder())
        name, created_s = _clean_name(name), time.time()
        artifact = Artifact(
            id=self._id_of(data, modality, name),
            media_type=media_type_of(data, modality),
            modality=modality.value,
            n_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_s=created_s,
            expires_s=created_s + store.ttl_s,
            name=name,
        )
        meta = json.dumps(asdict(artifact)).encode()
        stem = self._stem(artifact.id)
        try:
            store.make_room(self.owner, len(data) + len(meta))
        except ArtifactError:
            if not store.files.exists(stem + META):  # else it takes no more room than it has
                raise
        with store.files.lock(exclusive=False):
            store.files.write(stem + DATA, data)
            store.files.write(stem + META, meta)
        return artifact

    def info(self, artifact_id: str) -> Artifact:
        """What is known about an artifact; `ArtifactError` (404) where this caller has none of this id, or no more."""
        artifact = self.store.read(self._stem(artifact_id)) if ARTIFACT_ID.fullmatch(artifact_id) else None
        if artifact is None or artifact.expires_s <= time.time():
            raise _not_found(artifact_id)
        return artifact

    def open(self, artifact_id: str) -> tuple[Artifact, bytes]:
        """An artifact and its data; errors as in `info`."""
        artifact = self.info(artifact_id)
        try:
            return artifact, self.store.files.read(self._stem(artifact.id) + DATA)
        except FileNotFoundError:  # deleted since
            raise _not_found(artifact_id) from None

    def locate(self, artifact_id: str) -> tuple[Artifact, Path | None]:
        """An artifact and the file with its data, or None where the store is no directory; errors as in `info`."""
        artifact = self.info(artifact_id)
        if not self.store.files.is_local:
            return artifact, None
        path = Path(self.store.files.path(self._stem(artifact.id) + DATA))
        if not path.is_file():  # deleted since
            raise _not_found(artifact_id)
        return artifact, path

    def delete(self, artifact_id: str) -> None:
        """Delete an artifact; errors as in `info`."""
        artifact = self.info(artifact_id)
        stem = self._stem(artifact.id)
        with self.store.files.lock(exclusive=True):
            self.store.files.delete(stem + META)
            self.store.files.delete(stem + DATA)
        self.store.give_back(self.owner, artifact.n_bytes)

    def _stem(self, artifact_id: str) -> str:
        return f"{self.owner}/{artifact_id}"

    def _id_of(self, data: bytes, modality: Modality, name: str) -> str:
        code = hmac.new(self.store.secret, f"{self.owner}\n{modality.value}\n{name}\n".encode(), "sha256")
        code.update(data)
        return code.hexdigest()[:32]


@asynccontextmanager
async def sweeping(store: ArtifactStore) -> AsyncIterator[None]:
    """While this context is open, what has expired is deleted, whether anyone asks for it or not."""
    task = asyncio.create_task(_sweep(store))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _sweep(store: ArtifactStore) -> None:
    every_s = min(_SWEEP_S, store.ttl_s / 4)
    while True:
        try:
            n_deleted = await asyncio.to_thread(store.delete_expired)
        except Exception as error:  # noqa: BLE001  (whatever the place of the store does, the next sweep may succeed)
            logger.warning("artifacts: those that have expired could not be deleted: %s", error)
        else:
            if n_deleted:
                logger.info("artifacts: %d had expired and are deleted", n_deleted)
        await asyncio.sleep(every_s * random.uniform(0.5, 1.5))  # replicas not all at once


def open_artifacts(args: ServeArgs) -> ArtifactStore:
    """The store that ingress and tools share; it takes whatever a tool may give back."""
    return ArtifactStore(
        args.artifacts_uri,
        args.artifact_ttl_s,
        DEFAULT_LIMITS.max_output_bytes,
        max_bytes_per_caller=args.artifact_bytes_per_key,
    )


def find_dialogue_names(text: str) -> dict[str, str]:
    """Name -> artifact id of every `Artifact.dialogue_name` in a text; whether the artifacts exist is not asked."""
    return {found[0]: found["id"] for found in DIALOGUE_NAME.finditer(text)}


def _not_found(artifact_id: str) -> ArtifactError:
    return ArtifactError(
        f"There is no artifact {artifact_id[:64]!r}, or it has expired; send the medium again.",
        404,
        "artifact_not_found",
    )


def _clean_name(name: str) -> str:
    """The last part of a file name, harmless characters alone."""
    return re.sub(r"[^\w .()-]+", "_", re.split(r"[/\\]", name)[-1])[-80:].strip(". ")
