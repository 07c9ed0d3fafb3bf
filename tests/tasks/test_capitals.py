"""Capitals: facts, spans of the city, partners of the same length, and only what the model knows."""

import pytest
import torch

from builders_tasks import StubModel, atlas_of, byte_tokenizer, piece_tokenizer, stub, word_tokenizer
from crosspatch.core.errors import BadInput
from crosspatch.tasks import capitals, keep_known
from crosspatch.tasks.lexicon import CAPITAL_TEMPLATES, CAPITALS

COUNTRY = dict(CAPITALS)
TOKENIZERS = {
    "gemma-like": piece_tokenizer,
    "llama-like": lambda: piece_tokenizer(prefix="always"),
    "no bos": lambda: piece_tokenizer(bos=False),
    "gpt2-like": byte_tokenizer,
    "words": lambda: word_tokenizer(bos=True),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request):
    return stub(TOKENIZERS[request.param]())


def city_of(template, text):
    """Cut the city out of a text by what the template has before and after it."""
    before, after = template.split("{city}")
    assert text.startswith(before)
    assert text.endswith(after)
    return text[len(before) : len(text) - len(after)]


def squeeze(text):
    """Leave out spaces: some tokenizers forget them."""
    return text.replace(" ", "")


@pytest.mark.parametrize("template", range(len(CAPITAL_TEMPLATES)))
def test_answers_are_the_countries_and_names_span_the_city(model, template):
    """Right is the clean city's country, wrong the corrupt one's; subject_first to subject spell the city."""
    task = capitals(model, 24, seed=template, template=template)
    decode = model.tokenizer.decode
    for pair, tokens in zip(task.pairs, task.tokens, strict=True):
        cities = [city_of(CAPITAL_TEMPLATES[template], text) for text in (pair.clean_text, pair.corrupt_text)]
        assert decode(pair.right[0]).strip() == COUNTRY[cities[0]]
        assert decode(pair.wrong[0]).strip() == COUNTRY[cities[1]]
        first, last = pair.names["subject_first"], pair.names["subject"]
        assert squeeze("".join(tokens[first : last + 1])) == squeeze(cities[0])
        changed = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b]
        assert first <= min(changed) <= max(changed) <= last
        assert pair.names["end"] == len(pair.clean) - 1
        assert tuple(model.tokenizer(pair.corrupt_text)["input_ids"]) == pair.corrupt


def test_pairs_are_distinct_and_facts_spread():
    """No pair twice; before any city comes a second time, every city that has a partner comes once."""
    model = stub(piece_tokenizer())
    task = capitals(model, 200, template=1)
    assert len({(pair.clean, pair.corrupt) for pair in task.pairs}) == 200
    seen = [pair.clean for pair in task.pairs]
    distinct = len(set(seen))
    assert len(set(seen[:distinct])) == distinct


def test_the_seed_decides_everything():
    """Same seed, same pairs; the settings tell how they were made."""
    model = stub(piece_tokenizer())
    assert capitals(model, 9, seed=1) == capitals(model, 9, seed=1)
    assert capitals(model, 9, seed=1).pairs != capitals(model, 9, seed=2).pairs
    assert capitals(model, 9, seed=1).settings == {"n": 9, "seed": 1, "template": 0}
    assert capitals(model, 9).metric == "logit_diff"


def test_countries_that_split_are_left_out():
    """Only countries of one token are answers."""
    split = [country for _, country in CAPITALS[5:]]
    words = {word for country in split for word in country.split()}
    task = capitals(stub(piece_tokenizer(without=words)), 2, template=2)
    kept = {f"▁{country}" for _, country in CAPITALS[:5]}
    tokenizer = piece_tokenizer(without=words)
    assert {tokenizer.convert_ids_to_tokens(pair.right[0][0]) for pair in task.pairs} <= kept


