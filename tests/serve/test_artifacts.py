"""The artifact store: what goes in comes out under its sniffed type until it expires, and ids are no paths."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_media import picture, sound

from data_pipeline.errors import InputError
from serve.artifact_files import ARTIFACT_ID
from serve.artifacts import ArtifactError, ArtifactStore, CallerArtifacts, find_dialogue_names, sweeping
from serve.http.schemas import RequestError


def open_store(folder: Path | str, **more: Any) -> ArtifactStore:
    return ArtifactStore(str(folder), **{"ttl_s": 60, "max_bytes": 100_000, **more})


@pytest.fixture
def store(tmp_path: Path) -> CallerArtifacts:
    return open_store(tmp_path / "artifacts").of("ada")


def files_in(folder: Path) -> set[str]:
    """Names of files, with neither the store's secret nor its lock."""
    return {path.name for path in folder.rglob("*") if path.is_file()} - {"secret.key", "lock"}


@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_goes_in_comes_out(place: str, tmp_path: Path) -> None:
    uri = str(tmp_path) if place == "local" else f"memory://{uuid.uuid4().hex}"
    store = open_store(uri).of("ada")
    data = sound()
    stored = store.put(data, "audio/x-anything", name="../../etc/my sound\n<b>.wav")
    other = open_store(uri).of("ada")  # another replica
    assert other.open(stored.id) == (stored, data)
    assert (stored.media_type, stored.modality, stored.n_bytes) == ("audio/wav", "audio", len(data))
    assert stored.name == "my sound_b_.wav"
    assert stored.expires_s - stored.created_s == 60
    assert stored.dialogue_name == f"audio/{stored.id}.wav"
    assert ARTIFACT_ID.fullmatch(stored.id)
    again = other.put(data, "", name="my sound\n<b>.wav")
    assert again.id == stored.id, "the same data under the same name is one artifact"
    assert again.expires_s >= stored.expires_s
    stranger = open_store(f"{uri}/other").of("ada")
    assert len({stored.id, store.put(data).id, stranger.put(data, "", stored.name).id}) == 3


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [(kind, f"image/{kind.lower()}") for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF")],
)
def test_the_bytes_tell_the_type(kind: str, media_type: str, store: CallerArtifacts) -> None:
    stored = store.put(picture(kind=kind), "application/octet-stream", name="page.html")
    assert stored.media_type == media_type
    assert stored.dialogue_name == f"image/{stored.id}.png"
    headers = stored.headers
    assert headers["Content-Type"] == media_type
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "html" not in headers["Content-Disposition"]
    assert "sandbox" in headers["Content-Security-Policy"]


def test_what_is_refused(store: CallerArtifacts) -> None:
    for data, media_type, status in (
        (b"<html><script>alert(1)</script>", "text/html", 415),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", 415),
        (b"", "image/png", 400),
        (picture(), "audio/wav", 400),
        (bytes(100_001), "image/png", 413),
    ):
        with pytest.raises(RequestError) as caught:
            store.put(data, media_type)
        assert caught.value.status == status


@pytest.mark.parametrize(
    "artifact_id", ["", "..", "../secret", "a" * 31, "A" * 32, "a" * 32 + "\n", "a" * 32 + "/../x", "٣" * 32, "0" * 32]
)
def test_ids_are_no_paths(artifact_id: str, store: CallerArtifacts, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    for read in (store.info, store.open, store.locate, store.delete):
        with pytest.raises(ArtifactError) as caught:
            read(artifact_id)
        assert (caught.value.status, caught.value.code) == (404, "artifact_not_found")


def test_expired_and_unfinished_artifacts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_store(tmp_path)
    store = whole.of("ada")
    old = store.put(picture())
    folder = tmp_path / store.owner
    stranger, cut, stray = (
        tmp_path / "notes.txt",
        folder / f"{'0' * 32}.data",
        folder / f"{'1' * 32}.json.0a1b.partial",
    )
    for path in (stranger, cut, stray):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 3600,) * 2)
    fresh_cut = folder / f"{'2' * 32}.data"  # another replica may be about to write its metadata
    fresh_cut.write_bytes(b"x")
    os.utime(fresh_cut, (time.time() + 50,) * 2)
    broken = tmp_path / f"{'3' * 32}.json"  # in the folder of nobody, where artifacts once lay
    broken.write_text(json.dumps({"id": 3}))
    assert whole.delete_expired() == 1
    now = time.time()
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 59)
    new = store.put(picture(value=1))
    assert store.info(old.id) == old
    again = open_store(tmp_path).of("ada").put(sound())  # of a replica that this one does not know of
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 61)
    with pytest.raises(ArtifactError, match="expired"):
        store.open(old.id)
    assert whole.delete_expired() == 1
    kept = {f"{artifact.id}{suffix}" for artifact in (new, again) for suffix in (".data", ".json")}
    assert files_in(tmp_path) == {stranger.name, fresh_cut.name} | kept


def test_what_has_expired_goes_by_itself(tmp_path: Path) -> None:
    whole = open_store(tmp_path, ttl_s=0.2)
    whole.of("ada").put(picture())

    async def wait() -> None:
        async with sweeping(whole), asyncio.timeout(10):
            while files_in(tmp_path):
                await asyncio.sleep(0.02)

    asyncio.run(wait())


