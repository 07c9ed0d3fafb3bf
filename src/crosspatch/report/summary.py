"""A result as one JSON document, and as a line."""

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects
    from crosspatch.engine.tables import Row


def title(effects: "Effects") -> str:
    """Name what was run, in one line."""
    from crosspatch.report.set_up import how_text  # sites and numbers are loaded only where there are some

    settings = effects.provenance.get("settings", {})
    seconds = settings.get("seconds")
    took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return (
        f"{effects.model} · {effects.task} · {how_text(effects)} · {effects.metric}: "
        f"{len(effects.sites):,} sites × {effects.n} pairs{took}"
    )


def summary_of(effects: "Effects", *, top: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe effects as a JSON document: what was asked, the finding, the strongest sites, the cautions."""
    provenance = effects.provenance
    settings = provenance.get("settings", {})
    return {
        "crosspatch": provenance.get("crosspatch"),
        "time": provenance.get("time"),
        "complete": bool(settings.get("complete", True)),
        "model": effects.model,
        "model_hash": settings.get("model_hash"),
        "task": effects.task,
        "task_settings": settings.get("task_settings", {}),
        "n": effects.n,
        "seed": provenance.get("seed"),
        "direction": effects.direction,
        "corruption": settings.get("corruption"),
        "ablation": settings.get("ablation"),
        "estimator": settings.get("estimator_settings"),
        "agreement": _agreement(effects),
        "to": settings.get("to"),
        "through": settings.get("through"),
        "metric": effects.metric,
        "metric_unit": effects.metric_unit,
        "base": _mean(effects.base),
        "source": _mean(effects.source),
        "selection": settings.get("sites"),
        "sites": len(effects.sites),
        "seconds": settings.get("seconds"),
        "plan": settings.get("plan", {}),
        "finding": effects.finding(),
        "top": [row_of(row) for row in effects.top(top)],
        "cautions": list(effects.cautions()),
        **(more or {}),
    }


def _agreement(effects: "Effects") -> dict[str, Any] | None:
    """Describe how an estimate compares with what was verified; None for anything else."""
    found = getattr(effects, "agreement", None)
    if found is None:
        return None
    lists = {"sign_errors": found.sign_errors, "false_negatives": found.false_negatives}
    return {
        "verified": int(found.top.sum()),
        "drawn": int((~found.top).sum()),
        "pearson": found.pearson,
        "spearman": found.spearman,
        **{name: [str(site) for site in sites] for name, sites in lists.items()},
        "exact": [row_of(row) for row in effects.exact.rows(range(len(found.sites)))],  # pyright: ignore[reportAttributeAccessIssue]
    }


def row_of(row: "Row") -> dict[str, Any]:
    """Describe one site's effect as JSON."""
    site = row.site
    return {
        "site": str(site),
        "kind": site.kind,
        "layer": site.layer,
        "unit": site.unit,
        "position": site.position,
        "hint": row.hint,
        "effect": row.effect,
        "low": row.low,
        "high": row.high,
        "raw": row.raw,
        "q": row.q,
        "n": row.n,
    }


def _mean(values: Any) -> float | None:
    """Average the numbers in an array; None if there is none."""
    there = [float(value) for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else None


def to_json(content: Mapping[str, Any]) -> str:
    """Write a JSON document that any terminal can carry; what is not a finite number becomes null."""
    return json.dumps(plain(content), allow_nan=False, ensure_ascii=True, indent=2)


def plain(value: Any) -> Any:
    """Make JSON of a value: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, PurePath):
        return str(value)
    number = float(value)  # numpy's numbers too
    return number if math.isfinite(number) else None
