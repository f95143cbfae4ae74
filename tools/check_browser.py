"""The page of `ckpt inspect --html` in a real headless browser.

    python tools/check_browser.py [FOLDER]      leaves screenshots and pages in FOLDER

Opens the pages of a model of 70 billion parameters, of a tiny one with NaNs, and of a golden with two ranks each way,
from disk, in light and dark, at 1280 and 400 pixels, and checks what only a browser can: that nothing is asked of a
network, nothing is refused or thrown by the script, the treemap's boxes lie in their frame and do not overlap, labels
fit their boxes, the page does not scroll sideways, links from the treemap arrive, the filter filters, and that without
JavaScript everything but the filter is there. Needs playwright, and a Chromium: $CKPT_BROWSER, else one that is in PATH.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from ckpt_core.cli.main import main
from ckpt_tests.goldens import SHIPPED
from ckpt_tests.pages import large_llama, tiny_llama, tiny_values

GOLDEN = SHIPPED / "nanotron/main_llama_tied_tp2_pp2/checkpoint"
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")

BOXES = """() => {
  const frame = document.querySelector('.treemap').getBoundingClientRect();
  const boxes = [...document.querySelectorAll('.treemap a rect')].map((box) => box.getBoundingClientRect());
  return {frame: [frame.left, frame.top, frame.right, frame.bottom],
          boxes: boxes.map((box) => [box.left, box.top, box.right, box.bottom])};
}"""
LABELS = """() => [...document.querySelectorAll('.treemap text')].map((text) => {
  const box = text.ownerSVGElement.getBoundingClientRect(), own = text.getBoundingClientRect();
  return [text.textContent, own.width, own.right - box.right, own.bottom - box.bottom];
}).filter(([, width]) => width)"""


def build(folder: Path) -> list[Path]:
    """The pages to look at."""
    (folder / "model").mkdir()
    sources = {
        "large": (large_llama(folder / "model" / "large"),),
        "tiny": (tiny_llama(folder / "model" / "<img src=x onerror=alert(1)>", tiny_values()), "--stats"),
        "ranks": (GOLDEN, "--stats"),
    }
    pages = []
    for name, (source, *flags) in sources.items():
        pages.append(folder / f"{name}.html")
        assert main(["inspect", str(source), "--json", "--html", str(pages[-1]), *flags]) == 0
    shutil.rmtree(folder / "model")
    return pages


def check(browser: Browser, file: Path, width: int, scheme: str) -> None:
    """Everything about one page at one width in one scheme."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    started = time.monotonic()
    page.goto(file.as_uri())
    taken = time.monotonic() - started
    page.screenshot(path=file.with_name(f"{file.stem}-{scheme}-{width}.png"), full_page=width > 600)
    boxes = check_treemap(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    check_filter(page)
    assert not said, said
    assert asked == [file.as_uri()], asked
    print(
        f"{file.name:12} {scheme:5} {width:4} px: {boxes} boxes, {taken:.2f} s, {file.stat().st_size / 1000:.0f} kB",
        flush=True,
    )
    context.close()


def check_treemap(page: Page) -> int:
    """Boxes lie in their frame and don't overlap, shown labels fit, pointing explains, and links lead to rows."""
    found = page.evaluate(BOXES)
    left, top, right, bottom = found["frame"]
    area = 0.0
    for x, y, end, low in found["boxes"]:
        assert left - 0.6 <= x and top - 0.6 <= y and end <= right + 0.6 and low <= bottom + 0.6, (
            found["frame"],
            x,
            y,
            end,
            low,
        )
        area += (end - x) * (low - y)
    whole = (right - left) * (bottom - top)
    assert 0.98 * whole <= area <= 1.001 * whole, f"the boxes cover {area / whole:.4f} of their frame"
    labels = page.evaluate(LABELS)
    assert labels, "no label is shown"
    for text, _, right_of, below in labels:
        assert right_of <= 1 and below <= 1, f"the label {text!r} is cut off by {right_of:.1f} px, {below:.1f} px"
    box = page.locator(".treemap a rect").first
    title = box.locator("title").text_content()
    box.hover()
    assert page.locator("#pointed").text_content() == title
    box.click()
    row = page.locator("tr:target th")
    assert row.text_content() == (title or "").split(":")[0] and row.is_visible()
    return len(found["boxes"])


def check_filter(page: Page) -> None:
    """Words choose rows, all words must fit, and a link to a hidden row shows it."""
    rows = page.locator("#tensors tbody tr")
    total = rows.count()
    page.fill("#words", "LAYERS.1. attention.q")
    shown = [row.locator("th").text_content() for row in rows.all() if row.is_visible()]
    assert shown == ["layers.1.attention.q.weight"], shown
    assert page.locator("#matches").text_content() == f"1 of {total}"
    page.locator(".treemap a rect").first.click()
    assert page.input_value("#words") == ""
    assert page.locator("tr:target").is_visible()
    if page.locator("#only-bad").count():
        page.check("#only-bad")
        bad = [row.locator("th").text_content() for row in rows.all() if row.is_visible()]
        assert bad == ["layers.1.mlp.up.weight", "layers.2.attention.q.weight"], bad


def check_without_script(browser: Browser, file: Path) -> None:
    """Everything but the filter is there."""
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())
    assert page.locator("#tensors tbody tr").first.is_visible() and page.locator(".treemap").is_visible()
    assert not page.locator("#filter").is_visible()
    page.locator("summary").first.click()
    assert page.locator("details dl").first.is_visible()


def run(folder: Path) -> None:
    found = os.environ.get("CKPT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    files = build(folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        print(f"Chromium {browser.version}", flush=True)
        for file in files:
            for width in (1280, 400):
                for scheme in ("light", "dark"):
                    check(browser, file, width, scheme)
            check_without_script(browser, file)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            run(Path(temporary))
