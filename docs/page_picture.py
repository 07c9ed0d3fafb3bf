"""Draw docs/page.png and docs/page-heads.png: a result's page on Gemma-3-270M, and a head clicked. Needs Chromium and playwright.

python docs/page_picture.py [--chromium /usr/bin/chromium]
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import crosspatch as xp
from crosspatch import lenses

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 1420}
EDGE = 12  # pixels around what is cut out


def main() -> None:
    """Patch, write the page, open it, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    model = xp.open_model("gemma-3-270m")
    task = xp.tasks.ioi(model, n=16, template=0, order="ABBA")
    effects = xp.patch(model, task, sites="resid.pre, attn.out, mlp.out, attn.head@end")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = effects.report(Path(folder, "ioi.html"), attention=lenses.read_head_patterns(model, task))
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(path.as_uri())
        photograph(page)
        browser.close()


def photograph(page: Page) -> None:
    """Take the top of the page, then open the attention of a head and take what stands around it."""
    page.wait_for_selector("html[data-ready]", state="attached")
    page.screenshot(path=HERE / "page.png")
    page.locator("figure[data-panel='3']").focus()
    for key in (*["ArrowDown"] * 6, *["ArrowRight"] * 3, "Enter"):  # head 11.3 moves the name
        page.keyboard.press(key)
    page.locator("#attention-view").wait_for()
    page.select_option("#choose-weighting", "value")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)
    top, shown = (page.locator(each).bounding_box() for each in ("#units", "#attention-view"))
    assert top is not None
    assert shown is not None
    down = page.evaluate("scrollY")
    height = shown["y"] + shown["height"] - top["y"] + 2 * EDGE
    clip = {"x": 0, "y": top["y"] + down - EDGE, "width": SIZE["width"], "height": height}
    page.screenshot(path=HERE / "page-heads.png", full_page=True, clip=clip)


if __name__ == "__main__":
    main()
