"""Every edit against its formula: on plain numbers, and on real sites through a hand-written hook."""

import pytest
import torch

import zoo
from crosspatch.core.errors import BadInput
from crosspatch.engine import Add, Mean, Noise, Project, Replace, Resample, Scale, Zero, capture, write
from crosspatch.engine.edits import Edit
from crosspatch.sites import Site
from naive.families import spot_of
from naive.patching import hook

IDS = torch.randint(3, zoo.VOCAB, (3, 6), generator=torch.Generator().manual_seed(7))
REFERENCE = torch.randint(3, zoo.VOCAB, (5, 6), generator=torch.Generator().manual_seed(8))
# Gives the naive result for one site's activation [batch, pos, width] from a reference [example, pos, width].
WAYS = ("zero", "scale", "add", "replace", "mean", "mean everywhere", "resample", "noise", "project", "keep")


def edit_and_formula(way, reference):
    """Return an edit and, written out with loops, what it must give."""
    width = reference.shape[-1]
    vector = torch.linspace(-1, 1, width)
    basis = torch.stack([vector, torch.arange(width) % 3 - 1.0])[: min(2, width)]
    one = vector / vector.norm() if width > 1 else torch.ones(1)
    draws = torch.randint(5, (3,), generator=torch.Generator().manual_seed(4)).tolist()
    table = {
        "zero": (Zero(), lambda x: x - x),
        "scale": (Scale(-2.5), lambda x: x + -3.5 * x),
        "add": (Add(vector), lambda x: torch.stack([row + vector for row in x])),
        "replace": (Replace(reference[:3] + 1), lambda x: reference[:3] + 1),
        "mean": (Mean(reference), lambda x: torch.stack([sum(reference) / 5] * 3)),
        "mean everywhere": (
            Mean(reference.flatten(0, 1)),
            lambda x: (sum(reference.flatten(0, 1)) / reference[..., 0].numel()).expand(x.shape),
        ),
        "resample": (Resample(reference, seed=4), lambda x: torch.stack([reference[i] for i in draws])),
        "noise": (Noise(0.7, seed=3), lambda x: x + 0.7 * torch.randn(x.shape, generator=seeded(3))),
        "project": (Project(basis), lambda x: least_squares_rest(x, basis)),
        "keep": (Project(one[None] * 7, keep=True), lambda x: (x * one).sum(-1, keepdim=True) * one),
    }
    return table[way]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def least_squares_rest(x, basis):
    """Return what no combination of the directions explains."""
    flat = x.reshape(-1, x.shape[-1]).double()
    weights = torch.linalg.lstsq(basis.double().T, flat.T, driver="gelsd").solution
    return (flat - (basis.double().T @ weights).T).reshape(x.shape).float()


def run(model, ids=IDS):
    with torch.inference_mode():
        return model.module(input_ids=ids).logits


def run_by_hand(name, site, formula):
    """Run with one hook that writes the formula's result at the site's columns and positions."""
    columns = zoo.ZOO[name].columns(site.kind, site.unit)
    at = slice(None) if site.position is None else slice(site.position, site.position + 1)

    def visit(value):
        shaped = value.clone().reshape(*IDS.shape, -1)
        shaped[:, at, columns] = formula(shaped[:, at, columns].clone())
        return shaped.reshape(value.shape)

    handle = hook(*spot_of(name, site.kind, site.layer, torch.float32), visit)
    try:
        return run(zoo.opened(name))
    finally:
        handle.remove()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_edits_equal_a_plain_hook_on_real_sites(name, way):
    model = zoo.opened(name)
    base = run(model)
    sites = [Site("resid.pre", 1), Site("attn.v", 1, 1), Site("attn.head", 2, 3, 4), Site("mlp.hidden", 0)]
    with capture(model, sites) as seen:
        run(model, REFERENCE)
    for site in [*sites, Site("mlp.out", 1, None, 2)]:
        if site.kind == "mlp.out":
            with capture(model, [site]) as seen:
                run(model, REFERENCE)
        edit, formula = edit_and_formula(way, seen[site])
        with write(model, {site: edit}):
            written = run(model)
        torch.testing.assert_close(written, run_by_hand(name, site, formula), rtol=1e-4, atol=1e-4)
        assert (written - base).abs().max() > 1e-4, site


