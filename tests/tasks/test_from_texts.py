"""Tasks of texts: tokens are the tokenizer's own, answers exactly as given."""

import pytest

from builders_tasks import StubModel, byte_tokenizer, piece_tokenizer, stub, word_tokenizer
from crosspatch.core.errors import BadInput, ManyTokenAnswer, UnalignedPair
from crosspatch.tasks import from_texts, token_strings

CLEAN, CORRUPT = ["The city of Rome is", "the city of Oslo is"], ["The city of Oslo is", "the city of Rome is"]
RIGHT, WRONG = [" Italy", " Norway"], [" Norway", " Italy"]
TOKENIZERS = {
    "gemma-like": piece_tokenizer,
    "llama-like": lambda: piece_tokenizer(prefix="always"),
    "no bos": lambda: piece_tokenizer(bos=False),
    "gpt2-like": byte_tokenizer,
    "gpt2-like with bos": lambda: byte_tokenizer(bos=True),
    "words": word_tokenizer,
}


def make(model=None, clean=CLEAN, corrupt=CORRUPT, *, right=RIGHT, wrong=WRONG, **options):
    return from_texts(model or stub(piece_tokenizer()), clean, corrupt, right=right, wrong=wrong, **options)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prompts_are_the_tokenizers_own(kind):
    """Special tokens included or not, as the tokenizer does; the answer is what follows the prompt as one token."""
    tokenizer = TOKENIZERS[kind]()
    task = make(stub(tokenizer))
    for pair, text in zip(task.pairs, CLEAN, strict=True):
        assert list(pair.clean) == tokenizer(text)["input_ids"]
        whole = tokenizer(text + RIGHT[CLEAN.index(text)])["input_ids"]
        assert whole == [*pair.clean, *pair.right[0]]
        assert pair.clean_text == text
        assert pair.names == {"end": len(pair.clean) - 1}
    assert task.metric == "logit_diff"
    assert [token.strip() for token in task.tokens[0][-2:]] == ["Rome", "is"]


def test_tokens_are_shown_as_a_reader_expects():
    """Spaces stay, markers of the tokenizer's own alphabet do not show; without a tokenizer, ids."""
    for tokenizer in (piece_tokenizer(), byte_tokenizer()):
        shown = token_strings(tokenizer, tokenizer.encode("the city of Bogotá", add_special_tokens=False))
        assert "".join(shown) == "the city of Bogotá"
        assert " city" in shown
    llama = piece_tokenizer(prefix="always")  # its decoder drops the first space of whatever it decodes
    assert token_strings(llama, llama.encode("of Rome", add_special_tokens=False)) == (" of", " Rome")
    assert token_strings(piece_tokenizer(), [1]) == ("<s>",)
    assert token_strings(piece_tokenizer(), [99999]) == ("<99999>",)
    assert token_strings(None, [5, 6]) == ("5", "6")


def test_alternative_answers():
    """A string or a list of strings for each example."""
    task = make(right=[[" Italy", " France"], " Norway"])
    assert [len(pair.right) for pair in task.pairs] == [2, 1]


def test_a_forgotten_leading_space_is_suggested():
    """The answer is taken exactly as given; if the variant with a space is one token, the error says so."""
    with pytest.raises(ManyTokenAnswer) as caught:
        make(right=["Italy", " Norway"])
    said = str(caught.value)
    for words in (
        "right answer of example 0, 'Italy', has 5 tokens, ['I', 't', 'a', 'l', 'y']",
        "' Italy', with the leading",
    ):
        assert words in said
    assert "did you mean that?" in said


def test_a_leading_space_too_many_is_suggested():
    """The other way round: the tokenizer knows the answer only without the space."""
    tokenizer = piece_tokenizer(without=["Italy"], extra=["Italy"])
    with pytest.raises(ManyTokenAnswer, match=r"'Italy', without the leading space, is one token"):
        make(stub(tokenizer), right=[" Italy", " Norway"])


def test_an_answer_of_several_tokens_is_refused_cut_or_kept():
    """Without a variant of one token there is no suggestion, but the three ways out."""
    model = stub(piece_tokenizer(without=["Italy"]))
    with pytest.raises(ManyTokenAnswer) as caught:
        make(model, wrong=())
    assert "has 6 tokens" in str(caught.value)
    assert "did you mean" not in str(caught.value)
    assert "answers='first token'" in str(caught.value)
    whole = make(model, wrong=(), answers="all tokens")
    assert "".join(token_strings(model.tokenizer, whole.pairs[0].right[0])) == " Italy"
    assert make(model, wrong=(), answers="first token").pairs[0].right == (whole.pairs[0].right[0][:1],)


