"""The page of a review: hostile texts stay texts, no host is asked, and what is clicked is what is saved."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.instruct.review import read_review
from data_pipeline.instruct.review_page import render_page

HOSTILE = "</textarea></article><script>alert(1)</script><img src=//evil.example/x onerror='alert(2)'>\" ' & \u202e end"
LINES: list[dict[str, Any]] = [
    {"decision": "", **dict.fromkeys(("note", "words", "situation", "why", "medium"), HOSTILE), "key": "k1"},
    {"decision": "drop", "note": "", "words": "w", "situation": "", "why": "", "medium": "dog.png", "key": "k2"},
]
LINES[0]["answer"], LINES[1]["answer"] = "\nfirst\n" + HOSTILE, "a"


class Reader(HTMLParser):
    """Elements with their attributes, and the text inside of scripts, styles and textareas."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data


def test_hostile_texts_stay_texts() -> None:
    page = Reader()
    page.feed(render_page(LINES, {"dog.png": b"\xff\xd8jpeg"}))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("article") == 2
    assert tags.count("script") == tags.count("style") == tags.count("img") == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses == [f"data:image/jpeg;base64,{base64.b64encode(bytes([0xFF, 0xD8]) + b'jpeg').decode()}"]
    articles = [attributes for tag, attributes in page.elements if tag == "article"]
    assert [json.loads(str(attributes["data-line"])) for attributes in articles] == LINES
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")
    assert not re.search(r"https?://", render_page(LINES[1:], {}))


@pytest.mark.slow
@pytest.mark.browser
def test_what_is_clicked_is_what_is_saved(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright  # half a second, for this test alone

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: Debian's package `chromium` has it")
    (tmp_path / "review.html").write_text(render_page(LINES, {}), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        click_and_save(tmp_path, browser.new_page())
        browser.close()


def click_and_save(tmp_path: Path, page: Any) -> None:
    page.set_default_timeout(60_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto((tmp_path / "review.html").as_uri())
    assert page.locator("#open").text_content() == "1 of 2 not decided"
    first = page.locator("article").first
    assert first.locator("[name=answer]").input_value() == LINES[0]["answer"]
    first.locator("[name=words]").fill("Better words")
    assert page.locator("#open").text_content() == "0 of 2 not decided"
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "review.jsonl")
    saved = read_review(tmp_path / "review.jsonl")
    assert saved["k1"].line == LINES[0] | {"decision": "edit", "words": "Better words"}
    assert saved["k2"].line == LINES[1]
    assert said == []
