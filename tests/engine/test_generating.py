"""`generate`: equal to a full forward a step with a plain hook, to transformers' own, to itself alone and uncached."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import handmade
import zoo
from crosspatch.core.errors import BadInput, NotFinite, NotProved, UnknownName
from crosspatch.engine import (
    Add,
    Generated,
    Mean,
    Noise,
    Project,
    Replace,
    Resample,
    Scale,
    Zero,
    capture,
    generate,
    write,
)
from crosspatch.engine.script import Asked
from crosspatch.models.open import open_model
from crosspatch.sites import Site
from naive.families import spot_of
from naive.generation import Written, continued, sampler

LIKE_THEIRS = ("gpt2", "llama", "gemma3", "gpt_neox", "bloom", "qwen3")
# Other habits: rows flat before the MLP, positions of its own, alibi, a mixture with sinks, norms behind the parts.
FAMILIES = (*LIKE_THEIRS, "opt", "mpt", "gpt_oss", "olmo2")
PROMPTS = ((5, 6, 7, 8, 9, 10), (11, 12, 13), (20, 21, 22, 23, 24, 25), (40,), (30, 31, 32, 33))
PROMPT = PROMPTS[0]
STEPS = 7  # with the prompt, longer than the sliding windows of the zoo


def state(module):
    hooks = {name: (tuple(p._forward_hooks), tuple(p._forward_pre_hooks)) for name, p in module.named_modules()}
    return hooks, module.config._attn_implementation, module.training


@pytest.fixture(autouse=True)
def _everything_is_put_back():
    before = {name: state(zoo.opened(name).module) for name in ("gpt2", "llama", "gemma3")}
    yield
    for name, was in before.items():
        assert state(zoo.opened(name).module) == was


def assert_same(made, other, *, rows=None):
    """Tokens are equal and log-probabilities close; `rows` of the first are compared."""
    chosen = range(len(made)) if rows is None else rows
    for row, number in enumerate(chosen):
        assert made.tokens[number] == other.tokens[row]
        np.testing.assert_allclose(made.logprobs[number], other.logprobs[row], rtol=0, atol=1e-4)


def kinds_of(name):
    return sorted(zoo.ZOO[name].kinds - {"attn.pattern", "resid.mid", "logits"})


def by_hand(name, site, act, *, steps, ids=PROMPT):
    """Generate with one plain hook at a site of the zoo's table."""
    beast, place = zoo.ZOO[name], site.position
    places = range(len(ids)) if place in (None, "all") else [len(ids) - 1 if place == "end" else place % len(ids)]
    spot = spot_of(name, site.kind, site.layer or 0, torch.float32)
    written = Written(spot, beast.columns(site.kind, site.unit), act, list(places), steps)
    return continued(zoo.opened(name).module, ids, count=STEPS, written=written)


