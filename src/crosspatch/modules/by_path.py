"""Patching by module path: any `torch.nn.Module`, whatever its outputs, with no anatomy needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from crosspatch.core.errors import BadInput, NotFinite, UnknownName
from crosspatch.draw import Display, Displayed, number
from crosspatch.models.guard import refuse_compiled
from crosspatch.models.weights import untracked
from crosspatch.replay.recording import called
from crosspatch.replay.values import mapped, tensors

Score = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class ModuleEffects(Displayed):
    """Effects of replacing whole module outputs: `raw` is `[path, example]`, metric(patched) − metric(base).

    `skipped` says why a module was left out when all modules were asked for.
    """

    paths: tuple[str, ...]
    raw: Float32[np.ndarray, "path example"]
    base: Float32[np.ndarray, " example"]
    source: Float32[np.ndarray, " example"]
    skipped: Mapping[str, str]

    @property
    def values(self) -> Float32[np.ndarray, "path example"]:
        """Divide by the mean gap: 0 is the base run, 1 the source run."""
        return self.raw / np.float32((self.source - self.base).mean())

    def display(self) -> Display:
        """List the modules with the largest effects, in shares of the mean gap and in the metric's unit."""
        with np.errstate(divide="ignore", invalid="ignore"):  # without a gap there are no shares
            shares = dict(zip(self.paths, self.values.mean(axis=1).tolist(), strict=True))
        rows = [(path, number(shares[path]), number(raw, 3)) for path, raw in self.top(len(self.paths))]
        left = (f"{len(self.skipped)} modules were left out: see `skipped`.",) if self.skipped else ()
        title = f"Effects of {len(self.paths)} modules on {len(self.base)} examples"
        return Display(title, ("module", "effect", "raw"), rows, left)

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """List the paths with the largest absolute mean effect, in the metric's own unit."""
        means = self.raw.mean(axis=1)
        return [(self.paths[i], float(means[i])) for i in np.argsort(-np.abs(means), kind="stable")[:k]]


def patch_modules(
    module: nn.Module, *, base: Any, source: Any, metric: Score, paths: Sequence[str] | None = None
) -> ModuleEffects:
    """Put each module's output from the source run into the base run, one module at a time, one forward each.

    `base` and `source` are what the module is called with: a tensor, a tuple of arguments or a dict of keyword
    arguments, of the same shapes. `metric` turns the module's output into one number an example. A module that is
    called several times gets its k-th source output at its k-th call. Tensors inside tuples, lists and dicts are
    replaced.

    Raises:
        BadInput: the module is training, a path asked for is not run or its output cannot be replaced, or the metric
            does not give one number an example.
        UnknownName: a path that does not exist.
        NotFinite: the metric is not a number.
    """
    if module.training:
        raise BadInput("the module is in training mode, whose dropout makes every run another. Call .eval() first.")
    chosen = _paths(module, paths)
    refuse_compiled(module)
    with untracked(module):
        recorded, source_score = _record(module, source, metric, chosen)
        present, base_score = _record(module, base, metric, chosen)
        if len(source_score) != len(base_score):
            raise BadInput(
                f"the source run has {len(source_score)} examples, the base run {len(base_score)}: pair them."
            )
        reasons = {path: reason for path in chosen if (reason := _mismatch(recorded[path], present[path]))}
        if paths is not None and reasons:
            path, reason = next(iter(reasons.items()))
            raise BadInput(f"module {path!r} cannot be patched: {reason}.")
        kept = tuple(path for path in chosen if path not in reasons)
        rows = [_patched(module, base, metric, path, recorded[path]) - base_score for path in kept]
    raw = torch.stack(rows).cpu().numpy() if rows else np.zeros((0, len(base_score)), np.float32)
    return ModuleEffects(kept, raw, base_score.cpu().numpy(), source_score.cpu().numpy(), reasons)


def _paths(module: nn.Module, paths: Sequence[str] | None) -> tuple[str, ...]:
    known = [name for name, _ in module.named_modules() if name]
    aliases = {name for name, _ in module.named_modules(remove_duplicate=False) if name}
    for path in paths or ():
        if path not in aliases:
            raise UnknownName.of("module", path, known[:40], hint="List them with module.named_modules().")
    return tuple(paths) if paths is not None else tuple(known)


def _score(metric: Score, output: Any, run: str) -> Float[Tensor, " example"]:
    value = metric(output)
    if not isinstance(value, Tensor) or value.ndim != 1:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadInput(f"the metric gave {got}; it must give one number an example, a tensor [example].")
    if not torch.isfinite(value).all():
        first = int((~torch.isfinite(value)).nonzero()[0])
        raise NotFinite(f"the metric of the {run} is not finite on example {first}.")
    return value.float()


def _record(module: nn.Module, inputs: Any, metric: Score, paths: Sequence[str]) -> tuple[dict[str, list[Any]], Tensor]:
    """Run once and keep every output of the modules, in the order of their calls."""
    outputs: dict[str, list[Any]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[..., None]:
        return lambda _, __, output: outputs[path].append(mapped(output, torch.clone))

    handles = [module.get_submodule(path).register_forward_hook(keep(path), prepend=True) for path in paths]
    try:
        # A copy, since a module may write into its inputs, and they are needed again.
        return outputs, _score(metric, called(module, mapped(inputs, torch.clone)), "unpatched run")
    finally:
        for handle in handles:
            handle.remove()


def _patched(module: nn.Module, inputs: Any, metric: Score, path: str, outputs: Sequence[Any]) -> Tensor:
    """Run with one module's outputs replaced."""
    calls = iter(outputs)
    # Before all other hooks, so that models which gather hidden states by hooks of their own see what is written.
    part = module.get_submodule(path)
    handle = part.register_forward_hook(lambda *_: mapped(next(calls), torch.clone), prepend=True)
    try:
        return _score(metric, called(module, mapped(inputs, torch.clone)), f"run patched at {path}")
    finally:
        handle.remove()


def _mismatch(source: Sequence[Any], base: Sequence[Any]) -> str:
    """Say why a module's source outputs cannot stand in the base run; empty if they can."""
    if not base:
        return "it is not called in the base run"
    if len(source) != len(base):
        return f"it is called {len(source)} times in the source run and {len(base)} times in the base run"
    shapes = [[list(t.shape) for t in tensors(call)] for run in (source, base) for call in run]
    if not shapes[0]:
        return "its output holds no tensor"
    pairs = zip(shapes[: len(source)], shapes[len(source) :], strict=True)
    other = next(((first, second) for first, second in pairs if first != second), None)
    return f"its output has shapes {other[0]} in the source run and {other[1]} in the base run" if other else ""
