"""Every generator by identities: what differs, what names point to, what is right, over several tokenizers."""

import re
from functools import cache

import pytest

from builders_tasks import StubModel, byte_tokenizer, piece_tokenizer, stub, word_tokenizer
from crosspatch.core.errors import BadInput, CrosspatchError, UnalignedPair
from crosspatch.tasks import TASKS, gender_bias, get_task, greater_than
from crosspatch.tasks.lexicon import BOY_NAMES, EVENTS, GIRL_NAMES, MEN_JOBS, NAMES, WOMEN_JOBS
from crosspatch.tasks.lexicon_facts import FACTS
from crosspatch.tasks.prompts import compose
from naive import tasks as naive

TOKENIZERS = {
    "gemma-like": lambda: piece_tokenizer(everything=True),
    "llama-like": lambda: piece_tokenizer(everything=True, prefix="always"),
    "gpt2-like": lambda: byte_tokenizer(everything=True),
    "words": lambda: word_tokenizer(everything=True),
}
SPECIAL = ("<s>", "</s>", "<pad>")
# task, options, positions where the corrupt prompt differs, what the names stand at in the clean text
CASES = [
    ("greater_than", {}, {"tens", "YY"}, r"The (?P<noun>\w+) .* (?P<XX1>\d\d)(?P<tens>\d)(?P<YY>\d) .* (?P<XX2>\d\d)$"),
    ("docstring", {}, {"A_def", "B_def", "C_def"}, r"(?s).*:param (?P<A_doc>\w+):.*:param (?P<B_doc>\w+):"),
    (
        "docstring",
        {"corrupt": "answer"},
        {"C_def"},
        r"def \w+\(self, \w+, \w+, (?P<A_def>\w+), (?P<B_def>\w+), (?P<C_def>\w+),",
    ),
    ("docstring", {"corrupt": "documentation"}, {"A_doc", "B_doc"}, ""),
    ("induction", {}, {"B"}, r".* (?P<A>\w+) (?P<B>\w+) (?:\w+ )*(?P=A)$"),
    ("induction", {"corrupt": "A", "length": 24}, {"A"}, r".* (?P<A>\w+) (?P<B>\w+) (?:\w+ )*(?P=A)$"),
    ("facts", {}, {"subject"}, ""),
    ("sva", {}, {"subject"}, r"The (?P<subject>\w+) (?P<preposition>\w+) the (?P<attractor>\w+)$"),
    ("sva", {"form": "simple"}, {"subject"}, r"The (?P<subject>\w+)$"),
    ("sva", {"form": "clause"}, {"subject"}, r"The (?P<subject>\w+) that the (?P<attractor>\w+) (?P<verb>\w+)$"),
    ("gender_bias", {}, {"subject"}, r"The (?P<subject>\w+) "),
    ("gender_bias", {"form": "name"}, {"subject"}, r"(?:Today|Yesterday) (?P<subject>\w+) "),
    ("colours", {}, {"colour"}, r"The \w+ is (?P<colour>\w+)\."),
    (
        "colours",
        {"ways": 2, "corrupt": "order", "letters": "random"},
        {"choice", "rival"},
        r"(?s).* is (?P<colour>\w+)\..* (?P<choice>(?P=colour))\n",
    ),
    ("arithmetic", {}, {"b"}, r"(?s).*(?P<a>\d)\+(?P<b>\d)=$"),
    ("arithmetic", {"corrupt": "a", "shots": 2}, {"a"}, r"(?s).*(?P<a>\d)\+(?P<b>\d)=$"),
    (
        "boxes",
        {},
        {"query"},
        r"(?=.* Box (?P<query>\w) \w+ the$).*Box (?P<label>(?P=query)) contains the (?P<object>\w+)[,.]",
    ),
    ("boxes", {"boxes": 5, "corrupt": "swap"}, {"object", "other_object"}, ""),
]
IDS = [" ".join([name, *map(str, options.values())]) for name, options, *_ in CASES]
SOLVERS = {name.removeprefix("solve_"): solve for name, solve in vars(naive).items() if name.startswith("solve_")}


@cache
def opened(which):
    return stub(TOKENIZERS[which]())


@pytest.fixture(params=TOKENIZERS)
def model(request):
    return opened(request.param)


@pytest.fixture(scope="module")
def plain():
    return opened("gemma-like")


def made(model, name, options, n=20):
    """Make a task, or skip the two that the tokenizer of whole words must refuse."""
    if name in ("greater_than", "arithmetic") and model is opened("words"):
        with pytest.raises(BadInput, match="tokenizer of 'stub' writes"):
            get_task(name, model, n=n)
        return None
    return get_task(name, model, n=n, seed=3, **options)


