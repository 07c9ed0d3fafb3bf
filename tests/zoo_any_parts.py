"""Small models of any kind, two pairs of inputs each, and what a person reads off their code: stacks, places, widths.

Nothing here comes from crosspatch: the table is the truth that patching by module path is checked against. What the
code of these families does that a hook has to know:

- An attention module gives a tuple, whose item 0 is the output; a block gives a tensor, or a tuple (UNet, SD3).
- transformers collects `hidden_states` by forward hooks of its own, which stay after the first run that asked for them.
  LLaVA reads its image features from there, so a hook that is not put first (`prepend=True`) changes nothing.
- LLaVA reads the image features of the last block but one: the last block runs and matters nowhere.
- SigLIP's pooling calls `nn.MultiheadAttention`, which reads the weights of its `out_proj` and never calls it.
- Qwen2-VL's images are one row of patches `[patch, …]` with no axis of examples; so are its vision blocks.
- The models whose `together` is False cannot run two batches as one by putting the inputs one behind the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

D, N_HEADS, D_HEAD, HIDDEN, VOCAB = 32, 4, 8, 48, 60  # width of streams, heads, width of a head, neurons, token ids
IMAGE = 58  # the token that stands for a patch of an image
SPREAD = D**-0.5  # of initial weights, so that effects are no rounding noise


@dataclass(frozen=True)
class Spot:
    """One place at a module: its tensor has `width` columns on the stack's axis.

    `item` is the argument or the item of the output that holds it; None is the first argument, or the output itself.
    `n_heads` heads of `d_head` columns begin at column `start`; 0 where there are none.
    """

    path: str
    side: str
    width: int
    item: int | str | None = None
    n_heads: int = 0
    d_head: int = 0
    start: int = 0


@dataclass(frozen=True)
class Stack:
    """Blocks of one make in an `nn.ModuleList` at `path`; the paths of `parts` are relative to a block.

    `feeds` names the inputs of the model that reach the output through the first block's first argument only.
    `unread` are blocks that run although nothing reads what they give.
    """

    path: str
    blocks: Sequence[int]
    parts: Mapping[str, Spot]
    axis: int = -1
    feeds: Sequence[str] = ()
    unread: Sequence[int] = ()


@dataclass(frozen=True)
class Case:
    """A model, a base and a source run, a metric `[example]`, and what is true of it.

    `padding` names, for each input, the mask that tells which of its positions are real. `together`: two batches put
    one behind the other give what they give alone. `expected` is "exact" or "refused", for the `spots` (path, side,
    item) if any are named, and `why` says what makes it so.
    """

    name: str
    build: Callable[[], nn.Module]
    base: Mapping[str, Any]
    source: Mapping[str, Any]
    metric: Callable[[Any], Tensor]
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    padding: Mapping[str, str] = field(default_factory=dict)
    together: bool = True
    expected: str = "exact"
    why: str = ""
    spots: Sequence[tuple[str, str, int | str | None]] = ()


def whole(width: int = D, *, first: int | str | None = None, last: int | str | None = None) -> dict[str, Spot]:
    """Name both ends of a block."""
    return {"resid.pre": Spot("", "input", width, first), "resid.post": Spot("", "output", width, last)}


def attention(
    kind: str, names: Sequence[str], *, width: int = D, heads: Sequence[int] = (4, 4), d_head: int = D_HEAD
) -> dict[str, Spot]:
    """Name the places of attention with three projections; `names`: module, q, k, v, output; `heads`: of q, of k, v."""
    of_q, of_k = heads
    module, *projections, output = (name if i == 0 else f"{names[0]}.{name}" for i, name in enumerate(names))
    counts = zip("qkv", projections, (of_q, of_k, of_k), strict=True)
    places = {f"{kind}.{x}": Spot(path, "output", n * d_head, None, n, d_head) for x, path, n in counts}
    head = Spot(output, "input", of_q * d_head, None, of_q, d_head)
    return places | {f"{kind}.head": head, f"{kind}.out": Spot(module, "output", width, 0)}


def mlp(first: str, second: str, *, width: int = D, hidden: int = HIDDEN, module: str = "") -> dict[str, Spot]:
    """Name the places of an MLP: `module` holds both maps, where there is one."""
    ends = {"mlp.in": Spot(module or first, "input", width), "mlp.out": Spot(module or second, "output", width)}
    return ends | {"mlp.hidden": Spot(second, "input", hidden)}


def bart(name: str, *, cross: bool = False) -> dict[str, Spot]:
    """Name the places of a block as BART, Whisper, CLIP and SigLIP have them."""
    parts = whole() | attention("attn", ("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"))
    if cross:
        parts |= attention("cross", ("encoder_attn", "q_proj", "k_proj", "v_proj", "out_proj"))
    return parts | mlp(f"{name}fc1", f"{name}fc2", module=name[:-1])


LLAMA = (
    whole()
    | attention("attn", ("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"), heads=(4, 2))
    | mlp("mlp.gate_proj", "mlp.down_proj", module="mlp")
)


def loud(module: nn.Module, gain: float = 1.0) -> nn.Module:
    """Move biases, norms and gates off their 0 and 1, which hide mistakes; `gain` multiplies weights."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "gate" in name and weight.numel() == 1:
                weight.fill_(0.7)
            elif weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
            else:
                weight.mul_(gain)
    return module.eval()


def numbers(seed: int, *shape: int) -> Tensor:
    """Draw numbers from a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int, length: int, given: Mapping[tuple[int, int], int] | None = None) -> Tensor:
    """Draw `[2, length]` plain tokens; `given` are those that are fixed, by example and position."""
    drawn = torch.randint(3, 50, (2, length), generator=torch.Generator().manual_seed(seed))
    for place, token in (given or {}).items():
        drawn[place] = token
    return drawn


def real(length: int, missing: int, *, left: bool = False) -> Tensor:
    """Make a mask `[2, length]` whose second example has padding."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, slice(0, missing) if left else slice(length - missing, None)] = 0
    return mask


def answer(*positions: int) -> Callable[[Any], Tensor]:
    """Make a metric: the difference of two logits at one position an example, in turn, or of the examples `rows`."""

    def metric(output: Any, rows: Tensor | None = None) -> Tensor:
        at = torch.tensor(positions)
        at = at.repeat(len(output.logits) // len(at)) if rows is None else at[rows]
        logits = output.logits[torch.arange(len(at)), at]
        return logits[:, 5] - logits[:, 7]

    return metric
