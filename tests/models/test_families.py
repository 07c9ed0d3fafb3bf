"""Every family of the zoo: its parts are where a person reads them, and patching any of them is exact."""

import random

import numpy as np
import pytest

from crosspatch.engine.patching import patch
from crosspatch.engine.sweep import Options
from crosspatch.sites import Site
from naive.families import naive_effect
from zoo import ZOO, make_task, opened, uneven

PLACES = (3, -1, "all", "mid", 7)


def sites_of(name: str, each: int, seed: int) -> list[Site]:
    """Draw some sites of every kind the family offers: any layer, first and last unit or the whole width, any place."""
    beast, sites = ZOO[name], []
    for kind in sorted(beast.kinds - {"logits"}):
        units = [None, 0, beast.units[kind] - 1] if kind in beast.units else [None]
        layers = [None] if kind == "embed" else range(3)
        every = [Site(kind, layer, unit, at) for layer in layers for unit in units for at in PLACES]
        sites += random.Random(f"{kind} {seed}").sample(list(dict.fromkeys(every)), each)
    return sites


def compare(name: str, direction: str, *, each: int, seed: int) -> None:
    """Sweep a sample of sites and repeat every patch by hand."""
    task = make_task(*uneven()[:2])
    effects = patch(
        opened(name), task, sites=sites_of(name, each, seed), direction=direction, options=Options(tokens=64)
    )
    scale = float(np.nanmax(np.abs(effects.raw)))
    assert scale > 0.02  # else nothing is tested
    for site, row in zip(effects.sites, effects.raw, strict=True):
        slow = [naive_effect(name, site, pair, direction=direction) for pair in task.pairs]
        np.testing.assert_allclose(row, slow, atol=1e-4 * scale, rtol=0, err_msg=str(site))


@pytest.mark.parametrize("name", ZOO)
def test_parts_are_where_a_person_reads_them(name: str) -> None:
    """Paths, sides, columns of each head, order in the block and offered kinds equal the table written by hand."""
    beast, anatomy = ZOO[name], opened(name).anatomy
    assert (anatomy.blocks, anatomy.embedding, anatomy.layers, anatomy.d_model) == (
        beast.blocks,
        beast.embedding,
        3,
        32,
    )
    found = {kind: (point.path, point.side.removesuffix("put")) for kind, point in anatomy.points.items()}
    assert found == dict(beast.spots)
    assert {kind: list(point.starts) for kind, point in anatomy.points.items()} == {
        kind: list(beast.starts(kind)) for kind in beast.spots
    }
    assert set(anatomy.kinds()) == beast.kinds
    assert anatomy.units() == beast.units
    assert (anatomy.sequential, anatomy.packed, anatomy.causal) == (not beast.parallel, not beast.own_attention, True)
    assert all(check.ok for check in opened(name).checks)


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_equals_one_forward_a_patch(name: str) -> None:
    """The sweep of every kind gives what plain hooks and one forward a patch give, in both directions."""
    number = list(ZOO).index(name)  # other sites in each family, so that together they cover all
    compare(name, "denoise", each=3, seed=number)
    compare(name, "noise", each=1, seed=-number)
