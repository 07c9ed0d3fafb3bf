"""Effects for other programs: pandas and polars tables, and tensors shaped as TransformerLens gives them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.core.errors import BadInput, MissingExtra, UnknownName
from crosspatch.engine.grids import TOGETHER, ExampleView, index_in
from crosspatch.sites import KINDS, Address, Group, Site, to_transformer_lens

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from torch import Tensor

    from crosspatch.engine.effects import Effects, EffectScale


def to_pandas(effects: "Effects") -> "pd.DataFrame":
    """Make a pandas table, one row a site. Raises MissingExtra without pandas."""
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
    columns = _columns(effects)
    whole = {name: pd.array(columns[name], dtype="Int64") for name in ("layer", "unit")}
    return pd.DataFrame({**columns, **whole, "position": pd.array(columns["position"], dtype="object")})


def to_polars(effects: "Effects") -> "pl.DataFrame":
    """Make a polars table, one row a site; a position is a text. Raises MissingExtra without polars."""
    try:
        import polars as pl
    except ImportError:
        raise MissingExtra("to_polars needs polars: pip install 'crosspatch[polars]'") from None
    columns = _columns(effects)
    # A column has one type, and a position is an index or a name.
    columns["position"] = [None if place is None else str(place) for place in columns["position"]]
    types = {"site": pl.String, "kind": pl.String, "layer": pl.Int64, "unit": pl.Int64, "position": pl.String}
    return pl.DataFrame(columns, schema_overrides=types)


def _columns(effects: "Effects") -> dict[str, Any]:
    """Give the columns of a table of effects, each `[site]`; what a site does not have is None."""
    low, high = effects.interval()
    return {
        "site": [str(site) for site in effects.sites],
        **{part: [getattr(site, part) for site in effects.sites] for part in ("kind", "layer", "unit", "position")},
        "effect": effects.mean(),
        "low": low,
        "high": high,
        "raw": effects.mean("raw"),
        "p": effects.p_values(),
        "q": effects.q_values(),
        "n": (~np.isnan(effects.raw)).sum(axis=1),
    }


def to_tensors(effects: "Effects", *, kind: str | None, scale: "EffectScale | None") -> "dict[str, Tensor]":
    """Arrange mean effects as TransformerLens's patching helpers do: see `Effects.to_tensors`."""
    import torch

    cells: dict[tuple[str, tuple[str, ...]], list[tuple[list[int], float]]] = {}
    for site, value in zip(effects.sites, effects.mean(scale), strict=True):
        if kind is None or site.kind == kind:
            name, place = _cell(site, effects.examples)
            cells.setdefault((name, tuple(place)), []).append((list(place.values()), float(value)))
    if not cells:
        raise UnknownName.of("kind in these effects", str(kind), effects.kinds)
    known = {"layer": effects.layers, "pos": max(len(example.clean_tokens) for example in effects.examples)}
    tensors = {}
    for (name, axes), held in cells.items():
        index = torch.tensor([place for place, _ in held], dtype=torch.long).T
        # How many units there are beyond the last one swept is not kept with the effects.
        shape = [known.get(axis, int(places.max()) + 1) for axis, places in zip(axes, index, strict=True)]
        tensors[name] = torch.full(shape, float("nan"), dtype=torch.float32)
        tensors[name][tuple(index)] = torch.tensor([value for _, value in held])
    return tensors


def _cell(site: Address, examples: Sequence[ExampleView]) -> tuple[str, dict[str, int]]:
    """Name the tensor that holds a site, and give its place there by axis, in TransformerLens's order.

    Raises BadInput for a site that has no place there.
    """
    if isinstance(site, Group):
        raise BadInput(f"{site} is a group of sites, and TransformerLens's tensors hold single ones: give a kind.")
    name = to_transformer_lens(site).rpartition("hook_")[2]
    place = {} if site.layer is None else {"layer": site.layer}
    together = site.position in (None, TOGETHER)
    spot = {} if together else {"pos": _index(site, examples)}
    if KINDS[site.kind].unit is None:
        return name + "_all_pos" * together, place | spot
    if site.unit is None:
        raise BadInput(f"{site} is all units together, for which TransformerLens has no tensor: sweep them one by one.")
    unit = {"head": site.unit}
    return name + "_all_pos" * together, place | (unit | spot if site.kind == "attn.pattern" else spot | unit)


def _index(site: Site, examples: Sequence[ExampleView]) -> int:
    """Give the token that a position is in every pair. Raises BadInput where pairs differ."""
    found = {index_in(site.position, example) for example in examples}
    index = found.pop() if len(found) == 1 else None
    if index is None:
        raise BadInput(
            f"{site}: {site.position} is not the same token in all pairs, and TransformerLens's tensors have one "
            "index a position. Take pairs of one layout, another kind, or `grid`, whose columns are positions."
        )
    return index
