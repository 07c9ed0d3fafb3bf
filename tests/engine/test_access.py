"""`capture` and `write` on every kind of site, against plain hooks on the module paths that a person read."""

import pytest
import torch

import zoo
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine import Add, Replace, Scale, Zero, capture, write
from crosspatch.sites import Site
from naive.families import spot_of
from naive.patching import hook

NAMES = ("gpt2", "llama", "opt", "bloom", "gemma2")
IDS = torch.randint(3, zoo.VOCAB, (2, 7), generator=torch.Generator().manual_seed(5))
OTHER = torch.randint(3, zoo.VOCAB, (2, 7), generator=torch.Generator().manual_seed(6))
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
LEFT = RIGHT.flip(1)
PADDED = [(RIGHT, (0, 0), (6, 3)), (LEFT, (0, 3), (6, 6))]  # mask, first and last real token of each row


def logits(model, ids=IDS, mask=None):
    with torch.inference_mode():
        return model.module(input_ids=ids, attention_mask=mask).logits


def by_hand(name, kind, layer, act=None, *, ids=IDS, mask=None):
    """Run with one plain hook; return what it saw, `[batch, pos, width]`, and the logits."""
    seen = []

    def visit(value):
        shaped = value.reshape(*ids.shape, -1)
        seen.append(shaped.clone())
        return value if act is None else act(shaped.clone()).reshape(value.shape)

    handle = hook(*spot_of(name, kind, layer, torch.float32), visit)
    try:
        return seen, logits(zoo.opened(name), ids, mask)
    finally:
        handle.remove()


def truth(name, kind, layer):
    """Return what stands at a kind in the run of IDS, all its units side by side."""
    beast, module = zoo.ZOO[name], zoo.opened(name).module
    if kind == "logits":
        return logits(zoo.opened(name))
    if kind == "resid.mid":
        norm = module.get_submodule(f"{beast.blocks}.{layer}.{beast.second_norm}")
        seen = []
        handle = hook(norm, "in", lambda value: seen.append(value.clone()) or value)
        logits(zoo.opened(name))
        handle.remove()
        return seen[0].view(*IDS.shape, -1)
    return by_hand(name, kind, layer)[0][0][..., beast.columns(kind, None)]


def plain_kinds(name):
    """List the kinds whose activations are rows of a stream."""
    return sorted(zoo.ZOO[name].kinds - {"attn.pattern"})


def site(kind, layer, unit=None, position=None):
    return Site(kind, None if kind in ("embed", "logits") else layer, unit, position)


def state(module):
    """Hooks by module, kernel and methods put on instances."""
    hooks = {
        name: (tuple(part._forward_hooks), tuple(part._forward_pre_hooks), "forward" in part.__dict__)
        for name, part in module.named_modules()
    }
    return hooks, module.config._attn_implementation, module.training


@pytest.fixture(autouse=True)
def _everything_is_put_back():
    before = {name: state(zoo.opened(name).module) for name in NAMES}
    yield
    for name, was in before.items():
        assert state(zoo.opened(name).module) == was


@pytest.mark.parametrize("name", NAMES)
def test_captured_values_are_those_of_plain_hooks(name):
    model, beast, kinds = zoo.opened(name), zoo.ZOO[name], plain_kinds(name)
    with capture(model, ", ".join(kinds)) as seen:
        given = logits(model)
    torch.testing.assert_close(given, logits(model), rtol=0, atol=0)
    exact = {"rtol": 0, "atol": 0}
    for kind in kinds:
        for layer in range(3):
            expected = truth(name, kind, layer)
            close = {"rtol": 1e-5, "atol": 1e-5} if kind == "resid.mid" else exact
            torch.testing.assert_close(seen[site(kind, layer)], expected, **close)
            torch.testing.assert_close(seen[str(site(kind, layer, None, -2))], expected[:, -2:-1], **close)
            units = range(beast.units.get(kind, 0))
            each = 1 if kind == "mlp.hidden" else zoo.WIDTH
            for unit in [*units[:2], *units[-1:]]:
                part = seen[site(kind, layer, unit)]
                torch.testing.assert_close(part, expected[..., unit * each : (unit + 1) * each], **exact)


