"""Tasks of token ids: what is read, and what is refused with which words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders_tasks import StubModel, piece_tokenizer, stub
from crosspatch.core.errors import BadInput, ManyTokenAnswer, UnalignedPair
from crosspatch.tasks import Pair, Task, from_tokens

CLEAN, CORRUPT = [[2, 7, 5], [2, 9]], [[2, 8, 5], [2, 3]]
RIGHT, WRONG = [4, 6], [6, 4]


def make(clean=CLEAN, corrupt=CORRUPT, *, right=RIGHT, wrong=WRONG, **options):
    return from_tokens(clean, corrupt, right=right, wrong=wrong, **options)


def test_lists_of_unequal_lengths_become_pairs():
    """Each example keeps its own length; `end` is its last token; without a tokenizer tokens show as ids."""
    task = make()
    assert task.pairs[0] == Pair((2, 7, 5), (2, 8, 5), ((4,),), ((6,),), {"end": 2})
    assert task.pairs[1].names == {"end": 1}
    assert task.tokens == (("2", "7", "5"), ("2", "9"))
    assert (task.name, task.metric, len(task)) == ("custom", "logit_diff", 2)


token_rows = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=4)


@given(
    token_rows, st.booleans(), st.sampled_from([0, 7]), st.integers(0, 2), st.sampled_from(["torch", "numpy", "list"])
)
@settings(deadline=None, max_examples=60)
def test_padding_on_either_side_gives_the_same_task_as_lists(rows, left, pad, more, kind):
    """A padded tensor with its mask is the lists it was made of, also where the padding id is a real token."""
    width = max(map(len, rows)) + more
    blanks = [width - len(row) for row in rows]

    def padded(values, fill):
        table = [[fill] * b + v if left else v + [fill] * b for v, b in zip(values, blanks, strict=True)]
        return {"torch": torch.tensor, "numpy": np.array, "list": list}[kind](table)

    other = [[token + 1 for token in row] for row in rows]
    answers = {"right": [1] * len(rows), "wrong": [2] * len(rows), "names": {"start": 0}}
    mask = padded([[1] * len(row) for row in rows], 0)
    given_padded = from_tokens(padded(rows, pad), padded(other, pad), attention_mask=mask, **answers)
    assert given_padded == from_tokens(rows, other, **answers)


def test_each_side_may_have_its_own_mask():
    """A tuple of masks serves prompts that are padded on different sides."""
    task = make(
        torch.tensor([[2, 7, 5, 0]]),
        torch.tensor([[0, 2, 8, 5]]),
        right=[4],
        wrong=[6],
        attention_mask=(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1]])),
    )
    assert task.pairs[0].corrupt == (2, 8, 5)


def test_a_mask_of_two_rows_given_as_tuples_is_one_mask():
    """Two rows are not two masks."""
    task = make([[2, 7, 0], [2, 9, 1]], [[2, 8, 0], [2, 3, 1]], attention_mask=((1, 1, 0), (1, 1, 1)))
    assert [len(pair.clean) for pair in task.pairs] == [2, 3]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([[1, 0, 1], [1, 1, 1]], r"clean prompt of example 0 has a hole at column 1"),
        ([[1, 1, 1], [0, 0, 0]], r"hides all of clean prompt of example 1"),
        ([[1, 1], [1, 1]], r"does not fit clean: .*tuple: \(mask of clean, mask of corrupt\)"),
        ([1, 1], "does not fit clean"),
        ([[1, 2, 1], [1, 1, 1]], r"must hold 0 \(padding\) and 1"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(mask, said):
    """Holes, nothing left, another shape, other numbers."""
    with pytest.raises(BadInput, match=said):
        make([[2, 7, 5], [2, 9, 1]], [[2, 8, 5], [2, 3, 1]], attention_mask=mask)


def test_a_padded_tensor_without_a_mask_is_noticed():
    """With the tokenizer at hand, padding at either end of a tensor asks for its mask; a mask of ones insists."""
    model = stub(piece_tokenizer())
    pad = model.tokenizer.pad_token_id
    right = torch.tensor([[5, 6, 7], [5, 6, pad]])
    left = torch.tensor([[5, 6, 7], [pad, pad, 7]])
    for table in (right, left):
        with pytest.raises(BadInput, match=rf"example 1 begins or ends with the padding token {pad}.*attention_mask"):
            make(table, table + 1, model=model)
        assert len(make(table, table + 1, model=model, attention_mask=torch.ones(2, 3))) == 2
    once = torch.tensor([[pad, 6, 7]])  # a BOS that shares its id with padding is no padding
    assert make(once, once + 1, model=model, right=[9], wrong=[10]).pairs[0].clean[0] == pad


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([4, 6], (((4,),), ((6,),))),
        ([[4, 5], [6]], (((4,), (5,)), ((6,),))),
        ([[[4]], [[6], [7]]], (((4,),), ((6,), (7,)))),
        ([[4, 4], 6], (((4,),), ((6,),))),
        (torch.tensor([4, 6]), (((4,),), ((6,),))),
        ([np.int64(4), torch.tensor(6)], (((4,),), ((6,),))),
    ],
)
def test_right_answers_in_every_form(right, expected):
    """An id, alternatives, sequences, tensors; a repeated alternative counts once."""
    assert tuple(pair.right for pair in make(right=right, wrong=()).pairs) == expected


def test_without_wrong_answers_the_metric_needs_none():
    """logit_diff could not score the task, so its metric is logprob."""
    task = make(wrong=())
    assert task.metric == "logprob"
    assert [pair.wrong for pair in task.pairs] == [(), ()]


def test_answers_of_several_tokens_are_refused_by_default():
    """The error names the example, the tokens and the two other ways."""
    with pytest.raises(
        ManyTokenAnswer, match=r"right answer of example 1 has 2 tokens, \['6', '7'\].*first token.*all"
    ):
        make(right=[4, [[6, 7]]], wrong=())


def test_answers_of_several_tokens_cut_or_kept_whole():
    """The first token alone, once each; or all of them, scored by a metric that adds over tokens."""
    right = [[[4, 7], [4, 8]], [[6, 7]]]
    first = make(right=right, wrong=[[[5, 9]], 4], answers="first token")
    assert [pair.right for pair in first.pairs] == [((4,),), ((6,),)]
    assert (first.metric, first.settings["answers"]) == ("logit_diff", "first token")
    whole = make(right=right, wrong=[[[4, 9]], 4], answers="all tokens")
    assert whole.pairs[0].right == ((4, 7), (4, 8))
    assert whole.metric == "logprob"


def test_names_for_all_or_for_each_and_counted_from_either_end():
    """Negative positions count from the end; `end` may be set by the caller."""
    assert [pair.names for pair in make(names={"subject": -2}).pairs] == [
        {"end": 2, "subject": 1},
        {"end": 1, "subject": 0},
    ]
    task = make(names=[{"end": 0}, {"S1+1": 1}])
    assert [pair.names for pair in task.pairs] == [{"end": 0}, {"end": 1, "S1+1": 1}]


def test_a_model_checks_ids_and_names_tokens():
    """With a model, ids show as its tokens."""
    model = stub(piece_tokenizer())
    ids = model.tokenizer.convert_tokens_to_ids(["▁Mary", "▁John", "▁Paul", "▁Anna"])
    task = make([ids[:2]], [ids[1:3]], right=[ids[3]], wrong=[ids[0]], model=model)
    assert task.tokens == ((" Mary", " John"),)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clean": [], "corrupt": []}, "clean is empty: give at least one prompt"),
        ({"corrupt": [[2, 8, 5]]}, "2 clean prompts and 1 corrupt"),
        ({"clean": [[2, 7, 5], []]}, "clean prompt of example 1 is empty"),
        ({"clean": [[2, 7, 5], [2, 0.5]]}, r"clean prompt of example 1 holds 0.5: token ids are whole numbers"),
        ({"clean": [[2, 7, 5], [2, True]]}, "holds True"),
        ({"clean": [2, 7, 5]}, "list of token-id lists or a 2-D tensor, but got a list holding 2"),
        ({"clean": torch.tensor(3)}, "but got int"),
        ({"clean": "When Mary"}, r"but got the text 'When Mary'\. Texts go to from_texts"),
        ({"clean": ["When Mary", "and"]}, r"Texts go to from_texts\(model"),
        ({"clean": [[2, 7, 5], [2, 3]]}, r"example 1: clean and corrupt are the same tokens \['2', '3'\]"),
        ({"right": 4}, "right must list one entry for each of the 2 examples, but got 4"),
        ({"right": [4]}, "right has 1 entries, but there are 2 examples"),
        ({"wrong": [4]}, "wrong has 1 entries, but there are 2 examples"),
        ({"wrong": None}, "wrong must list one entry for each of the 2 examples, but got None"),
        ({"right": ()}, "right has 0 entries"),
        ({"right": [4, []]}, "example 1 has no right answer"),
        ({"right": [4, " Mary"]}, r"right of example 1 is ' Mary': give a token id"),
        ({"right": [4, [[]]]}, r"right of example 1 is \[\[\]\]"),
        ({"right": [[[4, None]], 6]}, "right of example 0"),
        ({"right": [6, 6]}, r"example 0: '6' \(token ids \[6\]\) is both a right and a wrong answer"),
        ({"right": [[[6, 1]], 6], "answers": "first token"}, "example 0: '6' .* both a right and a wrong"),
        ({"right": [-1, 6]}, "example 0 holds token id -1"),
        ({"answers": "two tokens"}, "answers='two tokens' is not one of 'one token', 'first token', 'all tokens'"),
        ({"names": [{}]}, "names has 1 entries, but there are 2 examples"),
        ({"names": {"x": 2}}, "example 1: position 'x' is 2, but its prompt has 2 tokens, 0 to 1"),
        ({"names": {"x": -3}}, "example 1: position 'x' is -3"),
        ({"names": {"a b": 0}}, "'a b' cannot name a position: use letters"),
        ({"names": {"all": 0}}, "'all' cannot name a position"),
        ({"names": {"3": 0}}, "'3' cannot name a position"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(options, said):
    """Each message quotes what was given and says what is allowed."""
    with pytest.raises(BadInput, match=said):
        make(**options)


def test_unaligned_prompts_are_shown_side_by_side():
    """Example, both lengths, both prompts, and what to do."""
    with pytest.raises(UnalignedPair) as caught:
        make([[2, 7, 5], [2, 9, 1]])
    said = str(caught.value)
    for words in ("example 1", "has 3 tokens", "corrupt one 2", "['2', '9', '1']", "['2', '3']", "Swap words"):
        assert words in said


@pytest.mark.parametrize("options", [{"clean": [[2, 7, 5], [2, 9999]]}, {"right": [4, 9999]}, {"wrong": [9999, 4]}])
def test_ids_outside_the_vocabulary_are_refused_if_a_model_is_given(options):
    """The embedding has 9999 rows; without a model nothing is known of it."""
    with pytest.raises(BadInput, match=r"example \d holds token id 9999, but the model's vocabulary is 0 to 9998"):
        make(**options, model=StubModel(None, None, 9999))
    assert len(make(**options)) == 2


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"corrupt": (1, 2, 3)}, UnalignedPair, "clean prompt has 2 tokens and the corrupt one 3"),
        ({"clean": (), "corrupt": (), "names": {}}, BadInput, "at least one token"),
        ({"right": ()}, BadInput, "at least one right answer"),
        ({"right": ((),)}, BadInput, "every answer at least one token"),
        ({"wrong": ((),)}, BadInput, "every answer at least one token"),
        ({"names": {"end": 2}}, BadInput, "position 'end' is 2, but the prompt has 2 tokens, 0 to 1"),
        ({"names": {"*": 1}}, BadInput, "cannot name a position"),
    ],
)
def test_pairs_made_by_hand_keep_their_promises(fields, error, said):
    """A pair that breaks the contract cannot be made."""
    good = {"clean": (1, 2), "corrupt": (1, 3), "right": ((4,),), "wrong": (), "names": {"end": 1}}
    Pair(**good)
    with pytest.raises(error, match=said):
        Pair(**(good | fields))


def test_tasks_made_by_hand_keep_their_promises():
    """No pairs, or tokens of another task, are refused; the repr is one line."""
    pair = Pair((1, 2), (1, 3), ((4,),), (), {})
    with pytest.raises(BadInput, match="task 'mine' has no pairs"):
        Task("mine", ())
    with pytest.raises(BadInput, match="one string for each token"):
        Task("mine", (pair,), tokens=(("a",),))
    assert repr(Task("mine", (pair,))) == "Task('mine', 1 pairs of 2 tokens, metric 'logit_diff')"
    longer = Pair((1, 2, 3), (1, 3, 3), ((4,),), (), {})
    assert "2 pairs of 2 to 3 tokens" in repr(Task("mine", (pair, longer)))
