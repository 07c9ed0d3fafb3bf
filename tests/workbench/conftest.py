"""What tests of the workbench's page share: a server for a file, and pages that fail their test on a complaint."""

import pytest

from browsing import open_page
from builders_workbench import served, tiny


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tiny(), tmp_path_factory.mktemp("runs")) as running:
        yield running


@pytest.fixture
def visit(browser):
    """Open workbenches that are closed at the end of the test, which fails on any complaint or foreign request."""
    pages, complaints = [], []

    def go(server, **settings):
        own = (server.address, "blob:", "data:")
        pages.append(open_page(browser, server.address, complaints, own=own, **settings))
        return pages[-1]

    yield go
    for page in pages:
        page.close()
    assert complaints == []
