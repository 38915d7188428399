"""The report in Chromium: pictures are drawn, tables sort, nothing is loaded, printing works."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from run_folders import neural_run

from ssl_vivit.evaluation.report.command import main

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    run = neural_run(tmp_path_factory.mktemp("neural"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report", str(run)])
        main()
    return run / "report.html"


@pytest.fixture
def opened(report):
    """Return the page in a browser, the addresses that it requested, and the console's messages."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1000, "height": 1200})
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(report.as_uri())
        yield page, asked, said
        browser.close()


def column(page, number: int) -> list[float]:
    cells = page.locator("table.sortable").first.locator(f"tbody td:nth-child({number + 1})")
    return [float(cell.get_attribute("data-value") or "nan") for cell in cells.all()]


def test_every_picture_is_drawn_and_nothing_is_loaded(report, opened):
    page, asked, said = opened
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 6
    assert min(widths) > 100
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}
    assert said == []
    # The policy also keeps out what somebody adds.
    page.evaluate(
        "document.body.append(Object.assign(new Image(), {src: 'http://localhost/a.png'}))"
    )
    page.wait_for_timeout(200)
    assert any("Content Security Policy" in line for line in said)


def test_tables_sort_by_mouse_and_keyboard(opened):
    page, _, said = opened
    heads = page.locator("table.sortable").first.locator("th")
    place = heads.all_inner_texts().index("single-trial correlation")
    before = column(page, place)
    button = heads.nth(place).locator("button")
    button.click()
    assert heads.nth(place).get_attribute("aria-sort") == "ascending"
    assert column(page, place) == sorted(before) != before
    button.focus()
    page.keyboard.press("Enter")
    assert heads.nth(place).get_attribute("aria-sort") == "descending"
    assert column(page, place) == sorted(before, reverse=True)
    # Ids are sorted as numbers, with their rows.
    units = heads.nth(1).locator("button")
    units.click()
    assert column(page, 1) == sorted(column(page, 1))
    assert column(page, place) == before
    assert heads.nth(place).get_attribute("aria-sort") is None
    assert said == []


def test_it_prints_with_all_that_is_folded(opened, tmp_path):
    page, _, _ = opened
    page.pdf(path=tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") >= 3
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("pre").first.is_visible()
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    clipped = page.evaluate(
        "[...document.querySelectorAll('.tall')].some(part => part.scrollHeight > part.clientHeight + 2)"
    )
    assert not clipped