@pytest.mark.parametrize(("name", "options", "changed", "form"), CASES, ids=IDS)
def test_pairs_differ_only_where_they_say_and_answers_are_single_tokens(model, name, options, changed, form):
    """Texts give the pairs' tokens; the differing tokens are those of the named slots; no answer is on both sides."""
    task = made(model, name, options)
    for pair in task.pairs if task else ():
        assert tuple(model.tokenizer(pair.clean_text)["input_ids"]) == pair.clean
        assert tuple(model.tokenizer(pair.corrupt_text)["input_ids"]) == pair.corrupt
        differing = {i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b}
        allowed = {pair.names[slot] for slot in changed if slot in pair.names}
        if name == "facts":
            allowed = set(range(pair.names["subject_first"], pair.names["subject"] + 1))
        if (name, options) == ("docstring", {}):  # the three arguments without a name change too
            assert allowed < differing
            assert len(differing) == 6
        else:
            assert differing
            assert differing <= allowed
        assert all(len(answer) == 1 for answer in (*pair.right, *pair.wrong))
        assert not set(pair.right) & set(pair.wrong)
        assert pair.right
        assert pair.wrong
        assert pair.names["end"] == len(pair.clean) - 1


@pytest.mark.parametrize(("name", "options", "changed", "form"), CASES, ids=IDS)
@pytest.mark.parametrize("which", ["gemma-like", "llama-like", "gpt2-like"])
def test_names_stand_at_the_last_token_of_their_words(which, name, options, changed, form):
    """A reader who counts characters finds the same positions."""
    model = opened(which)
    task = made(model, name, options)
    for pair, tokens in zip(task.pairs, task.tokens, strict=True):
        found = re.match(form, pair.clean_text)
        assert found, pair.clean_text
        for slot in found.groupdict():
            expected = naive.naive_position(tokens, pair.clean_text, found.end(slot), SPECIAL)
            assert pair.names[slot] == expected, (slot, pair.clean_text)


@pytest.mark.parametrize(("name", "options", "changed", "form"), [c for c in CASES if c[0] in SOLVERS])
def test_right_answers_are_those_that_a_reader_finds(plain, name, options, changed, form):
    """Solved by hand from the text; where the corrupt prompt has an answer, it is a wrong one."""
    for pair in made(plain, name, options, n=40).pairs:
        right = {plain.tokenizer.decode(answer).strip() for answer in pair.right}
        wrong = {plain.tokenizer.decode(answer).strip() for answer in pair.wrong}
        assert right == SOLVERS[name](pair.clean_text)
        if name not in ("greater_than", "docstring") and options.get("corrupt") != "A":
            assert SOLVERS[name](pair.corrupt_text) <= wrong  # the answer flips


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_seed_decides_everything(plain, name):
    """Same seed, same task to the last token; another seed, another task; the settings tell how it was made."""
    assert get_task(name, plain, n=9, seed=4) == get_task(name, plain, n=9, seed=4)
    assert get_task(name, plain, n=9, seed=4).pairs != get_task(name, plain, n=9, seed=5).pairs
    task = get_task(name, plain, n=9, seed=4)
    assert task.settings["n"] == 9
    assert task.settings["seed"] == 4
    assert set(TASKS[name].options) - {"known_only"} <= set(task.settings) | {"attractor"}


@pytest.mark.parametrize("name", ["ioi", "docstring", "induction", "colours", "arithmetic", "boxes"])
def test_alternatives_are_the_corrupt_prompts_of_the_other_ways(plain, name):
    """Same seed, other `corrupt`: those corrupt prompts, and the same clean ones."""
    ways = TASKS[name].options["corrupt"].values
    for way in ways:
        task = get_task(name, plain, n=7, seed=2, corrupt=way)
        assert set(task.alternatives) == set(ways) - {way}
        for other, prompts in task.alternatives.items():
            twin = get_task(name, plain, n=7, seed=2, corrupt=other)
            assert [pair.clean for pair in twin.pairs] == [pair.clean for pair in task.pairs]
            assert tuple(pair.corrupt for pair in twin.pairs) == prompts


def test_greater_than_scores_two_digits_where_they_are_a_token():
    """Endings above the year are right, its own and those below wrong; years that are one token are left out."""
    extra = [*(f"{year:02}" for year in range(100)), *(f"▁{century}" for century in range(11, 18)), "▁1150"]
    model = stub(piece_tokenizer(everything=True, extra=extra))
    task = greater_than(model, 60)
    assert task.settings["scored"] == "two digits"
    for pair in task.pairs:
        century, year = re.search(r"(\d\d)(\d\d) to", pair.clean_text).groups()
        words = [[int(model.tokenizer.decode(answer)) for answer in side] for side in (pair.right, pair.wrong)]
        assert sorted(words[0]) == list(range(int(year) + 1, 100))
        assert sorted(words[1]) == list(range(int(year) + 1))
        assert pair.corrupt_text == pair.clean_text.replace(f"{century}{year}", f"{century}01")
        assert century + year != "1150"
        assert "tens" not in pair.names
    assert greater_than(stub(piece_tokenizer(everything=True)), 2).settings["scored"] == "tens digit"


