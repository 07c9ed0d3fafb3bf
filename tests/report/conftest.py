"""What tests of pages share: pages that fail their test on any complaint."""

import pytest

from browsing import open_page


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
