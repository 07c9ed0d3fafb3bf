"""Groups, paths, ablations, knockouts and split effects of the engine find what was planted."""

from functools import cache

import pytest

import crosspatch as xp
from crosspatch.models.model import Model
from crosspatch.sites import Group, parse_site
from planted import Expected, Planted, backup, gates, induction, negative

BUILDERS = {
    "AND": gates.build_and,
    "OR": gates.build_or,
    "ADDER": gates.build_adder,
    "induction": induction.build,
    "backup": backup.build,
    "negative": negative.build,
}
EXACT = 1e-4
planted_models = pytest.mark.parametrize("name", BUILDERS)
directions = pytest.mark.parametrize("direction", ["denoise", "noise"])


@cache
def subject(name: str) -> tuple[Planted, Model]:
    planted = BUILDERS[name]()
    return planted, xp.open_model(planted.module)


def rows(effects: xp.Effects) -> dict[str, list[float]]:
    return {str(site): values.tolist() for site, values in zip(effects.sites, effects.values, strict=True)}


def same(value: float):
    return pytest.approx([value] * 3, abs=EXACT)


@planted_models
@directions
def test_groups_have_their_joint_truth(name, direction):
    """All sets of sites in one sweep, each patched in one run."""
    planted, model = subject(name)
    groups = [Group(" + ".join(sites), tuple(map(parse_site, sites))) for sites in planted.together]
    found = rows(xp.patch(model, planted.task(), sites=groups, direction=direction))
    assert len(found) == len(planted.together)
    for sites, expected in planted.together.items():
        assert found[" + ".join(sites)] == same(getattr(expected, direction)), sites


@planted_models
@directions
def test_a_group_of_one_is_its_site(name, direction):
    planted, model = subject(name)
    groups = [Group(f"only {site}", (parse_site(site),)) for site in planted.truth]
    found = rows(xp.patch(model, planted.task(), sites=groups, direction=direction))
    for site, expected in planted.truth.items():
        assert found[f"only {site}"] == same(getattr(expected, direction)), site


@planted_models
@directions
@pytest.mark.parametrize("local", [True, False])
def test_paths_have_their_truth(name, direction, local):
    planted, model = subject(name)
    assert planted.paths
    for (sender, receiver), expected in planted.paths.items():
        paths = xp.Paths(sender, receiver, direction, local=local)
        found = rows(xp.path_patch(model, planted.task(), paths=paths))
        assert found[sender] == same(getattr(expected, direction)), (sender, receiver)


def test_a_gate_is_on_the_path_but_not_on_the_edge():
    """The inputs of AND reach the logits through the MLP alone: with the MLP held too, nothing arrives."""
    planted, model = subject("AND")
    heads = "attn.head[0, 0|1]@end"
    through = rows(xp.path_patch(model, planted.task(), paths=xp.Paths(heads)))
    alone = rows(xp.path_patch(model, planted.task(), paths=xp.Paths(heads, through="nothing")))
    for head in ("attn.head[0, 0]@end", "attn.head[0, 1]@end"):
        assert through[head] == same(1.0)
        assert alone[head] == same(0.0)


# ablation: the clean run loses a site


@pytest.mark.parametrize(("name", "lost"), [("AND", 1.0), ("OR", 0.0), ("ADDER", 0.5)])
def test_zero_ablation_of_a_gate_s_input(name, lost):
    """Zero is what the corrupt run has in the channel that a head writes: its loss is that of noising."""
    planted, model = subject(name)
    found = rows(xp.ablate(model, planted.task(), sites="attn.head[0, *]@end", by="zero"))
    assert [found[f"attn.head[0, {head}]@end"] for head in range(3)] == [same(lost), same(lost), same(0.0)]


@pytest.mark.parametrize("by", ["mean", "resample"])
def test_ablation_by_other_corrupt_prompts_is_noising(by):
    """The corrupt prompts differ in a filler that no head reads, so their mean is any of them."""
    for name in ("AND", "OR", "ADDER", "negative"):
        planted, model = subject(name)
        sites = "attn.head[0, *]@end, mlp.out@end"
        ablated = rows(xp.ablate(model, planted.task(), sites=sites, by=by))
        noised = rows(xp.patch(model, planted.task(), sites=sites, direction="noise"))
        assert set(ablated) == set(noised)
        for site, values in noised.items():
            assert ablated[site] == pytest.approx(values, abs=EXACT), (name, site)


def test_zero_ablation_of_the_negative_head_helps():
    planted, model = subject("negative")
    found = rows(xp.ablate(model, planted.task(), sites="attn.head[0, *]@end", by="zero"))
    assert [found[f"attn.head[0, {head}]@end"] for head in range(3)] == [same(1.5), same(-0.5), same(0.0)]


