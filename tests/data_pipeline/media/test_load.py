"""Media loading against the reference's arrays, and every kind of bad medium."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from rotated_film import render_rotated_film
from safetensors.torch import load_file

from data_pipeline.errors import InputError, MediaError
from data_pipeline.media import audio as media_audio
from data_pipeline.media import sound as media_sound
from data_pipeline.media import video as media_video
from data_pipeline.media.limits import PAPER_RECIPES, clip_starts_s
from data_pipeline.media.load import MediaLimits, load_audio, load_image, load_media, load_video
from model.imagebind.network import ImageBind, ImageBindConfig

IMAGES = (
    "bird_image.jpg",
    "bird_rgba_240x321.png",
    "dog_gray_150x199.png",
    "dog_image.jpg",
    "example-1.jpg",
    "example-2.jpg",
    "example-2_exif_orientation6.jpg",
)
SOUNDS = ("bird_audio.wav", "bird_dog_16k_mono.wav", "dog_audio.wav", "dog_audio_1p3s.wav")
VIDEOS = ("bird_zoom_audio.mp4", "dog_pan.mp4", "example1_portrait_ntsc.mp4")


@pytest.fixture(scope="module")
def media_dir(shared_dir: Path) -> Path:
    return shared_dir / "media"


@pytest.fixture(scope="module")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "oracle" / "preprocess"


def render_wav(samples: np.ndarray, rate_hz: int = 16_000) -> bytes:
    """16-bit mono WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def render_video(
    frames: int, codec: str = "libx264", container: str = "mp4", fps: int = 25, options: dict[str, str] | None = None
) -> bytes:
    """A video of 64 x 48 pixels whose grey level counts the frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as writer:
        stream: Any = writer.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for number in range(frames):
            grey = np.full((48, 64, 3), 20 + 2 * number, np.uint8)
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        writer.mux(stream.encode(None))
    return buffer.getvalue()


def render_image(size: tuple[int, int], mode: str = "RGB", image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, image_format)
    return buffer.getvalue()


# --- agreement with the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_images_equal_the_reference(name: str, media_dir: Path, golden_dir: Path) -> None:
    with np.load(golden_dir / "images.npz") as golden:
        wanted = golden[name]
    for source in (media_dir / name, str(media_dir / name), (media_dir / name).read_bytes()):
        found = load_image(source)
        assert found.dtype == np.float32
        assert found.shape == (3, 224, 224)
        assert np.abs(found - wanted).max() <= 1e-5


def test_resampler_equals_the_reference(media_dir: Path, golden_dir: Path) -> None:
    with np.load(golden_dir / "audio.npz") as golden:
        wanted = golden["dog_audio.wav|resampled_16k"]
    samples, rate_hz = media_sound.decode_audio(media_dir / "dog_audio.wav")
    assert rate_hz == 44_100
    assert np.abs(media_audio.resample(samples, rate_hz, 0, wanted.shape[1]) - wanted).max() <= 1e-5
    part = media_audio.resample(samples, rate_hz, 1234, 20_000)
    assert np.abs(part - wanted[:, 1234:20_000]).max() <= 1e-5


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_equal_the_reference(name: str, recipe: str, media_dir: Path, golden_dir: Path) -> None:
    with np.load(golden_dir / "audio.npz") as golden:
        wanted = golden[f"{name}|{recipe}"]
    found = load_audio(media_dir / name, recipe)
    assert found.dtype == np.float32
    assert found.shape == (3, 1, 128, 204)
    deviation = np.abs(found - wanted)
    assert deviation.max() <= 0.02
    assert deviation.mean() <= 5e-5
    assert (deviation > 1e-3).mean() <= 0.01


@pytest.mark.parametrize("name", VIDEOS)
def test_sampled_frames_equal_the_reference(name: str, media_dir: Path, golden_dir: Path) -> None:
    facts = json.loads((golden_dir / "video.json").read_text())[name]
    for recipe in PAPER_RECIPES:
        frames, clips = media_video.sample_frames(media_dir / name, recipe)
        assert [list(clip) for clip in clips] == facts[recipe]["sampled_frames"]
        assert set(frames) == {number for clip in clips for number in clip}
    frames, _ = media_video.sample_frames(media_dir / name)
    with np.load(golden_dir / f"video_{Path(name).stem}.npz") as golden:
        assert sorted(frames) == golden["frame_index"].tolist()
        for number, wanted in zip(golden["frames_of"].tolist(), golden["frames"], strict=True):
            assert np.abs(frames[number].astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_equal_the_reference(name: str, media_dir: Path, golden_dir: Path) -> None:
    found = load_video(media_dir / name)
    assert found.dtype == np.float32
    assert found.shape == (15, 3, 2, 224, 224)
    other = load_video((media_dir / name).read_bytes(), "imagebind")
    with np.load(golden_dir / f"video_{Path(name).stem}.npz") as golden:
        assert np.abs(found[..., ::8, ::8] - golden["mllm_tool_strided"]).max() <= 1e-5
        assert np.abs(other[..., ::8, ::8] - golden["imagebind_strided"]).max() <= 2e-3
        exact = found.astype(np.float64)
        assert np.abs(exact.mean((-2, -1)) - golden["mllm_tool_mean"]).max() <= 1e-5
        assert np.abs(exact.std((-2, -1)) - golden["mllm_tool_std"]).max() <= 2e-5
        if "mllm_tool_clip0" in golden:
            assert np.abs(found[:3] - golden["mllm_tool_clip0"]).max() <= 2e-3


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_embeddings_of_files_equal_the_reference(recipe: str, shared_dir: Path, media_dir: Path) -> None:
    net_dir = shared_dir / "oracle" / "imagebind_net"
    arguments = json.loads((net_dir / "config.json").read_text())["constructor_arguments"]
    net = ImageBind(ImageBindConfig(**arguments, audio_logit_scale=recipe == "imagebind"))
    net.load_reference_state_dict(load_file(net_dir / "tiny_state_dict.safetensors"))
    tolerance = {"image": 1e-5, "audio": 1e-4 if recipe == "mllm_tool" else 2e-3, "video": 1e-5}
    with np.load(shared_dir / "oracle" / "end_to_end" / "embeddings.npz") as golden, torch.no_grad():
        for modality, names in (("image", IMAGES), ("audio", SOUNDS), ("video", VIDEOS)):
            for name in names:
                medium = torch.from_numpy(load_media(modality, media_dir / name, recipe))
                found = net.encode(modality, medium[None])[0].numpy()
                assert np.abs(found - golden[f"{name}|{recipe}"]).max() <= tolerance[modality], name


# --- what the files may be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", {"g": "5"}),  # seeks over groups of pictures
        ("libx264", "mp4", {"g": "30", "bf": "3"}),
        ("mpeg4", "avi", {}),
        ("libvpx-vp9", "webm", {}),
        ("mpeg2video", "mpegts", {}),
        ("libx264", "h264", {}),  # no time stamps at all
    ],
)
def test_the_right_frames_come_out_of_every_container(codec: str, container: str, options: dict[str, str]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV was built without {codec}")
    data = render_video(100, codec, container, options=options)
    frames, clips = media_video.sample_frames(data)
    assert clips == [(0, 49), (10, 59), (20, 69), (30, 79), (40, 89)]
    assert sorted(frames) == [0, 10, 20, 30, 40, 49, 59, 69, 79, 89]
    with av.open(io.BytesIO(data), "r") as reader:
        every = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
    for number, frame in frames.items():
        assert np.array_equal(frame, every[number]), number
        assert not np.array_equal(frame, every[number - 10])  # the frames do tell the time


def test_short_videos_repeat_their_frames() -> None:
    for count in (1, 3):
        _, clips = media_video.sample_frames(render_video(count))
        assert clips == [(0, count - 1)] * 5
    assert load_video(render_video(8, "gif", "gif", fps=10)).shape == (15, 3, 2, 224, 224)


def test_views_of_a_tall_video_are_those_of_the_wide_one_turned() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    wide = media_video._cut_views(frame)
    tall = media_video._cut_views(np.ascontiguousarray(frame.transpose(1, 0, 2)))
    assert np.array_equal(wide.transpose(0, 2, 1, 3), tall)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_film_is_turned_as_its_display_matrix_says(degrees: int) -> None:
    film, wanted = render_rotated_film(degrees)
    frames, _ = media_video.sample_frames(film)
    for found in frames.values():
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).mean() < 2
    middle = load_video(film)[1, :, 0]  # [3,224,224], the middle view of the first clip's first frame
    is_white = {(row, column): middle[0, row, column] > 1 for row in (20, 204) for column in (20, 204)}
    corner = {0: (20, 20), 90: (204, 20), 180: (204, 204), 270: (20, 204)}[degrees]
    assert [place for place, white in is_white.items() if white] == [corner]


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "picture.wav").write_bytes(render_image((300, 200)))
    (tmp_path / "sound.jpg").write_bytes(render_wav(np.zeros(16_000)))
    assert load_image(tmp_path / "picture.wav").shape == (3, 224, 224)
    assert load_audio(tmp_path / "sound.jpg").shape == (3, 1, 128, 204)
    with pytest.raises(MediaError, match=r"sound\.jpg.*is not an image"):
        load_image(tmp_path / "sound.jpg")


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_099, 48_000])
def test_a_tone_keeps_its_pitch_at_every_rate(rate_hz: int) -> None:
    seconds = np.arange(3 * rate_hz) / rate_hz
    samples = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)[None]
    found = media_audio.resample(samples, rate_hz, 16_000, 32_000)[0]
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000, 32_000) / 16_000)
    assert np.abs(found - wanted).max() < 2e-3


def test_sound_track_of_a_video_can_be_heard(media_dir: Path) -> None:
    from_video = load_audio(media_dir / "bird_zoom_audio.mp4")
    assert np.abs(from_video - load_audio(media_dir / "bird_audio.wav")).mean() < 0.2


def test_clip_starts() -> None:
    assert [float(start) for start in clip_starts_s(8.0, 3, "mllm_tool")] == [0, 2, 4]
    assert [float(start) for start in clip_starts_s(8.0, 3, "imagebind")] == [0, 3, 6]
    assert [float(start) for start in clip_starts_s(1.0, 5, "mllm_tool")] == [0] * 5


def test_loaders_run_side_by_side(media_dir: Path) -> None:
    jobs: list[tuple[str, bytes]] = [
        ("image", (media_dir / "dog_image.jpg").read_bytes()),
        ("audio", (media_dir / "dog_audio.wav").read_bytes()),
        ("video", render_video(60)),
    ] * 4
    alone = [load_media(modality, data) for modality, data in jobs[:3]]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: load_media(*job), jobs))
    for number, result in enumerate(together):
        assert np.array_equal(result, alone[number % 3])


# --- bad media ------------------------------------------------------------------------------------------------------

ZERO_FRAMES = b"GIF89a" + (64).to_bytes(2, "little") + (48).to_bytes(2, "little") + b"\x00\x00\x00;"
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
NOISE = bytes(range(256)) * 8


@pytest.mark.parametrize(
    ("loader", "render", "message"),
    [
        (load_image, lambda: b"", "is empty"),
        (load_image, lambda: NOISE, "not an image"),
        (load_image, lambda: render_wav(np.zeros(100)), "not an image"),
        (load_image, lambda: render_image((300, 300), image_format="JPEG")[:-500], "truncated or damaged"),
        (load_image, lambda: render_image((300, 300))[:200], "truncated or damaged"),
        (
            load_image,
            lambda: render_image((9000, 9000), "1"),
            r"9,000 x 9,000 has 81,000,000 pixels; at most 50,000,000",
        ),
        (load_image, lambda: render_image((20_000, 10_000), "1"), "far more pixels than the 50,000,000 allowed"),
        (load_image, lambda: render_image((20_000, 2)), r"working size of 2,240,000 x 224"),
        (load_audio, lambda: b"", "is empty"),
        (load_audio, lambda: NOISE, "cannot be read as audio"),
        (load_audio, lambda: render_image((30, 30)), "cannot be read as audio"),
        (load_audio, lambda: render_wav(np.zeros(0)), "zero samples"),
        (load_audio, lambda: render_wav(np.zeros(399)), r"24\.9 ms of sound; at least 25 ms"),
        (load_audio, lambda: render_wav(np.zeros(1000), 100), "sampling rate of 100 Hz"),
        (load_audio, lambda: render_wav(np.zeros(601 * 1000), 1000), r"lasts 601\.0 s; at most 600\.0 s"),
        (load_audio, lambda: render_video(5), "no sound track"),
        (load_audio, lambda: PLAYLIST, "cannot be read as audio"),
        (load_video, lambda: b"", "is empty"),
        (load_video, lambda: NOISE, "cannot be read as video"),
        (load_video, lambda: ZERO_FRAMES, "no video frames|cannot be read as video"),
        (load_video, lambda: render_image((30, 30), image_format="JPEG"), "cannot be read as video"),
        (load_video, lambda: render_wav(np.zeros(1000)), "no video track"),
        (load_video, lambda: render_video(50)[:600], "cannot be read as video"),
        (load_video, lambda: PLAYLIST, "cannot be read as video"),
        (load_video, lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n", "cannot be read as video"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_media_are_refused_in_one_sentence(
    loader: Callable[[bytes], np.ndarray], render: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        loader(render())
    assert "\n" not in str(caught.value)


def test_samples_that_are_no_numbers_are_refused() -> None:
    samples = np.zeros(16_000, "<f4")
    samples[8_000] = np.nan
    header = b"RIFF" + (36 + samples.nbytes).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    fields = np.array([3, 1], "<u2").tobytes() + np.array([16_000, 64_000], "<u4").tobytes()
    data = header + fields + np.array([4, 32], "<u2").tobytes() + b"data" + samples.nbytes.to_bytes(4, "little")
    with pytest.raises(MediaError, match="not finite"):
        load_audio(data + samples.tobytes())


@pytest.mark.parametrize(
    ("loader", "name", "limits", "message"),
    [
        (load_image, "dog_image.jpg", MediaLimits(max_bytes=1000), "at most 1,000 are allowed"),
        (load_image, "dog_image.jpg", MediaLimits(max_pixels=500_000), "640 x 848 has 542,720 pixels"),
        (load_audio, "bird_audio.wav", MediaLimits(max_duration_s=4.9), r"lasts 5\.0 s"),
        (load_audio, "bird_audio.wav", MediaLimits(max_bytes=1000), "at most 1,000 are allowed"),
        (
            load_audio,
            "bird_audio.wav",
            MediaLimits(max_samples=400_000),
            "more than 400,000 samples over its 2 channels",
        ),
        (load_video, "dog_pan.mp4", MediaLimits(max_duration_s=3.9), r"lasts 4\.0 s"),
        (load_video, "dog_pan.mp4", MediaLimits(max_pixels=70_000), "320 x 240 has 76,800 pixels"),
        (load_video, "dog_pan.mp4", MediaLimits(max_bytes=1000), "at most 1,000 are allowed"),
    ],
)
def test_limits(
    loader: Callable[..., np.ndarray], name: str, limits: MediaLimits, message: str, media_dir: Path
) -> None:
    assert loader(media_dir / name).dtype == np.float32
    with pytest.raises(MediaError, match=message) as caught:
        loader(media_dir / name, limits=limits)
    assert name in str(caught.value)


def test_a_raw_stream_without_time_stamps_is_bounded_too() -> None:
    with pytest.raises(MediaError, match=r"at most 1\.0 s"):
        load_video(render_video(60, "libx264", "h264"), limits=MediaLimits(max_duration_s=1.0))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for modality in ("image", "audio", "video"):
        with pytest.raises(MediaError, match=r"absent\.bin' does not exist"):
            load_media(modality, tmp_path / "absent.bin")
        with pytest.raises(MediaError, match="no ordinary file"):
            load_media(modality, tmp_path)


def test_unknown_recipes_and_modalities_are_refused() -> None:
    for modality in ("image", "audio", "video"):
        with pytest.raises(InputError, match="unknown media recipe 'other'"):
            load_media(modality, b"x", "other")
    for modality in ("text", "smell"):
        with pytest.raises(InputError, match=f"no media of modality '{modality}'"):
            load_media(modality, b"x")


def test_damaged_media_never_raise_anything_else(media_dir: Path) -> None:
    generator = np.random.default_rng(0)
    outcomes = []
    for modality, name in (("image", "dog_gray_150x199.png"), ("audio", "dog_audio_1p3s.wav"), ("video", "")):
        whole = (media_dir / name).read_bytes() if name else render_video(20)
        for _ in range(12):
            data = bytearray(whole)
            for place in generator.integers(0, len(data), 20):
                data[place] ^= int(generator.integers(1, 256))
            try:
                load_media(modality, bytes(data))
            except MediaError:
                outcomes.append("refused")
            else:
                outcomes.append("loaded")
    assert {"refused", "loaded"} == set(outcomes)
