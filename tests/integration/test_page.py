"""The page in a real browser: ask, upload, choose, run, see the result; an error in kind words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from small_service import Service, picture

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.browser]

EDGES = "local/detect-edges"


@pytest.fixture(scope="module")
def page(service: Service) -> Iterator[Page]:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no Chromium: Debian's package `chromium` has it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 1000})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)  # the tools' replica starts with the first call
        yield page
        browser.close()


@pytest.fixture(autouse=True)
def faults(page: Page, service: Service) -> Iterator[list[str]]:
    """What the browser complains of, and requests to others; both must stay empty."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((service.url, "blob:")) else found.append(request.url),
    )
    page.goto(service.url)
    expect(page.locator("#send")).to_be_visible()
    yield found
    assert found == []


def ask(page: Page, words: str) -> None:
    """With the keyboard alone."""
    page.get_by_label("What do you want?").fill(words)
    page.keyboard.press("Enter")


def test_a_picture_goes_in_and_its_edges_come_out(page: Page, tmp_path: Path) -> None:
    (tmp_path / "street.png").write_bytes(picture(size=(48, 64)))
    page.locator("#file").set_input_files(tmp_path / "street.png")
    expect(page.locator("#attachment img")).to_be_visible()
    ask(page, "Show the edges")
    ranking = page.get_by_label("What the model would use")
    expect(ranking.locator("> li")).to_have_count(5)
    shares = [float(bar.get_attribute("aria-valuenow") or "nan") for bar in ranking.get_by_role("meter").all()]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1.000001
    button = page.get_by_role("button", name=f"Run {EDGES}")
    if not button.count():
        pytest.fail(f"the random model does not rank {EDGES} among the first five; change its seed")
    button.click()
    expect(page.get_by_label("How much of the picture is shown as before")).to_be_visible()
    result = page.get_by_role("img", name=f"result of {EDGES}")
    assert result.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 48]
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    kept = Path("runs/screenshots")
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "page.png", kept / "page.png")


def test_the_agent_shows_its_trace(page: Page, tmp_path: Path) -> None:
    (tmp_path / "street.png").write_bytes(picture(size=(48, 64)))
    page.locator("#file").set_input_files(tmp_path / "street.png")
    page.get_by_label("Let the agent run the tools itself").check()
    ask(page, "Show the edges")
    answer = page.locator("#chat > li").last
    expect(answer.get_by_label("Steps")).to_be_attached()
    expect(page.locator("#send")).to_be_visible()
    expect(answer.locator(".words")).not_to_be_empty()


def test_a_fault_is_told_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(picture()[:100])
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    ask(page, "Improve this")
    fault = page.locator("li.error .words")
    expect(fault).to_be_visible()
    words = fault.inner_text()
    assert words.endswith((".", "?"))
    assert "Traceback" not in words
    expect(page.locator("#words")).to_have_value("Improve this")  # nothing that was typed is lost


def test_every_control_has_a_name(page: Page) -> None:
    for control in page.locator("button:visible, textarea:visible, input[type=checkbox]").all():
        assert control.evaluate(
            "node => (node.labels?.[0]?.innerText || node.innerText || node.ariaLabel || '').trim()"
        )
    expect(page.locator("#chat")).to_have_attribute("aria-live", "polite")
