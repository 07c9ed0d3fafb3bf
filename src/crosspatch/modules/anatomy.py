"""The stacks of blocks of any model: for each kind of site, the side of the submodule that carries it in each layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from crosspatch.models.discover import input_width, output_width
from crosspatch.modules import names
from crosspatch.replay import Recording, Spot
from crosspatch.sites import Extent


@dataclass(frozen=True)
class Place:
    """Where a kind is in one layer: a spot, and for kinds with units the first column of each and their width."""

    spot: Spot
    starts: Sequence[int] = ()
    width: int = 0

    def columns(self, unit: int | None) -> slice | list[int]:
        """Return the columns of a unit, or those of all units (a fused projection holds other kinds too)."""
        if not self.starts:
            return slice(None)
        if unit is not None:
            return slice(self.starts[unit], self.starts[unit] + self.width)
        return [column for start in self.starts for column in range(start, start + self.width)]

    def at_call(self, call: int) -> "Place":
        """Return the place at another call of its submodule."""
        return replace(self, spot=replace(self.spot, call=call))


@dataclass(frozen=True)
class Stack:
    """Blocks that follow one another: their paths in the order of a run, and the places of each kind, by layer.

    `name` stands before the kinds (`encoder.resid.post`); it is empty if the model has one stack only. `refused` gives
    the reason for each kind that was found and cannot be trusted.
    """

    name: str
    blocks: tuple[str, ...]
    places: tuple[Mapping[str, Place], ...]
    refused: Mapping[str, str]

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def kind(self, kind: str) -> str:
        """Return the full name of a kind in this stack."""
        return f"{self.name}.{kind}" if self.name else kind

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that some layer has, with the stack's name."""
        return tuple(self.kind(kind) for kind in dict.fromkeys(kind for layer in self.places for kind in layer))

    @cached_property
    def extent(self) -> Extent:
        """Layers and units, for expanding a selection; units as many as the layer with the fewest has."""
        units: dict[str, int] = {}
        for layer in self.places:
            for kind, place in layer.items():
                if place.starts:
                    units[self.kind(kind)] = min(units.get(self.kind(kind), 10**9), len(place.starts))
        return Extent(self.layers, units)


def find_stacks(recording: Recording) -> tuple[Stack, ...]:
    """Find the stacks of blocks that a recorded run went through, by the names that architectures share.

    A block is the smallest element of a list that holds attention and a feed-forward part; in a model without attention
    it is an element of the list of like modules that holds most parameters. A module without such lists has no stacks.
    """
    found: dict[str, list[str]] = {}
    listed, blocks = _blocks(recording)
    for path in blocks:
        found.setdefault(without_numbers(path) if listed else "", []).append(path)
    named = zip(names.stack_names(list(found)), found.values(), strict=True)
    return tuple(Stack(name, tuple(own), tuple(_places(recording, each) for each in own), {}) for name, own in named)


def without_numbers(path: str) -> str:
    """Return a path without its indices, which is the same for all blocks of a stack."""
    return ".".join(part for part in path.split(".") if not part.isdigit())


def without(stack: Stack, kind: str, reason: str) -> Stack:
    """Return the stack with a kind refused."""
    places = tuple({k: place for k, place in layer.items() if k != kind} for layer in stack.places)
    return replace(stack, places=places, refused={**stack.refused, kind: reason})


def _blocks(recording: Recording) -> tuple[bool, list[str]]:
    """Return whether blocks are elements of lists, and their paths in the order in which they are first called."""
    module = recording.module
    parts = dict(module.named_modules())
    attention = [path for path, part in parts.items() if is_attention(part)]
    holding = {_block_around(path, parts, attention) for path in attention} - {""}
    order = {call.path: number for number, call in reversed(list(enumerate(recording.calls)))}
    listed = holding or set(_alike(parts))
    blocks = listed or {path for path, part in parts.items() if path and part._parameters}
    return bool(listed), sorted((path for path in blocks if path in order), key=lambda path: order[path])


def is_attention(part: nn.Module) -> bool:
    """Whether a module holds projections to queries, keys and values itself."""
    separate = all(child(part, named) for named in names.PROJECTIONS.values())
    return separate or child(part, names.FUSED) is not None or isinstance(part, nn.MultiheadAttention)


def child(part: nn.Module, named: Sequence[str]) -> str | None:
    """Return the first of some paths below a module that is a module."""
    for path in named:
        found: object = part
        for name in path.split("."):
            found = getattr(found, "_modules", {}).get(name)
        if isinstance(found, nn.Module):
            return path
    return None


def _block_around(path: str, parts: Mapping[str, nn.Module], attention: Sequence[str]) -> str:
    """Return the smallest element of a list around an attention module that has linear maps outside of attention."""
    while "." in path:
        inside = [each for each in attention if f"{each}.".startswith(f"{path}.")]
        linear = [name for name, part in parts[path].named_modules() if _is_matrix(part)]
        free = [n for n in linear if not any(f"{path}.{n}".startswith(f"{each}.") for each in inside)]
        if path.rsplit(".", 1)[-1].isdigit() and len(free) >= 2:
            return path
        path = path.rpartition(".")[0]
    return ""


def _is_matrix(part: nn.Module) -> bool:
    weight = part._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and not isinstance(part, nn.Embedding)


def _alike(parts: Mapping[str, nn.Module]) -> list[str]:
    """Return the elements of the list of modules of one class that holds most parameters."""
    lists = [
        [f"{path}.{name}" if path else name for name in part._modules]
        for path, part in parts.items()
        if isinstance(part, nn.ModuleList) and len({type(each) for each in part}) == 1
    ]
    return max(lists, key=lambda paths: sum(p.numel() for path in paths for p in parts[path].parameters()), default=[])


