"""What the rules of relevance make of each torch function that a forward calls, by the part that is running.

A function mode sees every torch function called in this thread. The few that a rule is about give their own value, to
the bit, with another memory of where it came from. `models.rules` says where the forward is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from crosspatch.core.errors import NotProved
from crosspatch.models.blocks import at_least_single

Place = Literal["block", "norm", "activation", "attention", "mlp"]

_NEEDS: Mapping[Place, tuple[frozenset[str], str]] = {
    "norm": (frozenset({"ln"}), "a norm that computes no scale in a way that is known"),
    "mlp": (frozenset({"identity"}), "an MLP in which no activation function was seen"),
    "attention": (frozenset({"ah", "uniform"}), "an attention whose pattern and values were not both seen"),
}
_STABLE = 1e-6


@dataclass
class Coverage:
    """What forwards met while rules held: times that a part was met, and parts that ran and met no rule.

    `missed` maps the path of a part to what it is. Parts are counted, and rules act, whether gradients are kept or not.
    """

    norms: int = 0
    activations: int = 0
    products: int = 0
    attentions: int = 0
    missed: dict[str, str] = field(default_factory=dict)

    def require(self) -> None:
        """Raise if some part ran that a rule is about and that the rule did not reach.

        Raises:
            NotProved: names the parts; gradients through them are not relevance.
        """
        if self.missed:
            named = "; ".join(f"{name}, {what}" for name, what in list(self.missed.items())[:3])
            more = f"; and {len(self.missed) - 3} more" if len(self.missed) > 3 else ""
            raise NotProved(
                f"the rules of relevance did not reach all of this module: {named}{more}. Use other rules, or plain "
                "gradients."
            )


@dataclass
class Frame:
    """A part that is running, and whether what it is watched for has been met."""

    place: Place
    name: str
    part: nn.Module
    met: bool = False


class _Carried(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0]


def _carried(value: Tensor, carrier: Callable[[], Tensor]) -> Tensor:
    """Return a value whose gradient is the carrier's, which is not computed where no gradient is kept."""
    if not (torch.is_grad_enabled() and value.requires_grad):
        return value
    return _Carried.apply(value.detach(), carrier().to(value.dtype))  # pyright: ignore[reportReturnType]


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """Return the same value, which hands on a part of its gradient."""
    return _carried(tensor, lambda: tensor * factor)


def _coefficient(z: Tensor, y: Tensor) -> Tensor:
    """Return f(z) / z as a constant, where z is kept off zero."""
    z, y = at_least_single(z.detach()), at_least_single(y.detach())
    return y / (z + torch.where(z < 0, -_STABLE, _STABLE))