def test_bad_options_say_what_there_is():
    """Numbers beyond the facts, templates beyond the list, no tokenizer."""
    model = stub(piece_tokenizer(without=[country for _, country in CAPITALS[4:]]))
    with pytest.raises(BadInput, match=r"n=100: for the tokenizer of 'stub' there are 1 to \d+ pairs"):
        capitals(model, 100)
    with pytest.raises(BadInput, match=r"n=0: .* 1 to"):
        capitals(model, 0)
    with pytest.raises(BadInput, match=rf"template=9 does not exist: give 0 to {len(CAPITAL_TEMPLATES) - 1}"):
        capitals(model, 2, template=9)
    with pytest.raises(BadInput, match="has no tokenizer"):
        capitals(StubModel(None), 2)


def test_no_usable_fact_is_an_error():
    """A tokenizer that knows no country leaves nothing to ask."""
    with pytest.raises(BadInput, match="there are 1 to 0 pairs"):
        capitals(stub(piece_tokenizer(without=[country for _, country in CAPITALS])), 1)


def test_known_only_keeps_pairs_that_the_model_knows_on_both_sides():
    """Pairs with a forgotten country on either side go, others take their places; the settings count them."""
    tokenizer = piece_tokenizer()
    everything = capitals(stub(tokenizer), 60)
    forgotten = {everything.pairs[0].right[0][0], everything.pairs[1].wrong[0][0]}
    model = stub(tokenizer, atlas_of([everything, capitals(stub(tokenizer), 400)], len(tokenizer), forget=forgotten))
    task = capitals(model, 20, known_only=True)
    assert len(task.pairs) == len(task.tokens) == task.settings["n"] == 20
    answers = {ids[0] for pair in task.pairs for ids in (*pair.right, *pair.wrong)}
    assert not answers & forgotten
    assert task.settings["checked"] == 48
    assert task.settings["dropped"] >= 2


def test_keep_known_counts_what_it_drops():
    """A pair goes if either side is not known, and stays otherwise, in its order and with its tokens."""
    tokenizer = piece_tokenizer()
    task = capitals(stub(tokenizer), 10)
    forgotten = {task.pairs[3].right[0][0]}
    model = stub(tokenizer, atlas_of([task], len(tokenizer), forget=forgotten))
    kept = keep_known(model, task)
    expected = [i for i, p in enumerate(task.pairs) if not forgotten & {p.right[0][0], p.wrong[0][0]}]
    assert [task.pairs.index(pair) for pair in kept.pairs] == expected
    assert kept.tokens == tuple(task.tokens[i] for i in expected)
    assert kept.settings == {**task.settings, "n": len(expected), "checked": 10, "dropped": 10 - len(expected)}
    assert 3 not in expected


def test_keep_known_says_so_if_nothing_is_left():
    """A model that knows nothing leaves no task."""
    tokenizer = piece_tokenizer()
    task = capitals(stub(tokenizer), 4)
    with pytest.raises(BadInput, match=r"'stub' gets none of the 4 pairs of task 'capitals' right on both sides"):
        keep_known(stub(tokenizer, atlas_of([], len(tokenizer))), task)


def test_the_facts_are_many_and_each_city_and_country_stands_once():
    """At least 60, none ambiguous, none that gives the answer away by holding the other's name."""
    cities, countries = zip(*CAPITALS, strict=True)
    assert len(CAPITALS) >= 60
    assert len(set(cities)) == len(set(countries)) == len(CAPITALS)
    assert not any(city in country or country in city for city, country in CAPITALS)
    assert all(template.count("{city}") == 1 for template in CAPITAL_TEMPLATES)


def test_ties_are_not_knowledge():
    """Zero logits everywhere: right is not above wrong."""
    tokenizer = piece_tokenizer()
    task = capitals(stub(tokenizer), 2)
    with pytest.raises(BadInput, match="gets none"):
        keep_known(
            stub(tokenizer, torch.nn.Embedding(len(tokenizer), len(tokenizer)).requires_grad_(False).apply(_zero)), task
        )


def _zero(module):
    module.weight.zero_()