def test_a_backup_makes_good_a_zero_ablation():
    """Three quarters come from the backup, which speaks up; together with it all is lost."""
    planted, model = subject("backup")
    first, second = parse_site("attn.head[0, 0]@end"), parse_site("attn.head[1, 0]@end")
    sites = [first, second, Group("both", (first, second))]
    found = rows(xp.ablate(model, planted.task(), sites=sites, by="zero"))
    assert [found[str(site)] for site in (first, second)] == [same(0.25), same(0.0)]
    assert found["both"] == same(1.0)


# knockout: the clean run's attention loses an edge


@pytest.mark.parametrize(("name", "lost"), [("AND", 1.0), ("OR", 0.0), ("ADDER", 0.5)])
def test_cutting_one_input_of_a_gate(name, lost):
    """Without its edge to A, head 0 reads a mean of tokens without the bit: that input is lost."""
    planted, model = subject(name)
    groups = xp.cuts(model, "end", "A", heads=[0])
    found = rows(xp.patch(model, planted.task(), sites=groups, direction="noise"))
    assert list(found.values()) == [same(lost)]


def test_cutting_both_inputs_breaks_every_gate():
    for name in ("AND", "OR", "ADDER"):
        planted, model = subject(name)
        edges = (*xp.cuts(model, "end", "A")[0].members, *xp.cuts(model, "end", "B")[0].members)
        found = rows(xp.patch(model, planted.task(), sites=[Group("A and B", edges)], direction="noise"))
        assert found["A and B"] == same(1.0), name


def test_cutting_an_induction_circuit():
    """The answer is read at B in layer 1, and B is told of A in layer 0; no other edge matters."""
    planted, model = subject("induction")
    clean, *_ = planted.pairs[0]

    def lost(query, key):
        groups = xp.cuts(model, query, key, width=1)
        return [float(v[0]) for v in rows(xp.patch(model, planted.task(), sites=groups, direction="noise")).values()]

    read, told = lost("end", "B"), lost("B", "A1")
    assert read[0] == pytest.approx(0, abs=EXACT)
    assert read[1] > 0.4  # the answer's logit falls from 10 to none
    assert told[0] > 0.4
    assert told[1] == pytest.approx(0, abs=EXACT)
    assert len(clean) > 4


# direct and indirect


def test_split_effects_of_the_backup_s_first_head():
    """It writes the whole answer; three quarters of its loss are made good on the way through the second head."""
    planted, model = subject("backup")
    parts = xp.split_effects(model, planted.task(), sites="attn.head[*, 0]@end")
    found = {name: rows(effects) for name, effects in parts.items()}
    first, second = "attn.head[0, 0]@end", "attn.head[1, 0]@end"
    assert [found[part][first] for part in ("direct", "total", "indirect")] == [same(1.0), same(0.25), same(-0.75)]
    assert [found[part][second] for part in ("direct", "total", "indirect")] == [same(0.0)] * 3


def test_split_effects_of_an_induction_circuit():
    """The first head acts through the second alone, which acts directly."""
    planted, model = subject("induction")
    parts = xp.split_effects(model, planted.task(), sites="attn.head[0, 0]@B, attn.head[1, 0]@end")
    direct, indirect = rows(parts["direct"]), rows(parts["indirect"])
    assert (direct["attn.head[0, 0]@B"], indirect["attn.head[0, 0]@B"]) == (same(0.0), same(1.0))
    assert (direct["attn.head[1, 0]@end"], indirect["attn.head[1, 0]@end"]) == (same(1.0), same(0.0))


@planted_models
@directions
def test_direct_and_indirect_add_up_to_total(name, direction):
    planted, model = subject(name)
    parts = xp.split_effects(model, planted.task(), sites="attn.head@end", direction=direction)
    assert parts["direct"].raw + parts["indirect"].raw == pytest.approx(parts["total"].raw, abs=EXACT)
    assert parts["total"].mean() == pytest.approx(
        xp.patch(model, planted.task(), sites="attn.head@end", direction=direction).mean(), abs=EXACT
    )


def test_expected_values_are_no_trifle():
    """Joint and path truths tell directions and parts apart somewhere."""
    values = [e for name in BUILDERS for e in (*subject(name)[0].together.values(), *subject(name)[0].paths.values())]
    assert any(e.denoise != e.noise for e in values)
    assert Expected(1.0, 1.0) in values
    assert Expected(0.0, 0.0) in values
