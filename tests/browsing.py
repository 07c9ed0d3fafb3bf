"""Pages in Debian's Chromium without a network: the marks of such tests, and a page that tells what it complains of."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not at /usr/bin/chromium"),
]
OWN = ("file:", "blob:", "data:")
REFUSED = "addEventListener('securitypolicyviolation', (e) => console.error('refused ' + e.violatedDirective))"


def in_browser(test):
    """Mark one test of a file whose others need no browser."""
    for mark in MARKS:
        test = mark(test)
    return test


def open_page(browser, where, complaints, *, width=1280, scheme="light", own=OWN):
    """Open a file or an address and note what it complains about, asks of others, is refused or pops up."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith(own) or complaints.append(request.url))
    page.add_init_script(REFUSED)
    page.goto(where if str(where).startswith("http") else Path(where).as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=10_000)
    return page


def spot(page, panel, row, column):
    """Give the middle of a cell in the window."""
    found = page.evaluate(
        """([panel, row, column]) => {
            const svg = document.querySelector(`figure[data-panel="${panel}"] svg.map`);
            svg.scrollIntoView({ block: "center" });
            const [left, top, width, height, , rows] = svg.dataset.grid.split(" ").map(Number);
            const box = svg.getBoundingClientRect();
            return [box.left + left + (column + 0.5) * width, box.top + top + (rows - row - 0.5) * height];
        }""",
        [panel, row, column],
    )
    return tuple(found)
