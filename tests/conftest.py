"""What all tests share: no network, few threads, and no silent skips where everything must run."""

import os

# Before torch or transformers are imported: tests never reach for a hub, and two workers must not fight over cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from browsing import CHROMIUM, OPTIONS


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Turn a skip into a failure where CROSSPATCH_NO_SKIPS is set: there, what a test needs must be installed."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CROSSPATCH_NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and nothing may be skipped here: {report.longrepr}"


@pytest.fixture(scope="module")
def browser():
    """Start one Chromium a file."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(OPTIONS))
        yield instance
        instance.close()
