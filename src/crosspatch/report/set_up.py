"""Say in words how a result was made: the corrupt runs, ablations, paths, cuts and windows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crosspatch.core.names import counted
from crosspatch.engine.wording import ends
from crosspatch.sites import Edge, Group

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects

DIRECTIONS = {"denoise": "clean into corrupted", "noise": "corrupted into clean"}
_WHERE_THEY_DIFFER = "where the prompts differ"


def kicker(effects: "Effects") -> str:
    """Name the method."""
    settings = _settings(effects)
    if settings.get("estimator"):
        return "Estimate of activation patching"
    if settings.get("ablation"):
        return "Ablation"
    if settings.get("to"):
        return "Path patching"
    return "Attention knockout" if _cut(effects) else "Activation patching"


def how_text(effects: "Effects") -> str:
    """Say in a few words what was done: `denoise`, `noise, gaussian`, `mean ablation`, `noise, paths to logits`."""
    settings = _settings(effects)
    made = _part(settings, "corruption").get("by", "replace")
    more = "" if made == "replace" else f", {made}"
    if settings.get("estimator"):
        return f"{effects.direction}{more}, estimated by {settings['estimator_title']}"
    if settings.get("ablation"):
        return f"{settings['ablation']['by']} ablation{more}"
    if settings.get("to"):
        return f"{effects.direction}, paths to {settings['to']}{more}"
    return f"cuts{more}" if _cut(effects) else effects.direction + more


def how_chips(effects: "Effects") -> list[tuple[str, str]]:
    """Name direction, corruption, ablation and paths, as (name, value)."""
    settings = _settings(effects)
    made = _part(settings, "corruption").get("by", "replace")
    ablation = _part(settings, "ablation").get("by", "")
    direction = "" if ablation or _cut(effects) else f"{effects.direction} ({DIRECTIONS[effects.direction]})"
    return [
        ("estimated by", str(settings.get("estimator_title") or "")),
        ("ablation", ablation),
        ("paths to", str(settings.get("to") or "")),
        ("direction", direction),
        ("corruption", "" if made == "replace" else str(made)),
    ]


def how_lines(effects: "Effects") -> list[str]:
    """Say in sentences how the corrupt runs were made and what was put in; none for plain patches of plain pairs."""
    settings = _settings(effects)
    corruption, found = _part(settings, "corruption"), []
    if corruption.get("by", "replace") != "replace":
        found.append(f"Corrupted runs: {corruption_words(corruption)}.")
    found += _estimate_lines(settings)
    found += _ablation_lines(_part(settings, "ablation"))
    found += _path_lines(settings, effects.direction)
    found += _cut_lines(effects)
    found += _window_lines(effects)
    return found


def corruption_words(corruption: Mapping[str, Any]) -> str:
    """Say how a corrupt run is made: `Gaussian noise of 3 standard deviations at S2, 10 draws a pair (seed 0)`."""
    by, at = str(corruption.get("by", "replace")), str(corruption.get("at") or _WHERE_THEY_DIFFER)
    place = at if at == _WHERE_THEY_DIFFER else "at " + at.replace(",", ", ")
    if by == "gaussian":
        size, draws = _plain(corruption.get("sigma", 3)), int(corruption.get("draws", 1))
        return (
            f"Gaussian noise of {size} standard deviation{'' if size == '1' else 's'} on the clean prompt's embeddings "
            f"{place}, {counted(draws, 'draw')} a pair (seed {corruption.get('seed', 0)})"
        )
    known = {
        "replace": "the pair's own corrupted prompt",
        "zero": f"the clean prompt with embeddings of zero {place}",
        "mean": f"the clean prompt with the mean embedding of the task's clean prompts {place}",
        "resample": f"the clean prompt with another pair's tokens {place} (seed {corruption.get('seed', 0)})",
    }
    return known.get(by, f"the task's {by} prompts")


def shared_ends(directions: Iterable[str], *, normalised: bool) -> tuple[str, str]:
    """Give the words for both ends of a scale that several directions share, those of each where they differ."""
    words = [ends(way, normalised=normalised) for way in dict.fromkeys(directions)]
    low, high = (" / ".join(dict.fromkeys(pair)) for pair in zip(*words, strict=True))
    return low, high


def _ablation_lines(ablation: Mapping[str, Any]) -> list[str]:
    if not ablation:
        return []
    count = ablation.get("reference_prompts")
    of = f"{count} reference prompts" if isinstance(count, int) else "the corrupted prompts of the same layout"
    written = {
        "zero": "zeros are written",
        "mean": f"the mean over {of}, at each position, is written",
        "resample": f"activations of one of {of}, drawn at random (seed {ablation.get('seed', 0)}), are written",
    }
    by = str(ablation.get("by"))
    return [f"{by.capitalize()} ablation: {written.get(by, by)} into the clean run."]


def _estimate_lines(settings: Mapping[str, Any]) -> list[str]:
    if not settings.get("estimator"):
        return []
    signs = "" if settings.get("signed", True) else " They are magnitudes without sign, drawn along the gap."
    return [
        f"Effects are estimated from gradients of the run that is patched ({settings['estimator_title']}), not "
        f"measured: they can be wrong without a sign of it.{signs}"
    ]


def _path_lines(settings: Mapping[str, Any], direction: str) -> list[str]:
    if not settings.get("to"):
        return []
    held = "clean" if direction == "noise" else "corrupted"
    to = "the final stream" if settings["to"] == "logits" else settings["to"]
    passed = (
        f"Paths are single edges: every other head and MLP is held at the {held} run."
        if settings.get("through") == "nothing"
        else f"Paths pass MLPs, which are recomputed; every other head is held at the {held} run."
    )
    return [f"Each site sends to {to} alone. {passed}"]


def _cut_lines(effects: "Effects") -> list[str]:
    edges = _cut(effects)
    if not edges:
        return []
    heads = sorted({edge.head for edge in edges if edge.head is not None})
    of = f" in head{'s' if len(heads) > 1 else ''} {', '.join(map(str, heads))}" if heads else ""
    return [
        f"Attention from {edges[0].query} to {edges[0].key} is cut{of} in the layers named, the rest of each pattern "
        "normalised anew; a row of the map is the first layer cut."
    ]


def _window_lines(effects: "Effects") -> list[str]:
    kinds = dict.fromkeys(site.kind for site in effects.sites if isinstance(site, Group) and " ×" in site.kind)
    if not kinds:
        return []
    return [f"{', '.join(kinds)}: so many adjacent layers patched together; a window stands at its middle layer."]


def _cut(effects: "Effects") -> Sequence[Edge]:
    """List the attention edges that are cut."""
    groups = (site for site in effects.sites if isinstance(site, Group))
    return [member for group in groups for member in group.members if isinstance(member, Edge)]


def _settings(effects: "Effects") -> Mapping[str, Any]:
    return _part(effects.provenance, "settings")


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
