"""The runs of some pairs, opened for estimates: what the source run has, and the base run's changed part on tape."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.places import STREAM, STREAMS, Key, token_index
from crosspatch.attribution.tape import Recorder, Tape
from crosspatch.core.errors import BadInput
from crosspatch.engine.local import Local
from crosspatch.engine.readout import Scorer
from crosspatch.engine.writing import CARRIER
from crosspatch.models.blocks import at_least_single
from crosspatch.models.hooks import Visit
from crosspatch.models.model import Model
from crosspatch.models.packed import Past
from crosspatch.models.runs import Bench, Run, Running, past_of, run_lanes

if TYPE_CHECKING:
    from crosspatch.attribution.sweep import EstimateSweep


@dataclass
class Opened:
    """Pairs whose base and source run are known, from the first token on at which they differ.

    `streams[l]` `[token, d_model]` enters block l of the base run. `tapes` are its blocks on tape, if they were kept:
    they are used up by one pass of gradients, after which blocks are run again. `fixed` are changes from base to
    source that hold whatever else is run.
    """

    bench: Bench
    recorder: Recorder
    source: Run
    local: Local
    kinds: Collection[str]
    attended: bool
    streams: list[Tensor] = field(default_factory=list)
    tapes: dict[int, Tape] = field(default_factory=dict)
    fixed: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def lane(self) -> Running:
        """The base run's changed part, token by token."""
        return self.recorder.lane

    @property
    def model(self) -> Model:
        """The model that runs."""
        return self.bench.model

    def tape(self, layer: int) -> Tape:
        """Return a block on tape: the one that was kept, or run again (which is what checkpointing means)."""
        if layer in self.tapes:
            return self.tapes.pop(layer)
        with torch.enable_grad():
            return self.recorder.record(layer, self.streams[layer], kinds=self.kinds, attended=self.attended)

    def forward(
        self, entering: Tensor, *, keep: bool, first: int = 0, writes: Mapping[str, Visit] | None = None
    ) -> None:
        """Run the blocks from a stream that enters block `first`; `keep` their tapes, or only the streams between them.

        `writes` act in that first block.
        """
        self.streams, self.tapes = [*self.streams[:first], entering], {}
        for layer in range(first, self.bench.anatomy.layers):
            with torch.set_grad_enabled(keep):
                tape = self.recorder.record(
                    layer,
                    self.streams[-1],
                    kinds=self.kinds if keep else (),
                    attended=keep and self.attended,
                    writes=writes if layer == first else None,
                )
            if keep:
                self.tapes[layer] = tape
            self.streams.append(tape.leaving.detach())

    def change(self, kind: str, layer: int, tape: Tape) -> Float[Tensor, "token width"]:
        """Return source − base of a kind's activation at every token, in float32 at least."""
        if (kind, layer) in self.fixed:
            return self.fixed[kind, layer]
        if kind in CARRIER:
            mid = tape.seen[CARRIER[kind]].detach().flatten(0, -2) + tape.entering.detach()
            source = self._source_seen(CARRIER[kind], layer) + self.at_tokens(self.source.stream[layer])
            return at_least_single(source) - at_least_single(mid)
        return at_least_single(self._source_seen(kind, layer)) - at_least_single(
            tape.seen[kind].detach().flatten(0, -2)
        )

    def stream_change(self, layer: int) -> Float[Tensor, "token d_model"]:
        """Return source − base of the stream that enters a block (or leaves the last)."""
        if (STREAM, layer) in self.fixed:
            return self.fixed[STREAM, layer]
        return at_least_single(self.at_tokens(self.source.stream[layer])) - at_least_single(self.streams[layer])

    def fix_changes(self, places: Iterable[Key]) -> None:
        """Keep the changes of these kinds as they are from the present base run, for runs that lie between."""
        for kind, layer, _ in places:
            if kind == STREAM:
                self.fixed[kind, layer] = self.stream_change(layer)
            else:
                tape = self.recorder.record(layer, self.streams[layer], kinds=[CARRIER.get(kind, kind)])
                self.fixed[kind, layer] = self.change(kind, layer, tape)

    def at_tokens(self, values: Float[Tensor, "pair pos width"]) -> Float[Tensor, "token width"]:
        """Lay a run's activations out token by token."""
        return values[self.lane.pairs.to(values.device), self.lane.positions.to(values.device)]

    def _source_seen(self, kind: str, layer: int) -> Tensor:
        return self.at_tokens(self.source.seen[kind][layer])

    def reads(self, final: Float[Tensor, "token d_model"]) -> Float[Tensor, "pair read d_model"]:
        """Return the final stream at the positions that the metric reads."""
        index = token_index(self.lane)
        pairs = torch.arange(len(self.local.numbers), device=index.device)
        return final[
            index[pairs[:, None], torch.tensor(self.local.extents.reads, device=index.device)].to(final.device)
        ]

    def cotangent(self, scorer: Scorer, final: Tensor) -> tuple[Tensor, Float[Tensor, "token d_model"]]:
        """Return the metric of each pair and its gradient with respect to the final stream.

        Raises:
            BadInput: the metric has no gradient.
        """
        with torch.enable_grad():
            leaf = final.detach().requires_grad_()
            values = scorer(self.reads(leaf), torch.arange(len(self.local.numbers), device=leaf.device))[0]
            if not values.requires_grad:
                raise BadInput(
                    f"the metric {scorer.metrics[0].name!r} does not change smoothly with the logits, so it has no "
                    "gradient to estimate from. Use logit_diff, prob, logprob or kl, or patch exactly."
                )
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


@contextmanager
def opened_runs(sweep: "EstimateSweep", bench: Bench, numbers: Sequence[int], local: Local) -> Iterator[Opened]:
    """Run what the two runs share once, then the source run; the base run's changed part is left to be recorded."""
    anatomy, kinds = sweep.model.anatomy, sweep.recorded
    base, source = sweep.lane("base", numbers), sweep.lane("source", numbers)
    starts = local.extents.differ if anatomy.packed else tuple(0 for _ in numbers)
    source = replace(source, starts=starts, kinds=kinds, scored=sweep.estimator.qk)
    if any(starts):
        prefix, run = run_lanes(bench, [replace(base, prompts=replace(base.prompts, lengths=starts)), source])
        past: list[Past | None] = [past_of(prefix, layer) for layer in range(anatomy.layers)]
    else:
        run, past = run_lanes(bench, [source])[0], list[Past | None]([None] * anatomy.layers)
    lane = Running.begin(bench, replace(base, starts=starts), keys=False)
    recorder = Recorder(bench, lane, past)
    yield Opened(bench, recorder, run, local, kinds, sweep.estimator.qk)


def recorded_kinds(kinds: Collection[str], *, qk: bool) -> tuple[str, ...]:
    """Return the points that must be on tape for estimates of these kinds of site."""
    through = {"attn.q", "attn.k"} if qk else set()
    found = {CARRIER.get(kind, kind) for kind in kinds if kind not in through}
    return tuple(sorted(found - {*STREAMS, STREAM}))
