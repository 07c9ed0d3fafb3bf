"""generate_any: encoder–decoders that write on while they are patched, against whole forwards and plain hooks."""

import copy
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.generation import GenerationMixin

import crosspatch as xp
from builders_speech import FOX, WORDS, load_whisper
from crosspatch.audio import load_audio, log_mel, transcribe
from crosspatch.core.errors import BadInput, MemoryShortage, NotFinite, NotProved, UnknownName
from crosspatch.models.seq2seq import EncoderDecoder
from crosspatch.modules import reading, writing_on
from crosspatch.modules.cells import select
from crosspatch.modules.writing_on import MANY, _everywhere
from crosspatch.sites import Site
from modules.trials import CASES
from naive.decoding import Rules, Written, continued
from zoo_any_parts import tokens

NAMES = ("whisper", "t5", "bart")
STEPS = 6
START = {"whisper": 1, "t5": 0, "bart": 1}


@cache
def lively(name):
    """Make a model whose unembedding is its own, so that it does not say its last token over and over."""
    module = copy.deepcopy(CASES[name].build())
    head, draw = module.get_output_embeddings(), torch.Generator().manual_seed(3)
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=draw))
    with torch.no_grad():
        for path, part in module.named_modules():
            if re.search(r"(encoder_attn.*|EncDecAttention)\.(out_proj|o)$", path):
                part.weight.mul_(3)  # let what is heard matter
    module.generation_config.forced_eos_token_id = None
    return module


def trial(name, module=None, **changes):
    """Make a trial whose prompts have three tokens, without padding; `changes` are to the inputs of both runs."""
    case = CASES[name]
    prompt = tokens(7, 3, {(0, 0): START[name], (1, 0): START[name]})
    sides = [{n: v for n, v in side.items() if n != "decoder_attention_mask"} for side in (case.source, case.base)]
    clean, corrupt = ({**side, "decoder_input_ids": prompt, **changes} for side in sides)
    return xp.Trial(module or lively(name), clean, corrupt, case.metric, 2, name=name)


def spoken_of(name, site):
    """Say where a site is, from the zoo's table."""
    stack, _, kind = site.kind.partition(".")
    found = CASES[name].stacks[stack]
    spot = found.parts[kind]
    columns = (None, None)
    if site.unit is not None:
        columns = spot.start + site.unit * spot.d_head, spot.start + (site.unit + 1) * spot.d_head
    path = ".".join(part for part in (found.path, str(found.blocks[site.layer]), spot.path) if part)
    position = site.position if isinstance(site.position, int) else None
    return Written(path, spot.side, spot.item, columns, position)


def one(inputs, example):
    return {name: value[example : example + 1] for name, value in inputs.items()}


def naive(given, address, direction="denoise", rules=None):
    """Return the tokens `[example, step]` of the naive twin, −1 behind the end, and the least lead."""
    runs = (given.corrupt, given.clean) if direction == "denoise" else (given.clean, given.corrupt)
    settings = given.module.generation_config
    first = [token for token in settings.begin_suppress_tokens or () if token < 60]
    rules = rules or Rules(STEPS, (settings.eos_token_id,), settings.suppress_tokens or (), first)
    members = getattr(address, "members", (address,) if address else ())
    written = [spoken_of(given.name, site) for site in members]
    rows, leads = [], []
    for example in range(given.count):
        said, lead = continued(given.module, *(one(side, example) for side in runs), written, rules)
        rows.append(said + [-1] * (rules.count - len(said)))
        leads.append(lead)
    return np.array(rows), min(leads)


def compared(given, sites, direction="denoise", rules=None, **how):
    """Compare with the naive twin; return what was said."""
    said = xp.generate_any(given, sites=sites, direction=direction, max_tokens=STEPS, **how)
    for number, address in enumerate(sites):
        expected, lead = naive(given, address, direction, rules)
        assert lead > 1e-4, f"{address}: rounding decides; take another seed"
        np.testing.assert_array_equal(said.tokens[number], expected, err_msg=str(address))
    return said