def test_what_is_put_anew_while_a_replica_sweeps_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at an artifact that has expired and its end, another replica stores the same file again."""
    open_store(tmp_path, ttl_s=-1.0).of("ada").put(picture())
    sweeper, other = open_store(tmp_path), open_store(tmp_path).of("ada")
    read = sweeper.read
    with ThreadPoolExecutor(1) as threads:
        puts = []

        def read_slowly(stem: str) -> Any:
            found = read(stem)
            puts.append(threads.submit(other.put, picture()))
            time.sleep(0.2)
            return found

        monkeypatch.setattr(sweeper, "read", read_slowly)
        assert sweeper.delete_expired() == 1
        kept = puts[0].result()
    assert other.open(kept.id) == (kept, picture())


def test_replicas_may_sweep_at_once(tmp_path: Path) -> None:
    brief = open_store(tmp_path, ttl_s=-1.0).of("ada")
    for value in range(20):
        brief.put(picture(value))
    (tmp_path / brief.owner / f"{'0' * 32}.data").write_bytes(b"x")
    os.utime(tmp_path / brief.owner / f"{'0' * 32}.data", (time.time() - 3600,) * 2)
    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(lambda _: open_store(tmp_path).delete_expired(), range(4)))
    assert sum(counts) == 20, "each went once"
    assert files_in(tmp_path) == set()


def test_artifacts_belong_to_who_made_them(tmp_path: Path) -> None:
    whole = open_store(tmp_path)
    ada, bob = whole.of("ada"), whole.of("bob")
    of_ada, of_bob = ada.put(picture()), bob.put(picture())
    assert of_ada.id != of_bob.id, "equal files of two"
    for read in (bob.info, bob.open, bob.locate, bob.delete):
        with pytest.raises(ArtifactError) as caught:
            read(of_ada.id)
        assert (caught.value.status, caught.value.code) == (404, "artifact_not_found")
    ada.delete(of_ada.id)
    for read in (ada.info, ada.open, ada.locate, ada.delete):
        with pytest.raises(ArtifactError):
            read(of_ada.id)
    assert bob.open(of_bob.id)[1] == picture()
    assert files_in(tmp_path) == {f"{of_bob.id}.data", f"{of_bob.id}.json"}


def test_each_has_a_share_of_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_store(tmp_path, max_bytes_per_caller=2000)
    ada, bob = whole.of("ada"), whole.of("bob")
    kept = [ada.put(picture(value=value)) for value in range(4)]
    with pytest.raises(ArtifactError, match=r"DELETE /v1/artifacts/\{id\}") as caught:
        ada.put(sound())
    assert (caught.value.status, caught.value.code) == (413, "artifact_quota_exceeded")
    assert ada.put(picture()).id == kept[0].id, "it takes no more room than it has"
    bob.put(sound())
    for artifact in kept:
        ada.delete(artifact.id)
    ada.put(sound())
    with pytest.raises(ArtifactError):
        ada.put(picture(value=9, kind="BMP") + bytes(500))
    now = time.time()
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 61)
    ada.put(picture(value=9))  # what has expired makes room


def test_a_full_store_makes_room_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.artifacts._USAGE_AGE_S", -1)
    store = open_store(tmp_path, max_total_bytes=4000).of("ada")
    other = open_store(tmp_path).of("bob")
    while sum(path.stat().st_size for path in tmp_path.rglob("*.*")) <= 4000 - len(picture()):
        other.put(picture(value=len(files_in(tmp_path))))
    with pytest.raises(ArtifactError) as caught:
        store.put(picture())
    assert (caught.value.status, caught.value.code) == (507, "artifact_store_full")
    now = time.time()
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 61)
    store.put(picture())
    assert len(files_in(tmp_path)) == 2


def test_names_in_a_dialogue_lead_back_to_ids() -> None:
    text = f"image/{'a' * 32}.png, audio/{'b' * 32}.wav. image/{'c' * 31}.png image/{'d' * 32}.html"
    assert find_dialogue_names(text) == {f"image/{'a' * 32}.png": "a" * 32, f"audio/{'b' * 32}.wav": "b" * 32}


def test_nobody_else_on_the_machine_reads_a_local_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    open_store(tmp_path / "store").of("ada").put(picture())
    folders = {tmp_path / "store", *(path for path in tmp_path.rglob("store/*") if path.is_dir())}
    assert len(folders) == 2
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"secret.key"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_folder_that_another_user_made_first_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, mine = tmp_path / "tmp", tmp_path / "mine"
    for folder in (shared, mine):
        folder.mkdir()
    shared.chmod(0o1777)  # as /tmp is
    (shared / "link").symlink_to(mine)
    with pytest.raises(InputError, match="or a link"):
        ArtifactStore(str(shared / "link"), 60, 1000)
    assert mine.stat().st_mode & 0o777 != 0o700, "what it leads to is left as it was"
    ArtifactStore(str(shared / "own"), 60, 1000)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InputError, match="another user's folder"):
        ArtifactStore(str(shared / "own"), 60, 1000)


def test_a_secret_that_was_cut_is_made_anew(tmp_path: Path) -> None:
    """Else ids would come from the content alone, and whoever has a picture could guess its id."""
    open_store(tmp_path)
    (tmp_path / "secret.key").write_bytes(b"")
    assert len(open_store(tmp_path).secret) == len(open_store(tmp_path).secret) == 32