@pytest.mark.parametrize("name", NAMES)
def test_its_own_value_written_back_changes_nothing(name):
    model, beast = zoo.opened(name), zoo.ZOO[name]
    base = logits(model)
    with capture(model, [site(kind, 1) for kind in sorted(beast.kinds)]) as seen:
        logits(model)
    for kind in sorted(beast.kinds):
        units = range(beast.units["attn.pattern"]) if kind == "attn.pattern" else [None]
        for position in (None, 2):
            with write(model, {place: Replace(seen[place]) for place in (site(kind, 1, u, position) for u in units)}):
                torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=2e-4, msg=f"{kind}@{position}")


@pytest.mark.parametrize("name", NAMES)
def test_another_runs_value_acts_as_a_plain_hook_does(name):
    """The other run's activation of the last unit, at every position and at one."""
    model, beast = zoo.opened(name), zoo.ZOO[name]
    base, other = logits(model), logits(model, OTHER)
    for kind in set(plain_kinds(name)) - {"resid.mid", "logits"}:
        unit = beast.units[kind] - 1 if kind in beast.units else None
        value, columns = by_hand(name, kind, 1, ids=OTHER)[0][0], beast.columns(kind, unit)
        for position in (None, 3):
            rows = slice(None) if position is None else slice(position, position + 1)

            def put(present, value=value, columns=columns, rows=rows):
                present[:, rows, columns] = value[:, rows, columns]
                return present

            place = site(kind, 1, unit, position)
            with capture(model, [place]) as seen:
                logits(model, OTHER)
            with write(model, {place: Replace(seen[place])}):
                written = logits(model)
            torch.testing.assert_close(written, by_hand(name, kind, 1, put)[1], rtol=1e-5, atol=1e-5)
            assert (written - base).abs().max() > 1e-4
    for kind in ("embed", "resid.pre", "resid.post", "resid.mid", "logits"):
        with capture(model, [site(kind, 1)]) as seen:
            logits(model, OTHER)
        with write(model, {site(kind, 1): Replace(seen[site(kind, 1)])}):
            torch.testing.assert_close(logits(model), other, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bloom"])
def test_the_stream_between_attention_and_mlp(name):
    """What is written there is what attention must have added to the stream that its block read."""
    model = zoo.opened(name)
    entering = by_hand(name, "resid.pre", 1)[0][0]
    _, expected = by_hand(name, "attn.out", 1, lambda added: 2.5 * (entering + added) - entering)
    with write(model, {"resid.mid[1]": Scale(2.5)}):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    # With the stream itself edited, the sum counts from the edited stream.
    with write(model, {"resid.pre[1]": Zero(), "attn.out[1]": Zero()}), capture(model, "resid.mid[1]") as seen:
        logits(model)
    assert not seen["resid.mid[1]"].any()


@pytest.mark.parametrize(("mask", "first", "last"), PADDED)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_positions_count_real_tokens_on_either_side_of_the_padding(name, mask, first, last):
    model, rows = zoo.opened(name), torch.arange(2)
    kinds = ("resid.pre", "attn.k", "mlp.hidden", "mlp.out")
    with capture(model, ", ".join(kinds), mask=mask) as seen:
        logits(model, IDS, mask)
    base = logits(model, IDS, mask)
    for kind in kinds:
        columns = zoo.ZOO[name].columns(kind, None)
        expected = by_hand(name, kind, 1, mask=mask)[0][0][..., columns]
        for position, index in ((0, first), (-1, last)):
            place = site(kind, 1, None, position)
            torch.testing.assert_close(seen[place], expected[rows, list(index)][:, None], rtol=0, atol=0)

            def double(present, index=index, columns=columns):
                for row, at in enumerate(index):
                    present[row, at, columns] *= 2
                return present

            with write(model, {place: Scale(2.0)}, mask=mask):
                written = logits(model, IDS, mask)
            torch.testing.assert_close(written, by_hand(name, kind, 1, double, mask=mask)[1], rtol=1e-5, atol=1e-5)
            assert (written - base).abs().max() > 1e-4
    with pytest.raises(BadInput, match=r"resid.pre\[1\]@4: prompt 1 of the batch has 4 tokens"):
        seen["resid.pre[1]@4"]
    with (
        pytest.raises(BadInput, match=r"@-5: prompt 1 of the batch has 4 tokens"),
        write(model, {"resid.pre[1]@-5": Zero()}, mask=mask),
    ):
        logits(model, IDS, mask)


def test_several_edits_of_one_activation_act_in_order():
    model = zoo.opened("llama")
    one = torch.ones(zoo.D)
    added = by_hand("llama", "resid.pre", 1, lambda value: 2 * value + 1)[1]
    doubled = by_hand("llama", "resid.pre", 1, lambda value: 2 * (value + 1))[1]
    assert (added - doubled).abs().max() > 1e-2
    with write(model, {"resid.pre[1]": Scale(2.0), "resid.pre[1]@all": Add(one)}):
        torch.testing.assert_close(logits(model), added, rtol=1e-5, atol=1e-5)
    with write(model, {"resid.pre[1]@all": Add(one), "resid.pre[1]": Scale(2.0)}):
        torch.testing.assert_close(logits(model), doubled, rtol=1e-5, atol=1e-5)
    # One module carries both: q, k and v of gpt2 leave one projection.
    beast = zoo.ZOO["gpt2"]

    def wipe(value):
        value[..., beast.columns("attn.q", 1)] = 0
        value[..., beast.columns("attn.v", 2)] *= 3
        return value

    with write(zoo.opened("gpt2"), {"attn.v[1, 2]": Scale(3.0), "attn.q[1, 1]": Zero()}):
        written = logits(zoo.opened("gpt2"))
    torch.testing.assert_close(written, by_hand("gpt2", "attn.q", 1, wipe)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gemma2"])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT])
def test_patterns_are_the_eager_kernels(name, mask):
    model, eager = zoo.opened(name), zoo.module_of(name, kernel="eager")
    with torch.inference_mode():
        expected = eager(input_ids=IDS, attention_mask=mask, output_attentions=True).attentions
    with capture(model, "attn.pattern", mask=mask) as seen:
        assert model.module.config._attn_implementation == "crosspatch"
        given = logits(model, IDS, mask)
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(given[real], logits(model, IDS, mask)[real], rtol=1e-4, atol=1e-4)
    for layer in range(3):
        whole = seen[Site("attn.pattern", layer)]
        torch.testing.assert_close(whole, expected[layer], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole.sum(-1), torch.ones(whole.shape[:-1]))
        torch.testing.assert_close(seen[f"attn.pattern[{layer}, 2]"], whole[:, 2], rtol=0, atol=0)
        last = [6, 6] if mask is None else [int(row.nonzero()[-1]) for row in mask]
        rows = torch.arange(2)
        torch.testing.assert_close(seen[f"attn.pattern[{layer}, 2]@-1"][:, 0], whole[rows, 2, last], rtol=0, atol=0)
        assert seen[f"attn.pattern[{layer}, all]@-1"].shape == (2, 4, 1, 7)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gemma2"])
def test_a_written_pattern_weighs_the_values(name):
    """A head told to look at the first token only gives that token's value."""
    model, beast = zoo.opened(name), zoo.ZOO[name]
    first = torch.zeros(7, 7)
    first[:, 0] = 1
    each = 4 // beast.units["attn.v"]

    def value_of(head, values):
        return values[:, :1, beast.columns("attn.v", head // each)]

    values = by_hand(name, "attn.v", 1)[0][0]
    for head, position in ((3, None), (1, -1), (None, None)):
        rows = slice(None) if position is None else slice(6, 7)

        def put(present, head=head, rows=rows):
            for one in range(4) if head is None else (head,):
                present[:, rows, beast.columns("attn.head", one)] = value_of(one, values)
            return present

        edit = Replace(first if position is None else first[:1])
        with write(model, {Site("attn.pattern", 1, head, position): edit}):
            written = logits(model)
        expected = by_hand(name, "attn.head", 1, put)[1]
        torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-4)
        assert (written - logits(model)).abs().max() > 1e-3


def test_other_layers_keep_their_kernel(monkeypatch):
    """Only the watched layer is computed by the kernel that shows its pattern."""
    from transformers.models.llama import modeling_llama

    model, called = zoo.opened("llama"), []
    eager = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama,
        "eager_attention_forward",
        lambda part, *a, **k: called.append(part.layer_idx) or eager(part, *a, **k),
    )
    with capture(model, "attn.pattern[1]"):
        logits(model)
    assert called == [1]


def test_blocks_inside_one_another():
    """The inner block sees what the outer one wrote."""
    model = zoo.opened("llama")
    with write(model, {"attn.pattern[1, 0]": Scale(0.5)}), capture(model, "attn.pattern[0|1]") as seen:
        logits(model)
    sums = seen["attn.pattern[1, all]"].sum(-1)
    torch.testing.assert_close(sums[:, 0], torch.full((2, 7), 0.5))
    torch.testing.assert_close(sums[:, 1:], torch.ones(2, 3, 7))
    with write(model, {"resid.pre[0]": Zero()}), capture(model, "resid.pre[0]") as seen:
        logits(model)
    assert not seen["resid.pre[0]"].any()


def test_logits_are_read_and_written():
    model = zoo.opened("llama")
    base = logits(model)
    with capture(model, "logits") as seen, write(model, {"logits@-1": Zero()}):
        written = logits(model)
    torch.testing.assert_close(seen["logits"], base, rtol=0, atol=0)
    torch.testing.assert_close(written[:, :-1], base[:, :-1], rtol=0, atol=0)
    assert not written[:, -1].any()


def test_captured_tensors_are_detached_copies_of_the_last_forward():
    model = zoo.opened("llama")
    with capture(model, "resid.pre[1], resid.post[0]") as seen:
        model.module(input_ids=OTHER)
        model.module(input_ids=IDS)
    assert sorted(seen) == [("resid.post", 0), ("resid.pre", 1)]
    assert not seen["resid.pre[1]"].requires_grad
    torch.testing.assert_close(seen["resid.pre[1]"], truth("llama", "resid.pre", 1))
    seen["resid.pre[1]"].zero_()
    assert seen["resid.post[0]"].any()


def test_gradients_pass_through_what_is_written():
    model = zoo.opened("llama")
    steer = torch.zeros(zoo.D, requires_grad=True)
    with write(model, {"resid.pre[1]@2": Add(steer)}):
        score = model.module(input_ids=IDS).logits[0, -1, 5]
    (gradient,) = torch.autograd.grad(score, steer)
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("llama", "resid.prex", UnknownName, r"unknown site kind 'resid.prex'. Did you mean 'resid.pre'\?"),
        ("llama", "resid.pre[3]", UnknownName, r"this model has layers 0\.\.2"),
        ("llama", "attn.k[0, 2]", UnknownName, r"key-value heads 0\.\.1"),
        ("llama", "resid.pre[0]@*", BadInput, r"\*"),
        (
            "bloom",
            "attn.pattern",
            BadInput,
            r"attn.pattern cannot be used on this bloom model: its attention is its own",
        ),
        ("llama", [Site("attn.head", 0, 4)], UnknownName, r"attn.head\[0, 4\]: this model has units 0\.\.3"),
        ("llama", [Site("resid.pre", 3)], UnknownName, r"resid.pre\[3\]: this model has layers 0\.\.2"),
        ("bloom", [Site("attn.pattern", 0)], BadInput, r"cannot be used on this bloom model"),
    ],
)
def test_sites_that_the_model_does_not_have(name, text, error, words):
    with pytest.raises(error, match=words), capture(zoo.opened(name), text):
        pass
    keys = [text] if isinstance(text, str) else text
    with pytest.raises(error, match=words), write(zoo.opened(name), dict.fromkeys(keys, Zero())):
        pass


