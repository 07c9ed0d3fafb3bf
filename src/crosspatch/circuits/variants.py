"""Many circuits in one pass, each a variant of a run that is known: only what may differ from it is computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.circuits.machine import Copies, Machine, State, units_of
from crosspatch.models.blocks import at_least_single
from crosspatch.models.inside import PROJECTED
from crosspatch.sites import Site


@dataclass(frozen=True)
class Stale:
    """What must be computed: receivers that may differ from the known run in some variant, and their nodes.

    `slots` number the senders that are computed. `skipped` are receivers that differ, but that nothing reads.
    """

    receivers: Bool[np.ndarray, " receiver"]
    skipped: Bool[np.ndarray, " receiver"]
    slots: Mapping[int, int]

    @classmethod
    def of(
        cls,
        reach: Bool[np.ndarray, "receiver sender"],
        known: State,
        masks: Bool[np.ndarray, "circuit place receiver sender"],
    ) -> "Stale":
        """Follow changed edges down the graph, and from the logits back to what is read.

        `reach` says what a receiver changes.
        """
        changed: np.ndarray = np.any(masks != known.masks[None], axis=(0, 1, 3)) | ~known.valid
        read: np.ndarray = np.any(masks, axis=(0, 1))
        stale, needed = np.zeros(reach.shape[1], dtype=bool), np.zeros(reach.shape[1], dtype=bool)
        wanted: np.ndarray = ~np.any(reach, axis=-1)  # the logits
        for number in range(len(reach)):
            changed[number] |= bool((read[number] & stale).any())
            if changed[number]:
                stale |= reach[number]
        for number in reversed(range(len(reach))):
            wanted[number] |= bool((reach[number] & needed).any())
            if wanted[number]:
                needed |= read[number]
        # Also what nobody reads, where a receiver is shared with what is read: else it would count as known. But
        # nothing that only skipped receivers change: its layer need not run, and its slot would stay unwritten.
        computed = np.flatnonzero(np.any(reach[changed & wanted], axis=0))
        return cls(changed & wanted, changed & ~wanted, {int(u): slot for slot, u in enumerate(computed)})

    @cached_property
    def senders(self) -> Int[np.ndarray, " slot"]:
        """The computed senders' numbers, by slot."""
        return np.array(list(self.slots), dtype=np.int64)


