"""`capture` and `write`: read and change activations while you run the model yourself. Everything is put back after."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.draw import Display, Displayed, spans
from crosspatch.engine.edits import Edit
from crosspatch.models.anatomy import Point
from crosspatch.models.attention import Job, attention_modules, rerouted
from crosspatch.models.blocks import block_list
from crosspatch.models.guard import one_thread, refuse_compiled
from crosspatch.models.hooks import attach, main_tensor
from crosspatch.models.model import Model
from crosspatch.sites import KINDS, Site, parse, parse_site

Mask = Int[Tensor, "batch pos"]


@dataclass(repr=False)
class Captured(Displayed):
    """Activations of the last forward. `captured["attn.head[5, 3]@-1"]` is `[batch, pos, width]` of that site.

    With a position the pos axis has length 1; `attn.pattern` is `[batch, query, key]`.
    """

    model: Model
    stores: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    mask: Mask | None = None

    def __getitem__(self, site: str | Site) -> Tensor:
        """Return the activation of a site.

        Raises:
            UnknownName: it was not asked for, the model has no such unit, or no forward has run.
            BadInput: a position that is named, or beyond a prompt's end.
        """
        chosen = parse_site(site) if isinstance(site, str) else site
        key = (chosen.kind, chosen.layer)
        if key not in self.stores:
            held = ", ".join(sorted({kind if layer is None else f"{kind}[{layer}]" for kind, layer in self.stores}))
            held = held or "nothing; run the model inside the block"
            raise UnknownName(f"{chosen} was not captured. Captured: {held}.")
        self.model.require(chosen)
        value = self.stores[key]
        if chosen.kind == "attn.pattern":
            value = value if chosen.unit is None else value[:, chosen.unit]
        elif chosen.kind in self.model.anatomy.points:
            value = value[..., self.model.anatomy.points[chosen.kind].columns(chosen.unit)]
        if chosen.position in (None, "all"):
            return value
        rows, index = row_positions(chosen, value.shape[0], value.shape[-2], self.mask)
        # A whole pattern has its heads before its positions.
        return value[rows, index][:, None] if value.ndim == 3 else value[rows, :, index][:, :, None]

    def display(self) -> Display:
        """List the kinds that are held, with their layers, shape and precision."""
        kinds: dict[str, list[int | None]] = {}
        for kind, layer in self.stores:
            kinds.setdefault(kind, []).append(layer)
        rows = []
        for kind, layers in kinds.items():
            value = self.stores[kind, layers[0]]
            numbers = spans([layer for layer in layers if layer is not None]) or "–"
            rows.append((kind, numbers, str(list(value.shape)), str(value.dtype).removeprefix("torch.")))
        title = f"Captured from {self.model.name}" + ("" if rows else ": nothing yet; run the model inside the block")
        return Display(title, ("kind", "layers", "shape", "dtype") if rows else (), rows)

    def __iter__(self) -> Iterator[tuple[str, int | None]]:
        """Iterate over the captured kinds and layers."""
        return iter(self.stores)


def row_positions(site: Site, batch: int, width: int, mask: Mask | None) -> tuple[Tensor, Tensor]:
    """Return row and column of a site's position in every prompt of a padded batch; padding is never counted.

    Raises:
        BadInput: a named position, which only a task can resolve, one beyond a prompt's end, or a mask of other shape.
    """
    if not isinstance(site.position, int):
        raise BadInput(f"{site}: named positions belong to a task's prompts; give an index here.")
    if mask is not None and tuple(mask.shape) != (batch, width):
        raise BadInput(f"{site}: the mask is {list(mask.shape)}, and the activation has [batch, pos] {[batch, width]}.")
    real = torch.ones(batch, width, dtype=torch.bool) if mask is None else mask.bool().cpu()
    lengths, first = real.sum(1), real.int().argmax(1)
    index = site.position + (lengths if site.position < 0 else 0)
    short = ((index < 0) | (index >= lengths)).nonzero()
    if len(short):
        raise BadInput(f"{site}: prompt {int(short[0])} of the batch has {int(lengths[short[0]])} tokens.")
    return torch.arange(batch), first + index


@contextmanager
def capture(model: Model, sites: str | Sequence[Site], *, mask: Mask | None = None) -> Iterator[Captured]:
    """Keep the activations at sites while you run the model.

    `with capture(model, "resid.pre") as seen: model.module(…)`, then `seen["resid.pre[3]@-1"]`. `mask` is the attention
    mask `[batch, pos]` of your batch, needed where positions are asked for and prompts are padded (on either side).
    Tensors are detached copies. Hooks leave with the block, also after an exception.

    Raises:
        UnknownName, BadInput: a site that this model does not have.
    """
    seen = Captured(model, mask=mask)
    wanted = {(site.kind, site.layer) for site in expanded(model, sites)}

    def keep(kind: str, layer: int | None) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            seen.stores[kind, layer] = value.detach().clone()

        return see

    with touching(model, {key: keep(*key) for key in wanted}):
        yield seen


@contextmanager
def write(model: Model, edits: Mapping[str | Site, Edit], *, mask: Mask | None = None) -> Iterator[None]:
    """Change activations while you run the model.

    `with write(model, {"attn.head[5, 3]@-1": Zero()}): model.module(…)`. Each edit sees the site's activation
    `[batch, pos, width]` (a pattern: `[batch, query, key]`) and returns what should stand there; several edits of one
    activation act in the order given. `mask` as in `capture`. Hooks leave with the block, also after an exception.

    Raises:
        UnknownName, BadInput: a site that this model does not have, an edit that does not fit, or no forward was run.
    """
    groups: dict[tuple[str, int | None], list[tuple[Site, Edit]]] = defaultdict(list)
    for text, edit in edits.items():
        for site in expanded(model, text if isinstance(text, str) else (text,)):
            groups[site.kind, site.layer].append((site, edit))
    fired: set[tuple[str, int | None]] = set()

    def change(kind: str, layer: int | None) -> Callable[[Tensor], Tensor]:
        def act(value: Tensor) -> Tensor:
            fired.add((kind, layer))
            for site, edit in groups[kind, layer]:
                value = _edited(model, site, edit, value, mask)
            return value

        return act

    with touching(model, {key: change(*key) for key in groups}):
        yield
    if len(fired) < len(groups):
        missed = next(key for key in groups if key not in fired)
        raise BadInput(f"nothing was written at {groups[missed][0][0]}: the model was not run inside the block.")


def expanded(model: Model, sites: str | Sequence[Site]) -> tuple[Site, ...]:
    """List the sites of a selection.

    Raises:
        UnknownName, BadInput: a site that this model does not have.
    """
    if isinstance(sites, str):
        selection = parse(sites)
        for pattern in selection.patterns:
            model.anatomy.require(pattern.kind)
        return selection.expand(model.extent)
    for site in sites:
        model.require(site)
    return tuple(sites)


def _edited(model: Model, site: Site, edit: Edit, value: Tensor, mask: Mask | None) -> Tensor:
    """Return the activation with one site of it edited; a pattern's head is `[batch, query, key]`."""
    value = value.clone()
    if site.kind == "attn.pattern":
        for head in range(value.shape[1]) if site.unit is None else (site.unit,):
            value[:, head] = _at_positions(site, edit, value[:, head], mask)
        return value
    columns = model.anatomy.points[site.kind].columns(site.unit) if site.kind in model.anatomy.points else slice(None)
    value[..., columns] = _at_positions(site, edit, value[..., columns], mask)
    return value


