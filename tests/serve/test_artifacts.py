"""The artifact store: what goes in comes out under its sniffed type until it expires, and ids are no paths."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

import pytest
from small_media import picture, sound

from serve.artifacts import ARTIFACT_ID, ArtifactError, ArtifactStore, find_dialogue_names
from serve.http.schemas import RequestError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), ttl_s=60, max_bytes=100_000)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_goes_in_comes_out(place: str, tmp_path: Path) -> None:
    uri = str(tmp_path) if place == "local" else f"memory://{uuid.uuid4().hex}"
    store = ArtifactStore(uri, ttl_s=60, max_bytes=100_000)
    data = sound()
    stored = store.put(data, "audio/x-anything", name="../../etc/my sound\n<b>.wav")
    other = ArtifactStore(uri, ttl_s=60, max_bytes=100_000)  # another replica
    assert other.open(stored.id) == (stored, data)
    assert (stored.media_type, stored.modality, stored.n_bytes) == ("audio/wav", "audio", len(data))
    assert stored.name == "my sound_b_.wav"
    assert stored.expires_s - stored.created_s == 60
    assert stored.dialogue_name == f"audio/{stored.id}.wav"
    assert ARTIFACT_ID.fullmatch(stored.id)
    again = other.put(data, "", name="my sound\n<b>.wav")
    assert again.id == stored.id, "the same data under the same name is one artifact"
    assert again.expires_s >= stored.expires_s
    stranger = ArtifactStore(f"{uri}/other", ttl_s=60, max_bytes=100_000)
    assert len({stored.id, store.put(data).id, stranger.put(data, "", stored.name).id}) == 3


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [(kind, f"image/{kind.lower()}") for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF")],
)
def test_the_bytes_tell_the_type(kind: str, media_type: str, store: ArtifactStore) -> None:
    stored = store.put(picture(kind=kind), "application/octet-stream", name="page.html")
    assert stored.media_type == media_type
    assert stored.dialogue_name == f"image/{stored.id}.png"
    headers = stored.headers
    assert headers["Content-Type"] == media_type
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "html" not in headers["Content-Disposition"]
    assert "sandbox" in headers["Content-Security-Policy"]


def test_what_is_refused(store: ArtifactStore) -> None:
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
def test_ids_are_no_paths(artifact_id: str, store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    for read in (store.info, store.open):
        with pytest.raises(ArtifactError) as caught:
            read(artifact_id)
        assert (caught.value.status, caught.value.code) == (404, "artifact_not_found")


def test_expired_and_unfinished_artifacts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path), ttl_s=60, max_bytes=100_000)
    old = store.put(picture())
    stranger, cut, stray = (
        tmp_path / "notes.txt",
        tmp_path / f"{'0' * 32}.data",
        tmp_path / f"{'1' * 32}.json.0a1b.partial",
    )
    for path in (stranger, cut, stray):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 3600,) * 2)
    fresh_cut = tmp_path / f"{'2' * 32}.data"  # another replica may be about to write its metadata
    fresh_cut.write_bytes(b"x")
    os.utime(fresh_cut, (time.time() + 50,) * 2)
    broken = tmp_path / f"{'3' * 32}.json"
    broken.write_text(json.dumps({"id": 3}))
    now = time.time()
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 59)
    new = store.put(picture(value=1))
    assert store.info(old.id) == old
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 61)
    with pytest.raises(ArtifactError, match="expired"):
        store.open(old.id)
    assert store.delete_expired() == 2  # the old one and the broken one
    left = {path.name for path in tmp_path.iterdir()} - {"secret.key"}
    assert left == {stranger.name, fresh_cut.name, f"{new.id}.data", f"{new.id}.json"}


def test_a_full_store_makes_room_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.artifacts._USAGE_AGE_S", -1)
    store = ArtifactStore(str(tmp_path), ttl_s=60, max_bytes=100_000, max_total_bytes=4000)
    other = ArtifactStore(str(tmp_path), ttl_s=60, max_bytes=100_000)
    while sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000 - len(picture()):
        other.put(picture(value=len(list(tmp_path.iterdir()))))
    with pytest.raises(ArtifactError) as caught:
        store.put(picture())
    assert (caught.value.status, caught.value.code) == (507, "artifact_store_full")
    now = time.time()
    monkeypatch.setattr("serve.artifacts.time.time", lambda: now + 61)
    store.put(picture())
    assert len(list(tmp_path.iterdir())) == 3, "the artifact's two files and the store's secret"


def test_names_in_a_dialogue_lead_back_to_ids() -> None:
    text = f"image/{'a' * 32}.png, audio/{'b' * 32}.wav. image/{'c' * 31}.png image/{'d' * 32}.html"
    assert find_dialogue_names(text) == {f"image/{'a' * 32}.png": "a" * 32, f"audio/{'b' * 32}.wav": "b" * 32}


def test_nobody_else_on_the_machine_reads_a_local_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    store = ArtifactStore(str(tmp_path / "store"), ttl_s=60, max_bytes=100_000)
    store.put(picture())
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "store").iterdir()} == {0o600}
