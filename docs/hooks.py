"""Pages that the site has and docs/ has not: the root's documents, the reference of public names, the command line."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files
from typer.main import get_command

ROOT = Path(__file__).parents[1]
# Documents of the root, by their pages here; "README" would be an index page.
DOCUMENTS = {
    "README": "overview",
    "ARCHITECTURE": "architecture",
    "CONTRIBUTING": "contributing",
    "CHANGELOG": "changelog",
}
PACKAGES = (
    "attribution",
    "audio",
    "circuits",
    "flow",
    "lenses",
    "metrics",
    "referee",
    "report",
    "studies",
    "tasks",
    "workbench",
)
WIDTH = 86
UP = re.compile(rf"\]\(((?:\.\./)*)\.\./({'|'.join(DOCUMENTS)})\.md")
DOWN = re.compile(rf"\]\((?:docs/|({'|'.join(DOCUMENTS)})\.md|LICENSE)")
TITLES = {
    "crosspatch.models": "Models",
    "crosspatch.engine": "Patching",
    "crosspatch.sites": "Sites",
    "crosspatch.attribution": "Estimates",
    "crosspatch.modules": "Any model",
    "crosspatch.referee": "The referee",
    "crosspatch.executors": "Executors",
    "crosspatch.core.errors": "Errors",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    pages = {f"{page}.md": _document(name) for name, page in DOCUMENTS.items()}
    pages |= {"reference/index.md": top_level(), "reference/command-line.md": command_line()}
    pages |= {f"reference/{name}.md": package(name) for name in PACKAGES}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to the root's documents lead to their pages; give pages with two columns the room of a contents list."""
    if 'class="sides"' in markdown:
        page.meta["hide"] = ["toc"]
    return UP.sub(lambda link: f"]({link[1]}{DOCUMENTS[link[2]]}.md", markdown)


def _document(name: str) -> str:
    """Read a document of the root, with its links as they are from inside docs/."""
    text = (ROOT / f"{name}.md").read_text(encoding="utf-8").replace("[Apache-2.0](LICENSE)", "Apache-2.0")
    return DOWN.sub(lambda link: f"]({DOCUMENTS[link[1]]}.md" if link[1] else "](", text)


def top_level() -> str:
    """Write the page of `import crosspatch as xp`."""
    import crosspatch

    parts = ["# crosspatch", "`import crosspatch as xp` gives these names, and the packages " + _links() + "."]
    for home, title in TITLES.items():
        names = [name for name in crosspatch.__all__ if crosspatch._HOME.get(name) == home]
        parts += [f"## {title}", *(f"::: crosspatch.{name}" for name in names)]
    parts += ["## Results", "::: crosspatch.load"]
    return "\n\n".join(parts)


def _links() -> str:
    return ", ".join(f"[{name}]({name}.md)" for name in PACKAGES)


def package(name: str) -> str:
    """Write the page of one package."""
    full = f"crosspatch.{name}"
    module = import_module(full)
    names = getattr(module, "__all__", None) or sorted(each for each in vars(module) if _is_public(module, each))
    about = (module.__doc__ or "").strip()
    return "\n\n".join([f"# crosspatch.{name}", about, *(f"::: {full}.{each}" for each in names)])


def _is_public(module: Any, name: str) -> bool:
    """Whether a package without `__all__` offers a name: one that is no module and has no underscore."""
    return not name.startswith("_") and not hasattr(getattr(module, name), "__spec__")


def command_line() -> str:
    """Write the help of each verb as the program prints it."""
    from crosspatch.cli.app import app

    parts = ["# Command line", "What `crosspatch VERB --help` says."]
    for name, text in helps(get_command(app), "crosspatch"):
        parts += [f"## {name}", f"```text\n{text}\n```"]
    return "\n\n".join(parts)


def helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """Give the name and the help of a command and of all below it."""
    with click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH) as context:
        yield name, command.get_help(context)
    for verb, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, f"{name} {verb}")
