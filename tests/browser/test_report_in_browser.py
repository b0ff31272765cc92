"""The report in a real headless browser: readable, silent, and without the network."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports.build import build_report
from reports.example import Made, write_example
from reports.render import CONTENTS

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SERIOUS = ("serious", "critical")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e"

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
    directory = write_example(tmp_path_factory.mktemp("sweep"), Made(clusters=25, seeds=(0, 1)))
    return build_report(directory) / "index.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(report.as_uri())
    yield page
    page.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder that REPORT_SCREENSHOTS names, or a temporary one."""
    chosen = os.environ.get("REPORT_SCREENSHOTS")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")


def open_all(page: Any) -> None:
    """Open all that can be opened, and wait for all images, which load when they are seen."""
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
    page.evaluate("Promise.all([...document.images].map(one => one.decode()))")


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
    screenshots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=screenshots / f"first-{width}-{scheme}.png")
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.evaluate("[...document.images].map(one => [one.naturalWidth, one.alt])")
    assert len(images) >= 12
    assert all(size > 0 and alt for size, alt in images)
    assert [name for name in CONTENTS if page.locator(f"#{name}").count() != 1] == []
    whole = screenshots / f"report-{width}-{scheme}.png"
    page.screenshot(path=whole, full_page=True, timeout=120_000)
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_for_anybody(browser: Any, report: Path, scheme: str) -> None:
    """axe-core's rules, in both schemes and at both widths."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe not installed")
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(report.as_uri())
        open_all(page)
        violations = axe.Axe().run(page).response["violations"]
        serious = {
            one["id"]: [node["html"][:200] for node in one["nodes"][:3]]
            for one in violations
            if one["impact"] in SERIOUS
        }
        page.close()
        assert serious == {}


def test_the_answer_is_on_the_first_screen(page: Any) -> None:
    assert page.locator("#verdict").bounding_box()["y"] < 400
    for part in page.locator(".glance tbody tr").all():
        box = part.bounding_box()
        assert box["y"] + box["height"] < 900
    assert "minimum detectable effect" in page.locator(".tiles").inner_text()


def wait_until(page: Any, expression: str) -> None:
    """Playwright's own wait evaluates strings inside the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def column(page: Any, table: str, index: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr:not([hidden]) td:nth-child({index})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_tables_sort_by_the_keyboard_too(page: Any) -> None:
    table = "#cost details table"
    page.locator("#cost summary").click()
    before = column(page, table, 2)
    head = page.locator(f"{table} th").nth(3)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    numbers = [float(text) for text in column(page, table, 4) if text != "–"]
    assert numbers == sorted(numbers)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    numbers = [float(text) for text in column(page, table, 4) if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert sorted(column(page, table, 2)) == sorted(before)
    page.locator(f"{table} th").first.locator("button").click()
    names = column(page, table, 1)
    assert head.get_attribute("aria-sort") is None
    assert names == sorted(names, key=str.lower) or len(names) == len(set(names))


def test_tables_filter(page: Any) -> None:
    page.locator("#arms input[type=search]").fill("placebo")
    assert [text.split()[0] for text in column(page, "#arms table", 1)] == ["placebo"]
    assert "1 of" in page.locator("#arms output").inner_text()
    page.locator("#arms input[type=search]").fill("")
    assert len(column(page, "#arms table", 1)) > 10


def test_completions_are_searched_and_chosen(page: Any) -> None:
    shown = page.locator(".sample:not([hidden])")
    assert shown.count() == 10
    page.locator("#samples button").click()
    assert shown.count() == 30
    page.locator("#samples select").first.select_option("broken")
    kinds = shown.evaluate_all("all => all.map(one => one.dataset.kind)")
    assert kinds and set(kinds) == {"broken"}
    item = shown.first.locator("a").text_content().split(" · ")[1]
    page.locator("#samples input[type=search]").fill(item)
    assert shown.count() == 1
    assert page.locator("#samples output").inner_text().startswith("1 of")


def test_links_lead_deep(browser: Any, report: Path, page: Any) -> None:
    name = page.locator(".sample").last.get_attribute("id")
    deep = browser.new_page(viewport={"width": 1280, "height": 900})
    deep.goto(f"{report.as_uri()}#{name}")
    box = f"document.getElementById('{name}').getBoundingClientRect()"
    wait_until(deep, f"{box}.top > -50 && {box}.top < innerHeight")
    deep.close()
    page.evaluate("document.querySelector('#contrasts details table').id = 'inside'")
    page.evaluate("document.querySelector('#contrasts details').open = false")
    page.evaluate("location.hash = 'inside'")
    wait_until(page, "document.querySelector('#contrasts details').open")


def test_the_theme_can_be_chosen(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    picture = "document.querySelector('#effects picture img').currentSrc"
    page.locator("#effects picture").scroll_into_view_if_needed()
    wait_until(page, f"{picture} !== ''")
    drawn = page.evaluate(picture)
    page.locator("#theme").click()
    assert page.evaluate(colour) == light
    page.locator("#theme").click()
    assert "dark" in page.locator("#theme").inner_text()
    assert page.evaluate(colour) != light
    wait_until(page, f"{picture} !== {drawn!r}")


def test_the_page_prints_whole_and_light(browser: Any, report: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.close()


def test_hostile_text_does_nothing(browser: Any, tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=10, effects={EVIL: 0.05, "bonus": 0.0}))
    for name, columns in (("responses", ["response"]), ("questions", ["question", "gold"])):
        file = tmp_path / "results" / f"{name}.parquet"
        pd.read_parquet(file).assign(**dict.fromkeys(columns, EVIL)).to_parquet(file)
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((build_report(tmp_path, ["html"]) / "index.html").as_uri())
    open_all(page)
    assert page.title().startswith("example")
    assert page.locator("img[src=x]").count() == 0
    assert said == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"a()\">')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: \"document.title = 'owned'\"}))"
    )
    assert page.title().startswith("example"), "the policy stops what escaping would have missed"
    page.close()
