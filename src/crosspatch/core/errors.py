"""The errors a user can meet. Each says what was given, what is allowed and what to do.

CrosspatchError
├── UnknownName      a site, model, task or metric that does not exist
├── BadInput         a value, pair, answer or file that cannot be used as given
│   ├── UnalignedPair    clean and corrupt prompts that do not match position by position
│   └── ManyTokenAnswer  an answer of several tokens where one is needed
├── NotProved        a fact about the model that its own outputs contradict
├── CorruptFile      a cache or result file whose content is not what was written
├── NotFinite        NaN or infinity where a number is needed
├── MemoryShortage   even the smallest piece of work does not fit
├── DiskFull         no room for results; what was finished is kept
├── WorkerLost       a worker process that dies again and again; what was finished is kept
├── MissingExtra     an optional package that this job needs
└── Interrupted      stopped by the user; what was done is kept
"""

from collections.abc import Iterable
from difflib import get_close_matches


class CrosspatchError(Exception):
    """Base of every error that crosspatch raises on purpose."""


class UnknownName(CrosspatchError, LookupError):
    """A site, model, task or metric that does not exist."""

    @classmethod
    def of(cls, what: str, given: str, known: Iterable[str], *, hint: str = "") -> "UnknownName":
        """Build the message from what was given and what exists, with the closest name first."""
        names = list(known)
        close = get_close_matches(given, names, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        return cls(f"unknown {what} {given!r}.{guess} Known: {', '.join(names) or 'none'}.{' ' + hint if hint else ''}")


class BadInput(CrosspatchError, ValueError):
    """A value, pair, answer or file that cannot be used as given."""


class UnalignedPair(BadInput):
    """Clean and corrupt prompts that do not match position by position."""


class ManyTokenAnswer(BadInput):
    """An answer of several tokens where one is needed."""


class NotProved(CrosspatchError):
    """A fact about the model that its own outputs contradict."""


class CorruptFile(CrosspatchError):
    """A cache or result file whose content is not what was written."""


class NotFinite(CrosspatchError, ArithmeticError):
    """NaN or infinity where a number is needed."""


class MemoryShortage(CrosspatchError, MemoryError):
    """Even the smallest piece of work does not fit in memory."""


class DiskFull(CrosspatchError, OSError):
    """There is no room on disk for results; what was finished is kept."""


class WorkerLost(CrosspatchError, RuntimeError):
    """A worker process was killed again and again; what was finished is kept."""


class MissingExtra(CrosspatchError, ImportError):
    """An optional package that this job needs is not installed."""


class Interrupted(CrosspatchError):
    """Stopped by the user; what was done is kept."""
