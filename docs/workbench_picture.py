"""Draw docs/workbench.png: the workbench on Gemma-3-270M, driven as a user would. Needs Chromium and playwright.

python docs/workbench_picture.py [--chromium /usr/bin/chromium]
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import crosspatch as xp
from crosspatch.workbench.serving import served

OUT = Path(__file__).with_name("workbench.png")
CLEAN = "When Mary and John went to the store, John gave a drink to"
SIZE = {"width": 1440, "height": 1010}


def main() -> None:
    """Serve, drive, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    model = xp.open_model("gemma-3-270m")
    with tempfile.TemporaryDirectory() as folder, served(model, out=folder) as bench, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(bench.address)
        photograph(page)
        browser.close()


def photograph(page: Page) -> None:
    """Ask about one pair, look inside the cell where the name moves on, and take the picture."""
    page.wait_for_selector("html[data-ready]", state="attached")
    page.fill("#clean", CLEAN)
    page.fill("#corrupt", CLEAN.replace("John gave", "Mary gave"))
    page.wait_for_selector("#run:not([disabled])")
    page.check("#kinds input[value='attn.head']")
    page.click("#run")
    page.wait_for_selector("#keep-map:not(.gone)")
    page.locator("#strongest button").first.click()
    page.wait_for_selector("#lens .here")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait_for_timeout(300)
    page.screenshot(path=OUT)


if __name__ == "__main__":
    main()