@pytest.mark.parametrize("way", WAYS)
def test_edits_keep_shape_and_precision_and_leave_their_input(way):
    reference = torch.randn(5, 6, 8, generator=seeded(0))
    edit, formula = edit_and_formula(way, reference)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 0.05)):
        present = torch.randn(3, 6, 8, generator=seeded(1)).to(dtype)
        before = present.clone()
        result = edit(present)
        assert (result.dtype, result.shape) == (dtype, present.shape)
        torch.testing.assert_close(result.float(), formula(present.float()), rtol=tolerance, atol=tolerance)
        assert torch.equal(present, before)
    assert isinstance(edit, Edit)


def test_a_subspace_of_dependent_directions_is_no_larger():
    """Two rows along one line, and one of zeros, span that line and nothing else."""
    present = torch.randn(2, 3, 4, generator=seeded(2))
    line = torch.tensor([1.0, 2.0, 0.0, -1.0])
    basis = torch.stack([line, -3 * line, 0 * line])
    torch.testing.assert_close(Project(basis)(present), Project(line[None])(present), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Project(0 * basis)(present), present, rtol=0, atol=0)
    torch.testing.assert_close(Project(torch.randn(6, 4), keep=True)(present), present, rtol=1e-4, atol=1e-4)


def test_projection_is_as_precise_as_the_model():
    present, basis = (torch.randn(shape, generator=seeded(3), dtype=torch.float64) for shape in ((2, 3, 8), (2, 8)))
    rest = Project(basis)(present)
    assert (rest @ basis.T).abs().max() < 1e-13
    torch.testing.assert_close(rest + Project(basis, keep=True)(present), present, rtol=1e-13, atol=1e-13)


def test_a_draw_serves_all_positions_and_depends_on_the_seed():
    present, reference = torch.zeros(40, 3, 2), torch.arange(10.0)[:, None].expand(10, 2)
    drawn = Resample(reference, seed=1)(present)
    assert (drawn == drawn[:, :1, :1]).all()
    assert set(drawn.unique().tolist()) == set(range(10))
    assert torch.equal(drawn, Resample(reference, seed=1)(present))
    assert not torch.equal(drawn, Resample(reference, seed=2)(present))


def test_noise_has_its_deviation_and_its_seed():
    present = torch.full((20, 50, 10), 3.0)
    noise = Noise(0.5, seed=1)(present) - 3
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert torch.equal(Noise(0.5, seed=1)(present), Noise(0.5, seed=1)(present))
    assert not torch.equal(Noise(0.5, seed=1)(present), Noise(0.5, seed=2)(present))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Replace(torch.ones(3)), r"Replace: a value of shape \[3\] does not fit the activation \[2, 4, 8\]"),
        (Replace(torch.ones(1, 2, 4, 8)), r"Replace: a value of shape \[1, 2, 4, 8\] does not fit"),
        (Add(torch.ones(2, 3, 8)), r"Add: .*Give that shape, or one that broadcasts to it"),
        (Mean(torch.ones(5, 3, 8)), r"Mean: a value of shape \[3, 8\] does not fit"),
        (Resample(torch.ones(5, 3, 8)), r"Resample: a value of shape \[2, 3, 8\] does not fit"),
        (Project(torch.ones(1, 7)), r"Project: the basis is \[1, 7\], and the activation has width 8"),
    ],
)
def test_shapes_that_do_not_fit(edit, words):
    with pytest.raises(BadInput, match=words):
        edit(torch.zeros(2, 4, 8))


def test_a_pattern_is_edited_like_any_other_site():
    """Uniform attention of one head, at one query."""
    model = zoo.opened("llama")
    edits = {"attn.pattern[1, 2]@3": Replace(torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0]))}
    with write(model, edits), capture(model, "attn.pattern[1], attn.head[1]") as seen:
        run(model)
    assert (seen["attn.pattern[1, 2]@3"][..., :4] == 0.25).all()
    with capture(model, "attn.v[1]") as values:
        run(model)
    expected = values["attn.v[1, 1]"][:, :4].mean(1)
    torch.testing.assert_close(seen["attn.head[1, 2]@3"][:, 0], expected, rtol=1e-5, atol=1e-5)
