"""The site: it builds without a warning, has all names, its links lead somewhere, and nothing comes from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from typer.main import get_command

import crosspatch
from crosspatch.cli.app import app

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADED.get(tag, "")):
            self.loads.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site once; a strict build fails on any warning."""
    folder = tmp_path_factory.mktemp("site")
    # Material prints an advertisement of its own without this; it is no warning of the build.
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html")} | {"": folder}


def pages(site):
    return {name: page for name, page in site.items() if name}


def test_every_public_name_is_in_the_reference(site):
    ids = set().union(*(page.ids for name, page in pages(site).items() if name.startswith("reference/")))
    packages = [name for name in crosspatch.__all__ if hasattr(getattr(crosspatch, name), "__path__")]
    assert {f"crosspatch.{name}" for name in set(crosspatch.__all__) - set(packages)} <= ids
    for package in {*packages, "referee", "report", "studies", "workbench"}:
        names = getattr(import_module(f"crosspatch.{package}"), "__all__", ["ioi", "Task"])
        assert {f"crosspatch.{package}.{name}" for name in names} <= ids


def test_every_verb_is_on_the_page_of_the_command_line(site):
    ids = pages(site)["reference/command-line.html"].ids
    assert {f"crosspatch-{verb}" for verb in get_command(app).commands} <= ids


def test_links_within_the_site_lead_somewhere(site):
    lost = []
    for name, page in pages(site).items():
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or name == "404.html":  # that page's links hang on where the site is put
                continue
            path = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
            target = pages(site).get(path)
            there = (site[""] / path).is_file() and (
                not parts.fragment or target is None or parts.fragment in target.ids
            )
            if not there and parts.fragment != "__skip":
                lost.append((name, link))
    assert not lost


def test_nothing_is_loaded_from_elsewhere(site):
    assert not [(name, load) for name, page in pages(site).items() for load in page.loads if urlsplit(load).netloc]
    styles = "".join(path.read_text(encoding="utf-8") for path in site[""].rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)


def test_scripts_stay_out(site):
    """All but the one that a page hands to its readers."""
    assert [path.name for path in site[""].rglob("*.py")] == ["spread.py"]
    assert not [name for name in site if "__pycache__" in name]
