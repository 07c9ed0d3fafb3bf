"""Runs of a circuit by hand: each edge outside it carries the corrupt run. Plain hooks, a prompt for each receiver.

How to call.

    body = body_of("llama")  # a family of the zoo in double precision; or body_of_llama(module) for any Llama
    mask = body.graph.full().astype(float)  # [place, receiver, sender]; 1 keeps an edge, 0 cuts it, between: a mixture
    masked_logits(body, clean_ids, corrupt_ids, mask)  # [pos, vocab]
    masked_logits(body, clean_ids, corrupt_ids, mask, places=[0, 0, 1, 1])  # the place of each token, with two places
    masked_score(body, clean_ids, corrupt_ids, mask, score=score)  # score maps logits [pos, vocab] to a number
    naive_gradient(body, clean_ids, corrupt_ids, mask, score=score)  # ∂ score / ∂ mask, of the mask's shape
    naive_acdc(body, clean_ids, corrupt_ids, score=score, threshold=0.1)  # the edges that it keeps, of the mask's shape

Definition. c_u(run) is what sender u adds to the stream at each token: the embedding, what enters block 0; an MLP, its
addition (behind its post-norm, where a family has one); a head, its columns through the output projection without the
bias, times the gain and scale that the post-norm has in that run, so that heads sum to what attention adds.

    x_r = stream of the corrupt run at r + Σ_u mask[r, u] (c_u(this run) − c_u(corrupt run))        (Conmy et al. 2023)

Queries, keys, values are what the block's norm and projections make of their own x_r; with all of them in place the
block's attention gives its heads; an MLP reads its own x_r; the logits are read off theirs. Both prompts are as long.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from crosspatch.circuits.graph import Graph
from crosspatch.sites import Site
from naive.patching import Visit, hook
from zoo import LLAMA, ZOO, module_of

Ids = Sequence[int]
Spot = tuple[str, int]  # kind, layer
Write = tuple[Spot, Sequence[int] | slice, Tensor]  # these columns of a spot hold this, [pos, columns]
Score = Callable[[Tensor], Tensor]
Places = Sequence[int] | None


@dataclass(frozen=True)
class Body:
    """A module, where its parts are (path inside a block and side), the columns of its heads, and its graph."""

    module: nn.Module
    blocks: str
    spots: Mapping[str, tuple[str, str]]
    columns: Callable[[str, int], Sequence[int]]
    graph: Graph

    def part(self, layer: int, path: str = "") -> nn.Module:
        """Return a module of a block."""
        return self.module.get_submodule(f"{self.blocks}.{layer}" + f".{path}" * bool(path))

    def spot(self, kind: str, layer: int) -> tuple[nn.Module, str]:
        """Return the module and side that carry a kind."""
        path, side = {"resid.pre": ("", "in"), "resid.post": ("", "out")}.get(kind) or self.spots[kind]
        return self.part(layer, path), side


def precision(name: str) -> torch.dtype:
    """Return double precision, but for mixtures of experts, whose kernels have single precision only."""
    return torch.float64 if "mlp.hidden" in ZOO[name].spots else torch.float32


def body_of(name: str, dtype: torch.dtype | None = None) -> Body:
    """Return a family of the zoo, as the zoo's table tells it."""
    beast, module = ZOO[name], module_of(name, dtype or precision(name))
    layers = len(module.get_submodule(beast.blocks))
    graph = Graph(layers, len(beast.q), len(beast.k), sequential=not beast.parallel)
    return Body(module, beast.blocks, beast.spots, beast.columns, graph)


