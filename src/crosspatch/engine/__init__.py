"""Run patches: capture and write activations, exact sweeps at the arithmetic minimum, and their effects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.engine.ablation import Ablation
    from crosspatch.engine.access import Captured, capture, write
    from crosspatch.engine.caching import ActivationCache, cache_activations
    from crosspatch.engine.edits import Add, Mean, Noise, Project, Replace, Resample, Scale, Zero
    from crosspatch.engine.effects import Effects
    from crosspatch.engine.generated import Generated
    from crosspatch.engine.generating import generate
    from crosspatch.engine.grids import ExampleView, Grid
    from crosspatch.engine.groups import cuts, group, summed, windows
    from crosspatch.engine.logits import PatchedLogits, patched_logits
    from crosspatch.engine.patching import ablate, patch, patch_metrics, plan_patch
    from crosspatch.engine.paths import Paths, path_patch, split_effects
    from crosspatch.engine.plan import Plan
    from crosspatch.engine.sweep import Options

_HOME = {
    "Ablation": "ablation",
    "ActivationCache": "caching",
    "Add": "edits",
    "Captured": "access",
    "Effects": "effects",
    "ExampleView": "grids",
    "Generated": "generated",
    "Grid": "grids",
    "Mean": "edits",
    "Noise": "edits",
    "Options": "sweep",
    "PatchedLogits": "logits",
    "Paths": "paths",
    "Plan": "plan",
    "Project": "edits",
    "Replace": "edits",
    "Resample": "edits",
    "Scale": "edits",
    "Zero": "edits",
    "ablate": "patching",
    "cache_activations": "caching",
    "capture": "access",
    "cuts": "groups",
    "generate": "generating",
    "group": "groups",
    "patch": "patching",
    "patch_metrics": "patching",
    "patched_logits": "logits",
    "path_patch": "paths",
    "plan_patch": "patching",
    "split_effects": "paths",
    "summed": "groups",
    "windows": "groups",
    "write": "access",
}
__all__ = [
    "Ablation",
    "ActivationCache",
    "Add",
    "Captured",
    "Effects",
    "ExampleView",
    "Generated",
    "Grid",
    "Mean",
    "Noise",
    "Options",
    "PatchedLogits",
    "Paths",
    "Plan",
    "Project",
    "Replace",
    "Resample",
    "Scale",
    "Zero",
    "ablate",
    "cache_activations",
    "capture",
    "cuts",
    "generate",
    "group",
    "patch",
    "patch_metrics",
    "patched_logits",
    "path_patch",
    "plan_patch",
    "split_effects",
    "summed",
    "windows",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.engine' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.engine.{_HOME[name]}"), name)
