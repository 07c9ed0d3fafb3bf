"""What is written at which step of a generation, and where: edits of sites over prompts that grow token by token."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine.access import applied, expanded, touching
from crosspatch.engine.edits import Add, Edit, Noise, Replace, Resample
from crosspatch.models.model import Model
from crosspatch.sites import Site, resolve_position

WHEN = ("prefill", "always")
When = str | Collection[int]
# Positions that mean the newest token once the prompt has been read.
_NEWEST = (None, "all", "end", -1)


@dataclass(frozen=True)
class Asked:
    """One prompt: its token ids, its named positions, and how often the same prompt came before it."""

    ids: tuple[int, ...]
    names: Mapping[str, int]
    before: int = 0

    def seed(self, seed: int) -> int:
        """Return a seed of this prompt's own, the same on every machine; other prompts have no part in it."""
        text = repr((seed, self.ids, self.before))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def place(self, site: Site) -> slice:
        """Return the positions of the prompt that a site means.

        Raises:
            UnknownName: a name that this prompt's positions do not have.
            BadInput: a position beyond the prompt.
        """
        length, position = len(self.ids), site.position
        if position in (None, "all"):
            return slice(0, length)
        if isinstance(position, int) and not -length <= position < length:
            raise BadInput(
                f"{site}: the prompt has {length} tokens. Tokens that are yet to come are written at their own step: "
                "leave the position out, or write @end, and say when={…}."
            )
        index = resolve_position(position, {"end": length - 1} | dict(self.names), length)
        return slice(index, index + 1)


@dataclass(frozen=True)
class Script:
    """Edits of sites, in order, and the steps at which they are written (None: at each).

    Step k is the forward that predicts the k-th new token; step 0 reads the prompt, later ones the newest token.
    """

    model: Model
    edits: tuple[tuple[Site, Edit], ...] = ()
    steps: frozenset[int] | None = frozenset({0})

    @classmethod
    def of(cls, model: Model, edits: Mapping[str | Site, Edit], when: When, *, max_tokens: int) -> "Script":
        """Read edits and steps.

        Raises:
            UnknownName: no such site or time.
            BadInput: a site that cannot be written here, a step that is never run, or edits and steps without a common
                token.
        """
        steps = _steps(when, max_tokens)
        found = [(site, edit) for text, edit in edits.items() for site in _sites(model, text)]
        script = cls(model, tuple(found), steps)
        for site, _ in found:
            if steps is not None and not any(script.writes(site, step) for step in steps):
                raise BadInput(
                    f"{site} is a place in the prompt, which is read at step 0, and when={sorted(steps)} leaves that "
                    "out. Add 0, or write @end (or no position) for the newest token."
                )
        idle = [step for step in sorted(steps or ()) if not any(script.writes(site, step) for site, _ in found)]
        if found and idle:
            raise BadInput(
                f"nothing would be written at step {idle[0]}: it reads the newest token, and all edits are of places "
                "in the prompt. Write @end (or no position) for the newest token, or leave the step out."
            )
        return script

    def writes(self, site: Site, step: int) -> bool:
        """Tell whether a site is written at a step."""
        return (self.steps is None or step in self.steps) and (step == 0 or site.position in _NEWEST)

    def steps_written(self, count: int) -> tuple[int, ...]:
        """List which of the first `count` steps write something."""
        return tuple(step for step in range(count) if any(self.writes(site, step) for site, _ in self.edits))

    def edits_of(self, number: int, prompts: Sequence[Asked]) -> tuple[Edit, ...]:
        """Return the edits as one prompt of all gets them: its own row of a value, its own draw."""
        return tuple(_own(edit, number, prompts) for _, edit in self.edits)


def _steps(when: When, max_tokens: int) -> frozenset[int] | None:
    if isinstance(when, str):
        if when not in WHEN:
            raise UnknownName.of("time", when, WHEN, hint="Or give steps, such as {0, 3}: 0 reads the prompt.")
        return frozenset({0}) if when == "prefill" else None
    wrong = [step for step in when if isinstance(step, bool) or not isinstance(step, int) or step < 0]
    wrong += [step for step in when if not wrong and step >= max_tokens]
    if wrong or not when:
        raise BadInput(
            f"when={when!r}: {'no step' if not wrong else f'step {wrong[0]!r}'} cannot be written. With "
            f"max_tokens={max_tokens} the steps are 0 (the prompt) to {max_tokens - 1}; or 'prefill', 'always'."
        )
    return frozenset(when)


def _sites(model: Model, text: str | Site) -> tuple[Site, ...]:
    sites = expanded(model, text if isinstance(text, str) else (text,))
    for site in sites:
        if site.kind == "attn.pattern":
            raise BadInput(
                f"{site}: patterns are not written while generating, since a cache decides which keys are there. Write "
                "attn.head, or run the model yourself inside `write`."
            )
        if site.kind == "logits" and site.position not in _NEWEST:
            raise BadInput(f"{site}: only the last token's logits choose the next token. Write logits@end.")
    return sites


def _own(edit: Edit, number: int, prompts: Sequence[Asked]) -> Edit:
    if isinstance(edit, (Replace, Add)) and edit.value.ndim == 3 and len(edit.value) == len(prompts):
        return replace(edit, value=edit.value[number : number + 1])
    if isinstance(edit, (Noise, Resample)):
        return replace(edit, seed=prompts[number].seed(edit.seed))
    return edit


@dataclass
class Rewriting:
    """A script at work on prompts of one length; `step` says which forward is next.

    Without a cache each forward reads all tokens, so all that was written up to its step is written again. That gives
    what a cache would hold, since a token changes nothing before it.
    """

    script: Script
    prompts: Sequence[Asked]
    edits: Sequence[Sequence[Edit]]  # one row a prompt, in the script's order
    cache: bool
    step: int = 0
    fired: set[tuple[str, int | None]] = field(default_factory=set)

    def hooks(self) -> AbstractContextManager[None]:
        """Keep hooks on all written sites while the block lasts."""
        keys = dict.fromkeys((site.kind, site.layer) for site, _ in self.script.edits)
        return touching(self.script.model, {key: partial(self._change, key) for key in keys})

    def check_fired(self) -> None:
        """Raise BadInput if a site's part of the model was not run."""
        for site, _ in self.script.edits:
            if (site.kind, site.layer) not in self.fired:
                raise BadInput(f"nothing was written at {site}: the model's forward does not run that part.")

    def _change(self, key: tuple[str, int | None], value: Tensor) -> Tensor:
        self.fired.add(key)
        value, points = value.clone(), self.script.model.anatomy.points
        for index, (site, _) in enumerate(self.script.edits):
            if (site.kind, site.layer) != key:
                continue
            columns = points[site.kind].columns(site.unit) if site.kind in points else slice(None)
            for row, prompt in enumerate(self.prompts):
                for place in self._places(site, prompt):
                    spot = slice(row, row + 1), place, columns
                    value[spot] = applied(site, self.edits[row][index], value[spot])
        return value

    def _places(self, site: Site, prompt: Asked) -> Iterator[slice]:
        """Yield the positions of the present forward at which a site is written, one slice a step."""
        length, unseen = len(prompt.ids), 0
        if self.cache and self.step:
            unseen = length + self.step - 1  # the cache holds what is before
        for step in range(self.step if self.cache else 0, self.step + 1):
            if self.script.writes(site, step):
                newest = length + step - 1 - unseen
                yield prompt.place(site) if step == 0 else slice(newest, newest + 1)
