"""`embed`: every distinct medium once, undecodable ones set aside, interrupted passes continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.corpus.build import Corpus, PrepareOptions, build_corpus
from data_pipeline.errors import InputError
from data_pipeline.media.feature_lake import FeatureLake
from data_pipeline.media.load import load_media
from model.imagebind.encoders import load_encoder, vector_space
from model.imagebind.network import ImageBind, ImageBindConfig
from ray_jobs.embed import writing
from ray_jobs.embed.job import _default_recipe, embed_corpus
from ray_jobs.embed.stages import decode_batch
from ray_jobs.embed.writing import LakeWriter

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

REPO = Path(__file__).resolve().parents[3]


def _save_encoder(folder: Path, seed: int = 0) -> Path:
    """A tiny ImageBind with vision and audio towers and random weights."""
    config = ImageBindConfig(
        out_embed_dim=16,
        vision_embed_dim=32,
        vision_num_blocks=1,
        vision_num_heads=2,
        audio_embed_dim=32,
        audio_num_blocks=1,
        audio_num_heads=2,
        modalities=("vision", "audio"),
    )
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    state = {name: value.contiguous() for name, value in ImageBind(config).state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return folder


def _write_image(path: Path, seed: int, side_px: int = 64) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _write_sound(path: Path, seconds: float) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        t = np.arange(int(16000 * seconds)) / 16000
        file.writeframes((np.sin(2 * np.pi * 440 * t) * 20000).astype("<i2").tobytes())


def _write_video(path: Path, n_frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(n_frames):
            pixels = np.full((64, 64, 3), i * 5, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _build_corpus(folder: Path, media: list[str]) -> Corpus:
    rows: list[dict[str, Any]] = [{"instruction": "text only", "tools": ["t"]}]
    rows += [{"instruction": f"what is {k}?", "media": name, "tools": ["t"]} for name in media for k in range(2)]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "catalog.txt").write_text("t\n")
    options = PrepareOptions.model_validate({"source": "jsonl", "path": folder / "records.jsonl"})
    return Corpus.open(build_corpus(options, folder / "corpus").path)


GOOD = ["a.png", "b.png", "c.png", "d.wav", "e.mp4"]
BAD = ["truncated.png", "silent.wav", "sound.mp4", "empty.png", "page.mp4"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Corpus:
    """Two questions for each of five sound media, a copy, five that cannot be decoded and an absent one."""
    folder = tmp_path_factory.mktemp("mixed")
    for seed, name in enumerate(GOOD[:3]):
        _write_image(folder / name, seed)
    shutil.copy(folder / "a.png", folder / "copy.png")
    _write_sound(folder / "d.wav", 2.5)
    _write_video(folder / "e.mp4", 30)
    (folder / "truncated.png").write_bytes((folder / "b.png").read_bytes()[:3000])
    _write_sound(folder / "silent.wav", 0)
    _write_sound(folder / "sound.wav", 1.0)
    (folder / "sound.wav").rename(folder / "sound.mp4")  # no frames in it
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>404</html>")
    return _build_corpus(folder, [*GOOD, "copy.png", *BAD, "absent.png"])


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def first_pass(mixed: Corpus, encoder_dir: Path) -> dict[str, Any]:
    with redirect_stdout(StringIO()) as shown:
        result = embed_corpus(mixed, mixed.path.parent / "lake", str(encoder_dir), dtype="float32", batch_size=2)
    return result | {"lines": shown.getvalue().splitlines()}


def _shas(corpus: Corpus) -> dict[str, str]:
    records = (record for split in ("train", "val", "test") for record in corpus.records(split))
    return {record.media_uri: record.media_sha256 for record in records if record.media_sha256}


def test_every_medium_is_encoded_once_and_the_bad_are_set_aside(mixed: Corpus, first_pass: dict[str, Any]) -> None:
    assert first_pass["media"] == len(GOOD) + len(BAD)
    assert first_pass["encoded"] == len(GOOD)
    assert first_pass["quarantined"] == len(BAD)
    assert first_pass["records_without_file"] == 2
    assert first_pass["changed"] == first_pass["known"] == 0
    lake = FeatureLake(mixed.path.parent / "lake", first_pass["encoder_id"])
    shas = _shas(mixed)
    assert lake.known() == {shas[name] for name in GOOD}
    reasons = {name: lake.quarantined()[shas[name]] for name in BAD}
    assert all(name in reason for name, reason in reasons.items()), reasons
    assert "truncated" in reasons["truncated.png"]
    assert "empty" in reasons["empty.png"]
    assert len(set(reasons.values())) == len(BAD)
    assert "10 media, 10 to encode, 0 known" in first_pass["lines"][0]
    assert first_pass["lines"][-1].startswith("embed     10/10 media, 100 %, took 0:")
    assert first_pass["lines"][-1].endswith("; quarantined=5")
    json.dumps(first_pass, allow_nan=False)


def test_vectors_equal_those_of_the_encoder_alone(mixed: Corpus, encoder_dir: Path, first_pass: dict[str, Any]) -> None:
    lake = FeatureLake(mixed.path.parent / "lake", first_pass["encoder_id"])
    shas = _shas(mixed)
    index, matrix = lake.load([shas[name] for name in GOOD])
    encoder = load_encoder(str(encoder_dir))
    for name, modality in zip(GOOD, ["image", "image", "image", "audio", "video"], strict=True):
        array = torch.from_numpy(load_media(modality, mixed.path.parent / name))[None]
        expected = encoder.encode(modality, array)[0].numpy()
        np.testing.assert_allclose(matrix[index[shas[name]]], expected, atol=2e-6)
    assert lake.modalities()[shas["e.mp4"]] == "video"


def test_second_pass_encodes_nothing_and_says_so(
    mixed: Corpus, encoder_dir: Path, first_pass: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lake_path = mixed.path.parent / "lake"
    files = sorted(p.name for p in lake_path.rglob("*"))
    result = embed_corpus(mixed, lake_path, str(encoder_dir), dtype="float32")
    assert (result["encoded"], result["quarantined"]) == (0, 0)
    assert (result["known"], result["quarantined_before"]) == (len(GOOD), len(BAD))
    (line,) = capsys.readouterr().out.splitlines()
    assert "nothing to encode" in line
    assert sorted(p.name for p in lake_path.rglob("*")) == files


def test_changed_file_is_not_taken_for_the_old_one(mixed: Corpus, encoder_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(mixed.path.parent, folder, ignore=shutil.ignore_patterns("lake"))
    _write_image(folder / "b.png", seed=99)
    (folder / "c.png").unlink()
    corpus = Corpus.open(folder / "corpus", media_root=folder)
    result = embed_corpus(corpus, tmp_path / "lake", str(encoder_dir))
    assert result["changed"] == 2
    assert result["encoded"] == len(GOOD) - 2
    lake = FeatureLake(tmp_path / "lake", result["encoder_id"])
    assert lake.known().isdisjoint({_shas(mixed)["b.png"], _shas(mixed)["c.png"]})
    assert _shas(mixed)["b.png"] not in lake.quarantined(), "the right file may come back"


def test_bad_encoder_and_lake_are_input_errors(
    mixed: Corpus, encoder_dir: Path, first_pass: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="unknown encoder 'nothing'"):
        embed_corpus(mixed, tmp_path / "lake", "nothing")
    assert not (tmp_path / "lake").exists()
    lake_path = mixed.path.parent / "lake"
    with pytest.raises(InputError, match="holds float32 vectors"):
        embed_corpus(mixed, lake_path, str(encoder_dir), dtype="float16")
    damaged = shutil.copytree(lake_path, tmp_path / "damaged")
    file = next(damaged.rglob("features/*.parquet"))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=file.name):
        embed_corpus(mixed, damaged, str(encoder_dir), dtype="float32")


INTERRUPTED_PASS = """
import sys
import ray
from data_pipeline.corpus.build import Corpus
from ray_jobs.embed import writing
from ray_jobs.embed.job import embed_corpus
writing.WRITE_EVERY_S = 0.0
ray.init(address=sys.argv[1], log_to_driver=False)
embed_corpus(Corpus.open(sys.argv[2]), sys.argv[3], sys.argv[4], dtype="float32", batch_size=1)
"""


@pytest.mark.slow
def test_a_killed_pass_continues(encoder_dir: Path, tmp_path: Path) -> None:
    import ray

    n_media = 150
    for i in range(n_media):
        _write_image(tmp_path / f"{i}.png", seed=i, side_px=224)
    corpus = _build_corpus(tmp_path, [f"{i}.png" for i in range(n_media)])
    lake_path = tmp_path / "lake"
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_PASS, address, str(corpus.path), str(lake_path), str(encoder_dir)],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 120
        while not len(list(lake_path.glob("*/features/*.parquet"))) >= 3:
            assert process.poll() is None, "the pass ended before it could be killed"
            assert time.monotonic() < deadline_s, "the pass never wrote a vector"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = embed_corpus(corpus, lake_path, str(encoder_dir), dtype="float32", batch_size=1)
    assert len(list(lake_path.glob("*/features/*.parquet"))) == 1, "its own is one file, to which the others are joined"
    assert result["known"] >= 3, "what the killed pass had written is kept"
    assert result["encoded"] > 0, "it was killed before its end"
    lake = FeatureLake(lake_path, result["encoder_id"])
    shas = _shas(corpus)
    assert lake.known() == set(shas.values())
    assert len(shas) == n_media
    names = [f"{i}.png" for i in range(0, n_media, 50)]
    index, matrix = lake.load([shas[name] for name in names])
    batch = np.stack([load_media("image", tmp_path / name) for name in names])  # (6, 3, 224, 224)
    expected = load_encoder(str(encoder_dir)).encode("image", torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(matrix, expected, atol=2e-6)
    assert list(index) == [shas[name] for name in names]


def test_an_encoder_in_bfloat16_has_vectors_of_its_own(
    mixed: Corpus, encoder_dir: Path, first_pass: dict[str, Any]
) -> None:
    lake_path = mixed.path.parent / "lake"
    result = embed_corpus(mixed, lake_path, str(encoder_dir), dtype="float32", precision="bfloat16")
    assert result["encoder_id"] == first_pass["encoder_id"] + "-bf16"
    assert result["encoded"] == len(GOOD), "float32's are not taken for them"
    assert vector_space(result["encoder_id"]) == vector_space(first_pass["encoder_id"]), "a model may read either"
    shas = [_shas(mixed)[name] for name in GOOD]
    found, expected = (FeatureLake(lake_path, each["encoder_id"]).load(shas)[1] for each in (result, first_pass))
    assert (found != expected).any()
    assert ((found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)).min() > 0.999


def test_vectors_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = FeatureLake.create(tmp_path, "encoder", 4, "float32")
    monkeypatch.setattr(writing, "SHARD_ROWS", 10)
    vectors = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)

    def rows() -> Iterator[dict[str, Any]]:
        for number, vector in enumerate(vectors):
            faults = json.dumps({"bad": "why"} if number == 3 else {})
            modality = "image" if number < 12 else "video"
            yield {"modality": modality, "sha256": [str(number)], "vectors": vector.tobytes(), "faults": faults}

    with pytest.raises(KeyboardInterrupt), LakeWriter(lake) as writer:  # noqa: PT012 - what is at hand is written then, too
        for row in rows():
            writer.add(row)
        raise KeyboardInterrupt
    assert sorted(pq.read_metadata(file).num_rows for file in lake.path.glob("features/*")) == [2, 5, 8, 10]
    index, matrix = lake.load([str(number) for number in range(25)])
    assert (matrix[[index[str(number)] for number in range(25)]] == vectors).all()
    assert lake.modalities()["12"] == "video"
    assert lake.quarantined() == {"bad": "why"}


def test_decoding_stage_separates_good_bad_and_changed(tmp_path: Path) -> None:
    import hashlib

    import pyarrow as pa

    _write_image(tmp_path / "good.png", seed=0)
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    paths = [tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "absent.png"]
    shas = [hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else "0" for p in paths]
    batch = pa.table({"modality": ["image"], "sha256": [shas], "path": [[str(p) for p in paths]]})
    row = decode_batch(batch, recipe="mllm_tool").to_pylist()[0]
    assert row["sha256"] == shas[:1]
    assert list(json.loads(row["faults"])) == shas[1:2]
    assert row["changed"] == 1
    assert row["shape"] == [1, 3, 224, 224]
    tensor = np.frombuffer(row["tensor"], np.float32).reshape(row["shape"])
    np.testing.assert_array_equal(tensor[0], load_media("image", paths[0]))


def test_the_papers_media_alone_are_loaded_as_the_paper_does() -> None:
    assert _default_recipe(["toolmmbench"]) == "mllm_tool"
    assert [_default_recipe([name]) for name in ("jsonl", "toolmm-mini")] == ["robust", "robust"]
    assert _default_recipe([]) == "robust"