def body_of_llama(module: nn.Module) -> Body:
    """Return a Llama of any size."""
    config = module.config
    graph = Graph(config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    width = config.head_dim
    return Body(module, "model.layers", LLAMA.spots, lambda _, unit: range(unit * width, (unit + 1) * width), graph)


# one forward


class Enough(Exception):
    """All that was to be read has been seen: the rest of the forward is not needed."""


def keep(seen: dict[Spot, Tensor], spot: Spot, wanted: int) -> Visit:
    """Keep what passes, `[pos, width]`; the module goes on with a copy, since some add to it in place."""

    def visit(value: Tensor) -> Tensor:
        seen[spot] = value.reshape(-1, value.shape[-1])
        if len(seen) == wanted:
            raise Enough
        return value.clone()

    return visit


def put(columns: Sequence[int] | slice, new: Tensor) -> Visit:
    """Write columns."""

    def visit(value: Tensor) -> Tensor:
        flat = value.clone().reshape(-1, value.shape[-1])
        flat[:, columns] = new
        return flat.reshape(value.shape)

    return visit


@contextmanager
def hooked(
    body: Body, writes: Iterable[Write], seen: dict[Spot, Tensor], reads: Collection[Spot] = ()
) -> Iterator[None]:
    """Write spots over and keep others, while the block lasts; it ends when all that is read has been seen."""
    handles = [hook(*body.spot(*spot), put(columns, new)) for spot, columns, new in writes]
    handles += [hook(*body.spot(*spot), keep(seen, spot, len(reads))) for spot in reads]
    try:
        with suppress(Enough):
            yield
    finally:
        for handle in handles:
            handle.remove()


def forward(body: Body, ids: Ids, writes: Iterable[Write] = ()) -> Tensor:
    """Run one prompt with spots written over; return its logits `[pos, vocab]`."""
    with hooked(body, writes, {}):
        return body.module(input_ids=torch.tensor([list(ids)])).logits[0]
    raise AssertionError("nothing was read, so nothing can end early")


def reading(
    body: Body, ids: Ids, writes: Iterable[Write], reads: Collection[Spot], *, rows: int = 1
) -> dict[Spot, Tensor]:
    """Run one prompt, or several rows of it, with spots written over; return what others hold, `[row * pos, width]`."""
    seen: dict[Spot, Tensor] = {}
    with hooked(body, writes, seen, reads):
        body.module(input_ids=torch.tensor([list(ids)] * rows))
    assert len(seen) == len(reads)
    return seen


def entering(layer: int, stream: Tensor) -> Write:
    """Let a stream enter a block."""
    return ("resid.pre", layer), slice(None), stream


# what senders write


def by_head(body: Body, layer: int, z: Tensor) -> dict[Site, Tensor]:
    """Return what each head adds to the stream, `[pos, d_model]`, from the input of the output projection."""
    path, end = body.spots["attn.head"][0], body.spots["attn.out"][0]
    project, nothing = body.part(layer, path), torch.zeros_like(z)
    gain: Any = 1
    if not path.startswith(end):  # attention ends in a norm of its own: each column times a number
        whole = project(z)
        gain = body.part(layer, end)(whole) / whole
        assert not project(nothing).any(), "a bias inside the norm would belong to no head"
    found = {}
    for head in range(body.graph.heads):
        alone, columns = nothing.clone(), body.columns("attn.head", head)
        alone[:, columns] = z[:, columns]
        found[Site("attn.head", layer, head)] = gain * (project(alone) - project(nothing))
    return found


Run = tuple[dict[Site, Tensor], dict[Spot, Tensor]]
PLAIN: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Run]] = WeakKeyDictionary()


def plain_run(body: Body, ids: Ids) -> Run:
    """Return what each sender adds in a run, and the stream that each kind of receiver reads, before any norm.

    A prompt is run once: modules are left as they are.
    """
    runs = PLAIN.setdefault(body.module, {})
    if tuple(ids) not in runs:
        runs[tuple(ids)] = run_plainly(body, ids)
    return runs[tuple(ids)]


@torch.no_grad()
def run_plainly(body: Body, ids: Ids) -> Run:
    """Run a prompt for `plain_run`."""
    layers = range(body.graph.layers)
    kinds = ("resid.pre", "attn.head", "attn.out", "mlp.out", "resid.post")
    seen = reading(body, ids, [], [(kind, layer) for layer in layers for kind in kinds])
    added, streams = {Site("embed"): seen["resid.pre", 0]}, {("logits", -1): seen["resid.post", layers[-1]]}
    for layer in layers:
        added |= by_head(body, layer, seen["attn.head", layer])
        added[Site("mlp.out", layer)] = seen["mlp.out", layer]
        pre = seen["resid.pre", layer]
        streams |= {(kind, layer): pre for kind in ("attn.q", "attn.k", "attn.v")}
        streams["mlp.in", layer] = pre + seen["attn.out", layer] if body.graph.sequential else pre
    return added, streams


# what receivers make of what they read


def projected(body: Body, ids: Ids, layer: int, streams: Mapping[Site, Tensor]) -> list[Write]:
    """Return the query, key or value that each receiver of a layer makes of its own stream, as something to write.

    Each receiver's stream enters the block as a row of its own; rows know nothing of each other.
    """
    kinds = list(dict.fromkeys(receiver.kind for receiver in streams))
    entered = [entering(layer, torch.cat(list(streams.values())))]
    seen = reading(body, ids, entered, [(kind, layer) for kind in kinds], rows=len(streams))
    found = []
    for row, receiver in enumerate(streams):
        columns = body.columns(receiver.kind, receiver.unit or 0)
        value = seen[receiver.kind, layer].unflatten(0, (len(streams), -1))[row, :, columns]
        found.append(((receiver.kind, layer), columns, value))
    return found


def attended(body: Body, ids: Ids, layer: int, given: Sequence[Write]) -> Tensor:
    """Return what the heads of a layer give, `[pos, width]`, with all its queries, keys and values written."""
    return reading(body, ids, given, [("attn.head", layer)])["attn.head", layer]


