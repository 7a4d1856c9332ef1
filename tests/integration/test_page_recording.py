"""Camera and microphone of the page, in a real browser with its fake devices; no model and no Ray are behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from page_stand_in import build_stand_in, open_browser, serving
from playwright.sync_api import Page, expect

from data_pipeline.media.load import load_media
from serve.artifacts import Artifact, ArtifactStore
from serve.chat.content import Conversation
from serve.chat.schemas import ChatRequest
from serve.tools.media import ToolLimits, decode_media
from serve.tools.spec import Clip, Sound

pytestmark = [pytest.mark.slow, pytest.mark.browser]

FAKE_DEVICES = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")), 3600, 2**25)


@pytest.fixture(scope="module")
def asked() -> list[Artifact]:
    """The medium of every question."""
    return []


@pytest.fixture(scope="module")
def browser_page(store: ArtifactStore, asked: list[Artifact]) -> Iterator[tuple[Page, str]]:
    def answer(_: ChatRequest, conversation: Conversation) -> dict[str, Any]:
        [medium] = conversation.current_media
        assert medium.artifact is not None
        asked.append(medium.artifact)
        return {"choices": [{"message": {"content": f"You sent {medium.artifact.modality}."}}]}

    with serving(build_stand_in(store, answer)) as url, open_browser(*FAKE_DEVICES) as browser:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        yield page, url


@pytest.fixture
def page(browser_page: tuple[Page, str]) -> Iterator[Page]:
    page, url = browser_page
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    expect(page.locator("#send")).to_be_visible()
    yield page
    assert faults == []


def record(page: Page, name: str, seconds: float) -> None:
    page.get_by_role("button", name=name).click()
    stop = page.get_by_role("button", name="Stop recording")
    expect(stop).to_be_enabled()
    expect(page.locator("#status")).to_have_text("Recording …")
    page.wait_for_timeout(1000 * seconds)
    stop.click()
    expect(page.locator("#attachment")).to_be_visible()
    expect(page.get_by_role("button", name=name)).to_be_enabled()


def ask(page: Page, words: str, answer: str) -> None:
    page.get_by_label("What do you want?").fill(words)
    page.keyboard.press("Enter")
    expect(page.locator("li.service .words").last).to_have_text(answer)


def send_recording(page: Page, store: ArtifactStore, asked: list[Artifact], modality: str, words: str) -> bytes:
    """What the browser recorded, as it lies in the store when the model has been asked about it."""
    record(page, "Record sound" if modality == "audio" else "Record video", 1.5)
    expect(page.locator(f"#preview {modality}")).to_be_visible()
    ask(page, words, f"You sent {modality}.")
    artifact, data = store.open(asked[-1].id)
    assert (artifact.modality, artifact.media_type, artifact.name) == (modality, f"{modality}/webm", "recording.webm")
    return data


def test_a_recorded_sound_reaches_the_model_and_the_tools(
    page: Page, store: ArtifactStore, asked: list[Artifact]
) -> None:
    data = send_recording(page, store, asked, "audio", "Clean this sound")
    assert np.isfinite(load_media("audio", data)).all()
    sound = decode_media("audio", data, ToolLimits())
    assert isinstance(sound, Sound)
    assert 1.0 < sound.duration_s < 4.0
    assert np.abs(sound.samples).max() > 0.01, "the fake microphone beeps every second"


def test_a_recorded_video_reaches_the_model_and_the_tools(
    page: Page, store: ArtifactStore, asked: list[Artifact]
) -> None:
    data = send_recording(page, store, asked, "video", "Find the scenes")
    assert load_media("video", data).shape == (15, 3, 2, 224, 224)
    clip = decode_media("video", data, ToolLimits())
    assert isinstance(clip, Clip)
    assert 0.1 < len(clip.frames) / clip.fps < 4.0, "a busy machine's fake camera starts late"
    assert 5 < clip.fps < 70, "a browser's file does not tell it"
    assert np.ptp(clip.frames, axis=0).max() > 50, "the fake camera's picture moves"
    assert isinstance(decode_media("audio", data, ToolLimits()), Sound)


def test_a_question_waits_for_the_recording_and_a_recording_may_be_removed(page: Page, asked: list[Artifact]) -> None:
    n_asked = len(asked)
    page.get_by_role("button", name="Record sound").click()
    expect(page.get_by_role("button", name="Record video")).to_be_disabled()
    expect(page.locator("#status")).to_have_text("Recording …")
    page.get_by_label("What do you want?").fill("Clean this sound")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Stop the recording first")
    assert len(asked) == n_asked
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_role("button", name="Remove the file").click()
    expect(page.locator("#attachment")).to_be_hidden()


def test_a_question_waits_while_the_browser_still_opens_the_microphone(page: Page, asked: list[Artifact]) -> None:
    n_asked = len(asked)
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => new Promise((_, refuse) => { window.refuse = refuse; }); }"
    )
    page.get_by_role("button", name="Record sound").click()
    page.get_by_label("What do you want?").fill("Clean this sound")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Stop the recording first")
    assert len(asked) == n_asked
    page.evaluate("() => window.refuse(new DOMException('denied'))")
    expect(page.get_by_role("button", name="Record sound")).to_be_enabled()
    page.get_by_label("What do you want?").fill("")


def test_without_leave_the_page_says_what_to_do(page: Page) -> None:
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('denied'); }; }")
    page.get_by_role("button", name="Record video").click()
    expect(page.locator("#status")).to_have_text("The browser gave no access to it; allow it, or attach a file.")
    expect(page.get_by_role("button", name="Record sound")).to_be_enabled()