@pytest.mark.parametrize("name", [*FAMILIES, "falcon_rw", "gptj", "gpt_bigcode", "phi3", "cohere"])
def test_greedy_tokens_are_those_of_transformers(name):
    """Each prompt alone through the module's own `generate`, with its own cache."""
    model = zoo.opened(name)
    made = generate(model, PROMPTS, max_tokens=12)
    for ids, tokens in zip(PROMPTS, made.tokens, strict=True):
        theirs = model.module.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)
        assert [*ids, *tokens] == theirs[0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_equals_a_plain_hook(name):
    """At all times, in all positions that speak of the newest token, with and without a cache."""
    model = zoo.opened(name)
    plain = generate(model, PROMPT, max_tokens=STEPS)
    moved = 0
    for number, kind in enumerate(kinds_of(name)):
        unit = zoo.ZOO[name].units[kind] - 1 if kind in zoo.ZOO[name].units else None
        position = (None, "end", "all", -1)[number % 4]
        site = Site(kind, None if kind == "embed" else 1, unit, position)
        when, steps = (("always", range(STEPS)), ({0, 3}, {0, 3}), ({2, 3}, {2, 3}))[number % 3]
        tokens, scores = by_hand(name, site, lambda value: -2 * value, steps=steps)
        for cache in (True, False):
            made = generate(model, PROMPT, edits={site: Scale(-2.0)}, when=when, max_tokens=STEPS, cache=cache)
            assert list(made.tokens[0]) == tokens, (site, when)
            np.testing.assert_allclose(made.logprobs[0], scores, rtol=0, atol=1e-4, err_msg=f"{site} {when}")
            assert made.patched_steps == (tuple(step for step in steps if step < len(tokens)),)
        moved += made.logprobs != plain.logprobs
    assert moved >= len(kinds_of(name)) - 2  # a unit of a key or neuron may leave all of it as it was


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bloom"])
@pytest.mark.parametrize("position", [1, -2, "S2", "S2+1"])
def test_a_place_in_the_prompt_is_written_once_and_stays(name, position):
    """Keys, values and streams at it live in the cache; later steps write nothing."""
    model = zoo.opened(name)
    index = {"S2": 2, "S2+1": 3}.get(position, position)
    for kind in ("attn.k", "attn.v", "resid.post", "mlp.out"):
        unit = 1 if kind in zoo.ZOO[name].units else None
        tokens, scores = by_hand(name, Site(kind, 0, unit, index), lambda value: value + 3, steps={0})
        edits = {Site(kind, 0, unit, position): Add(torch.tensor(3.0))}
        for when, cache in (("prefill", False), ("always", True), ({0}, True)):
            settings = {"names": {"S2": 2}, "max_tokens": STEPS, "cache": cache}
            made = generate(model, [PROMPT], edits=edits, when=when, **settings)
            assert list(made.tokens[0]) == tokens
            np.testing.assert_allclose(made.logprobs[0], scores, rtol=0, atol=1e-4)
            assert made.patched_steps == ((0,),)


def every_edit(width=zoo.D):
    """One edit of each sort, steering vectors and means included."""
    draw = torch.Generator().manual_seed(3)
    vector, reference = torch.randn(width, generator=draw), torch.randn(5, width, generator=draw)
    return [
        *(Add(4 * vector), Zero(), Mean(reference), Resample(reference), Noise(2.0), Scale(3.0), Replace(vector)),
        *(Project(reference[:2]), lambda present: present.flip(-1)),
    ]


@pytest.mark.parametrize("number", range(9))
def test_any_edit_with_and_without_cache_alone_and_among_others(number):
    """The numbers do not depend on the cache, nor on the prompts beside one."""
    model, edit = zoo.opened("gemma3"), every_edit()[number]
    edits = {"resid.post[0]@end": edit, "mlp.out[2]@0": edit}
    together = generate(model, PROMPTS, edits=edits, when={0, 2, 5}, max_tokens=STEPS, compare=True)
    assert_same(together, generate(model, PROMPTS, edits=edits, when={0, 2, 5}, max_tokens=STEPS, cache=False))
    for row, ids in enumerate(PROMPTS):
        alone = generate(model, [ids], edits=edits, when={0, 2, 5}, max_tokens=STEPS)
        assert_same(together, alone, rows=[row])
    assert together.unpatched.logprobs != together.logprobs


def test_a_prompt_may_stand_anywhere():
    """Backwards, or in many batches of one length."""
    model, edits = zoo.opened("llama"), {"attn.head[1, 2]": Noise(3.0), "resid.pre[2]@-1": Scale(2.0)}
    made = generate(model, PROMPTS, edits=edits, when="always", max_tokens=STEPS)
    turned = generate(model, PROMPTS[::-1], edits=edits, when="always", max_tokens=STEPS)
    assert_same(made, turned, rows=[4, 3, 2, 1, 0])
    many = [(3 + i, 4, 5) for i in range(20)]
    made = generate(model, many, edits=edits, max_tokens=3)
    assert_same(made, generate(model, many[17:], edits=edits, max_tokens=3), rows=[17, 18, 19])


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_its_own_value_changes_nothing(name):
    """What was captured, written back while the prompt is read; and what stands there, at every step."""
    model, kinds = zoo.opened(name), kinds_of(name)
    plain = generate(model, PROMPT, max_tokens=4)
    with capture(model, [Site(kind, None if kind == "embed" else 1) for kind in kinds]) as seen, torch.no_grad():
        model.module(input_ids=torch.tensor([PROMPT]))
    for kind in kinds:
        site = Site(kind, None if kind == "embed" else 1)
        for position in (None, 2, "end"):
            at = seen[replace(site, position=-1 if position == "end" else position)]
            edits = {replace(site, position=position): Replace(at)}
            assert_same(generate(model, PROMPT, edits=edits, max_tokens=4), plain)
        made = generate(model, PROMPT, edits={site: Scale(1.0)}, when="always", max_tokens=4, compare=True)
        assert_same(made, plain)
        assert made.first_differences == (None,)


def test_another_runs_values_row_by_row():
    """`[prompt, pos, width]` gives each prompt its own; the whole last stream is the other run's next token."""
    model = zoo.opened("llama")
    base, source = [PROMPTS[0], PROMPTS[2]], [(50, 51, 52, 53, 54, 55), (60, 61, 62, 63, 64, 65)]
    last = Site("resid.post", 2)
    with capture(model, [last]) as seen, torch.no_grad():
        model.module(input_ids=torch.tensor(source))
    made = generate(model, base, edits={replace(last, position="end"): Replace(seen[replace(last, position=-1)])})
    other = generate(model, source)
    assert [tokens[0] for tokens in made.tokens] == [tokens[0] for tokens in other.tokens]
    assert made.tokens != generate(model, base).tokens
    # With the other run's keys, values and stream from the first block on, all that is written on is the other run's.
    every = ("attn.k[0, all]", "attn.v[0, all]", "resid.post[0]")
    with capture(model, ", ".join(every)) as seen, torch.no_grad():
        model.module(input_ids=torch.tensor(source))
    for cache in (True, False):
        assert_same(generate(model, base, edits={key: Replace(seen[key]) for key in every}, cache=cache), other)


def test_a_write_at_the_prefill_is_that_of_write():
    """The first token is what `write` around one forward gives, for a padded batch of unequal prompts."""
    model, edits = zoo.opened("llama"), {"attn.head[0, 1]@end": Scale(5.0)}
    width = max(map(len, PROMPTS))
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in PROMPTS])
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in PROMPTS])
    with write(model, {"attn.head[0, 1]@-1": Scale(5.0)}, mask=mask), torch.no_grad():
        logits = model.module(input_ids=padded, attention_mask=mask).logits
    best = logits[torch.arange(len(PROMPTS)), mask.sum(1) - 1].argmax(-1)
    assert [tokens[0] for tokens in generate(model, PROMPTS, edits=edits, max_tokens=1).tokens] == best.tolist()


