"""crosspatch: find which parts of a neural network cause a behaviour, by exact activation patching.

>>> import crosspatch as xp
>>> model = xp.open_model("gemma-3-270m")  # doctest: +SKIP
>>> task = xp.tasks.ioi(model, n=16)  # doctest: +SKIP
>>> effects = xp.patch(model, task, sites="resid.pre, attn.out, mlp.out")  # doctest: +SKIP
"""

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch import attribution, audio, circuits, flow, lenses, metrics, tasks
    from crosspatch.attribution import Estimate, Estimator, Verify, attribute
    from crosspatch.core.errors import CrosspatchError
    from crosspatch.engine import (
        Ablation,
        ActivationCache,
        Add,
        Effects,
        Generated,
        Mean,
        Noise,
        Options,
        PatchedLogits,
        Paths,
        Plan,
        Project,
        Replace,
        Resample,
        Scale,
        Zero,
        ablate,
        cache_activations,
        capture,
        cuts,
        generate,
        group,
        patch,
        patch_metrics,
        patched_logits,
        path_patch,
        plan_patch,
        split_effects,
        summed,
        windows,
        write,
    )
    from crosspatch.executors import Crew
    from crosspatch.models import Layout, Model, open_model
    from crosspatch.modules import Decoded, Trial, capture_any, generate_any, patch_any, patch_modules
    from crosspatch.referee import AuditPlan, audit
    from crosspatch.sites import Edge, Group, Site, parse_site

# Importing crosspatch must stay instant: torch is loaded by the first name that needs it.
_HOME = {
    "Ablation": "crosspatch.engine",
    "ActivationCache": "crosspatch.engine",
    "Add": "crosspatch.engine",
    "AuditPlan": "crosspatch.referee",
    "Crew": "crosspatch.executors",
    "CrosspatchError": "crosspatch.core.errors",
    "Decoded": "crosspatch.modules",
    "Edge": "crosspatch.sites",
    "Estimate": "crosspatch.attribution",
    "Estimator": "crosspatch.attribution",
    "Effects": "crosspatch.engine",
    "Generated": "crosspatch.engine",
    "Group": "crosspatch.sites",
    "Layout": "crosspatch.models",
    "Mean": "crosspatch.engine",
    "Model": "crosspatch.models",
    "Noise": "crosspatch.engine",
    "Options": "crosspatch.engine",
    "PatchedLogits": "crosspatch.engine",
    "Paths": "crosspatch.engine",
    "Plan": "crosspatch.engine",
    "Project": "crosspatch.engine",
    "Replace": "crosspatch.engine",
    "Resample": "crosspatch.engine",
    "Scale": "crosspatch.engine",
    "Site": "crosspatch.sites",
    "Trial": "crosspatch.modules",
    "Verify": "crosspatch.attribution",
    "Zero": "crosspatch.engine",
    "ablate": "crosspatch.engine",
    "attribute": "crosspatch.attribution",
    "audit": "crosspatch.referee",
    "cache_activations": "crosspatch.engine",
    "capture": "crosspatch.engine",
    "capture_any": "crosspatch.modules",
    "cuts": "crosspatch.engine",
    "generate": "crosspatch.engine",
    "generate_any": "crosspatch.modules",
    "group": "crosspatch.engine",
    "open_model": "crosspatch.models",
    "parse_site": "crosspatch.sites",
    "patch": "crosspatch.engine",
    "patch_any": "crosspatch.modules",
    "patch_metrics": "crosspatch.engine",
    "patch_modules": "crosspatch.modules",
    "patched_logits": "crosspatch.engine",
    "path_patch": "crosspatch.engine",
    "plan_patch": "crosspatch.engine",
    "split_effects": "crosspatch.engine",
    "summed": "crosspatch.engine",
    "windows": "crosspatch.engine",
    "write": "crosspatch.engine",
}
_FLOORS = ("attribution", "audio", "circuits", "flow", "lenses", "metrics", "tasks")
__all__ = [
    "Ablation",
    "ActivationCache",
    "Add",
    "AuditPlan",
    "Crew",
    "CrosspatchError",
    "Decoded",
    "Edge",
    "Effects",
    "Estimate",
    "Estimator",
    "Generated",
    "Group",
    "Layout",
    "Mean",
    "Model",
    "Noise",
    "Options",
    "PatchedLogits",
    "Paths",
    "Plan",
    "Project",
    "Replace",
    "Resample",
    "Scale",
    "Site",
    "Trial",
    "Verify",
    "Zero",
    "ablate",
    "attribute",
    "attribution",
    "audio",
    "audit",
    "cache_activations",
    "capture",
    "capture_any",
    "circuits",
    "cuts",
    "flow",
    "generate",
    "generate_any",
    "group",
    "lenses",
    "load",
    "metrics",
    "open_model",
    "parse_site",
    "patch",
    "patch_any",
    "patch_metrics",
    "patch_modules",
    "patched_logits",
    "path_patch",
    "plan_patch",
    "split_effects",
    "summed",
    "tasks",
    "windows",
    "write",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _FLOORS:
        return import_module(f"crosspatch.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'crosspatch' has no attribute {name!r}; it offers {', '.join(__all__)}")


def load(folder: "str | PathLike[str]") -> "Effects":
    """Load the effects that `Effects.save` wrote to a folder; an `Estimate` where they were estimated."""
    from crosspatch.engine import Effects

    effects = Effects.load(Path(folder))
    if "estimator" not in effects.provenance.get("settings", {}):
        return effects
    from crosspatch.attribution import Estimate

    return Estimate.load(Path(folder))