def test_what_was_not_captured():
    model = zoo.opened("llama")
    with capture(model, "attn.head[1], logits") as seen:
        with pytest.raises(UnknownName, match=r"was not captured. Captured: nothing; run the model inside the block"):
            seen["attn.head[1, 0]"]
        logits(model)
    with pytest.raises(UnknownName, match=r"resid.pre\[1\] was not captured. Captured: attn.head\[1\], logits\."):
        seen["resid.pre[1]"]
    with pytest.raises(UnknownName, match=r"attn.head\[1, 9\]: this model has units 0\.\.3 of attn.head"):
        seen["attn.head[1, 9]"]
    with pytest.raises(BadInput, match=r"attn.head\[1, 0\]@7: prompt 0 of the batch has 7 tokens"):
        seen["attn.head[1, 0]@7"]


def test_a_named_position_belongs_to_a_task():
    model = zoo.opened("llama")
    words = "named positions belong to a task's prompts; give an index here"
    with capture(model, "resid.pre") as seen:
        logits(model)
    with pytest.raises(BadInput, match=words):
        seen["resid.pre[0]@S2"]
    with pytest.raises(BadInput, match=words), write(model, {"resid.pre[0]@S2": Zero()}):
        logits(model)


def test_what_does_not_fit():
    model = zoo.opened("llama")
    cases = {
        r"Replace: a value of shape \[5\] does not fit the activation \[2, 7, 32\]": Replace(torch.ones(5)),
        r"Add: a value of shape \[2, 6, 32\] does not fit": Add(torch.ones(2, 6, 32)),
        r"resid.pre\[1\]: the edit returned shape \[2, 1, 32\]; it must keep": lambda value: value[:, :1],
    }
    for words, edit in cases.items():
        with pytest.raises(BadInput, match=words), write(model, {"resid.pre[1]": edit}):
            logits(model)
    short = r"the mask is \[2, 5\], and the activation has \[batch, pos\] \[2, 7\]"
    with pytest.raises(BadInput, match=short), write(model, {"resid.pre[1]@0": Zero()}, mask=RIGHT[:, :5]):
        logits(model)