def test_several_edits_of_one_activation_act_in_order():
    model, one = zoo.opened("llama"), torch.ones(zoo.D)
    site = Site("resid.pre", 1)
    for edits, act in (
        ({"resid.pre[1]": Scale(2.0), "resid.pre[1]@all": Add(one)}, lambda value: 2 * value + 1),
        ({"resid.pre[1]@all": Add(one), "resid.pre[1]": Scale(2.0)}, lambda value: 2 * (value + 1)),
    ):
        tokens, scores = by_hand("llama", site, act, steps=range(STEPS))
        made = generate(model, PROMPT, edits=edits, when="always", max_tokens=STEPS)
        assert list(made.tokens[0]) == tokens
        np.testing.assert_allclose(made.logprobs[0], scores, rtol=0, atol=1e-4)


def test_the_stream_between_and_the_logits():
    """Scaled logits are a temperature; the stream between attention and MLP is what attention must have added."""
    model = zoo.opened("llama")
    plain = generate(model, PROMPTS, max_tokens=STEPS)
    for cache in (True, False):
        sharp = generate(model, PROMPTS, edits={"logits@end": Scale(3.0)}, when="always", max_tokens=STEPS, cache=cache)
        assert sharp.tokens == plain.tokens
        assert all(
            a > b
            for one, two in zip(sharp.logprobs, plain.logprobs, strict=True)
            for a, b in zip(one, two, strict=True)
        )
        mid = {"resid.mid[1]": Zero()}
        both = {"resid.pre[1]": Zero(), "attn.out[1]": Zero()}
        settings = {"when": "always", "max_tokens": STEPS, "cache": cache}
        assert_same(generate(model, PROMPTS, edits=mid, **settings), generate(model, PROMPTS, edits=both, **settings))