class Acting(TorchFunctionMode):
    """The chosen rules at work: where the forward is, and what to make of each torch function called there."""

    def __init__(self, rules: frozenset[str]) -> None:
        super().__init__()
        self.rules, self.coverage = rules, Coverage()
        self.frames: list[Frame] = []
        # Tensors that come from an activation or are an attention pattern, also after a cast or a reshape.
        self.tags = WeakTensorKeyDictionary()
        # What an inline sigmoid is of, since gate · sigmoid(gate · α) is an activation function too.
        self.arguments = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _ACTS.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, func, args, kwargs or {})

    # Where the forward is.

    def enter(self, frame: Frame, _: nn.Module, __: Any) -> None:
        """Note that a part begins; a forward pre-hook."""
        frame.met = False
        self.frames.append(frame)

    def leave(self, frame: Frame, _: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Note that a part has ended, and return what an activation gives by the rules; a forward hook."""
        if not any(each is frame for each in self.frames):
            return None  # it ended before it began
        while self.frames[-1] is not frame:
            self.frames.pop()
        # Still inside, so that what a rule computes is not taken for the module's own.
        changed = self._activated_by(frame.part, args, kwargs, output) if frame.place == "activation" else None
        self.frames.pop()
        if output is not None:  # else it raised
            self._judge(frame)
        return changed

    def _judge(self, frame: Frame) -> None:
        if frame.met and frame.place == "norm" and self.at("norm"):
            self.frames[-1].met = True  # a norm made of norms
        rules, what = _NEEDS.get(frame.place, (frozenset(), ""))
        if not frame.met and rules & self.rules:
            self._miss(frame, what)

    def _miss(self, frame: Frame, what: str) -> None:
        self.coverage.missed.setdefault(frame.name or "the module", f"{type(frame.part).__name__}: {what}")

    def at(self, *places: Place) -> bool:
        """Whether the innermost part that is running is one of these: a router's softmax is not attention's."""
        return bool(self.frames) and self.frames[-1].place in places

    # Norms. A root is a norm's scale only directly in a module that is a norm: elsewhere in a block it may be anything
    # (a router's score, a scaled table). Norms as functions are known by their name wherever they are called.

    def _met_norm(self) -> None:
        self.coverage.norms += 1
        if self.at("norm"):
            self.frames[-1].met = True

    def _root(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        power = args[1] if len(args) > 1 else kwargs.get("exponent")
        if not self.at("norm") or (func in _POWERS and power not in (0.5, -0.5)):
            return out
        self._met_norm()
        return out.detach() if "ln" in self.rules else out

    def _whole_norm(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if self.at("activation"):
            return out
        self._met_norm()
        return _carried(out, partial(_CARRIERS[func], *args, **kwargs)) if "ln" in self.rules else out

    # Activations, and products with what they give.

    def _activated_by(self, part: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        z = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(z, Tensor) or not isinstance(output, Tensor):
            return None
        as_it_is = isinstance(part, nn.ReLU)
        if getattr(part, "inplace", False) and not as_it_is and "identity" in self.rules:
            self._miss(Frame("activation", self.frames[-1].name, part), "an activation that writes over what it reads")
        return self._activated(z, output, as_it_is=as_it_is)

    def _activated(self, z: Tensor, y: Tensor, *, as_it_is: bool = False) -> Tensor:
        self.coverage.activations += 1
        if mlp := next((frame for frame in reversed(self.frames) if frame.place == "mlp"), None):
            mlp.met = True
        if "identity" in self.rules and not as_it_is:
            y = _carried(y, lambda: at_least_single(z) * _coefficient(z, y))
        self.tags[y] = "activation"
        return y

    def _activation(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        z = args[0] if args else kwargs["input"]
        if not self.at("mlp", "block") or out is z:
            return out
        return self._activated(z, out, as_it_is=func in _RELUS)

    def _sigmoid(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if self.at("mlp", "block"):
            self.arguments[out] = self.arguments.get(args[0], args[0])
            self.tags[out] = "sigmoid"
        return out

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if not self.at("mlp", "block"):
            return out
        a, b = args
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            self.arguments[out] = a if isinstance(a, Tensor) else b
            return out
        if a.shape != b.shape or isinstance(a, nn.Parameter) or isinstance(b, nn.Parameter):
            return out  # a scale; routers' weights are one number a token and expert
        for z, gate in ((a, b), (b, a)):
            if self.tags.get(gate) == "sigmoid" and self.arguments.get(gate) is z:
                return self._activated(z, out)
        return self._gated(a, b, out)

    def _gated(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        if "activation" in (self.tags.get(a), self.tags.get(b)):
            self.coverage.products += 1
            return _scaled(out, 0.5) if "half" in self.rules else out
        if "half" in self.rules:
            self._miss(self.frames[-1], "a product in which no factor is known to be an activation's")
        return out

    def _product_in_place(self, func: Any, args: Any, kwargs: Any) -> Any:
        a, b = args
        if self.at("mlp", "block") and isinstance(b, Tensor) and a.shape == b.shape and "half" in self.rules:
            self._miss(self.frames[-1], "a product that writes over one of its factors")
        return func(*args, **kwargs)

    # Attention.

    def _met_attention(self, *, whole: bool) -> None:
        self.coverage.attentions += 1
        self.frames[-1].met |= whole

    def _pattern(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if not self.at("attention"):
            return out
        self._met_attention(whole="uniform" not in self.rules)
        if "ah" in self.rules:
            return out.detach()
        if "uniform" in self.rules:
            out = _scaled(out, 0.25)  # scores are linear in queries and in keys, so this is each one's quarter
            self.tags[out] = "pattern"
        return out

    def _weighing(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Halve the gradient of the values that a pattern weighs."""
        if self.at("attention") and len(args) == 2 and self.tags.get(args[0]) == "pattern":
            self.frames[-1].met = True
            args = args[0], _scaled(args[1], 0.5)
        return func(*args, **kwargs)

    def _fused_attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not self.at("attention"):
            return func(*args, **kwargs)
        self._met_attention(whole=True)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        if "ah" in self.rules:
            given |= {name: given[name].detach() for name in ("query", "key")}
        if "uniform" in self.rules:
            given |= {name: _scaled(given[name], part) for name, part in _UNIFORM.items()}
        return func(given.pop("query"), given.pop("key"), given.pop("value"), *args[3:], **given)

    def _same(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Hand a tag on through a function that moves or casts numbers."""
        out = func(*args, **kwargs)
        tag = self.tags.get(args[0]) if args and isinstance(args[0], Tensor) and isinstance(out, Tensor) else None
        if tag in ("activation", "pattern"):
            self.tags[out] = tag
        return out


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    x = at_least_single(x)
    centred = x - x.mean(axes, keepdim=True)
    return _affine(centred * torch.rsqrt(centred.detach().square().mean(axes, keepdim=True) + eps), weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    x, axes = at_least_single(input), tuple(range(-len(normalized_shape), 0))
    return _affine(x * torch.rsqrt(x.detach().square().mean(axes, keepdim=True) + eps), weight, None)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


_UNIFORM = {"query": 0.25, "key": 0.25, "value": 0.5}
_CARRIERS = {F.layer_norm: _layer_norm, F.rms_norm: _rms_norm}
_POWERS = frozenset({torch.pow, Tensor.pow, Tensor.__pow__})
_ROOTS = (torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt, torch.norm, Tensor.norm, torch.linalg.vector_norm)
_RELUS = frozenset({F.relu, torch.relu, Tensor.relu})
_FUNCTIONS = (*_RELUS, F.silu, F.gelu, F.mish, F.hardswish, F.elu, F.leaky_relu, F.relu6, F.softplus)
_CASTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "__getitem__")
_SHAPES = ("view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "flatten", "unflatten", "expand")
_ACTS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((*_ROOTS, *_POWERS), Acting._root),
    **dict.fromkeys(_CARRIERS, Acting._whole_norm),
    **dict.fromkeys(_FUNCTIONS, Acting._activation),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid), Acting._sigmoid),
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__rmul__), Acting._product),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), Acting._product_in_place),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), Acting._pattern),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), Acting._weighing),
    F.scaled_dot_product_attention: Acting._fused_attention,
    **dict.fromkeys((F.dropout, torch.dropout, *(getattr(Tensor, name) for name in (*_CASTS, *_SHAPES))), Acting._same),
}
