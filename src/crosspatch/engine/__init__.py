"""Run patches: capture and write activations, exact sweeps at the arithmetic minimum, and their effects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.engine.access import Captured, capture, write
    from crosspatch.engine.edits import Add, Mean, Noise, Project, Replace, Resample, Scale, Zero
    from crosspatch.engine.effects import Effects
    from crosspatch.engine.grids import ExampleView, Grid
    from crosspatch.engine.modules import patch_modules
    from crosspatch.engine.patching import patch, plan_patch
    from crosspatch.engine.plan import Plan
    from crosspatch.engine.sweep import Options

_HOME = {
    "Add": "edits",
    "Captured": "access",
    "Effects": "effects",
    "ExampleView": "grids",
    "Grid": "grids",
    "Mean": "edits",
    "Noise": "edits",
    "Options": "sweep",
    "Plan": "plan",
    "Project": "edits",
    "Replace": "edits",
    "Resample": "edits",
    "Scale": "edits",
    "Zero": "edits",
    "capture": "access",
    "patch": "patching",
    "patch_modules": "modules",
    "plan_patch": "patching",
    "write": "access",
}
__all__ = [
    "Add",
    "Captured",
    "Effects",
    "ExampleView",
    "Grid",
    "Mean",
    "Noise",
    "Options",
    "Plan",
    "Project",
    "Replace",
    "Resample",
    "Scale",
    "Zero",
    "capture",
    "patch",
    "patch_modules",
    "plan_patch",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.engine' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.engine.{_HOME[name]}"), name)