def test_rows_end_by_themselves():
    """A row stops with its end token, others go on; nothing of a row depends on when others end."""
    module = zoo.fresh("gemma3")
    free = generate(open_model(module), PROMPTS, max_tokens=10)
    ends = [free.tokens[0][4], free.tokens[1][2]]
    module.generation_config.eos_token_id = ends
    model = open_model(module)
    made = generate(model, PROMPTS, edits={"resid.post[1]@end": Scale(1.0)}, when={0, 2, 9}, max_tokens=10)
    for tokens, whole, ended, steps in zip(made.tokens, free.tokens, made.ended, made.patched_steps, strict=True):
        stop = next((i + 1 for i, token in enumerate(whole) if token in ends), 10)
        assert tokens == whole[:stop]
        assert ended == (tokens[-1] in ends)
        assert steps == tuple(step for step in (0, 2, 9) if step < stop)
    assert set(map(len, made.tokens)) >= {3, 5, 10}
    assert {True, False} == set(made.ended)
    theirs = module.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=10)
    assert theirs[0].tolist() == [*PROMPT, *made.tokens[0]]
    module.generation_config.eos_token_id = None
    module.config.eos_token_id = free.tokens[0][0]
    assert generate(model, PROMPT, max_tokens=10).tokens == (free.tokens[0][:1],)


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_samples_are_drawn_by_the_definition(temperature):
    model = zoo.opened("qwen3")
    settings = {"max_tokens": STEPS, "sample": True, "temperature": temperature, "seed": 4}
    for cache in (True, False):
        made = generate(model, PROMPTS, cache=cache, **settings)
        for ids, tokens, scores in zip(PROMPTS, made.tokens, made.logprobs, strict=True):
            choose = sampler(Asked(ids, {}).seed(4), temperature)
            own, expected = continued(zoo.opened("qwen3").module, ids, count=len(tokens), choose=choose)
            assert list(tokens) == own
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_seeds():
    """One seed one text, whatever stands beside it; a prompt given twice is sampled twice."""
    model, settings = zoo.opened("llama"), {"max_tokens": STEPS, "sample": True, "temperature": 2.0}
    made = generate(model, PROMPTS, **settings)
    assert made.tokens == generate(model, PROMPTS, **settings).tokens
    for row, ids in enumerate(PROMPTS):
        assert_same(made, generate(model, ids, **settings), rows=[row])
    assert made.tokens != generate(model, PROMPTS, seed=1, **settings).tokens
    assert len({Asked(ids, {}, before).seed(seed) for ids in PROMPTS for before in (0, 1) for seed in (0, 1)}) == 20
    twice = generate(model, [PROMPT, PROMPT], **settings)
    assert twice.tokens[0] == made.tokens[0] != twice.tokens[1]
    assert made.tokens != generate(model, PROMPTS, max_tokens=STEPS).tokens
    # As temperature falls, the likeliest token is drawn.
    cold = generate(model, PROMPTS, max_tokens=STEPS, sample=True, temperature=1e-4)
    assert cold.tokens == generate(model, PROMPTS, max_tokens=STEPS).tokens


def test_samples_follow_the_distribution():
    """Of 2,000 prompts of one text, shares of the first token are within five standard errors of its probability."""
    model, prompts = zoo.opened("llama"), [PROMPT[:2]] * 2000
    made = generate(model, prompts, max_tokens=1, sample=True, temperature=1.5)
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([PROMPT[:2]])).logits[0, -1]
    expected = (logits / 1.5).softmax(-1).double().numpy()
    shares = np.bincount([tokens[0] for tokens in made.tokens], minlength=zoo.VOCAB) / 2000
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-3).all()
    assert shares.max() < 0.9


def test_the_same_noise_for_both_runs():
    """A weak edit leaves most samples as they were, since both runs draw with one noise."""
    model, prompts = zoo.opened("llama"), [(3 + i, 9, 4) for i in range(40)]
    weak = {"resid.post[1]@end": Scale(1.01)}
    made = generate(model, prompts, edits=weak, max_tokens=1, sample=True, compare=True)
    assert made.logprobs != made.unpatched.logprobs
    assert sum(step is None for step in made.first_differences) > 35
    other = generate(model, prompts, max_tokens=1, sample=True, seed=1)
    assert sum(a == b for a, b in zip(made.tokens, other.tokens, strict=True)) < 30


