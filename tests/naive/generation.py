"""Generation by hand, from its definition: one prompt, one full forward a step, one plain hook, no cache, no padding.

Step k reads the prompt and the k tokens before it. A cache would hold what earlier steps wrote; without one, it is
written again at each step: step 0 wrote at places in the prompt, step j > 0 at the j-th new token.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from naive.patching import hook

Choose = Callable[[Tensor], int]


@dataclass(frozen=True)
class Written:
    """What one hook writes: `act` on these columns of a spot, at these prompt positions, at these steps."""

    spot: tuple[nn.Module, str]
    columns: Any
    act: Callable[[Tensor], Tensor]
    places: Sequence[int]
    steps: Collection[int]


END = 2  # the token after which nothing is said


def likeliest(logits: Tensor) -> int:
    return int(logits.argmax())


@torch.no_grad()
def continued(
    module: nn.Module, ids: Sequence[int], *, count: int, written: Written | None = None, choose: Choose = likeliest
) -> tuple[list[int], list[float]]:
    """Return the new tokens and the log-probability of each."""
    tokens: list[int] = []
    scores: list[float] = []
    for step in range(count):

        def visit(value: Tensor, step: int = step) -> Tensor:
            assert written is not None
            flat = value.clone().reshape(-1, value.shape[-1])
            places = list(written.places) if 0 in written.steps else []
            places += [len(ids) + earlier - 1 for earlier in range(1, step + 1) if earlier in written.steps]
            for place in places:
                flat[place, written.columns] = written.act(flat[place, written.columns])
            return flat.reshape(value.shape)

        handle = None if written is None else hook(*written.spot, visit)
        try:
            logits = module(input_ids=torch.tensor([[*ids, *tokens]]), use_cache=False).logits[0, -1].float()
        finally:
            if handle is not None:
                handle.remove()
        tokens.append(choose(logits))
        scores.append(float(logits.log_softmax(-1)[tokens[-1]]))
        if tokens[-1] == END:
            break
    return tokens, scores


def sampler(seed: int, temperature: float) -> Choose:
    """Choose as is defined: the token with the shortest exponential wait, drawn at rate softmax(logits / T)."""
    draw = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> int:
        waits = torch.empty(len(logits), dtype=torch.float64).exponential_(generator=draw)
        rates = (logits.double() / temperature).softmax(-1)
        return int((waits / rates).argmin())

    return choose
