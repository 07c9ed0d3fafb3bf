"""The model that pages of documentation share in tests."""

import pytest

import crosspatch as xp
from builders_gemma import NAME, gemma


@pytest.fixture
def open_once(monkeypatch):
    """Let a page have the real model that is open already; the page on practice opens its own."""
    monkeypatch.setattr(xp, "open_model", {NAME: gemma()}.__getitem__)
