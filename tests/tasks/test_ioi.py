"""Indirect object identification: roles, positions, corruptions, balance, over tokenizers of several families."""

from collections import Counter

import pytest

from builders_tasks import StubModel, byte_tokenizer, piece_tokenizer, stub, word_tokenizer
from crosspatch.core.errors import BadInput
from crosspatch.tasks import ioi
from crosspatch.tasks.lexicon import IOI_TEMPLATES, NAMES, OBJECTS, PLACES
from naive.tasks import naive_ioi_names

TOKENIZERS = {
    "gemma-like": piece_tokenizer,
    "llama-like": lambda: piece_tokenizer(prefix="always"),
    "no bos": lambda: piece_tokenizer(bos=False),
    "gpt2-like": byte_tokenizer,
    "words": word_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request):
    return stub(TOKENIZERS[request.param]())


@pytest.fixture(scope="module")
def plain():
    return stub(piece_tokenizer())


def names_in(text):
    """List the names in a text in order, by splitting at spaces and commas."""
    return [word for word in text.replace(",", " ").replace(".", " ").split() if word in NAMES]


@pytest.mark.parametrize("corrupt", ["S2", "S1+IO", "ABC"])
def test_positions_are_those_read_off_the_tokens(model, corrupt):
    """A reader of the clean tokens finds the same named positions, with and without BOS, at any prefix."""
    task = ioi(model, 22, seed=3, corrupt=corrupt)
    for pair, tokens in zip(task.pairs, task.tokens, strict=True):
        first, second, giver = names_in(pair.clean_text)
        io = next(name for name in (first, second) if name != giver)
        assert pair.names == naive_ioi_names(tokens, io, giver)
        assert pair.clean[pair.names["IO"]] == pair.right[0][0]
        assert pair.clean[pair.names["S1"]] == pair.clean[pair.names["S2"]] == pair.wrong[0][0]
        assert tuple(model.tokenizer(pair.clean_text)["input_ids"]) == pair.clean
        assert tuple(model.tokenizer(pair.corrupt_text)["input_ids"]) == pair.corrupt


@pytest.mark.parametrize(("corrupt", "changed"), [("S2", {"S2"}), ("S1+IO", {"IO", "S1"}), ("ABC", {"IO", "S1", "S2"})])
def test_the_corrupt_prompt_changes_only_what_it_says(model, corrupt, changed):
    """Every other token is the same; new names are random, distinct and foreign to the clean prompt."""
    for pair in ioi(model, 22, seed=5, corrupt=corrupt).pairs:
        differing = {i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b}
        assert differing == {pair.names[role] for role in changed}
        clean, corrupted = names_in(pair.clean_text), names_in(pair.corrupt_text)
        if corrupt == "S2":
            assert pair.corrupt[pair.names["S2"]] == pair.right[0][0]  # now IO is the name said twice
        else:
            new = [name for name in corrupted if name not in clean]
            assert len(set(new)) == len(changed)


def test_orders_are_as_asked_and_balanced(plain):
    """ABBA names IO first, BABA second; mixed has half of each, and templates come equally often."""
    first = {pair.names["IO"] < pair.names["S1"] for pair in ioi(plain, 12, order="ABBA").pairs}
    assert first == {True}
    assert {pair.names["IO"] < pair.names["S1"] for pair in ioi(plain, 12, order="BABA").pairs} == {False}
    mixed = ioi(plain, 40, seed=1)
    assert sum(pair.names["IO"] < pair.names["S1"] for pair in mixed.pairs) == 20
    starts = Counter(next(i for i, t in enumerate(IOI_TEMPLATES) if fits(t, pair.clean_text)) for pair in mixed.pairs)
    assert set(starts.values()) == {3, 4}
    assert set(starts) == set(range(len(IOI_TEMPLATES)))


def fits(template, text):
    """Tell whether a text starts and ends as a template does outside its slots."""
    head, tail = template.split("{")[0], template.rsplit("}", 1)[1]
    verb = template.split("{giver}")[1].split()[0]
    return text.startswith(head) and text.endswith(tail) and f" {verb} " in text


@pytest.mark.parametrize("template", range(len(IOI_TEMPLATES)))
def test_one_template_has_one_length_and_one_layout(model, template):
    """So that effects of several prompts can be mapped position by position."""
    pairs = ioi(model, 8, seed=2, template=template).pairs
    assert len({len(pair.clean) for pair in pairs}) == 1
    slots = {tuple(sorted((pair.names["IO"], pair.names["S1"]))) for pair in pairs}
    assert len(slots) == 1
    assert len({pair.names["S2"] for pair in pairs}) == 1
    assert all(fits(IOI_TEMPLATES[template], pair.clean_text) for pair in pairs)