@dataclass
class Variants:
    """Circuits on their way through the layers. `own[c, slot]` is what a stale sender adds in circuit c."""

    machine: Machine
    known: State
    masks: Bool[np.ndarray, "circuit place receiver sender"]
    stale: Stale
    own: Float[Tensor, "circuit slot token d_model"]
    projected: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, machine: Machine, known: State, masks: Bool[np.ndarray, "circuit place receiver sender"]) -> "Variants":
        """Set circuits up beside a known run."""
        stale = Stale.of(machine.reach, known, masks)
        sent = machine.clean.sent
        own = sent.new_empty(len(masks), len(stale.slots), *sent.shape[1:])
        return cls(machine, known, masks, stale, own)

    @property
    def count(self) -> int:
        """Number of circuits."""
        return len(self.masks)

    def run(self) -> Float[Tensor, "circuit pair read d_model"]:
        """Run all layers; return the final stream at the positions read."""
        numbers = self._numbers
        for layer in range(self.machine.layers):
            attention = [n for kind in PROJECTED for n in numbers[kind, layer] if self.stale.receivers[n]]
            if attention:
                self._attention(layer, attention)
            mlp = [n for n in numbers.get(("mlp.in", layer), []) if self.stale.receivers[n]]
            if mlp:
                self._mlp(layer, mlp[0])
        return self._final(numbers["logits", None][0])

    @cached_property
    def _numbers(self) -> dict[tuple[str, int | None], list[int]]:
        found: dict[tuple[str, int | None], list[int]] = {}
        for number, site in enumerate(self.machine.graph.receivers):
            found.setdefault((site.kind, site.layer), []).append(number)
        return found

    def _attention(self, layer: int, receivers: Sequence[int]) -> None:
        machine, maps = self.machine, self.machine.maps[layer]
        given = self._projections(layer, receivers)
        copies = Copies(machine.lane, self.count)
        still = machine.absent.attention[layer].to(given["attn.q"].dtype)
        hidden = copies.packed(still.expand(self.count, *still.shape))
        packed = {kind: copies.packed(value) for kind, value in given.items()}
        z = machine.inside.attended(layer, hidden, packed, copies.segments)
        change = copies.apart(maps.scaled(z)) - machine.absent.heads[layer]
        first = 1 + layer * (machine.graph.heads + machine.graph.mlps)
        for head, part in enumerate(change.chunk(machine.graph.heads, -1)):
            slot = self.stale.slots.get(first + head)
            if slot is not None:
                self._keep(first + head, maps.writes(part.flatten(0, 1), head).unflatten(0, part.shape[:2]))

    def _keep(self, sender: int, adds: Float[Tensor, "circuit token d_model"]) -> None:
        """Keep what a stale sender adds; exactly nothing where no edge of any circuit leads into it."""
        self.own[:, self.stale.slots[sender]] = adds if self._speaks(sender) else 0

    def _speaks(self, sender: int) -> bool:
        """Whether a node may add more than in the absent run: some edge leads into it."""
        if not self.machine.absent.is_run:
            return True
        return bool(self.masks[:, :, self.machine.reach[:, sender]].any())

    def _projections(self, layer: int, receivers: Sequence[int]) -> dict[str, Float[Tensor, "circuit token _ _"]]:
        """Return queries, keys and values of all units: the stale ones from their own streams."""
        machine, graph = self.machine, self.machine.graph
        streams, index = self._streams(receivers, machine.absent.attention[layer])
        read = _Projector(machine, layer, streams)
        found = {kind: [v for v in self.known.projected[layer][kind].unbind(1)] for kind in PROJECTED}
        for kind, units, rows in _alike([graph.receivers[number] for number in receivers], index):
            for unit, value in zip(units, read(kind, units, rows).unbind(-2), strict=True):
                found[kind][unit] = value
        out = {}
        for kind, units in found.items():
            out[kind] = torch.stack([unit.expand(self.count, *unit.shape[-2:]) for unit in units], dim=2)
        self.projected[layer] = out
        return out

    def _mlp(self, layer: int, receiver: int) -> None:
        machine = self.machine
        streams, index = self._streams([receiver], machine.absent.mlp[layer])
        sender = (layer + 1) * (machine.graph.heads + 1)
        copies = Copies(machine.lane, len(streams))
        hidden = copies.packed(streams.to(machine.dtype))
        added = at_least_single(copies.apart(machine.inside.mlp(layer, hidden, copies.segments)))
        change = added - machine.absent.mlps[layer]
        self._keep(sender, _taken(change, index[:, 0]))

    def _final(self, receiver: int) -> Float[Tensor, "circuit pair read d_model"]:
        reads = self.machine.reads
        streams, index = self._streams([receiver], self.machine.absent.final, tokens=reads.flatten())
        return _taken(streams, index[:, 0]).unflatten(1, reads.shape)

    def _streams(
        self, receivers: Sequence[int], absent: Float[Tensor, "_ d_model"], tokens: Tensor | None = None
    ) -> tuple[Float[Tensor, "stream _ d_model"], Int[np.ndarray, "circuit receiver"]]:
        """Return the different streams that some receivers read, and which of them each reads in each circuit."""
        mixing = Mixing.of(self.masks[:, :, receivers], self.stale)
        absent = absent if tokens is None else absent[tokens]
        held, of_held = _different(mixing.held.reshape(len(mixing.held), -1))
        held = mixing.held[held]
        known = absent.repeat(len(held), 1, 1)  # a copy: it is written to
        spots = self._tokens_of(tokens)
        for place, chosen in enumerate(spots):
            _add(known, held[:, place], self.known.sent, chosen)
        if not mixing.rows_of:
            return known, of_held[mixing.index]
        out = known[torch.from_numpy(of_held).to(known.device)]  # a copy, even of one row
        for circuit, rows in mixing.rows_of.items():
            for place, chosen in enumerate(spots):
                _add(out[rows], mixing.live[rows, place], self.own[circuit], chosen)
        return out, mixing.index

    def _tokens_of(self, tokens: Tensor | None) -> list["Chosen"]:
        """Return for each place which rows of the streams it is, and which tokens these are; None stands for all."""
        places = self.machine.tokens_of
        if len(places) == 1:
            return [Chosen(None, tokens)]
        if tokens is None:
            return [Chosen(place, place) for place in places]
        rows = [torch.isin(tokens, place).nonzero().flatten() for place in places]
        return [Chosen(row, tokens[row]) for row in rows]

    def adopt(self, circuit: int) -> None:
        """Make the known run that of one of these circuits, in place."""
        self.known.masks[:] = self.masks[circuit]
        self.known.valid[self.stale.receivers] = True
        self.known.valid[self.stale.skipped] = False
        if len(self.stale.senders):
            senders = torch.from_numpy(self.stale.senders).to(self.own.device)
            self.known.sent[senders] = self.own[circuit]
        for layer, kinds in self.projected.items():
            for kind, value in kinds.items():
                self.known.projected[layer][kind].copy_(value[circuit])


@dataclass(frozen=True)
class Chosen:
    """Rows of a stream and the tokens that they are."""

    rows: Tensor | None
    tokens: Tensor | None


def _add(
    out: Float[Tensor, "stream row d_model"],
    weights: Bool[np.ndarray, "stream sender"],
    sent: Float[Tensor, "sender token d_model"],
    chosen: Chosen,
) -> None:
    """Add the weighed sum of what senders add, at some tokens, in place."""
    used = np.flatnonzero(weights.any(0))
    if not len(used) or not len(out):
        return
    if 2 * len(used) < used[-1] + 1:
        sent = sent[torch.from_numpy(used).to(sent.device)]
        weights = weights[:, used]
    else:
        sent, weights = sent[: used[-1] + 1], weights[:, : used[-1] + 1]
    sent = sent if chosen.tokens is None else sent[:, chosen.tokens]
    by = torch.from_numpy(weights.astype(np.float32)).to(sent)
    if chosen.rows is None:
        out.flatten(1).addmm_(by, sent.flatten(1))
    else:
        out[:, chosen.rows] += (by @ sent.flatten(1)).view(len(out), -1, out.shape[-1])


