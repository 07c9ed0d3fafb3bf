"""What tests of pages share: one Chromium a file, and pages that fail their test on any complaint."""

import pytest

from browsing import CHROMIUM, OPTIONS, open_page


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(OPTIONS))
        yield instance
        instance.close()


@pytest.fixture
def visit(browser):
    """Open pages that are closed at the end of the test, which fails on any complaint, request or refusal."""
    pages, complaints = [], []

    def go(path, **settings):
        pages.append(open_page(browser, path, complaints, **settings))
        return pages[-1]

    yield go
    for page in pages:
        page.close()
    assert complaints == []