def test_one_length_even_if_places_differ_in_tokens():
    """Places and objects that split are left out, so one template still has one length."""
    model = stub(piece_tokenizer(without=["store", "garden", "drink"]))
    pairs = ioi(model, 40, template=0).pairs
    assert len({len(pair.clean) for pair in pairs}) == 1
    assert not any(word in pair.clean_text for pair in pairs for word in ("store", "garden", "drink"))


def test_the_seed_decides_everything(plain):
    """Same seed, same task to the last token; another seed, another task; the settings tell how it was made."""
    assert ioi(plain, 12, seed=4) == ioi(plain, 12, seed=4)
    assert ioi(plain, 12, seed=4).pairs != ioi(plain, 12, seed=5).pairs
    expected = {"n": 3, "seed": 4, "corrupt": "ABC", "order": "BABA", "template": 2}
    assert ioi(plain, 3, seed=4, corrupt="ABC", order="BABA", template=2).settings == expected
    task = ioi(plain, 2)
    assert (task.name, task.metric, task.settings["template"]) == ("ioi", "logit_diff", "mixed")


def test_names_that_split_are_left_out():
    """Only names of one token stand in prompts."""
    model = stub(piece_tokenizer(without=NAMES[20:]))
    used = {name for pair in ioi(model, 40).pairs for name in names_in(pair.clean_text)}
    assert used <= set(NAMES[:20])


@pytest.mark.parametrize("tokenizer", [lambda: piece_tokenizer(without=NAMES[19:]), lambda: words_without(NAMES[19:])])
def test_too_few_names_is_an_error(tokenizer):
    """Names that split or that are unknown do not count; the error gives both numbers."""
    with pytest.raises(
        BadInput, match=rf"only 19 of {len(NAMES)} names are single tokens.*'stub'.*needs 20.*from_texts"
    ):
        ioi(stub(tokenizer()), 4)


def words_without(names):
    """Make the whole-word tokenizer forget names."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = word_tokenizer()
    text = tokenizer.backend_tokenizer.to_str()
    for name in names:
        text = text.replace(f'"{name}":', f'"{name}_":')
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), unk_token="<unk>")


def test_a_name_that_merges_with_its_neighbour_is_an_error():
    """Where `Mary gave` is one token, no position is Mary's alone."""
    model = stub(piece_tokenizer(extra=[f"▁{name}▁gave" for name in NAMES]))
    with pytest.raises(BadInput, match=r"merges '\w+' with the words around it in 'When .*from_texts"):
        ioi(model, 4, template=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "n=0: ask for at least one pair"),
        ({"corrupt": "S3"}, "corrupt='S3' is not one of 'S2', 'S1\\+IO', 'ABC'"),
        ({"order": "AABB"}, "order='AABB' is not one of 'mixed', 'ABBA', 'BABA'"),
        ({"template": 99}, rf"template=99 does not exist: give 0 to {len(IOI_TEMPLATES) - 1}, or None"),
        ({"template": -1}, "template=-1 does not exist"),
    ],
)
def test_options_that_do_not_exist_list_those_that_do(plain, options, said):
    """Each message quotes the value and the allowed ones."""
    with pytest.raises(BadInput, match=said):
        ioi(plain, **options)


def test_a_model_without_tokenizer_is_refused():
    """Names must become tokens."""
    with pytest.raises(BadInput, match="has no tokenizer"):
        ioi(StubModel(None))


def test_the_word_lists_are_long_enough_and_clean():
    """No word twice, none with a space; templates have each slot once and start with a word, not a name."""
    for words, least in ((NAMES, 60), (PLACES, 12), (OBJECTS, 12), (IOI_TEMPLATES, 8)):
        assert len(set(words)) == len(words) >= least
    assert not any(" " in word for word in (*NAMES, *PLACES, *OBJECTS))
    for template in IOI_TEMPLATES:
        assert all(template.count(f"{{{slot}}}") == 1 for slot in ("first", "second", "giver", "place", "object"))
        assert template.index("{first}") < template.index("{second}") < template.index("{giver}")
        assert not template.startswith("{")


def test_a_seed_keeps_its_prompts(plain):
    """What was measured on a seed can be measured again."""
    (pair,) = ioi(plain, 1, corrupt="ABC").pairs
    assert (pair.clean_text, pair.corrupt_text) == (
        "When Sandra and Ronald went to the garden, Ronald gave a gift to",
        "When Mike and Keith went to the garden, Robert gave a gift to",
    )
