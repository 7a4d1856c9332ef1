"""The routes in a browser, as Swagger UI shows them, on a service that has all routes and stand-ins for its models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_stand_in import open_browser
from playwright.sync_api import Browser, Page, expect

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))
from stand_in_service import World, serve

from serve.http.access import KEYS_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.browser]

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def open_docs(browser: Browser, url: str) -> tuple[Page, list[str], list[str]]:
    """The page, what went wrong in it, and the addresses that it has asked."""
    page = browser.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/docs")
    return page, faults, asked


def test_routes_are_shown_and_tried_without_foreign_hosts(browser: Browser) -> None:
    with serve(World()) as url:
        page, faults, asked = open_docs(browser, url)
        route = page.locator(".opblock", has_text="/v1/tools/select")
        expect(route).to_be_visible()
        page.locator(".opblock", has=page.get_by_text("/v1/models", exact=True)).first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".responses-table.live-responses-table .response-col_status").last).to_contain_text("200")
        assert faults == []
        assert all(address.startswith((url, "data:")) for address in asked), asked
        page.close()


def test_a_key_is_asked_for_where_there_are_keys(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    with serve(World()) as url:
        page, _, _ = open_docs(browser, url)
        page.get_by_label("Key").fill(KEY)
        page.get_by_role("button", name="Show the routes").click()
        expect(page.locator(".opblock", has_text="/v1/tools/select")).to_be_visible()
        page.close()