BOTH = xp.Group(
    "both", (Site("encoder.resid.post", 0, None, 2), Site("decoder.mlp.out", 1), Site("decoder.cross.head", 0, 1))
)
KINDS = (
    *("decoder.resid.pre", "decoder.resid.post", "decoder.attn.out", "decoder.attn.head[*, 1]", "decoder.attn.k[*, 2]"),
    *("decoder.cross.out", "decoder.cross.head[*, 1]", "decoder.cross.v[*, 3]", "decoder.cross.k[*, 0]"),
    *("decoder.mlp.out", "encoder.resid.post@2", "encoder.attn.head[*, 0]"),
)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_whole_forwards_and_plain_hooks(name, direction):
    """Every kind of site; T5's and BART's encoder inputs are padded."""
    given = trial(name)
    said = compared(given, [*select(given, ", ".join(KINDS), spread=False), BOTH], direction)
    base, source = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    for run, tokens_of in ((base, said.base), (source, said.source)):
        alone = xp.Trial(given.module, given.inputs(run), given.inputs(run), given.metric, 2, name=name)
        np.testing.assert_array_equal(tokens_of, naive(alone, None)[0])
    assert said.changed.sum() > said.changed.size / 4
    assert len({row.tobytes() for site in said.tokens for row in site}) > 10
    assert said.prompt.tolist() == given.clean["decoder_input_ids"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_base_run_is_what_the_modules_own_generate_says(name):
    given = trial(name)
    settings = copy.deepcopy(given.module.generation_config)
    module = copy.deepcopy(given.module)
    plain = xp.generate_any(given, sites="decoder.mlp.out[0]", max_tokens=STEPS).base
    for never, first in (((), ()), (plain[:, 1].tolist(), plain[:, 0].tolist())):
        settings.suppress_tokens, settings.begin_suppress_tokens = list(never) or None, list(first) or None
        module.generation_config = copy.deepcopy(settings)
        own = replace(given, module=module)
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": STEPS}
        theirs = GenerationMixin.generate(module, **own.corrupt, **greedy)[:, 3:].numpy()
        ours = xp.generate_any(own, sites="decoder.mlp.out[0]", max_tokens=STEPS).base
        np.testing.assert_array_equal(np.where(ours < 0, settings.pad_token_id, ours)[:, : theirs.shape[1]], theirs)
    assert (ours != plain).any()


def test_tokens_that_may_not_be_said_are_not_said_by_patched_rows():
    given = trial("whisper")
    plain = xp.generate_any(given, sites="decoder.cross.out", max_tokens=STEPS).tokens
    module = copy.deepcopy(given.module)
    never, first = sorted({*plain[:, :, 2].ravel().tolist()}), sorted({*plain[:, :, 0].ravel().tolist()})
    module.generation_config.suppress_tokens, module.generation_config.begin_suppress_tokens = never, [*first, 50256]
    given = trial("whisper", module)
    said = compared(given, select(given, "decoder.cross.out", spread=False))
    assert not np.isin(said.tokens, never).any()
    assert not np.isin(said.tokens[:, :, 0], first).any()
    assert np.isin(said.tokens[:, :, 1:], first).any() or not set(first) - set(never)


@pytest.mark.parametrize("name", NAMES)
def test_rows_end_by_themselves(name):
    """An end that some rows come to, at different steps, and others do not."""
    given = trial(name)
    sites = select(given, "decoder.cross.out, decoder.mlp.out, encoder.resid.post", spread=False)
    free = xp.generate_any(given, sites=sites, max_tokens=STEPS, end=())
    assert not free.ended.any()
    assert (free.tokens >= 0).all()
    ends = {int(free.base[0, 3]), int(free.base[1, 1])}
    rules = replace(Rules(STEPS), ends=ends, never_first=_first(given))
    sites = [_everywhere(site) for site in sites]
    said = compared(given, sites, rules=rules, end=ends)
    assert len({int((row >= 0).sum()) for row in said.tokens.reshape(-1, STEPS)}) > 1
    np.testing.assert_array_equal(said.ended, np.isin(said.tokens, list(ends)).any(-1))
    assert said.ends == ends
    for row, whole in zip(said.tokens.reshape(-1, STEPS), free.tokens.reshape(-1, STEPS), strict=True):
        at = np.isin(whole, list(ends)).nonzero()[0]
        length = at[0] + 1 if len(at) else STEPS
        assert row.tolist() == [*whole[:length], *[-1] * (STEPS - length)]


def _first(given):
    return [token for token in given.module.generation_config.begin_suppress_tokens or () if token < 60]


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_the_cut_into_forwards_changes_nothing(rows):
    given = trial("bart")
    sites = [*select(given, "decoder.cross.out, encoder.mlp.out@1", spread=False), BOTH]
    whole, cut = (xp.generate_any(given, sites=sites, max_tokens=STEPS, rows=r) for r in (64, rows))
    np.testing.assert_array_equal(whole.tokens, cut.tokens)
    np.testing.assert_array_equal(whole.base, cut.base)
    assert cut.provenance["settings"]["runs"] > whole.provenance["settings"]["runs"]


def test_the_encoder_runs_once_for_each_run_where_the_decoder_is_patched():
    given = trial("t5", copy.deepcopy(lively("t5")))
    assert given.stacks
    calls = []
    given.module.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    xp.generate_any(given, sites="decoder.cross.head, decoder.mlp.out", max_tokens=STEPS, rows=4)
    assert len(calls) == 2
    xp.generate_any(given, sites="encoder.mlp.out", max_tokens=STEPS)
    assert len(calls) == 2 + 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sites", ["decoder.cross.head, decoder.mlp.out", "decoder.mlp.out", "decoder.cross.v"])
def test_the_source_run_reads_each_text_once(name, sites):
    """Rows of one example that have said the same share a row of the source run; a row that ended has none."""
    given = trial(name)
    free = xp.generate_any(given, sites=sites, max_tokens=STEPS, end=())
    said = xp.generate_any(given, sites=sites, max_tokens=STEPS, end={int(free.base[0, 3]), int(free.base[1, 1])})
    for result in (free, said):
        read = [
            (example, *row[:step])
            for example, rows in enumerate(result.tokens.swapaxes(0, 1))
            for step in range(STEPS)
            for row in {tuple(row) for row in rows[rows[:, step] >= 0][:, : max(step, 1)].tolist()}
        ]
        assert result.provenance["settings"]["source_rows"] == len(set(read))
    assert len(set(read)) < (said.tokens >= 0).sum() < (free.tokens >= 0).sum()


def test_keys_of_what_is_heard_are_made_once_where_no_site_changes_them():
    given, made = trial("whisper", copy.deepcopy(lively("whisper"))), []
    assert given.stacks
    given.module.model.decoder.layers[0].encoder_attn.k_proj.register_forward_hook(
        lambda _, __, output: made.append(len(output))
    )
    rows = len(xp.generate_any(given, sites="decoder.mlp.out, decoder.cross.head", max_tokens=STEPS).sites)
    assert rows >= MANY
    proofs = 2 + 1 + 1
    assert sum(made) == proofs + 2 * 2 + 2 * (1 + 1)  # the two runs by themselves; each example's base and source run
    made.clear()
    rows = len(xp.generate_any(given, sites="decoder.cross.k", max_tokens=STEPS).sites)
    assert sum(made) == proofs + 2 * 2 + 2 * (rows + 1)


WAYS = ("decoder.mlp.out", "decoder.cross.head", "decoder.cross.k", "encoder.mlp.out", "decoder.attn.out")


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_keep_rows_says_the_same(name, monkeypatch):
    """Rows that share what was heard, rows that copy it, rows that make it themselves, a cache of an unknown kind."""
    given, sites = trial(name), ", ".join(WAYS)
    plain = xp.generate_any(given, sites=sites, max_tokens=STEPS)
    eager = copy.deepcopy(lively(name))
    eager.set_attn_implementation("eager")
    shared = EncoderDecoder.of(given.module).shares_rows, EncoderDecoder.of(eager).shares_rows
    assert shared == (True, False)
    ways = [xp.generate_any(trial(name, eager), sites=sites, max_tokens=STEPS)]
    monkeypatch.setattr(writing_on, "MANY", 1000)
    ways.append(xp.generate_any(given, sites=sites, max_tokens=STEPS))
    monkeypatch.setattr(reading, "only_heard", lambda past: 1 / 0)
    ways.append(xp.generate_any(given, sites=sites, max_tokens=STEPS))
    for place in (reading, writing_on):
        monkeypatch.setattr(place, "of_rows", lambda past: False)
    ways.append(xp.generate_any(given, sites=sites, max_tokens=STEPS))
    for way in ways:
        np.testing.assert_array_equal(way.tokens, plain.tokens)
    assert ways[-1].provenance["settings"]["source_rows"] > plain.provenance["settings"]["source_rows"]


def test_what_a_site_may_change_is_not_shared(monkeypatch):
    """A module whose decoder comes into the keys of what was heard."""
    given, seen = trial("whisper", copy.deepcopy(lively("whisper"))), []
    second = given.module.model.decoder.layers[1]
    second.register_forward_pre_hook(lambda _, args: seen.append(args[0].mean((1, 2))))
    second.encoder_attn.k_proj.register_forward_hook(
        lambda _, __, output: output + torch.linspace(-9, 9, output.shape[1])[:, None] * seen[-1][:, None, None]
    )
    found, behind = [], writing_on.behind_heard
    monkeypatch.setattr(writing_on, "behind_heard", lambda *given: found.append(behind(*given)) or found[-1])
    xp.generate_any(given, sites="decoder.mlp.out[1], decoder.mlp.out[0]", max_tokens=2)
    xp.generate_any(given, sites="decoder.mlp.out[1]", max_tokens=2)
    assert [len(each) for each in found] == [0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_identities(name):
    """What the encoder gives is the source run; so is the last stream; a run patched from itself is itself."""
    given = trial(name)
    said = xp.generate_any(given, sites="encoder.resid.post[1], decoder.resid.post[1]", max_tokens=STEPS)
    assert (said.base != said.source).any(-1).all()
    for tokens_of in said.tokens:
        np.testing.assert_array_equal(tokens_of, said.source)
    same = replace(given, clean=given.corrupt)
    assert not xp.generate_any(same, sites="decoder.cross.out, encoder.mlp.out", max_tokens=STEPS).changed.any()


def test_masks_of_the_two_runs_may_differ_and_padding_is_not_read():
    given = trial("t5")
    shorter = given.corrupt["attention_mask"].clone()
    shorter[0, 5:] = 0
    given = replace(given, corrupt={**given.corrupt, "attention_mask": shorter})
    sites = select(given, "decoder.cross.out, decoder.cross.v[*, 1], encoder.mlp.out@1", spread=False)
    said = compared(given, sites)
    noise = given.corrupt["input_ids"].clone()
    noise[shorter == 0] = 33
    other = replace(given, corrupt={**given.corrupt, "input_ids": noise})
    np.testing.assert_array_equal(said.tokens, xp.generate_any(other, sites=sites, max_tokens=STEPS).tokens)


def test_names_and_lengths_of_the_encoder():
    given = replace(trial("bart"), names={"word": [2, 3]}, lengths={"encoder": [8, 5], "decoder": [3, 3]})
    kinds = "encoder.resid.post[0]"
    named, second, third, last, fourth = (
        xp.generate_any(given, sites=f"{kinds}@{at}", max_tokens=STEPS).tokens[0] for at in ("word", 2, 3, -1, 4)
    )
    assert named[0].tolist() == second[0].tolist()
    assert named[1].tolist() == third[1].tolist()
    assert last[1].tolist() == fourth[1].tolist()
    with pytest.raises(BadInput, match="example 1 has no such position"):
        xp.generate_any(given, sites=f"{kinds}@6", max_tokens=STEPS)
    padded = replace(given, lengths={"decoder": [3, 2]})
    with pytest.raises(BadInput, match=r"lengths of 'decoder' are \[2, 3\]"):
        xp.generate_any(padded, sites="decoder.mlp.out", max_tokens=STEPS)


def test_what_says_nothing_new_among_the_inputs_is_left_aside():
    plain = xp.generate_any(trial("whisper"), sites="decoder.cross.out", max_tokens=STEPS)
    more = trial("whisper", use_cache=False, decoder_attention_mask=torch.ones(2, 3, dtype=torch.long))
    np.testing.assert_array_equal(
        xp.generate_any(more, sites="decoder.cross.out", max_tokens=STEPS).tokens, plain.tokens
    )


def test_short_memory_halves_a_forward(monkeypatch):
    given, step = trial("whisper"), EncoderDecoder.step
    plain = xp.generate_any(given, sites="decoder.cross.out, encoder.mlp.out", max_tokens=STEPS)

    room = [3]

    def small(self, heard, inputs, *ids_and_past):
        if len(ids_and_past[0]) > room[0] and ids_and_past[1] is not None:  # behind the proof
            raise torch.OutOfMemoryError("no room")
        return step(self, heard, inputs, *ids_and_past)

    monkeypatch.setattr(EncoderDecoder, "step", small)
    said = xp.generate_any(given, sites="decoder.cross.out, encoder.mlp.out", max_tokens=STEPS)
    np.testing.assert_array_equal(said.tokens, plain.tokens)
    assert said.provenance["settings"]["halvings"] > plain.provenance["settings"]["halvings"] == 0
    room[0] = 0
    alone = replace(given, clean=one(given.clean, 0), corrupt=one(given.corrupt, 0), count=1)
    with pytest.raises(MemoryShortage, match="not even one row"):
        xp.generate_any(alone, sites="decoder.cross.out", max_tokens=STEPS)


def test_forwards_that_go_wrong_are_told():
    module = copy.deepcopy(lively("whisper"))
    given = trial("whisper", module)
    assert given.stacks

    def more(_, __, kwargs, output):
        output.logits.add_("encoder_outputs" in kwargs and torch.arange(60))

    handle = module.register_forward_hook(more, with_kwargs=True)
    with pytest.raises(NotProved, match="gives other logits"):
        xp.generate_any(given, sites="decoder.cross.out", max_tokens=2)
    handle.remove()
    calls = []

    def nan_later(_, __, output):
        calls.append(1)
        if len(calls) > 1:  # behind the proof
            output.logits[0, -1, 5] = torch.nan

    handle = module.register_forward_hook(nan_later)
    with pytest.raises(NotFinite, match="step 0: a logit of a row is NaN"):
        xp.generate_any(given, sites="decoder.cross.out", max_tokens=2)
    handle.remove()


BAD = {
    "sites of no stack": ({"sites": "middle.mlp.out"}, UnknownName, "middle.mlp.out"),
    "a direction": ({"direction": "up"}, BadInput, "direction 'up'"),
    "no tokens": ({"max_tokens": 0}, BadInput, "max_tokens=0"),
    "too many tokens": ({"max_tokens": 15}, BadInput, "positions for 16"),
    "no room for a twin": ({"rows": 1}, BadInput, "rows=1: a forward holds 2 rows at least"),
    "no rows": ({"rows": 0, "sites": "encoder.mlp.out"}, BadInput, "rows=0"),
    "a position": ({"sites": "decoder.mlp.out[0]@1"}, BadInput, r"decoder.mlp.out\[0\]@1: what the decoder has"),
    "a position of keys": ({"sites": "decoder.cross.k[0, 1]@1"}, BadInput, "what the decoder has is written wherever"),
    "a position in a group": (
        {"sites": [xp.Group("g", (Site("decoder.mlp.out", 0, None, 1),))]},
        BadInput,
        "leave out its position",
    ),
    "edges": ({"sites": [xp.Group("g", (xp.Edge(0, 1, 0),))]}, BadInput, "cutting attention"),
}


@pytest.mark.parametrize("what", BAD)
def test_questions_that_are_refused(what):
    asked, error, message = BAD[what]
    with pytest.raises(error, match=message):
        xp.generate_any(trial("whisper"), **{"sites": "decoder.mlp.out", "max_tokens": STEPS, **asked})


def given_with(**changes):
    """Make a trial without running anything on it."""
    return trial("whisper", **changes)


PROMPT = tokens(7, 3)
INPUTS = {
    "labels": (lambda: given_with(labels=PROMPT), "labels among the inputs"),
    "an encoder that ran": (lambda: given_with(encoder_outputs=(torch.zeros(2, 12, 32),)), "encoder_outputs among"),
    "padding": (lambda: given_with(decoder_attention_mask=PROMPT.min() < PROMPT), "without padding"),
    "no prompt": (lambda: given_with(decoder_input_ids=None), "decoder_input_ids, the tokens to continue"),
    "an empty prompt": (lambda: given_with(decoder_input_ids=PROMPT[:, :0]), "decoder_input_ids is empty"),
    "three prompts": (lambda: given_with(decoder_input_ids=tokens(7, 3).repeat(2, 1)), "hold 4 prompts for 2"),
}


@pytest.mark.parametrize("what", INPUTS)
def test_inputs_that_are_refused(what):
    make, message = INPUTS[what]
    with pytest.raises(BadInput, match=message):
        xp.generate_any(make(), sites="decoder.mlp.out", max_tokens=STEPS)


def test_prompts_must_be_alike():
    given = trial("whisper")
    other = replace(given, corrupt={**given.corrupt, "decoder_input_ids": PROMPT})
    with pytest.raises(BadInput, match="differ between the clean and the corrupt run"):
        xp.generate_any(other, sites="decoder.mlp.out")
    positional = replace(given, clean=tuple(given.clean.values()), corrupt=tuple(given.corrupt.values()))
    with pytest.raises(BadInput, match="must be a mapping"):
        xp.generate_any(positional, sites="decoder.mlp.out")


@pytest.mark.parametrize("name", ["bert", "llava", "mlp"])
def test_modules_that_are_no_encoder_decoders_are_refused(name):
    case = CASES[name]
    given = xp.Trial(case.build(), dict(case.source), dict(case.base), case.metric, 2)
    with pytest.raises(BadInput, match="cannot be continued token by token here"):
        xp.generate_any(given, sites="mlp.out")


def test_a_model_without_a_head_is_refused():
    given = trial("whisper", copy.deepcopy(lively("whisper").model))
    with pytest.raises(BadInput, match="gives no logits"):
        xp.generate_any(given, sites="decoder.mlp.out", max_tokens=STEPS)


class Words:
    """A tokenizer of numbers."""

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return " ".join(map(str, ids))


def test_results_say_what_they_are():
    said = xp.Decoded(
        sites=(Site("decoder.mlp.out", 0, None, "all"),),
        tokens=np.array([[[5, 2, -1], [4, 4, 4]]]),
        base=np.array([[5, 2, -1], [4, 4, 2]]),
        source=np.array([[2, -1, -1], [4, 4, 2]]),
        prompt=np.array([[1], [1]]),
        ends=frozenset({2}),
        direction="noise",
        warnings=("Beware.",),
    )
    assert said.ended.tolist() == [[True, False]]
    assert said.changed.tolist() == [[False, True]]
    assert said.texts(Words()) == (("5 2", "4 4 4"),)
    assert said.texts(SimpleNamespace(tokenizer=Words()), said.source) == ("2", "4 4 2")
    assert repr(said) == (
        "Decoded: 1 sites × 2 examples, noise, up to 3 tokens; 1 of 2 rows differ from the base run\n"
        "site                    changed rows\n"
        "decoder.mlp.out[0]@all        1 of 2\n"
        "Beware."
    )


def test_settings_that_are_not_used_are_named():
    module = copy.deepcopy(lively("bart"))
    module.generation_config.forced_eos_token_id, module.generation_config.num_beams = 2, 4
    module.generation_config.suppress_tokens = [9]
    said = xp.generate_any(trial("bart", module), sites="decoder.mlp.out[0]", max_tokens=2)
    assert [any(name in each for each in said.warnings) for name in ("forced_eos", "num_beams", "suppress")] == [
        *(True, True, False)
    ]


@pytest.mark.whisper
def test_a_real_whisper_says_something_else_when_it_hears_noise():
    loaded, fox = load_whisper("whisper-tiny.en"), load_audio(FOX)
    (heard,) = transcribe(loaded.module, loaded.tokenizer, [fox])
    mel = log_mel(loaded, [fox]).mel
    noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(0)) * mel.std() + mel.mean()
    prompt = torch.tensor([heard.tokens[: heard.prompt]])
    clean, corrupt = ({"input_features": each, "decoder_input_ids": prompt} for each in (mel, noise))
    given = xp.Trial(loaded.module, clean, corrupt, lambda output: output.logits[:, -1, 0], 1)
    layers = given.stack("decoder.cross.out").layers
    every = xp.Group("all", tuple(Site("decoder.cross.out", layer) for layer in range(layers)))
    said = xp.generate_any(given, sites=[every, Site("decoder.mlp.out", 0)], direction="noise", max_tokens=30)
    assert tuple(said.base[0][said.base[0] >= 0]) == heard.tokens[heard.prompt :]
    assert said.texts(loaded.tokenizer, said.base)[0].strip() == heard.text == WORDS
    assert said.changed[0, 0]
    assert said.texts(loaded.tokenizer)[0][0].strip() != WORDS
    assert not said.warnings
