"""Advisory locks on open files: who holds one, and who has died; a lock ends with its process."""

from contextlib import suppress
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be deleted there, which protects a living writer as well
    fcntl = None


def hold(file: IO[bytes]) -> bool:
    """Lock an open file if nobody else does; tell whether it is ours now. File systems without locks say yes."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def release(file: IO[bytes]) -> None:
    """Give a lock back before its file is closed."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
