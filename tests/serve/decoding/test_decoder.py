"""Decoders that are shut in: the same arrays as without them, and whatever a medium does to one harms nobody else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import hostile_decoder
import numpy as np
import pytest
from hostile_media import list_uploads
from small_service import picture, sound, video

from data_pipeline.errors import MediaError
from data_pipeline.media.limits import RECIPES, MediaLimits
from data_pipeline.media.load import load_media
from data_pipeline.records.schema import Modality
from serve.decoding import decoder as decoding
from serve.decoding.decoder import DecoderUnavailableError, MediaDecoder, shared_decoder
from serve.tools.sandbox.confine import MAX_PROCESSES, Mechanisms
from serve.tools.wire import MAX_FAULT_CHARS

LIMITS = MediaLimits(max_pixels=10**6, max_duration_s=10.0, max_bytes=2**20)
SECRET = "toolmm-secret-of-the-service"


def load(decoder: MediaDecoder, data: bytes) -> np.ndarray:
    return decoder.load(Modality.IMAGE, data, "robust", LIMITS)


def refusal(decoder: MediaDecoder, data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        load(decoder, data)
    return str(caught.value)


@pytest.fixture(scope="module")
def hostile() -> Iterator[MediaDecoder]:
    """One decoder that obeys its media."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLMM_TEST_KEY", SECRET)
        patch.setattr(decoding, "_MODULE", "hostile_decoder")
        decoder = MediaDecoder(1, timeout_s=4.0, memory_mb=256)
        load(decoder, b"good")
        yield decoder
        decoder.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_arrays_are_those_of_the_loaders_bit_for_bit(recipe: str) -> None:
    for modality, data in ((Modality.IMAGE, picture()), (Modality.AUDIO, sound()), (Modality.VIDEO, video())):
        found = shared_decoder().load(modality, data, recipe, LIMITS)
        expected = load_media(modality, data, recipe, limits=LIMITS)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


def test_hostile_files_end_as_they_do_without_it() -> None:
    """The same array, or the same sentence, for each of them; all by one process."""

    def tell(work: Callable[..., np.ndarray], *args: object) -> object:
        try:
            return work(*args).tobytes()
        except MediaError as error:
            return " ".join(str(error).split())

    waiting = list(shared_decoder()._idle)
    assert waiting
    for upload in list_uploads():
        modality = Modality(upload.modality or upload.kind)
        found = tell(shared_decoder().load, modality, upload.data, "robust", LIMITS)
        expected = tell(partial(load_media, limits=LIMITS), modality, upload.data, "robust")
        assert found == expected, (upload.name, modality)
    assert shared_decoder()._idle == waiting, "none of them ended it"


def test_what_a_container_holds() -> None:
    assert shared_decoder().list_modalities(video(), "mov") == [Modality.VIDEO]
    assert shared_decoder().list_modalities(sound(), "wav") == [Modality.AUDIO]
    with pytest.raises(MediaError, match="its container is truncated or damaged; send the whole file"):
        shared_decoder().list_modalities(sound(), "mov")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"crash", "(5 bytes) cannot be decoded: its decoder failed, as on a damaged file"),
        (b"hang", "(4 bytes) took longer than 4 s to decode and was given up"),
        (b"hog", "(3 bytes) needs more than 256 MB of memory to decode"),
        (b"nest", "needs more than 256 MB of memory"),
        (b"bug", "its decoder failed"),
        (b"shape", "its decoder failed"),
        (b"dtype", "its decoder failed"),
        (b"number", "its decoder failed"),
    ],
)
def test_a_decoder_that_fails_costs_one_sentence_and_the_next_medium_nothing(
    hostile: MediaDecoder, data: bytes, words: str
) -> None:
    assert words in refusal(hostile, data)
    assert load(hostile, b"good").shape == (3, 224, 224)


