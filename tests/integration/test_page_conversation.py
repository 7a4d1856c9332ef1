"""What people do on the page, in a real browser: examples, dropped files, settings, streams, a reload."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse
from page_stand_in import build_stand_in, open_browser, serving
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import Browser, Page, expect

from serve.agent.events import describe_artifact
from serve.artifacts import ArtifactStore
from serve.chat.content import Conversation
from serve.chat.schemas import ChatRequest
from serve.tools.all_tools import load_tools

pytestmark = [pytest.mark.slow, pytest.mark.browser]

EDGES, TEMPO, UPSCALE = "local/detect-edges", "local/estimate-tempo", "local/upscale-image"
RANKING = {
    EDGES: 0.62,
    UPSCALE: 0.21,
    "unknown": 0.12,
    TEMPO: 0.03,
    "openai/whisper-large-v3-of-a-very-long-name-that-does-not-break": 0.02,
}


def draw_house() -> bytes:
    image = Image.new("RGB", (360, 240), "#9cc4ec")
    pen = ImageDraw.Draw(image)
    pen.rectangle((110, 110, 250, 210), fill="#c8553d")
    pen.polygon(((95, 112), (180, 45), (265, 112)), fill="#588157")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")), 3600, 2**25)


@pytest.fixture(scope="module")
def calls() -> list[dict[str, Any]]:
    """Bodies of the tools' calls."""
    return []


def _list_tools() -> dict[str, Any]:
    known = {tool_id: spec for tool_id, spec in load_tools().items() if tool_id in RANKING}
    assert len(known) == 3
    return {
        "tools": [
            {
                "tool_id": tool_id,
                "name": "",
                "description": spec.description,
                "parameters": spec.json_schema(),
                "ready": True,
            }
            for tool_id, spec in known.items()
        ],
        "others": [],
    }


async def _run_agent(artifact: dict[str, Any], made: dict[str, Any]) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], **extra: Any) -> str:
        return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}], **extra})}\n\n"

    step = {
        "turn": "Thought: Do I need to use a tool? Yes\nAction: detect edges\nAction Input: image/a.png",
        "tool": "detect edges",
        "tool_id": EDGES,
        "arguments": {"image": artifact["id"]},
        "observation": "",
        "text": "12 % lie on an edge.",
        "artifact": made,
        "error": None,
        "seconds": 0.2,
        "model_seconds": 1.4,
    }
    yield chunk({"role": "assistant", "content": ""})
    yield chunk({}, agent={"step": step})
    await asyncio.sleep(0.5)
    yield chunk({"content": "Here are "})
    yield chunk({"content": "the edges."})
    yield "data: [DONE]\n\n"


@pytest.fixture(scope="module")
def url(store: ArtifactStore, calls: list[dict[str, Any]]) -> Iterator[str]:
    def find_edges(artifact_id: str) -> dict[str, Any]:
        _, data = store.open(artifact_id)
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("L").filter(ImageFilter.FIND_EDGES).save(buffer, "PNG")
        return describe_artifact(store.put(buffer.getvalue(), "image/png", "edges.png"))

    def answer(request: ChatRequest, conversation: Conversation) -> Any:
        [artifact] = [describe_artifact(medium.artifact) for medium in conversation.current_media if medium.artifact]
        if "wait" in conversation.words:
            return StreamingResponse(_never(), media_type="text/event-stream")
        if request.is_agent:
            return StreamingResponse(_run_agent(artifact, find_edges(artifact["id"])), media_type="text/event-stream")
        call = {
            "id": "c",
            "type": "function",
            "function": {"name": EDGES, "arguments": json.dumps({"image": artifact["id"]})},
        }
        top = [{"token": tool, "logprob": math.log(share)} for tool, share in RANKING.items()]
        logprobs = {"content": [{"token": EDGES, "top_logprobs": top}]}
        return {"choices": [{"message": {"content": None, "tool_calls": [call]}, "logprobs": logprobs}]}

    api = build_stand_in(store, answer, ("main", "main-agent", "small"), _list_tools())

    @api.post("/v1/tools/{tool_id:path}/invoke")
    async def invoke(tool_id: str, request: Request) -> dict[str, Any]:
        calls.append({"tool_id": tool_id, **await request.json()})
        return {
            "tool_id": tool_id,
            "text": "12 % of the pixels lie on an edge.",
            "artifact": find_edges(calls[-1]["arguments"]["image"]),
        }

    with serving(api) as url:
        yield url


async def _never() -> AsyncIterator[str]:
    await asyncio.sleep(60)
    yield ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    yield from open_page(browser, url, width=900, scheme="light")


def open_page(browser: Browser, url: str, width: int, scheme: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith((url, "blob:")) else faults.append(asked.url))
    page.goto(url)
    expect(page.locator("#send")).to_be_visible()
    yield page
    context.close()
    assert faults == []


