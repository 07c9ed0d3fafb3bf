"""The real weights of a module outside its forward: out of offload, joined over ranks, dequantised."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

_FOUR_BITS = "Params4bit"
_BITSANDBYTES = (_FOUR_BITS, "Int8Params")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


def is_fsdp(module: nn.Module) -> bool:
    """Whether a module, or a part of it, is sharded by FSDP2, so that each forward gathers its weights."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def untracked(module: nn.Module) -> AbstractContextManager[Any]:
    """Return a context without gradients; FSDP would keep tensors of inference mode, which nothing can train after."""
    return torch.no_grad() if is_fsdp(module) else torch.inference_mode()


@contextmanager
def trackable(module: nn.Module) -> Iterator[None]:
    """Let activations have gradients where `torch.enable_grad` is on, and weights none; both are put back after."""
    # By owner and name: offloading puts another tensor there at each forward.
    held = [(part, name, p.requires_grad) for part in module.modules() for name, p in _own_parameters(part)]
    with torch.inference_mode(False), torch.no_grad():
        try:
            for part, name, _ in held:
                _ask(part._parameters[name], wanted=False)
            yield
        finally:
            for part, name, asked in held:
                _ask(part._parameters[name], wanted=asked)


def _own_parameters(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in part._parameters.items() if p is not None]


def _ask(parameter: nn.Parameter | None, *, wanted: bool) -> None:
    if parameter is None or parameter.requires_grad == wanted:
        return
    with torch.inference_mode(parameter.is_inference()):  # where alone an inference tensor may be told
        parameter.requires_grad_(wanted)


def device_of(part: nn.Module) -> torch.device | None:
    """Return the device that a part computes on, wherever its weights wait meanwhile; None if it has no weights."""
    for each in part.modules():
        if (device := _sent_to(getattr(each, "_hf_hook", None))) is not None:
            return torch.device(device)
    weight = next(part.parameters(), None)
    if isinstance(weight, DTensor) and weight.device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())  # also while FSDP keeps its shards on the processor
    return None if weight is None else weight.device


def _sent_to(hook: Any) -> Any:
    """Return where a hook of accelerate, or one of several in a row, sends what its module is given."""
    found = (getattr(each, "execution_device", None) for each in (*getattr(hook, "hooks", ()), hook))
    return next((device for device in found if device is not None), None)


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of 8 bits or fewer that stand for others."""
    kind = type(tensor)
    # torch's own tensors have the method too, for a kind of quantised tensor that no weight is loaded as
    return kind.__name__ in _BITSANDBYTES or getattr(kind, "dequantize", None) is not Tensor.dequantize


def whole(tensor: Tensor) -> Tensor:
    """Return a plain tensor: joined over all ranks, which must all ask in the same order, and dequantised."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.dequantize() if is_quantised(tensor) else tensor.detach()


def count(tensor: Tensor) -> int:
    """Return how many numbers a weight holds, however they are packed."""
    return tensor.numel() * (2 if type(tensor).__name__ == _FOUR_BITS else 1)


def elsewhere(module: nn.Module) -> bool:
    """Whether a module's own weights cannot be read off it."""
    tensors = chain(module.parameters(), module.buffers())
    return any(isinstance(t, DTensor) or t.is_meta or is_quantised(t) for t in tensors)


def plain(module: nn.Module) -> nn.Module:
    """Return a module that computes what this one does, with real weights: itself, or a copy without hooks.

    A copy is called by itself, outside what splits, offloads or quantises the model. All ranks must ask together.
    """
    return _copy(module) if elsewhere(module) else module


def _copy(module: nn.Module) -> nn.Module:
    kind = type(module)
    kind = kind.__mro__[2] if isinstance(module, FSDPModule) else kind
    if any(type(p).__name__ in _BITSANDBYTES for p in module._parameters.values()):
        kind = nn.Linear  # what the quantised class stands for
        module.state_dict()  # on a processor its 4 bits wait in another order, which this undoes
    copy = nn.Module.__new__(kind)
    copy.__dict__.update(module.__dict__)
    for name in ("forward", "_hf_hook", "_old_forward"):
        copy.__dict__.pop(name, None)
    for name in _HOOKS:
        copy.__dict__[name] = OrderedDict()
    with _reading(module):
        own = {name: None if p is None else _whole_of(module, p) for name, p in module._parameters.items()}
        held = {name: None if b is None else whole(b) for name, b in module._buffers.items()}
    copy.__dict__["_parameters"] = {
        name: None if t is None else nn.Parameter(t, requires_grad=False) for name, t in own.items()
    }
    copy.__dict__["_buffers"] = held
    copy.__dict__["_modules"] = {n: None if part is None else _copy(part) for n, part in module._modules.items()}
    return copy