def _places(recording: Recording, block: str) -> dict[str, Place]:
    """Return the places of one block, as far as its run went through them."""
    part = recording.module.get_submodule(block)
    stream = Spot(block, "output", tensor=recording.by_id[block, 0].stream)
    found = {"resid.pre": Place(Spot(block, "input")), "resid.post": Place(stream)}
    inside = [name for name, each in part.named_modules() if name and is_attention(each)]
    for name in inside:
        kind = "cross" if _is_cross(recording, f"{block}.{name}") else "attn"
        if f"{kind}.out" in found:
            continue  # a second one of its kind is reached by its path
        found |= dict(_attention(part, block, name, kind))
    found |= dict(_mlp(part, block, inside))
    return {kind: place for kind, place in found.items() if (place.spot.path, 0) in recording.by_id}


def _is_cross(recording: Recording, path: str) -> bool:
    """Whether keys come from elsewhere than queries: told by what their projections read, else by the name."""
    part = recording.module.get_submodule(path)
    query, key = (child(part, names.PROJECTIONS[each]) for each in ("q", "k"))
    if query and key:
        calls = [recording.by_id.get((f"{path}.{each}", 0)) for each in (query, key)]
        if all(call is not None and call.key is not None for call in calls):
            return calls[0].key != calls[1].key  # pyright: ignore[reportOptionalMemberAccess]
    return bool(names.CROSS.search(path.rsplit(".", 1)[-1]))


def _attention(part: nn.Module, block: str, name: str, kind: str) -> Iterator[tuple[str, Place]]:
    """Yield the places of an attention module, with those of a second stream that joins it."""
    own, path = part.get_submodule(name), f"{block}.{name}"
    output = child(own, names.OUTPUT)
    outside = name.rpartition(".")[0]
    if output:
        output = f"{path}.{output}"
    elif outside and (beside := child(part.get_submodule(outside), names.BESIDE)):
        output = f"{block}.{outside}.{beside}"
    yield f"{kind}.in", Place(Spot(path, "input"))
    yield f"{kind}.out", Place(Spot(output if output and not output.startswith(path + ".") else path, "output"))
    yield from _heads(own, path, kind, output, names.PROJECTIONS)
    if child(own, names.ADDED["k"]):
        added = child(own, names.ADDED_OUTPUT)
        yield from _heads(own, path, "cross", f"{path}.{added}" if added else None, names.ADDED)
        if added:
            yield "cross.out", Place(Spot(f"{path}.{added}", "output"))


def _heads(
    own: nn.Module, path: str, kind: str, output: str | None, projections: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Place]]:
    """Yield queries, keys, values and head outputs, cut into heads."""
    heads = head_count(own)
    fused = child(own, names.FUSED)
    widths: dict[str, int] = {}
    for letter, named in projections.items():
        if (found := child(own, named)) and not fused:
            widths[letter] = output_width(own.get_submodule(found))
    if fused and heads:
        each = output_width(own.get_submodule(fused)) // 3
        for number, letter in enumerate("qkv"):
            starts = range(number * each, (number + 1) * each, each // heads)
            yield f"{kind}.{letter}", Place(Spot(f"{path}.{fused}", "output"), starts, each // heads)
    d_head = widths.get("q", widths.get("k", 0)) // heads if heads else 0
    for letter, width in widths.items():
        name = child(own, projections[letter])
        starts = range(0, width, d_head) if d_head and width % d_head == 0 else ()
        yield f"{kind}.{letter}", Place(Spot(f"{path}.{name}", "output"), starts, d_head if starts else 0)
    if output and heads and not isinstance(own, nn.MultiheadAttention):
        inputs = input_width(own.get_submodule(output.removeprefix(path + "."))) if output.startswith(path + ".") else 0
        size = inputs // heads if inputs else d_head
        if size:
            yield f"{kind}.head", Place(Spot(output, "input"), range(0, size * heads, size), size)


def head_count(own: nn.Module) -> int:
    """Return an attention module's number of query heads, as it or its configuration says; 0 if neither does."""
    config = getattr(own, "config", None)
    for holder in (own, config):
        for name in names.HEADS:
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return 0


def _mlp(part: nn.Module, block: str, attention: Sequence[str]) -> Iterator[tuple[str, Place]]:
    """Yield the places of a block's feed-forward part: a module of its own, or two maps of the block."""
    modules = [name for name, _ in part.named_modules() if name.rsplit(".", 1)[-1] in names.MLP]
    modules = [name for name in modules if not any(name.startswith(f"{each}.") for each in attention)]
    if modules:
        whole = modules[0]
        maps = [name for name, each in part.get_submodule(whole).named_modules() if _is_matrix(each)]
        yield "mlp.in", Place(Spot(f"{block}.{whole}", "input"))
        yield "mlp.out", Place(Spot(f"{block}.{whole}", "output"))
        if len(maps) in (2, 3):  # up (and gate) and down; more of them are experts
            yield "mlp.hidden", _neurons(part, block, f"{whole}.{maps[-1]}")
        return
    up, down = child(part, names.UP), child(part, names.DOWN)
    if up and down:
        yield "mlp.in", Place(Spot(f"{block}.{up}", "input"))
        yield "mlp.hidden", _neurons(part, block, down)
        yield "mlp.out", Place(Spot(f"{block}.{down}", "output"))


def _neurons(part: nn.Module, block: str, down: str) -> Place:
    return Place(Spot(f"{block}.{down}", "input"), range(input_width(part.get_submodule(down))), 1)


def first_attention(module: nn.Module) -> list[str]:
    """Return the path of the first attention module of each kind of place in the module."""
    found: dict[str, str] = {}
    for path, part in module.named_modules():
        if path and is_attention(part):
            found.setdefault(without_numbers(path), path)
    return list(found.values())