def hand_over(page: Page, event: str, target: str = "body") -> None:
    """Drop or paste a picture, as a browser does it."""
    page.evaluate(
        """([event, target, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], "house.png", { type: "image/png" }));
            const given = event === "paste" ? { clipboardData: held } : { dataTransfer: held };
            const made = event === "paste" ? new ClipboardEvent(event, { ...given, bubbles: true, cancelable: true })
                                           : new DragEvent(event, { ...given, bubbles: true, cancelable: true });
            document.querySelector(target).dispatchEvent(made);
        }""",
        [event, target, base64.b64encode(draw_house()).decode()],
    )
    expect(page.locator("#preview img")).to_be_visible()


def ask(page: Page, words: str) -> None:
    page.get_by_label("What do you want?").fill(words)
    page.keyboard.press("Enter")


def test_a_question_with_a_dropped_picture_to_a_result_that_is_used_next(
    page: Page, calls: list[dict[str, Any]]
) -> None:
    page.get_by_role("button", name="Make this photo sharper").click()
    expect(page.locator("#words")).to_have_value("Make this photo sharper")
    expect(page.locator("#status")).to_contain_text("Attach a picture")
    hand_over(page, "drop")
    page.keyboard.press("Enter")
    rows = page.locator(".ranking > li")
    expect(rows).to_have_count(5)
    assert rows.nth(0).locator("strong").inner_text() == "Detect edges", "the name comes first"
    assert rows.nth(0).inner_text().index("Detect edges") < rows.nth(0).inner_text().index(EDGES)
    # what cannot run on a picture is not offered, and what is unlikely is greyed
    expect(page.get_by_role("button", name=f"Run {TEMPO}")).to_have_count(0)
    expect(rows.nth(3)).to_contain_text("needs a sound")
    expect(rows.nth(4)).to_contain_text("not run here")
    assert [row.get_attribute("class").split() for row in rows.all()].count(["weak"]) == 2  # pyright: ignore[reportOptionalMemberAccess]

    page.get_by_role("button", name=f"Run {EDGES}").click()
    slider = page.get_by_label("How much of the picture is shown as before")
    expect(slider).to_be_visible()
    before = page.locator(".stack img").first
    hidden = before.evaluate("image => getComputedStyle(image).clipPath")
    slider.focus()
    page.keyboard.press("End")
    assert before.evaluate("image => getComputedStyle(image).clipPath") != hidden
    with page.expect_download() as got:
        page.get_by_role("button", name="Download").click()
    assert got.value.suggested_filename.endswith(".png")
    assert Image.open(got.value.path()).size == (360, 240)

    # other settings, by the tool's schema
    page.get_by_role("button", name=f"Set up {UPSCALE}").click()
    form = page.locator(".setup form.arguments")
    expect(form.locator("input[type=number]")).to_have_value("2")
    form.locator("input[type=number]").fill("3")
    form.get_by_role("button", name="Run with these").click()
    expect(page.locator("#chat > li")).to_have_count(4)
    assert (calls[-1]["tool_id"], calls[-1]["arguments"]["factor"]) == (UPSCALE, 3)

    page.get_by_role("button", name="Use this result next").last.click()
    expect(page.locator("#preview img")).to_be_visible()
    ask(page, "And again")
    expect(page.locator("#chat > li")).to_have_count(6)

    # a reload shows the same, files included; a new conversation is empty
    told = page.locator("#chat > li .words").all_inner_texts()
    page.reload()
    expect(page.locator("#chat > li")).to_have_count(6)
    assert page.locator("#chat > li .words").all_inner_texts() == told
    expect(page.locator(".stack")).to_have_count(2)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat > li")).to_have_count(0)
    expect(page.locator("#start")).to_be_visible()


def test_the_agents_steps_come_as_they_happen_and_it_can_be_stopped(page: Page) -> None:
    hand_over(page, "paste", "#words")
    page.get_by_label("Let the agent run the tools itself").check()
    ask(page, "Draw the edges")
    expect(page.locator(".steps > li")).to_contain_text("12 % lie on an edge.")
    assert page.locator("#chat > li").last.locator(".words").inner_text() != "Here are the edges.", "words come later"
    expect(page.locator("#chat > li .words").last).to_have_text("Here are the edges.")
    expect(page.locator("#send")).to_be_visible()

    hand_over(page, "paste", "#words")
    ask(page, "Please wait")
    expect(page.locator("#elapsed")).to_have_text("1 s")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#words")).to_have_value("Please wait")

    page.get_by_label("Model").select_option("small")
    expect(page.get_by_label("Let the agent run the tools itself")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1280])
def test_nothing_breaks_at_any_width(browser: Browser, url: str, width: int, scheme: str) -> None:
    for page in open_page(browser, url, width, scheme):
        hand_over(page, "drop")
        ask(page, "Draw the edges of this picture")
        page.get_by_role("button", name=f"Run {EDGES}").click()
        expect(page.locator(".stack")).to_be_visible()
        page.get_by_role("button", name=f"Set up {UPSCALE}").click()
        expect(page.locator(".setup form")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
        for button in page.locator("button:visible, .button:visible").all():
            box = button.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            if "example" not in (button.get_attribute("class") or ""):
                assert box["height"] < 48, "a label of one line stands on several"
        folder = Path("runs/screenshots")
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"page-{width}-{scheme}.png", full_page=True)
