"""Rows that attend together get what they would get alone, from fewer calls of the model's own kernel."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from crosspatch.engine.patching import patch
from crosspatch.models import attention
from crosspatch.models.attention import Segment
from crosspatch.models.bundles import Bundles, width_for
from zoo import ZOO, make_task, opened, uneven

PACKED = sorted(name for name, beast in ZOO.items() if not beast.own_attention)


@contextmanager
def kernel_calls(together: bool) -> Iterator[list[int]]:
    """Record the rows of every call of a model's kernel, with bundles or without."""
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as change:
        own = attention._attend

        def counted(*args: object, **kwargs: object) -> object:
            calls.append(len(args[2][0]))  # pyright: ignore[reportIndexIssue]
            return own(*args, **kwargs)  # pyright: ignore[reportArgumentType]

        change.setattr(attention, "_attend", counted)
        if not together:
            change.setattr(attention, "width_for", lambda longest: -1)
        yield calls


@pytest.mark.parametrize("name", PACKED)
def test_together_as_alone_in_every_family(name: str) -> None:
    """Windows, soft caps, sinks, groups of heads: all that a mask or a kernel knows."""
    single = name in ("gpt_oss", "mixtral", "olmoe", "qwen3_moe")  # their experts know no double precision
    model = opened(name, torch.float32 if single else torch.float64)
    task = make_task(*uneven())
    kinds = [kind for kind in ("resid.pre", "attn.head", "attn.v", "mlp.out") if kind in model.anatomy.kinds()]
    found = []
    for together in (True, False):
        with kernel_calls(together) as calls:
            found.append((patch(model, task, sites=", ".join(kinds)).raw, len(calls)))
    (bundled, few), (alone, many) = found
    assert np.nanmax(np.abs(bundled)) > 0
    assert np.nanmax(np.abs(bundled - alone)) <= (1e-5 if single else 1e-6) * np.nanmax(np.abs(alone))
    assert few < many or not model.anatomy.packed


def visible(start: int, span: int) -> list[set[int]]:
    return [set(range(start + query + 1)) for query in range(span)]


def test_a_bundles_mask_shows_each_row_what_it_sees_alone() -> None:
    draw = random.Random(0)
    whole = torch.full((40, 40), torch.finfo(torch.float32).min).triu(1)[None, None]
    shapes = []
    for start, span in ((0, 3), (5, 2), (9, 7), (9, 1), (30, 4)):
        owners = [draw.randrange(3) for _ in range(draw.randrange(1, 9))]
        shapes.append(Segment(start, span, torch.tensor(owners), owners))
    bundles = Bundles.of(shapes, torch.device("cpu"))
    mask, size = bundles.mask(whole)[:, 0] == 0, bundles.rows.shape[1]
    token = 0
    for shape in shapes:
        for owner in shape.owners:
            rows = [divmod(int(bundles.places[token + i]), size) for i in range(shape.span)]
            assert {bundle for bundle, _ in rows} == {rows[0][0]}
            assert int(bundles.pairs[rows[0][0]]) == owner
            for (bundle, place), seen in zip(rows, visible(shape.start, shape.span), strict=True):
                assert int(bundles.tokens[bundle, place]) == token + len(seen) - 1 - shape.start
                keys = mask[bundle, place].nonzero().flatten().tolist()
                behind = [bundles.prefix + other for _, other in rows]
                expected = {k if k < shape.start else behind[k - shape.start] for k in seen}
                assert set(keys) == expected
            token += shape.span
    assert len(bundles.places) == token


def test_a_bundle_holds_a_prefix_once() -> None:
    """40 rows of one token fill two bundles: two copies of the prefix instead of forty."""
    bundles = Bundles.of([Segment(10, 1, torch.zeros(40, dtype=torch.long), [0] * 40)], torch.device("cpu"))
    assert bundles.tokens.shape == (2, width_for(10))
    assert bundles.behind(torch.zeros(1, 2, 12, 8), torch.zeros(2, 40, 8)).shape == (2, 2, 10 + width_for(10), 8)


def test_long_rows_attend_alone() -> None:
    owners = [0, 0]
    short, long = (Segment(4, span, torch.tensor(owners), owners) for span in (32, 33))
    keys = torch.zeros(1, 1, 64, 8)
    mask = torch.zeros(1, 1, 64, 64)
    assert attention._bundles(attention.Job(segments=[short], keys=keys, values=keys), mask)
    assert not attention._bundles(attention.Job(segments=[short, long], keys=keys, values=keys), mask)
    assert not attention._bundles(attention.Job(segments=[Segment(4, 1, torch.tensor([0]))], keys=keys), mask)
    watching = attention.Job(segments=[short], keys=keys, values=keys, edit_mask=lambda index, part, shape: part)
    assert not attention._bundles(watching, mask)