def test_nothing_run_in_the_block():
    model = zoo.opened("llama")
    words = r"nothing was written at attn.head\[1, 2\]@0: the model was not run inside the block"
    with pytest.raises(BadInput, match=words), write(model, {"attn.head[1, 2]@0": Zero()}):
        pass
    with write(model, {}):
        pass


class Broken(Exception):
    pass


def test_everything_is_restored_after_an_exception():
    """The fixture compares hooks, kernel and logits of before with those of after."""
    model = zoo.opened("gemma2")
    every = ", ".join(sorted(zoo.ZOO["gemma2"].kinds))

    def run_and_break():
        logits(model)
        raise Broken

    with pytest.raises(Broken), capture(model, every):
        run_and_break()
    with pytest.raises(Broken), write(model, {"attn.pattern[1, 0]": Zero(), "resid.mid[2]": Zero()}):
        raise Broken


def test_foreign_hooks_stay_and_are_seen():
    model, calls = zoo.opened("llama"), []
    block = model.module.get_submodule("model.layers.1")

    def doubled(_, args, kwargs):
        calls.append(1)
        return (2 * args[0], *args[1:]), kwargs

    handle = block.register_forward_pre_hook(doubled, with_kwargs=True)
    try:
        foreign = dict(block._forward_pre_hooks)
        expected = logits(model)
        with capture(model, "resid.pre[1], resid.post[0]") as seen:
            torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
        with pytest.raises(Broken), write(model, {"resid.pre[1]": Zero()}):
            raise Broken
        assert dict(block._forward_pre_hooks) == foreign
        assert len(calls) == 2
    finally:
        handle.remove()
    torch.testing.assert_close(seen["resid.pre[1]"], 2 * seen["resid.post[0]"], rtol=0, atol=0)
