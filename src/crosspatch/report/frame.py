"""What all pages share: style, scripts, the policy that admits these alone, templates."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from crosspatch.draw import level_css

_NO_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if chr(code) not in "\t\n"}


def clean_text(html: str) -> str:
    """Replace control characters: a page is text, and they would end up in its title or its provenance."""
    return html.lstrip().translate(_NO_CONTROLS)


def policy(style: str, script: str, *, sound: bool = False) -> str:
    """Write the content-security policy that admits one style and one script, by hash, and nothing else.

    A page with sound holds it itself, as it does images.
    """
    media = "media-src data:; " if sound else ""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"{media}base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def page_style() -> str:
    """Give the style sheet with the colours of both schemes."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{level_css(dark=True)}\n}}\n"
    return f"{read_asset('style.css')}{level_css()}\n{dark}"


def read_asset(name: str) -> str:
    """Read an asset without indentation and comment lines: a fifth of its size."""
    text = files("crosspatch.draw").joinpath("assets", name).read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


@cache
def page_script(*names: str) -> str:
    """Give a page's scripts, behind what the scripts of all pages share."""
    return "\n".join(map(read_asset, ("common.js", *names)))


@cache
def template(name: str) -> Any:
    """Load a template of this package; every text that it shows is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(lambda each: files("crosspatch.report").joinpath(each).read_text(encoding="utf-8"))
    how = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=loader, **how).get_template(name)