def test_unaligned_texts_show_their_tokens():
    """Both token lists stand below each other in the message."""
    with pytest.raises(UnalignedPair) as caught:
        make(corrupt=[CORRUPT[0], "the city of is"])
    said = str(caught.value)
    assert "example 1: the clean prompt has" in said
    assert "' of', ' Oslo', ' is']" in said
    assert "Swap words for words of as many tokens" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clean": "The city of Rome is"}, r"clean must be a list of texts.*Token ids go to from_tokens"),
        ({"clean": [], "corrupt": []}, "clean is empty"),
        ({"corrupt": CORRUPT[:1]}, "2 clean prompts and 1 corrupt"),
        ({"clean": ["", "the city of Oslo is"]}, "prompt '' has no token"),
        ({"clean": CORRUPT, "corrupt": CORRUPT}, "example 0: clean and corrupt are the same tokens"),
        ({"right": [" Norway", " Norway"]}, r"example 0: ' Norway' \(token ids \[\d+\]\) is both a right and a wrong"),
        ({"right": [" Italy"]}, "right has 1 entries, but there are 2"),
        ({"right": " Italy"}, "right must list one entry for each of the 2 examples, but got ' Italy'"),
        ({"right": ["", " Norway"]}, "right answer of example 0 is '': give a text"),
        ({"right": [[], " Norway"]}, "example 0 has no right answer"),
        ({"right": [7, " Norway"]}, "right answer of example 0 is 7: .*Ids go to from_tokens"),
        ({"wrong": [None, " Italy"]}, "wrong answer of example 0 is None"),
        (
            {"right": [" €", " Norway"]},
            "right answer of example 0, ' €', holds characters that the tokenizer does not know",
        ),
        ({"answers": "some"}, "answers='some' is not one of"),
        ({"names": {"subject": 40}}, "example 0: position 'subject' is 40"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(options, said):
    """Each message quotes what was given and says what is allowed."""
    with pytest.raises(BadInput, match=said):
        make(**options)


def test_a_prompt_that_ends_in_a_space_is_refused_where_the_space_belongs_to_the_answer():
    """Tokenised apart, the model would see a lone space that it never saw in training."""
    with pytest.raises(
        BadInput, match=r"ends in a space that belongs to .* 'Italy'.*'The city of Rome is' and ' Italy'"
    ):
        make(clean=[CLEAN[0] + " ", CLEAN[1]], corrupt=[CORRUPT[0] + " ", CORRUPT[1]], right=["Italy", " Norway"])


def test_an_answer_that_merges_with_the_prompt_is_tokenised_by_itself():
    """`is` + `n` would be another word; the answer's own tokens are what is scored."""
    model = stub(piece_tokenizer(extra=["▁isn"]))
    pair = make(model, right=["n", " Norway"], wrong=()).pairs[0]
    assert token_strings(model.tokenizer, pair.right[0]) == ("n",)


def test_a_model_without_tokenizer_points_to_token_ids():
    """Nothing can be tokenised."""
    with pytest.raises(BadInput, match=r"model 'stub' has no tokenizer.*from_tokens\(clean, corrupt"):
        make(StubModel(None))


def test_a_tokenizer_that_is_not_the_models_is_refused():
    """More tokens than embeddings cannot be right."""
    tokenizer = piece_tokenizer()
    with pytest.raises(
        BadInput, match=r"the tokenizer has \d+ tokens, but model 'stub' embeds only 50.*its own tokenizer"
    ):
        make(StubModel(tokenizer, vocab_size=50))


def test_added_tokens_beyond_the_embedding_are_refused_only_if_used():
    """Published tokenizers carry added tokens (images) that the text embedding lacks: allowed until one is used."""
    tokenizer = piece_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<image>"])
    model = StubModel(tokenizer, vocab_size=size)
    assert len(make(model)) == 2
    with pytest.raises(BadInput, match=rf"prompt 'The <image>' holds token id {size}, but .* 0 to {size - 1}"):
        make(model, clean=["The <image>", CLEAN[1]])


def test_a_tokenizer_that_closes_the_prompt_is_refused():
    """After </s> nothing is predicted."""
    with pytest.raises(BadInput, match=r"ends each prompt with the special token '</s>'.*add_eos_token = False"):
        make(stub(piece_tokenizer(eos=True)))