@dataclass(frozen=True)
class Mixing:
    """The different streams of some receivers: `held` are edges from known senders, `live` those from stale ones.

    `index[c, r]` is the stream that receiver r reads in circuit c; `rows_of[c]` are the streams that only circuit c
    has, since what stale senders add is its own.
    """

    held: Bool[np.ndarray, "stream place sender"]
    live: Bool[np.ndarray, "stream place slot"]
    index: Int[np.ndarray, "circuit receiver"]
    rows_of: Mapping[int, slice]

    @classmethod
    def of(cls, masks: Bool[np.ndarray, "circuit place receiver sender"], stale: Stale) -> "Mixing":
        """Find the different streams by their edges."""
        rows = masks.transpose(0, 2, 1, 3)  # circuit, receiver, place, sender
        held = rows.copy()
        held[..., stale.senders] = False
        live = rows[..., stale.senders]
        owner = np.where(live.any((2, 3)), np.arange(1, len(rows) + 1)[:, None], 0)
        count = rows.shape[0] * rows.shape[1]
        numbers = owner.reshape(-1, 1).astype(">u4").view(np.uint8).reshape(count, 4)
        bits = np.concatenate([held.reshape(count, -1), live.reshape(count, -1)], axis=1)
        first, inverse = _different(np.concatenate([numbers, np.packbits(bits, axis=1)], axis=1))
        owners = owner.ravel()[first]  # in order, since they come first
        bounds = {int(o) - 1: slice(*np.searchsorted(owners, [o, o + 1]).tolist()) for o in np.unique(owners) if o}
        chosen = [each.reshape(count, *each.shape[2:])[first] for each in (held, live)]
        return cls(chosen[0], chosen[1], inverse.reshape(rows.shape[:2]), bounds)


def _different(rows: np.ndarray) -> tuple[Int[np.ndarray, " different"], Int[np.ndarray, " row"]]:
    """Return where each different row first stands, in the rows' own order, and which of them each row is."""
    packed = np.packbits(rows, axis=1) if rows.dtype == bool else rows
    named = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(named, return_index=True, return_inverse=True)
    return first, inverse.ravel()


class _Projector:
    """Projects streams to the units of a layer's attention; the norm runs once, each product once a set of streams."""

    def __init__(self, machine: Machine, layer: int, streams: Float[Tensor, "stream token d_model"]) -> None:
        self.maps, self.anatomy = machine.maps[layer], machine.model.anatomy
        copies = Copies(machine.lane, len(streams))
        hidden = copies.packed(streams.to(machine.dtype))
        self.wide: dict[str, Tensor] = {}
        if self.maps.into is None:
            found = machine.inside.projected(layer, hidden, copies.segments)
            self.wide = {kind: units_of(self.anatomy, kind, copies.apart(found[kind])) for kind in PROJECTED}
        else:
            self.normed = copies.apart(machine.inside.normed(layer, hidden, copies.segments))

    def __call__(
        self, kind: str, units: range, index: Int[np.ndarray, " circuit"]
    ) -> Float[Tensor, "_ token unit d_head"]:
        """Project to neighbouring units in each circuit, or once where all circuits read one stream."""
        rows = index[:1] if (index == index[0]).all() else index
        if self.maps.into is None:
            return _taken(self.wide[kind], rows)[..., units.start : units.stop, :]
        width = self.anatomy.points[kind].width
        out = self.maps.into[kind].columns(_taken(self.normed, rows), units.start * width, units.stop * width)
        return out.unflatten(-1, (len(units), width))


def _taken(values: Float[Tensor, "stream *rest"], rows: Int[np.ndarray, " row"]) -> Float[Tensor, "row *rest"]:
    """Take rows, by a view where they lie side by side."""
    if (np.diff(rows) == 1).all():
        return values[int(rows[0]) : int(rows[0]) + len(rows)]
    return values[torch.from_numpy(rows).to(values.device)]


def _alike(
    sites: Sequence[Site], index: Int[np.ndarray, "circuit receiver"]
) -> Iterator[tuple[str, range, Int[np.ndarray, " circuit"]]]:
    """Yield runs of neighbouring units of one kind that read the same streams, which one product can project."""
    first = 0
    for column in range(1, len(sites) + 1):
        here, start = (sites[column] if column < len(sites) else None), sites[first]
        follows = here is not None and here.kind == start.kind and here.unit == (start.unit or 0) + column - first
        if follows and (index[:, column] == index[:, first]).all():
            continue
        yield start.kind, range(start.unit or 0, (start.unit or 0) + column - first), index[:, first]
        first = column