def test_the_next_medium_does_not_pay_for_what_the_last_one_left_behind(hostile: MediaDecoder) -> None:
    before = refusal(hostile, b"pid")
    assert refusal(hostile, b"pid") == before, "one process takes one medium after another"
    load(hostile, b"poison")  # whatever comes next crashes it
    assert load(hostile, b"good").shape == (3, 224, 224)
    assert refusal(hostile, b"pid") != before


def test_what_a_decoder_says_is_one_line_and_short(hostile: MediaDecoder) -> None:
    said = refusal(hostile, b"talk")
    assert said.startswith("a b")
    assert len(said) == MAX_FAULT_CHARS


def test_the_death_of_the_process_that_forks_is_overcome(hostile: MediaDecoder) -> None:
    assert hostile._worker._process is not None
    hostile._worker._process.kill()
    assert load(hostile, b"good").shape == (3, 224, 224)


def test_a_decoder_reaches_nothing(hostile: MediaDecoder, mechanisms: Mechanisms, tmp_path: Path) -> None:
    if not (mechanisms.landlock_abi and mechanisms.has_filter):
        pytest.skip(f"this kernel offers {mechanisms.describe()}")
    secret = tmp_path / "secret.key"
    secret.write_text(SECRET)
    assert json.loads(refusal(hostile, f"attack {os.getpid()} {secret}".encode())) == []
    assert list(tmp_path.iterdir()) == [secret]


@pytest.mark.usefixtures("less_of_the_kernel")
def test_with_less_of_the_kernel_it_still_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose process is told that it has less."""
    monkeypatch.setenv("TOOLMM_TEST_KEY", SECRET)
    monkeypatch.setattr(decoding, "_MODULE", "hostile_decoder")
    secret = tmp_path / "secret.key"
    secret.write_text(SECRET)
    decoder = MediaDecoder(1, timeout_s=20.0, memory_mb=256)
    try:
        assert json.loads(refusal(decoder, f"attack {os.getpid()} {secret}".encode())) == []
        assert "its decoder failed" in refusal(decoder, b"crash")
        assert load(decoder, b"good").shape == (3, 224, 224)
    finally:
        decoder.close()


def test_the_attacks_are_such_where_nothing_shuts_them_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above proves nothing. The keys are in this environment alone, and `PATH` is for programs."""
    monkeypatch.setenv("TOOLMM_TEST_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.key"
    secret.write_text(SECRET)
    attacks = hostile_decoder.attacks_on(os.getpid(), str(secret))
    attacks.pop("environ as started")
    attacks.pop("write below /dev")
    assert [name for name, work in attacks.items() if not hostile_decoder.succeeds(work)] == []


def test_a_decoder_is_bounded(hostile: MediaDecoder, mechanisms: Mechanisms) -> None:
    limits = json.loads(refusal(hostile, b"limits"))
    assert limits["CPU"] == [decoding.CPU_S] * 2
    assert limits["FSIZE"] == limits["CORE"] == [0, 0]
    if mechanisms.user != "shared":
        assert limits["NPROC"] == [MAX_PROCESSES] * 2


def test_media_wait_for_a_free_decoder_but_not_for_ever(hostile: MediaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "_timeout_s", 0.05)
    with hostile._turns, pytest.raises(DecoderUnavailableError, match="Too many media"):
        load(hostile, b"good")


def test_nothing_is_decoded_where_no_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_MODULE", "no_such_module")
    decoder = MediaDecoder(1, timeout_s=3.0)
    with pytest.raises(DecoderUnavailableError, match="cannot be decoded right now"):
        load(decoder, b"good")
    decoder.close()


def test_several_decode_side_by_side() -> None:
    """More media at a time than decoders: each gets its own array."""
    media = [picture(size=(8 + i, 9)) for i in range(6)]
    expected = [load_media("image", data, "robust") for data in media]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda data: load(shared_decoder(), data), media * 3))
    for array, right in zip(found, expected * 3, strict=True):
        np.testing.assert_array_equal(array, right)
    assert len(shared_decoder()._idle) <= decoding.SHARED_DECODERS
