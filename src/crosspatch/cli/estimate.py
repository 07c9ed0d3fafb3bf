"""What a sweep will cost on this machine: its arithmetic at the matrix-product speed measured here and now."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosspatch.engine.plan import Plan
    from crosspatch.models.model import Model

SECONDS = 0.2  # of measuring
ROWS = 1024  # tokens of the measured product: as many as a pack of a usual sweep has


@dataclass(frozen=True)
class Cost:
    """Time of a sweep: its floating-point operations at `speed` operations a second take `least` seconds.

    A sweep is attention, norms and copies too: it reaches half of that speed or more, so `usual` is twice the least.
    """

    speed: float
    least: float

    @property
    def usual(self) -> float:
        """Seconds that a sweep takes as a rule."""
        return 2 * self.least


def cost_of(plan: "Plan", model: "Model") -> Cost:
    """Measure this machine for a fifth of a second and divide the plan's work by its speed."""
    speed = matrix_speed(model)
    return Cost(speed, plan.flops / speed)


def matrix_speed(model: "Model", seconds: float = SECONDS) -> float:
    """Measure matrix products of the model's own width, type and device, in operations a second."""
    import torch

    wide = model.anatomy.d_mlp or 4 * model.anatomy.d_model
    dtype = next(model.module.parameters()).dtype
    tokens = torch.ones(ROWS, model.anatomy.d_model, dtype=dtype, device=model.device)
    weights = torch.ones(model.anatomy.d_model, wide, dtype=dtype, device=model.device)
    with torch.inference_mode():
        _wait(tokens @ weights)  # the first product also pays for setting up
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds or not done:
            _wait(tokens @ weights)
            done += 1
    return 2.0 * done * ROWS * model.anatomy.d_model * wide / max(spent, 1e-9)


def _wait(product: object) -> None:
    """Let a device that works in the background finish: reading a number needs it."""
    product[0, 0].item()  # pyright: ignore[reportIndexIssue]


def clock(seconds: float | int) -> str:
    """Write a time as a person says it: `0.4 s`, `12 s`, `3 min`, `2.5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
