"""Try a piece of work that may run out of memory; time a phase of work."""

import time

import torch

from crosspatch.core.errors import MemoryShortage


class Attempt:
    """Swallows the out-of-memory errors of Python and torch, on GPU and processor, and notes that there was one.

    The next attempt starts when the error is gone, and with it the tensors that its traceback held.
    """

    def __init__(self) -> None:
        self.short = False

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        self.short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        )
        self.short = self.short and not isinstance(error, MemoryShortage)
        return self.short


class Timer:
    """Adds the seconds of a block to a phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase, self.began = seconds, phase, 0.0

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self.began
