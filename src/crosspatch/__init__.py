"""crosspatch: find which parts of a neural network cause a behaviour, by exact activation patching.

>>> import crosspatch as xp
>>> model = xp.open_model("gemma-3-270m")  # doctest: +SKIP
>>> task = xp.tasks.ioi(model, n=16)  # doctest: +SKIP
>>> effects = xp.patch(model, task, sites="resid.pre, attn.out, mlp.out")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch import metrics, tasks
    from crosspatch.core.errors import CrosspatchError
    from crosspatch.engine import (
        Add,
        Effects,
        Mean,
        Noise,
        Options,
        Plan,
        Project,
        Replace,
        Resample,
        Scale,
        Zero,
        capture,
        patch,
        patch_modules,
        plan_patch,
        write,
    )
    from crosspatch.models import Model, open_model
    from crosspatch.sites import Site, parse_site

# Importing crosspatch must stay instant: torch is loaded by the first name that needs it.
_HOME = {
    "Add": "crosspatch.engine",
    "CrosspatchError": "crosspatch.core.errors",
    "Effects": "crosspatch.engine",
    "Mean": "crosspatch.engine",
    "Model": "crosspatch.models",
    "Noise": "crosspatch.engine",
    "Options": "crosspatch.engine",
    "Plan": "crosspatch.engine",
    "Project": "crosspatch.engine",
    "Replace": "crosspatch.engine",
    "Resample": "crosspatch.engine",
    "Scale": "crosspatch.engine",
    "Site": "crosspatch.sites",
    "Zero": "crosspatch.engine",
    "capture": "crosspatch.engine",
    "open_model": "crosspatch.models",
    "parse_site": "crosspatch.sites",
    "patch": "crosspatch.engine",
    "patch_modules": "crosspatch.engine",
    "plan_patch": "crosspatch.engine",
    "write": "crosspatch.engine",
}
_FLOORS = ("metrics", "tasks")
__all__ = [
    "Add",
    "CrosspatchError",
    "Effects",
    "Mean",
    "Model",
    "Noise",
    "Options",
    "Plan",
    "Project",
    "Replace",
    "Resample",
    "Scale",
    "Site",
    "Zero",
    "capture",
    "load",
    "metrics",
    "open_model",
    "parse_site",
    "patch",
    "patch_modules",
    "plan_patch",
    "tasks",
    "write",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _FLOORS:
        return import_module(f"crosspatch.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'crosspatch' has no attribute {name!r}; it offers {', '.join(__all__)}")


def load(folder: str) -> "Effects":
    """Load the effects that `Effects.save` wrote to a folder."""
    from crosspatch.engine import Effects

    return Effects.load(folder)