def mlp_of(body: Body, ids: Ids, layer: int, stream: Tensor) -> Tensor:
    """Return what an MLP adds where it reads this stream: attention before it adds nothing."""
    silent = [(("attn.out", layer), slice(None), torch.zeros_like(stream))] * body.graph.sequential
    return reading(body, ids, [entering(layer, stream), *silent], [("mlp.out", layer)])["mlp.out", layer]


def logits_of(body: Body, ids: Ids, stream: Tensor) -> Tensor:
    """Return the logits `[pos, vocab]` read off a stream that leaves the last block."""
    return forward(body, ids, [(("resid.post", body.graph.layers - 1), slice(None), stream)])


# the run of a circuit


def masked_stream(body: Body, clean: Ids, corrupt: Ids, mask: np.ndarray | Tensor, *, places: Places = None) -> Tensor:
    """Return the last stream `[pos, d_model]` of the run on the clean prompt that keeps only the mask's edges."""
    added, streams = plain_run(body, corrupt)
    weights = weights_of(body, mask, [0] * len(clean) if places is None else places).to(streams["logits", -1])
    graph = body.graph
    changes = {Site("embed"): plain_run(body, clean)[0][Site("embed")] - added[Site("embed")]}

    def heard(receiver: Site) -> Tensor:
        stream, r = (
            streams[receiver.kind, -1 if receiver.layer is None else receiver.layer],
            graph.receivers.index(receiver),
        )
        for u, sender in enumerate(graph.senders):
            if graph.allowed[r, u]:
                stream = stream + weights[:, r, u, None] * changes[sender]
        return stream

    for layer in range(graph.layers):
        readers = [r for r in graph.receivers if r.layer == layer and r.kind != "mlp.in"]
        z = attended(body, clean, layer, projected(body, clean, layer, {r: heard(r) for r in readers}))
        changes |= {site: now - added[site] for site, now in by_head(body, layer, z).items()}
        now = mlp_of(body, clean, layer, heard(Site("mlp.in", layer)))
        changes[Site("mlp.out", layer)] = now - added[Site("mlp.out", layer)]
    return heard(Site("logits"))


def weights_of(body: Body, mask: np.ndarray | Tensor, places: Sequence[int]) -> Tensor:
    """Return the mask of each token, `[pos, receiver, sender]`."""
    mask = torch.as_tensor(mask)
    assert mask.shape[1:] == body.graph.shape[1:]
    assert all(0 <= place < len(mask) for place in places)
    return torch.stack([mask[place] for place in places])


def masked_logits(body: Body, clean: Ids, corrupt: Ids, mask: np.ndarray | Tensor, *, places: Places = None) -> Tensor:
    """Return the logits `[pos, vocab]` of the run on the clean prompt that keeps only the mask's edges."""
    assert len(clean) == len(corrupt)
    with torch.set_grad_enabled(isinstance(mask, Tensor) and mask.requires_grad):
        return logits_of(body, clean, masked_stream(body, clean, corrupt, mask, places=places))


def masked_score(
    body: Body, clean: Ids, corrupt: Ids, mask: np.ndarray | Tensor, *, score: Score, places: Places = None
) -> float:
    """Return the score of the run on the clean prompt that keeps only the mask's edges."""
    return float(score(masked_logits(body, clean, corrupt, mask, places=places)))


def naive_gradient(
    body: Body, clean: Ids, corrupt: Ids, mask: np.ndarray, *, score: Score, places: Places = None
) -> np.ndarray:
    """Return the gradient of the score by each entry of the mask, at this mask; at all ones it is EAP's."""
    leaf = torch.tensor(mask, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(score(masked_logits(body, clean, corrupt, leaf, places=places)), leaf)
    return found.numpy()


def naive_acdc(
    body: Body,
    clean: Ids,
    corrupt: Ids,
    *,
    score: Score,
    threshold: float,
    backwards: bool = False,
    absolute: bool = False,
) -> np.ndarray:
    """Return the edges that ACDC keeps (Conmy et al. 2023, algorithm 1): cut in turn what costs less than a threshold.

    Receivers from the logits back to layer 0; of each, senders in the order of a forward pass, or `backwards`.
    """
    kept, order = body.graph.full().astype(float), -1 if backwards else 1
    present = masked_score(body, clean, corrupt, kept, score=score)
    for r in reversed(range(len(body.graph.receivers))):
        for u in np.flatnonzero(body.graph.allowed[r])[::order]:
            kept[0, r, u] = 0
            without = masked_score(body, clean, corrupt, kept, score=score)
            cost = abs(present - without) if absolute else present - without
            kept[0, r, u] = cost >= threshold
            present = present if cost >= threshold else without
    return kept.astype(bool)
