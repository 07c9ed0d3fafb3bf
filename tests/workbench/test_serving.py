"""How a browser is started: by a file of the owner's, so that the token is on no command line."""

import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from crosspatch.workbench.serving import _shown


def test_the_token_is_in_a_file_that_only_its_owner_reads(monkeypatch):
    """What is opened is the file; it leads to the address, and is gone afterwards."""
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with _shown("http://127.0.0.1:1234/secret/"):
        page = Path(unquote(urlsplit(opened[0]).path))
        assert "secret" not in opened[0]
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700
        assert "url=http://127.0.0.1:1234/secret/" in page.read_text("utf-8")
    assert not page.exists()
