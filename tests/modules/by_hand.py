"""What one does without the library: read off where a kind of site is, look there with a plain hook, write there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crosspatch.modules.cells import place_of
from crosspatch.sites import split_stack
from modules.trials import CASES
from naive.modules import run_hooked


@dataclass(frozen=True)
class Spot:
    """Where a hook stands, and the first column and the width of each unit."""

    path: str
    side: str
    item: int | str | None
    starts: Sequence[int]
    width: int

    def columns(self, unit):
        if not self.starts:
            return slice(None)
        starts = self.starts if unit is None else [self.starts[unit]]
        return [column for start in starts for column in range(start, start + self.width)]


class ByHand:
    """A trial's runs by whole forwards of the module, with plain hooks that come before all others.

    Where a kind is, and how it is cut into units, says the zoo's own table, which was read off the code. Of a kind that
    it lacks only the module's path is the library's: there the first argument or the first item of the output is meant.
    `stacks` is that table for a model that is not of the zoo.
    """

    def __init__(self, given, direction="denoise", stacks=None):
        base, source = (given.corrupt, given.clean) if direction == "denoise" else (given.clean, given.corrupt)
        self.stacks = (CASES[given.name].stacks if given.name in CASES else {}) if stacks is None else stacks
        self.given, self.runs, self.kept, self.spots = given, {"base": base, "source": source}, {}, {}
        every = torch.arange(given.count)
        self.metric = (lambda output: given.metric(output, every)) if takes_rows(given.metric) else given.metric
        self.base = self._run([])

    def spot(self, site):
        """Say where a site is."""
        if (site.kind, site.layer) not in self.spots:
            self.spots[site.kind, site.layer] = self._read(site) or self._guessed(site)
        return self.spots[site.kind, site.layer]

    def look(self, spots):
        """Keep what the source run has at some spots, call by call, from one forward."""
        new = [spot for spot in dict.fromkeys(spots) if spot not in self.kept]
        self.kept |= {spot: [] for spot in new}
        if new:
            self._run([self._hook(spot, self._noting(spot)) for spot in new], "source")

    def value(self, site):
        """Return what the source run has at a site, `[example, position, column]`."""
        spot = self.spot(site)
        self.look([spot])
        return self._flat(self.kept[spot][0])[0][..., spot.columns(site.unit)]

    def effect(self, *sites):
        """Return metric(patched) − metric(base) where all of the sites are written in one forward."""
        spots = {site: self.spot(site) for site in sites}
        self.look(spots.values())
        patched = self._run([self._hook(spot, self._writing(spot, site)) for site, spot in spots.items()])
        return (patched - self.base).numpy()

    def _run(self, hooks, run="base"):
        return run_hooked(self.given.module, self.runs[run], self.metric, hooks)

    def _hook(self, spot, act):
        return self.given.module.get_submodule(spot.path), spot.side, spot.item, act

    def _noting(self, spot):
        return lambda value: self.kept[spot].append(value.clone()) or value

    def _writing(self, spot, site):
        calls = iter(self.kept[spot])

        def write(value):
            (own, back), (taken, _) = self._flat(value), self._flat(next(calls))
            at = slice(None) if site.position == "all" else slice(site.position, site.position + 1)
            own = own.clone()
            block = own[:, at]
            block[..., spot.columns(site.unit)] = taken[:, at][..., spot.columns(site.unit)]
            return back(own)

        return write

    def _flat(self, value):
        """See a value as [example, position, column]: images by pixel, entries side by side by example."""
        if value.ndim == 4:
            return value.flatten(2).transpose(1, 2), lambda new: new.transpose(1, 2).reshape(value.shape)
        return value.reshape(self.given.count, -1, value.shape[-1]), lambda new: new.reshape(value.shape)

    def _read(self, site):
        """Look a site up in the zoo's table, whose name for a second stream's parts is not `cross`."""
        block, kind = self.given.stack(site.kind).blocks[site.layer], split_stack(site.kind)[1]
        around = [each for each in self.stacks.values() if block in [f"{each.path}.{number}" for number in each.blocks]]
        wanted = [each.parts.get(kind) for each in around[:1]]
        if kind.startswith("cross.") and wanted == [None]:
            wanted = [each.parts.get(kind.replace("cross", "attn")) for each in around[1:]]
        for part in filter(None, wanted):
            starts = [part.start + head * part.d_head for head in range(part.n_heads)]
            starts, width = (range(part.width), 1) if kind == "mlp.hidden" else (starts, part.d_head)
            return Spot(f"{block}.{part.path}".rstrip("."), part.side, part.item, tuple(starts), width)
        return None

    def _guessed(self, site):
        """Take the library's path and cut, and see for oneself which item is meant."""
        place, found = place_of(self.given, site), []
        path, side = place.spot.path, place.spot.side
        part = self.given.module.get_submodule(path)

        def look(_, args, *rest):
            if side == "input":
                found.append("hidden_states" if not args and "hidden_states" in rest[0] else None)
            else:
                found.append(None if isinstance(rest[-1], torch.Tensor) else 0)

        hooked = part.register_forward_pre_hook if side == "input" else part.register_forward_hook
        handle = hooked(look, with_kwargs=True)
        try:
            self._run([])
        finally:
            handle.remove()
        return Spot(path, side, found[0], tuple(place.starts), place.width)


def takes_rows(metric):
    return metric.__code__.co_argcount - len(metric.__defaults__ or ()) > 1
