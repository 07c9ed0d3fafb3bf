"""Walk through the parts of a model and collect the share that each has in the answers' logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from crosspatch.attribution.aim import Aim
from crosspatch.attribution.decomposition import Part
from crosspatch.attribution.gather import LastRows, split_embedding
from crosspatch.attribution.linear import NotLinear, pull_back, through, tolerance_of
from crosspatch.core.errors import NotProved
from crosspatch.engine.select import star_positions
from crosspatch.models.anatomy import Readout
from crosspatch.models.blocks import block_list, final_stream
from crosspatch.models.model import Model
from crosspatch.models.weights import parts_of
from crosspatch.tasks import Task

ELSEWHERE = "elsewhere"  # all source tokens that have no name shared by all prompts


@dataclass
class Sums:
    """Collects parts and their shares."""

    model: Model
    rows: LastRows
    by: str
    task: Task
    prompts: Sequence[Sequence[int]]
    parts: list[Part] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """Largest relative error that counts as equal in the model's precision."""
        return tolerance_of(next(self.model.module.parameters()))

    def add(self, part: Part, share: Float64[Tensor, " pair"]) -> None:
        """Note one part and its share in each example."""
        self.parts.append(part)
        self.shares.append(share)

    def run(self, aim: Aim) -> None:
        """List all parts, in the order of a forward pass."""
        unembedding = aim.direction()
        direction, norm_bias = self.past_norms(unembedding.direction)
        self.embedding(direction)
        for layer in range(self.model.anatomy.layers):
            self.layer(layer, direction)
        if bool((norm_bias != 0).any()):
            self.add(Part("norm.bias"), norm_bias)
        if bool((unembedding.constant != 0).any()):
            self.add(Part("unembed.bias"), unembedding.constant)

    def past_norms(self, direction: Tensor) -> tuple[Tensor, Float64[Tensor, " pair"]]:
        """Pull the answers' direction back to the last stream, each norm's scale held; the constant is its bias."""
        norms = self.model.anatomy.readout.norms
        module = parts_of(self.model.module, norms)
        with torch.no_grad():
            before = [
                final_stream(module, Readout(norms[:count], ""), self.rows.stream[-1]).to(direction.device)
                for count in range(len(norms))
            ]
        constant = torch.zeros(len(direction), dtype=torch.float64, device=direction.device)
        for path, rows in zip(reversed(norms), reversed(before), strict=True):
            try:
                pulled = pull_back(module.get_submodule(path), rows, direction, tolerance=self.tolerance)
            except NotLinear as reason:
                raise NotProved(f"the logits have no linear parts: {path} stands before them, and {reason}.") from None
            direction, constant = pulled.direction, constant + pulled.constant
        return direction, constant

    def embedding(self, direction: Tensor) -> None:
        """Add what enters the first block: the token's and the position's share, where they can be told apart."""
        found = split_embedding(self.model, self.prompts, self.rows.stream[0], self.tolerance)
        if found.whole:
            self.whole["embed"] = found.whole
        if found.position is None:
            self.add(Part("embed"), _dot(direction, found.token))
            return
        self.add(Part("embed.token"), _dot(direction, found.token))
        self.add(Part("embed.position"), _dot(direction, found.position))

    def layer(self, layer: int, direction: Tensor) -> None:
        """Add what one block's parts write, split as finely as asked."""
        seen = self.rows.seen
        if not {"attn.out", "mlp.out"} <= set(seen):
            before, after = self.rows.stream[layer : layer + 2]
            reason = self.model.anatomy.refused.get("attn.out", "its parts are not known")
            self.whole[str(Part("block", layer))] = reason
            self.add(Part("block", layer), _dot(direction, after.double() - before.double()))
            return
        for kind, inner, grains in (
            ("attn.out", "attn.head", ("head", "token")),
            ("mlp.out", "mlp.hidden", ("neuron",)),
        ):
            if self.by not in grains or not self.refine(layer, (inner, kind), direction):
                self.add(Part(kind, layer), _dot(direction, seen[kind][layer]))

    def refine(self, layer: int, kinds: tuple[str, str], direction: Tensor) -> bool:
        """Add the units of a part and its bias; False, with a reason noted, where it must be kept whole."""
        anatomy, (inner, outer) = self.model.anatomy, kinds
        block, (hidden, added) = (
            block_list(self.model.module, anatomy)[layer],
            (self.rows.seen[k][layer] for k in kinds),
        )
        points = anatomy.points[inner], anatomy.points[outer]
        try:
            pulled = through(block, points, (hidden, added), direction, tolerance=self.tolerance)
            shares = pulled.direction * hidden.double()
            missed = shares.sum(1) + pulled.constant - _dot(direction, added)
            if not float(missed.abs().max()) <= self.tolerance * float(shares.abs().sum(1).max().clamp_min(1e-30)):
                raise NotLinear("its units miss what it adds")
        except NotLinear as reason:
            self.whole[str(Part(outer, layer))] = str(reason)
            return False
        name = inner.partition(".")[0]
        units = [points[0].columns(unit) for unit in range(len(points[0].starts))]
        if self.by == "token":
            self.tokens(layer, pulled.direction[:, points[0].columns(None)], shares)
        else:
            for unit, columns in enumerate(units):
                self.add(Part(inner, layer, unit), shares[:, columns].sum(1))
        if bool((pulled.constant != 0).any()):
            self.add(Part(f"{name}.bias", layer), pulled.constant)
        return True

    def tokens(self, layer: int, direction: Tensor, shares: Tensor) -> None:
        """Split each head over its source tokens: pattern × value, along the head's direction."""
        pattern, value = self.rows.patterns[layer].double(), self.rows.values[layer].double()
        heads = pattern.shape[1]
        value = value.repeat_interleave(heads // value.shape[1], dim=1)
        split = pattern * torch.einsum("phd,phkd->phk", direction.unflatten(1, (heads, -1)), value)
        total = shares.unflatten(1, (heads, -1)).sum(-1)
        if not float((split.sum(-1) - total).abs().max()) <= self.tolerance * float(shares.abs().sum(1).max()):
            raise NotProved(
                f"the attention patterns of layer {layer} do not give its heads' outputs, so heads cannot be split by "
                "token. Use by='head'."
            )
        masks, labels = self.sources(split.shape[-1])
        shared = torch.einsum("phk,spk->hsp", split, masks.double())
        shared = shared.masked_fill(~masks.any(-1)[None], float("nan"))
        for head, (place, label) in product(range(heads), enumerate(labels)):
            self.add(Part("attn.head", layer, head, label), shared[head, place])

    def sources(self, keys: int) -> tuple[Bool[Tensor, "source pair key"], list[int | str]]:
        """Say which tokens of each prompt a source stands for: an index, or a name where prompts' layouts differ."""
        labels = list(star_positions(self.task))
        masks = torch.zeros(len(labels), len(self.prompts), keys, dtype=torch.bool)
        for (place, label), (row, pair) in product(enumerate(labels), enumerate(self.task.pairs)):
            index = label if isinstance(label, int) else pair.names[label]
            # A token that has two names counts for the first.
            masks[place, row, index] = index < len(pair.clean) and not bool(masks[:place, row, index].any())
        if not isinstance(labels[0], int):
            lengths = torch.tensor([len(prompt) for prompt in self.prompts])
            rest = ~masks.any(0) & (torch.arange(keys)[None] < lengths[:, None])
            masks, labels = torch.cat([masks, rest[None]]), [*labels, ELSEWHERE]
        return masks.to(self.model.device), labels


def _dot(direction: Tensor, rows: Tensor) -> Float64[Tensor, " pair"]:
    return (direction * rows.double()).sum(-1)