def test_facts_pair_subjects_of_one_relation():
    """Right is the clean subject's answer, wrong the corrupt one's, of the same relation and another answer."""
    model = opened("gemma-like")
    for relation, (wording, known) in FACTS.items():
        told = {wording.format(subject=subject): answer for subject, answer in known}
        for pair in get_task("facts", model, n=12, relation=relation).pairs:
            assert model.tokenizer.decode(pair.right[0]).strip() == told[pair.clean_text]
            assert model.tokenizer.decode(pair.wrong[0]).strip() == told[pair.corrupt_text]
    assert sum(len(known) for _, known in FACTS.values()) >= 120
    assert all(len(set(known)) == len(known) for _, known in FACTS.values())


@pytest.mark.parametrize(("name", "slot"), [("boxes", "other_object"), ("colours", "rival")])
def test_the_corrupt_answer_stands_where_the_names_say(plain, name, slot):
    """The other thing, or the choice that becomes right, is named in the clean prompt."""
    for way in TASKS[name].options["corrupt"].values:
        for pair in get_task(name, plain, n=20, corrupt=way).pairs:
            (answer,) = SOLVERS[name](pair.corrupt_text)
            stands = plain.tokenizer.decode(pair.clean[pair.names[slot]]).strip()
            if name == "colours":  # the letter stands two tokens before its colour
                stands = dict((c, a) for a, c in re.findall(r"^(\w)\. (\w+)$", pair.clean_text, re.MULTILINE))[stands]
            assert stands == answer


def test_attractors_have_the_number_asked_for():
    """The noun in between has the subject's number, the other, or each in half of the pairs."""
    model = opened("gemma-like")

    def agreeing(attractor):
        found = [
            re.findall(r"[Tt]he (\w+)", p.clean_text) for p in get_task("sva", model, n=20, attractor=attractor).pairs
        ]
        return sum(subject.endswith("s") == between.endswith("s") for subject, between in found)

    assert [agreeing(each) for each in ("same", "other", "mixed")] == [20, 0, 10]


def test_pronouns_belong_to_their_words():
    """Half she, half he; the corrupt subject is a person or a name of the other gender."""
    model = opened("gemma-like")
    for form, girls, boys in (("profession", WOMEN_JOBS, MEN_JOBS), ("name", GIRL_NAMES, BOY_NAMES)):
        pairs = gender_bias(model, 20, form=form).pairs
        said = [model.tokenizer.decode(pair.right[0]).strip() for pair in pairs]
        assert said.count("she") == said.count("he") == 10
        for pair, pronoun in zip(pairs, said, strict=True):
            clean, corrupt = pair.clean_text.split()[1], pair.corrupt_text.split()[1]
            assert clean in (girls if pronoun == "she" else boys)
            other = {"she": (*boys, "man"), "he": (*girls, "woman")}[pronoun]
            assert corrupt in other
    assert not set(GIRL_NAMES) & set(BOY_NAMES)
    assert set(GIRL_NAMES) | set(BOY_NAMES) <= set(NAMES)


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("options", [{"n": 0}, {"n": "many"}, {"n": 2.5}, {"n": True}, {"seed": "x"}, {"seed": None}])
def test_numbers_that_are_none_are_refused(plain, name, options):
    """Of pairs, and as a seed; numbers as text are read."""
    with pytest.raises(BadInput, match=f"{next(iter(options))}="):
        get_task(name, plain, **options)
    assert get_task(name, plain, n="3", seed="4") == get_task(name, plain, n=3, seed=4)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tokenizers_that_cannot_write_a_task_are_refused_in_words(name):
    """No tokenizer at all, and one that splits every word: a clear error, never another."""
    with pytest.raises(BadInput, match="has no tokenizer"):
        get_task(name, StubModel(None), n=2)
    letters = stub(piece_tokenizer(without=piece_tokenizer_words()))
    if name in ("arithmetic",):
        return
    with pytest.raises(CrosspatchError, match=r"'stub'"):
        get_task(name, letters, n=2)


def piece_tokenizer_words():
    from builders_tasks import all_words

    return all_words()


def test_too_few_words_say_how_many_are_left():
    """The message counts what is usable and what is needed."""
    model = stub(piece_tokenizer(everything=True, without=EVENTS[7:]))
    with pytest.raises(BadInput, match=rf"only 7 of {len(EVENTS)} nouns .* greater_than needs 8 nouns"):
        greater_than(model, 2)


def test_prompts_that_do_not_match_are_refused():
    """Another length, or the same tokens: neither makes a pair."""
    from crosspatch.tasks.prompts import align

    model = opened("gemma-like")
    clean, other = (compose(model, "The {subject} of", {"subject": word}) for word in ("doctor", "zzz"))
    with pytest.raises(UnalignedPair, match="do not match position by position"):
        align(model, clean, other)
    early, late = compose(model, "The {x} of king", {"x": "artist"}), compose(model, "The king of {x}", {"x": "artist"})
    assert len(early.ids) == len(late.ids)
    with pytest.raises(UnalignedPair, match="do not match position by position"):
        align(model, early, late)
    with pytest.raises(BadInput, match="the same tokens"):
        align(model, clean, clean)
