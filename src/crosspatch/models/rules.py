"""Rules of relevance: while they hold, a module gives its own values, and its gradients are those of LRP.

Layer-wise relevance propagation is a backward pass through a module of which some parts count as constants. Values come
from the module's own code, to the bit; only what autograd remembers of them is changed, at two places:

- hooks say where the forward is (a norm, an activation, an attention, an MLP);
- a function mode sees each torch function called there, and knows the few that a rule is about.

So what a family calls decides, not what it is named: fused projections, mixtures of experts, other kernels and packed
tokens need nothing of their own. What nothing was seen of is kept in the `Coverage`, to be refused.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial

from torch import nn

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.attention import attention_modules
from crosspatch.models.blocks import block_list
from crosspatch.models.guard import refuse_compiled
from crosspatch.models.relevance import Acting, Coverage, Frame, Place
from crosspatch.models.weights import elsewhere, is_fsdp

RULES = ("ln", "identity", "half", "ah", "uniform")
_ACTIVATION = re.compile(r"elu|silu|swish|mish|tanh|sigmoid|softplus|activation", re.IGNORECASE)
_open: ContextVar[bool] = ContextVar("crosspatch_relevance_rules", default=False)


@contextmanager
def relevance_rules(module: nn.Module, anatomy: Anatomy, rules: Collection[str]) -> Iterator[Coverage]:
    """Let gradients of every forward of the module, or of a part of it, follow some of `RULES` for a while.

    - `ln`: the scale of each norm is a constant; what LayerNorm subtracts is not.
    - `identity`: an activation function f counts as multiplication by f(z) / z.
    - `half`: the factors of a gated MLP's product get half of the gradient each.
    - `ah`: attention patterns are constants.
    - `uniform`: queries and keys get a quarter of their gradient, values half of it.

    Values do not change. What is built here may be differentiated after the rules have gone. They act in this thread.
    Ask the coverage with `require()` once a forward has run.

    Raises:
        UnknownName: no such rule.
        BadInput: rules that exclude each other, that cannot act on this module, or that are already open.
    """
    chosen = _checked(module, anatomy, rules)
    acting = Acting(chosen)
    token = _open.set(True)
    try:
        with ExitStack() as stack:
            for part, frame in _places(module, anatomy).values():
                enter, leave = partial(acting.enter, frame), partial(acting.leave, frame)
                stack.callback(part.register_forward_pre_hook(enter).remove)
                # Also when the part raises: forwards that are ended early are caught by whoever ends them.
                stack.callback(part.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
            stack.enter_context(acting)
            yield acting.coverage
    finally:
        _open.reset(token)


def _checked(module: nn.Module, anatomy: Anatomy, rules: Collection[str]) -> frozenset[str]:
    for name in rules:
        if name not in RULES:
            raise UnknownName.of("rule", name, RULES)
    chosen = frozenset(rules)
    if {"ah", "uniform"} <= chosen:
        raise BadInput("the rules ah and uniform exclude each other: patterns are constants, or they are not.")
    if _open.get():
        raise BadInput("rules of relevance are already open here: close them first, or ask for all rules at once.")
    if chosen & {"ah", "uniform"} and not anatomy.attention:
        raise BadInput("no attention module was found in this module's blocks, so the rules ah and uniform cannot act.")
    refuse_compiled(module)
    norms = [module.get_submodule(path) for path in anatomy.readout.norms]
    if "ln" in chosen and (is_fsdp(module) or any(elsewhere(norm) for norm in norms)):
        # `weights.parts_of` then reads out through copies, on which no hooks are.
        raise BadInput("the weights of the last norm are split or offloaded, so the rule ln cannot follow it.")
    if any(part.training and getattr(part, "gradient_checkpointing", False) for part in module.modules()):
        raise BadInput("gradient checkpointing runs blocks again, outside of the rules: switch it off, or call eval().")
    return chosen


def _places(module: nn.Module, anatomy: Anatomy) -> dict[int, tuple[nn.Module, Frame]]:
    """Return every part that rules are about, by identity; a part that is two things is the later named here."""
    names = {id(part): name for name, part in module.named_modules()}
    places: dict[int, Place] = {id(part): "norm" for part in module.modules() if _is_norm(part)}
    attentions = attention_modules(module, anatomy) if anatomy.attention else []
    inside = {id(part) for attention in attentions for part in attention.modules()}
    for block in block_list(module, anatomy):
        outside = [part for part in block.modules() if id(part) not in inside]
        places |= {id(part): "activation" for part in outside if _is_activation(part)}
        mlp = _mlp_of(block, anatomy, outside)
        places[id(block)] = "block"
        places |= {} if mlp is None else {id(mlp): "mlp"}
    places |= {id(attention): "attention" for attention in attentions}
    parts = {id(part): part for part in module.modules()}
    return {key: (parts[key], Frame(place, names[key], parts[key])) for key, place in places.items()}


def _class(part: nn.Module) -> str:
    return type(part).__name__.lower()


def _is_norm(part: nn.Module) -> bool:
    """Whether a module is a norm, or several: not a layer that is named for where its norm stands."""
    return "norm" in _class(part) and all(
        "norm" in _class(each) or isinstance(each, nn.ModuleList) or next(each.parameters(), None) is None
        for each in part.modules()
    )


def _is_activation(part: nn.Module) -> bool:
    return not list(part.children()) and bool(_ACTIVATION.search(_class(part)))


def _mlp_of(block: nn.Module, anatomy: Anatomy, outside: list[nn.Module]) -> nn.Module | None:
    """Return the module whose forward is the MLP: the block's own where that is where its projections are."""
    point = anatomy.points.get("mlp.in")
    part = None if point is None else block.get_submodule(point.path)
    if part is not None and list(part.children()):
        return part
    weights = (p for each in outside if not _is_norm(each) for p in each.parameters(recurse=False))
    return block if any(weight.ndim > 1 for weight in weights) else None