def test_the_unpatched_text_beside_the_patched_one():
    model = zoo.opened("llama")
    made = generate(model, PROMPTS, edits={"resid.post[2]@end": Scale(-1.0)}, when={3}, max_tokens=STEPS, compare=True)
    plain = generate(model, PROMPTS, max_tokens=STEPS)
    assert_same(made.unpatched, plain)
    assert made.first_differences == (3,) * len(PROMPTS)
    for ours, theirs in zip(made.tokens, plain.tokens, strict=True):
        assert ours[:3] == theirs[:3]
    assert made.patched_steps == ((3,),) * len(PROMPTS)
    assert made.unpatched.patched_steps == ((),) * len(PROMPTS)
    with pytest.raises(BadInput, match="generate with compare=True"):
        _ = plain.first_differences
    plain_json = json.loads(json.dumps(made.to_json()))
    assert plain_json["tokens"] == [list(tokens) for tokens in made.tokens]
    assert plain_json["first_differences"] == [3] * len(PROMPTS)
    assert plain_json["unpatched"]["logprobs"] == [list(row) for row in plain.logprobs]
    assert plain_json["provenance"]["settings"]["when"] == [3]
    assert "unpatched" not in plain.to_json()
    for text in (repr(made), made._repr_html_()):
        assert all(word in text for word in (made.texts[0], plain.texts[0], "step 3"))
    assert "<td>3</td>" in made._repr_html_()
    assert "0–6" in generate(model, PROMPT, edits={"embed": Zero()}, when="always", max_tokens=STEPS)._repr_html_()


def test_log_probabilities_are_single_precision_numbers():
    made = generate(zoo.opened("llama", torch.bfloat16), PROMPT, max_tokens=STEPS, sample=True, temperature=3.0)
    assert all(score == float(np.float32(score)) < 0 for score in made.logprobs[0])
    assert len(made.logprobs[0]) == len(made.tokens[0])


def test_what_is_shown_is_escaped():
    html = "<script>alert('x')</script>"
    made = Generated((PROMPT,), (html,), ((1,),), (html,), ((-1.0,),), (False,), ((),), warnings=(html,))
    both = replace(made, unpatched=made)
    for shown in (made._repr_html_(), both._repr_html_()):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown


def test_settings_of_the_module_that_are_left_out_are_named():
    module = zoo.fresh("gpt2")
    assert generate(open_model(module), PROMPT, max_tokens=1).warnings == ()
    module.generation_config.repetition_penalty = 1.5
    made = generate(open_model(module), PROMPT, max_tokens=1)
    assert made.warnings == ("The generation config asks for repetition_penalty=1.5, which is not used here.",)
    assert made.warnings[0] in repr(made)


def test_a_module_of_your_own():
    """It writes on without a cache, and says so."""
    model = open_model(handmade.handmade())
    with pytest.raises(BadInput, match="Handmade keeps no keys and values between forwards: give cache=False"):
        generate(model, PROMPT, max_tokens=STEPS)
    made = generate(model, PROMPT, max_tokens=STEPS, cache=False)
    assert list(made.tokens[0]) == continued(model.module, PROMPT, count=STEPS)[0]


def test_a_model_whose_tokens_change_what_is_before_them():
    model = open_model(handmade.handmade(blind=False))
    with pytest.raises(BadInput, match="cannot write on token by token"):
        generate(model, PROMPT, cache=False)


def test_training_is_refused():
    module = zoo.fresh("gpt2")
    model = open_model(module)
    module.train()
    with pytest.raises(BadInput, match=r"training mode.*Call \.eval\(\) first"):
        generate(model, PROMPT)


def test_no_probabilities():
    model = zoo.opened("llama")
    broken = torch.zeros(2, 1, zoo.D)
    broken[1] = torch.nan
    with pytest.raises(NotFinite, match=r"prompt 1, step 2: the logits give no probabilities.*what was written there"):
        generate(model, [PROMPT, PROMPTS[2]], edits={"resid.pre[1]": Add(broken)}, when={2}, max_tokens=4)
    banned = torch.zeros(zoo.VOCAB)
    banned[generate(model, PROMPT, max_tokens=1).tokens[0][0]] = -torch.inf
    made = generate(model, PROMPT, edits={"logits": Add(banned)}, max_tokens=1, compare=True)  # a token is ruled out
    assert np.isfinite(made.logprobs[0]).all()
    assert made.first_differences == (0,)
    module = zoo.fresh("gpt2")
    opened = open_model(module)
    with torch.no_grad():
        module.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NotFinite, match=r"prompt 0, step 0: .*its weights hold NaN"):
        generate(opened, PROMPT)


class Broken(Exception):
    pass


def test_hooks_leave_after_an_exception():
    """The fixture compares hooks of before with those of after."""
    model, calls = zoo.opened("gemma3"), []

    def breaks(present):
        calls.append(present.shape)
        if len(calls) == 3:
            raise Broken
        return present

    with pytest.raises(Broken):
        generate(model, PROMPT, edits={"mlp.hidden[1, 3:5]": breaks}, when="always")
    assert calls == [(1, 6, 1), (1, 6, 1), (1, 1, 1)]