@contextmanager
def _reading(module: nn.Module) -> Iterator[None]:
    """Fetch a module's own weights from where they wait; what is made of them can be used anywhere."""
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        if hasattr(module, "_hf_hook"):
            from accelerate.utils import align_module_device

            stack.enter_context(align_module_device(module))
        yield


def _whole_of(module: nn.Module, parameter: nn.Parameter) -> Tensor:
    if type(parameter).__name__ not in _BITSANDBYTES:
        return whole(parameter)
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(parameter, getattr(module, "state", None)).detach()


def named_whole(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's state, one whole at a time, in the order of their names, alike on all ranks."""
    reshard(module)
    parts = dict(module.named_modules())
    for name in sorted(module.state_dict()):
        path, _, last = name.rpartition(".")
        owner = parts.get(path)
        if owner is None or not isinstance(_member(owner, last), Tensor):
            continue  # what a quantised weight is stored with
        with _reading(owner):
            own = _member(owner, last)
            if type(own).__name__ == _FOUR_BITS:
                yield name, own.data  # the codes; their scales are rounded when they are first used on a processor
            else:
                yield name, _whole_of(owner, own) if isinstance(own, nn.Parameter) else whole(own)


def _member(owner: nn.Module, name: str) -> Any:
    return owner._parameters.get(name, owner._buffers.get(name))


def reshard(module: nn.Module) -> None:
    """Give back the weights that FSDP gathered and kept, so that all parts are in one state again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@dataclass(frozen=True)
class Parts:
    """Some modules of a model by path, with real weights; of the last, only some rows if `rows` are given."""

    held: Mapping[str, nn.Module]
    rows: Int[Tensor, " row"] | None = None

    def get_submodule(self, path: str) -> nn.Module:
        """Return a part by its path."""
        return self.held[path]

    def places(self, ids: Tensor) -> Tensor:
        """Return where the rows of these token ids are."""
        return ids if self.rows is None else torch.searchsorted(self.rows, ids.to(self.rows.device))


def parts_of(
    module: nn.Module, paths: Sequence[str], *, table: str = "", ids: Tensor | None = None
) -> "nn.Module | Parts":
    """Return the module itself if its parts can be read as they are, else the parts with their real weights.

    Of the part `table`, whose weight has a row a token, only the rows of `ids` are fetched if they are given. All
    ranks must ask together.
    """
    if not any(elsewhere(module.get_submodule(path)) for path in paths) and not is_fsdp(module):
        return module
    reshard(module)
    rows = None if ids is None else ids.unique()
    held = {path: plain(module.get_submodule(path)) for path in paths if rows is None or path != table}
    if rows is not None:
        held[table] = _table(module.get_submodule(table), rows)
    return Parts(held, rows)


def _table(part: nn.Module, rows: Int[Tensor, " row"]) -> nn.Module:
    """Return a linear map with some rows of a larger one."""
    copy = nn.Module()
    with _reading(part):
        for name in ("weight", "bias"):
            held = part._parameters.get(name)
            copy.register_buffer(name, None if held is None else _rows_of(part, held, rows))
    return copy


def _rows_of(part: nn.Module, table: nn.Parameter, rows: Int[Tensor, " row"]) -> Tensor:
    """Return rows of a table; where ranks hold parts of it, each gives its own rows and the rest is zero."""
    split = [p for p in table.placements if p.is_shard()] if isinstance(table, DTensor) else []
    if not isinstance(table, DTensor) or len(split) != 1 or split[0] != Shard(0):
        full = _whole_of(part, table)
        return full[rows.to(full.device)]
    shape, offset = compute_local_shape_and_global_offset(table.shape, table.device_mesh, table.placements)
    own: Tensor = table.to_local()  # pyright: ignore[reportAttributeAccessIssue]
    places = rows.to(own.device) - offset[0]
    here = (places >= 0) & (places < shape[0])
    found = own.new_zeros(len(rows), *table.shape[1:])
    found[here] = own[places[here]]
    axis = next(i for i, placement in enumerate(table.placements) if placement.is_shard())
    dist.all_reduce(found, group=table.device_mesh.get_group(axis))
    return found
