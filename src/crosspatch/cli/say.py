"""How verbs speak: results on standard output, all else on standard error; one JSON document when asked."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from crosspatch.core.progress import Progress, RichProgress, SilentProgress
from crosspatch.report.summary import to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BAD_INPUT, CHECK_FAILED, INTERRUPTED = 2, 3, 130


@dataclass(frozen=True)
class Voice:
    """What the user wants to hear: results as `json`, and nothing but results and errors when `quiet`."""

    json: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """Write a message for the user to standard error, unless quiet."""
        if not self.quiet:
            prose(console(err=True), text)

    def show(self, *parts: "RenderableType") -> None:
        """Write results to standard output, unless they are wanted as JSON; a text is never cut by the width."""
        if self.json:
            return
        screen = console()
        for part in parts:
            if isinstance(part, str):
                prose(screen, part)
            elif screen.is_terminal:
                screen.print(part)
            else:
                with screen.capture() as drawn:
                    screen.print(part)
                prose(screen, "\n".join(line.rstrip() for line in drawn.get().rstrip("\n").split("\n")))

    def show_as_is(self, text: str) -> None:
        """Write text whose columns matter: no line is broken, at a terminal either."""
        if not self.json:
            console().out(text, highlight=False)

    def document(self, content: Mapping[str, Any]) -> None:
        """Write the one JSON document, if JSON is wanted."""
        if self.json:
            sys.stdout.write(to_json(content) + "\n")

    def progress(self) -> Progress:
        """Return what a long job reports to."""
        return SilentProgress() if self.quiet else RichProgress()


def console(*, err: bool = False) -> "Console":
    """Open the terminal, file or pipe behind a standard stream, as wide as it is."""
    from rich.console import Console

    return Console(file=sys.stderr if err else sys.stdout, highlight=False, emoji=False)


def prose(screen: "Console", text: str, *, style: str = "") -> None:
    """Write text: broken between words at a terminal's width, left whole where it goes to a file or a pipe."""
    from rich.text import Text

    lines = text.split("\n")
    if screen.is_terminal:
        lines = [part for line in lines for part in _broken(line, max(screen.width - 1, 20))]
    screen.print(Text("\n".join(lines), style=style), soft_wrap=True)


def _broken(line: str, width: int) -> list[str]:
    """Break a line between words; what follows stands under its start, or under the text behind a mark like ✓."""
    start = len(line) - len(line.lstrip())
    hang = " " * (start + (2 if line[start + 1 : start + 2] == " " else 0))
    return wrap(line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False) or [""]


def error(text: str, *, label: str = "error") -> None:
    """Write an error to standard error as one block; it is heard even when quiet."""
    prose(console(err=True), f"{label}: {text}", style="bold red")