def test_hooks_of_others_act_too():
    """What a block around it writes is written at every forward."""
    model = zoo.opened("llama")
    own = generate(model, PROMPT, edits={"mlp.out[1]": Scale(4.0)}, when="always", max_tokens=STEPS)
    with write(model, {"mlp.out[1]": Scale(4.0)}):
        assert_same(generate(model, PROMPT, max_tokens=STEPS), own)


SOME = {"resid.pre[1]": Zero()}
BAD = [
    ({"prompts": []}, BadInput, "give at least one prompt"),
    ({"prompts": [[3, 4], []]}, BadInput, "prompt of example 1 is empty.*at least one"),
    ({"prompts": [[3, 4.5]]}, BadInput, "prompt of example 0 holds 4.5: token ids are whole numbers"),
    ({"prompts": [[3, 97]]}, BadInput, "prompt 0 holds token id 97, but the model's vocabulary is 0 to 96"),
    ({"prompts": "text"}, BadInput, "has no tokenizer"),
    ({"prompts": [[3] * 60]}, BadInput, "prompt 0 has 60 tokens, and max_tokens=20: the model has positions for 64"),
    ({"when": "later"}, UnknownName, "unknown time 'later'.*Known: prefill, always.*such as {0, 3}"),
    (
        {"when": {-1, 0}},
        BadInput,
        r"step -1 cannot be written. With max_tokens=20 the steps are 0 \(the prompt\) to 19",
    ),
    ({"when": {20}}, BadInput, "step 20 cannot be written"),
    ({"when": set()}, BadInput, "no step cannot be written"),
    ({"when": {True}}, BadInput, "step True cannot be written"),
    (
        {"edits": {"resid.pre[1]@6": Zero()}},
        BadInput,
        r"resid.pre\[1\]@6: the prompt has 6 tokens. .*at their own step",
    ),
    ({"edits": {"resid.pre[1]@-7": Zero()}}, BadInput, "the prompt has 6 tokens"),
    ({"edits": {"resid.pre[1]@S2+3": Zero()}, "names": {"S2": 3}}, UnknownName, r"S2\+3 is outside this prompt"),
    ({"edits": {"resid.pre[1]@S3": Zero()}, "names": {"S2": 3}}, UnknownName, "unknown position 'S3'. Known: end, S2"),
    ({"names": [{}, {}]}, BadInput, "names for 2 prompts, and 1 prompts"),
    ({"edits": {"resid.pre[1]@2": Zero()}, "when": {1, 3}}, BadInput, "when=.1, 3. leaves that out. Add 0"),
    ({"edits": {"resid.pre[1]@2": Zero()}, "when": {0, 3}}, BadInput, "nothing would be written at step 3"),
    ({"edits": {"resid.pre[3]": Zero()}}, UnknownName, r"this model has layers 0\.\.2"),
    ({"edits": {"resid.prex": Zero()}}, UnknownName, "Did you mean 'resid.pre'"),
    ({"edits": {"attn.pattern[1, 0]": Zero()}}, BadInput, "patterns are not written while generating.*Write attn.head"),
    ({"edits": {"logits@0": Zero()}}, BadInput, "only the last token's logits choose the next token"),
    ({"edits": {"resid.pre[1]": Replace(torch.ones(5))}}, BadInput, r"\[5\] does not fit the activation \[1, 6, 32\]"),
    ({"edits": {"resid.pre[1]": lambda x: x[:, :1]}}, BadInput, r"returned shape \[1, 1, 32\]; it must keep"),
    ({"max_tokens": 0}, BadInput, "max_tokens=0: give 1 or more"),
    ({"temperature": 0.0, "sample": True}, BadInput, "give a number above 0; sample=False is the limit"),
    ({"temperature": float("nan"), "sample": True}, BadInput, "give a number above 0"),
    ({"temperature": 0.5}, BadInput, "acts on samples only"),
]


@pytest.mark.parametrize(("given", "error", "words"), BAD)
def test_what_cannot_be_used(given, error, words):
    """Before anything is run, where it can be told."""
    given = {"prompts": PROMPT, "edits": SOME} | given
    with pytest.raises(error, match=words):
        generate(zoo.opened("llama"), given.pop("prompts"), **given)


def test_encoder_decoders_are_refused():
    """Their opening says so, and names what they can be patched by."""
    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(NotProved, match="patch_any"):
        open_model(T5ForConditionalGeneration(config).eval())
