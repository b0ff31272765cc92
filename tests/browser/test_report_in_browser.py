"""The report in a real headless browser: readable, silent, and without the network."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.build import build_report
from reports.example import Made, write_example

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SECTIONS = [
    *("verdict", "validity", "arms", "effects", "interactions", "contrasts", "length", "curves"),
    *("ladder", "mechanisms", "samples", "cost", "provenance"),
]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_example(tmp_path_factory.mktemp("sweep"), Made(clusters=25))
    return build_report(directory) / "index.html"


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder that REPORT_SCREENSHOTS names, or a temporary one."""
    chosen = os.environ.get("REPORT_SCREENSHOTS")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_silent_offline_and_fits(
    browser: Any, report: Path, screenshots: Path, width: int, scheme: str
) -> None:
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.evaluate("[...document.images].map(one => [one.naturalWidth, one.alt])")
    assert len(images) >= 7
    assert all(size > 0 and alt for size, alt in images)
    assert [name for name in SECTIONS if page.locator(f"#{name}").count() != 1] == []
    screenshots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []


def test_the_answer_is_on_the_first_screen(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(report.as_uri())
    for selector in ("#verdict", ".tiles"):
        assert page.locator(selector).bounding_box()["y"] < 700
    assert "minimum detectable effect" in page.locator(".tiles").inner_text()
    page.close()


def test_the_page_prints(browser: Any, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    assert page.pdf().startswith(b"%PDF")
    page.close()