def _at_positions(site: Site, edit: Edit, part: Tensor, mask: Mask | None) -> Tensor:
    if site.position in (None, "all"):
        return applied(site, edit, part)
    rows, index = row_positions(site, part.shape[0], part.shape[1], mask)
    out = part.clone()
    out[rows, index] = applied(site, edit, part[rows, index][:, None])[:, 0]
    return out


def applied(site: Site, edit: Edit, part: Tensor) -> Tensor:
    """Return the edit's result; one of another shape would be broadcast unseen.

    Raises:
        BadInput: the edit returned another shape.
    """
    result = edit(part)
    if result.shape != part.shape:
        given, allowed = list(result.shape), list(part.shape)
        raise BadInput(f"{site}: the edit returned shape {given}; it must keep the activation's shape {allowed}.")
    return result


Act = Callable[[Tensor], Tensor | None]


@contextmanager
def touching(model: Model, acts: Mapping[tuple[str, int | None], Act]) -> Iterator[None]:
    """Keep hooks on the given kinds and layers; of a model split over processes, all must open the same ones.

    Each act sees `[batch, pos, width]`; that of a pattern `[batch, head, query, key]`.
    """
    refuse_compiled(model.module)
    entering: dict[int, Tensor] = {}
    patterns = {layer: act for (kind, layer), act in acts.items() if kind == "attn.pattern" and layer is not None}
    with ExitStack() as stack:
        stack.enter_context(one_thread(model.module))
        for (kind, layer), act in sorted(acts.items(), key=lambda item: _order(item[0])):
            if kind != "attn.pattern":
                stack.callback(_hook(model, (kind, layer), act, entering).remove)
        # After the edits: what a block reads is the stream as they left it.
        for layer, block in enumerate(block_list(model.module, model.anatomy)):
            stack.callback(block.register_forward_pre_hook(_note(layer, entering), with_kwargs=True).remove)
        if patterns:
            modules = attention_modules(model.module, model.anatomy)
            job = Job(watched={id(modules[layer]): act for layer, act in patterns.items()})
            stack.enter_context(rerouted(model.module, model.anatomy, job))
        yield


def _order(key: tuple[str, int | None]) -> tuple[int, int]:
    return (-1 if key[1] is None else key[1], list(KINDS).index(key[0]))


def _note(layer: int, entering: dict[int, Tensor]) -> Callable[..., None]:
    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering[layer] = main_tensor(args, kwargs)

    return see


def _hook(model: Model, key: tuple[str, int | None], act: Act, entering: Mapping[int, Tensor]) -> RemovableHandle:
    """Register one act; `entering` holds what each block of the present forward reads."""
    kind, layer = key[0], key[1] or 0
    anatomy, module = model.anatomy, model.module
    if kind == "embed":
        return attach(module, Point(anatomy.embedding, "output"), act)
    if kind == "logits":
        return module.register_forward_hook(lambda _, __, output: _on_logits(output, act))
    block = block_list(module, anatomy)[layer]
    if kind in ("resid.pre", "resid.post"):
        return attach(block, Point("", "input" if kind == "resid.pre" else "output"), act)
    if kind == "resid.mid":

        def between(added: Tensor) -> Tensor | None:
            changed = act(entering[layer] + added)
            return None if changed is None else changed - entering[layer]

        return attach(block, anatomy.points["attn.out"], between)

    def flat(value: Tensor) -> Tensor | None:
        # Some blocks (OPT) flatten batch and position before their MLP.
        changed = act(value.reshape(*entering[layer].shape[:2], value.shape[-1]))
        return None if changed is None else changed.reshape(value.shape)

    return attach(block, anatomy.points[kind], flat)


def _on_logits(output: Any, act: Act) -> Any:
    changed = act(output.logits)
    if changed is not None:
        output.logits = changed
    return output
