"""Every page of the smoke run's site as a reader has it: in a browser, without a network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_book import REPOSITORY

from kdnotes.book import site

PAGES = site.toc_pages(REPOSITORY / "_toc.yml")
CHAPTERS = [page for page in PAGES if re.match(r"book/\d\d-", page)]
HTML = REPOSITORY / "_build" / "smoke" / "html"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WORST = ("serious", "critical")  # faults that keep readers out, as axe-core counts them
LOADED = """async () => {
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
  if (window.MathJax) await MathJax.startup.promise;
  const moving = document.getAnimations().filter(
    (each) => each.effect.getComputedTiming().endTime < Infinity);
  await Promise.all(moving.map((each) => each.finished.catch(() => {})));
}"""  # colours that still fade in are nobody's colours
PICTURES = """() => [...document.querySelectorAll("article img")].map((image) => ({
  source: image.currentSrc, alt: image.alt, pixels: image.naturalWidth, width: image.width,
  shown: image.checkVisibility({visibilityProperty: true}) || !!image.closest("details"),
  ground: getComputedStyle(image).backgroundColor,
  squeezed: image.width && getComputedStyle(image).objectFit !== "contain"
    ? image.width * image.naturalHeight / image.height / image.naturalWidth - 1 : 0,
}))"""
SIDEWAYS = "() => document.scrollingElement.scrollWidth - document.documentElement.clientWidth"
FIRST_SCREEN = """() => {
  const cell = [...document.querySelectorAll("article .tag_first-screen")];
  const box = (what) => cell.flatMap((each) => [...each.querySelectorAll(what)])[0]
    ?.getBoundingClientRect().toJSON();
  return {answer: box("p"), table: box("table"), figure: box("img")};
}"""
TABLE_ROOM = """() => {
  const table = document.querySelector("article .tag_first-screen table");
  const last = table.querySelector("tbody tr td:last-child").getBoundingClientRect();
  return {over: table.scrollWidth - table.clientWidth, right: last.right};
}"""

pytestmark = pytest.mark.book
each_page = pytest.mark.parametrize("page", PAGES)
each_chapter = pytest.mark.parametrize("page", CHAPTERS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, or the one that is here, without a network."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    if not HTML.is_dir():
        pytest.skip("no site of a smoke run; 'make smoke' builds it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
        running = playwright.chromium.launch(executable_path=found, args=options)
        yield running
        running.close()


class Opened:
    """A page in the browser, and everything that went wrong while it was loaded."""

    def __init__(self, browser: Any, page: str, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", self._asked)
        self.page.on("requestfailed", lambda asked: self.faults.append(f"failed: {asked.url}"))
        self.page.goto((HTML / f"{page}.html").as_uri())
        self.page.evaluate(LOADED)

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"outside request: {request.url}")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def barriers(self, **options: Any) -> list[str]:
        """What axe-core finds serious or critical: the rule and where."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, options={"resultTypes": ["violations"], **options}).response
        return [
            f"{rule['id']}: {node['target'][0]}"
            for rule in found["violations"]
            for node in rule["nodes"]
            if node["impact"] in WORST
        ]


@each_page
def test_a_page_needs_no_network_and_keeps_nobody_out(browser: Any, page: str) -> None:
    with Opened(browser, page, viewport=DESK, color_scheme="light") as opened:
        pictures = opened.page.evaluate(PICTURES)
        assert opened.faults == []
        assert (
            opened.page.locator("mjx-container svg").count()
            == opened.page.locator("article .math").count()
        )
        for picture in pictures:
            assert picture["pixels"] > 0, picture
            assert picture["shown"], picture
            assert picture["alt"].strip(), picture
            assert abs(picture["squeezed"]) < 0.02, picture
            if picture["source"].endswith(".png"):
                assert picture["pixels"] >= 2 * picture["width"], picture
        assert opened.barriers() == []


@each_page
def test_a_page_can_be_read_in_the_dark(browser: Any, page: str) -> None:
    with Opened(browser, page, viewport=DESK, color_scheme="dark") as opened:
        assert opened.page.evaluate("() => document.documentElement.dataset.theme") == "dark"
        red, green, blue = map(
            int,
            re.findall(
                r"\d+",
                opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor"),
            )[:3],
        )
        assert max(red, green, blue) < 64
        # Pictures are drawn in black, on what must stay white.
        assert {each["ground"] for each in opened.page.evaluate(PICTURES)} <= {"rgb(255, 255, 255)"}
        assert opened.barriers(runOnly=["color-contrast"]) == []


@each_page
def test_a_page_fits_a_phone(browser: Any, page: str) -> None:
    with Opened(browser, page, viewport=PHONE, has_touch=True) as opened:
        assert opened.page.evaluate(SIDEWAYS) <= 0
        for picture in opened.page.evaluate(PICTURES):
            assert abs(picture["squeezed"]) < 0.02, picture
        if page in CHAPTERS:
            room = opened.page.evaluate(TABLE_ROOM)
            assert room["over"] <= 0, room
            assert room["right"] <= PHONE["width"], room


@each_chapter
def test_the_first_screen_holds_answer_table_and_half_of_the_picture(
    browser: Any, page: str
) -> None:
    with Opened(browser, page, viewport=DESK) as opened:
        boxes = opened.page.evaluate(FIRST_SCREEN)
        assert boxes["answer"]["bottom"] <= DESK["height"], boxes["answer"]
        assert boxes["table"]["bottom"] <= DESK["height"], boxes["table"]
        figure = boxes["figure"]
        assert figure["top"] + figure["height"] / 2 <= DESK["height"], figure


def test_the_scorecard_can_be_looked_over(browser: Any) -> None:
    with Opened(browser, "book/scorecard", viewport=DESK) as opened:
        assert opened.page.evaluate("() => document.querySelector('article').scrollHeight") < 8000


def test_the_cover_begins_on_the_first_screen(browser: Any) -> None:
    with Opened(browser, "book/intro", viewport=DESK) as opened:
        top = "() => document.querySelector('article img').getBoundingClientRect().top"
        assert opened.page.evaluate(top) < DESK["height"] - 200
