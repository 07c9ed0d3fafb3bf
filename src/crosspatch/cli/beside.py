"""What stands beside a run's effects on its page: attention of the heads it swept, the same sweep by other metrics."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspatch.cli.folder import ATTENTION, META, Place, is_complete
from crosspatch.cli.question import Question, with_setting
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, CrosspatchError

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects
    from crosspatch.lenses import HeadPatterns

METRICS = "metrics"  # the setting that names the folders of a sweep's other metrics


@dataclass(frozen=True)
class Beside:
    """What a question's run has besides its effects; `found` are the effects by each of its metrics.

    Attention is read when it is first asked for: one or two short forwards, for all metrics together.
    """

    question: Question
    place: Place
    voice: Voice
    found: "Sequence[Effects]"

    @cached_property
    def attention(self) -> "HeadPatterns | None":
        """The attention of all heads on the first pairs, if heads were swept; None where it cannot be read."""
        from crosspatch.lenses import HeadPatterns, read_head_patterns
        from crosspatch.lenses.head_patterns import group_size, rank_heads

        model, task, first = self.question.model, self.question.task, self.found[0]
        heads = rank_heads(first, group_size(model.anatomy.heads, model.anatomy.kv_heads))
        if not heads or model.together:  # processes that hold a model together would have to read it together
            return None
        if self.place.resume and self.place.complete and (kept := HeadPatterns.found(self.place.folder)) is not None:
            return kept
        try:
            return read_head_patterns(model, task, first=heads)
        except BadInput as problem:
            self.voice.say(f"the page shows no attention: {problem}")
            return None

    def others(self, effects: "Effects") -> "list[Effects]":
        """The same sweep by the other metrics, where all are complete."""
        return [each for each in self.found if each is not effects and is_complete(each)]


def name_metrics(found: "Sequence[Effects]", places: Sequence[Place]) -> "list[Effects]":
    """Write into each metric's effects which folders beside its own hold the others."""
    if len(found) < 2:
        return list(found)
    names = {effects.metric: place.folder.name for effects, place in zip(found, places, strict=True)}
    return [with_setting(effects, METRICS, names) for effects in found]


def keep_attention(folder: Path, patterns: "HeadPatterns | None") -> None:
    """Save attention in a run folder; without any, take away what an earlier run left. Raises BadInput if it cannot."""
    if patterns is not None:
        patterns.save(folder)
        return
    for name in ATTENTION:
        (folder / name).unlink(missing_ok=True)


def beside_in(folder: Path, effects: "Effects") -> dict[str, Any]:
    """Load what stands beside saved effects, as arguments of their page. Raises CorruptFile for damaged attention."""
    from crosspatch.lenses import HeadPatterns

    return {"attention": HeadPatterns.found(folder), "others": _others_in(folder, effects)}


def _others_in(folder: Path, effects: "Effects") -> "list[Effects]":
    """Load the same sweep by other metrics from the folders beside this one, without those moved away or changed."""
    from crosspatch import load
    from crosspatch.report.metrics import same_sweep

    named, found = effects.provenance.get("settings", {}).get(METRICS), []
    for metric, name in (named if isinstance(named, dict) else {}).items():
        other = folder.resolve().parent / Path(str(name)).name  # a folder's name, never a path
        if metric == effects.metric or not (other / META).is_file():
            continue
        with suppress(CrosspatchError):
            each = load(other)
            if each.metric == metric and is_complete(each) and same_sweep(effects, each):
                found.append(each)
    return found
