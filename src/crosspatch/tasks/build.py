"""Tasks of the user's own prompts, given as token ids or as texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from crosspatch.core.errors import BadInput, ManyTokenAnswer, UnalignedPair
from crosspatch.tasks.answers import Show, check_mode, check_sides, fit, per_example, read_ids
from crosspatch.tasks.pair import Answer, Pair, Task
from crosspatch.tasks.rows import Rows, SupportsToList, is_id, read_rows, refuse_padding, split_masks
from crosspatch.tasks.tokens import OpenedModel, check_ids, continue_with, encode, token_strings, tokenizer_of

Names = Mapping[str, int] | Sequence[Mapping[str, int]] | None
Ids = tuple[int, ...]


@dataclass(frozen=True)
class _Prompts:
    """Hold both sides of all examples, their texts and the way to show their tokens."""

    clean: Sequence[Ids]
    corrupt: Sequence[Ids]
    texts: Sequence[tuple[str, str]]
    show: Show
    vocab_size: int | None


def from_tokens(
    clean: Rows,
    corrupt: Rows,
    *,
    right: Any,
    wrong: Any = (),
    names: Names = None,
    attention_mask: Any = None,
    name: str = "custom",
    answers: str = "one token",
    model: OpenedModel | None = None,
) -> Task:
    """Make a task of token ids: lists of unequal lengths, or padded tensors [example, pos] with their attention mask.

    Each clean prompt must be as long as its corrupt one. `right` and `wrong` hold for each example a token id, a list
    of alternative ids, or a list of token-id lists (`[[5, 6]]` is one answer of two tokens). `names` maps names to
    positions counted from the first real token, for all examples or for each; `end`, the last token, is always there.
    `attention_mask` serves both sides, or is a tuple (clean's, corrupt's). `answers` says what to do with several
    tokens: "one token" refuses them, "first token" scores the first, "all tokens" keeps them for metrics that add over
    tokens. With `model`, ids are checked against its vocabulary and shown as text.

    Raises UnalignedPair, ManyTokenAnswer or BadInput, each naming the example.

    >>> task = from_tokens([[2, 7, 5], [2, 9]], [[2, 8, 5], [2, 3]], right=[4, 6], wrong=[6, 4])
    """
    check_mode(answers)
    masks = split_masks(attention_mask)
    rows = read_rows(clean, "clean", mask=masks[0]), read_rows(corrupt, "corrupt", mask=masks[1])
    tokenizer = model.tokenizer if model is not None else None
    for what, given, mask, side in zip(("clean", "corrupt"), (clean, corrupt), masks, rows, strict=True):
        if mask is None and isinstance(given, SupportsToList):
            refuse_padding(side, getattr(tokenizer, "pad_token_id", None), what=what)
    prompts = _Prompts(
        *rows,
        texts=(),
        show=partial(token_strings, tokenizer),
        vocab_size=model.vocab_size if model is not None else None,
    )
    _check_counts(*rows)
    sides = read_ids(right, len(rows[0]), what="right"), read_ids(wrong, len(rows[0]), what="wrong")
    return _finish(prompts, sides, names=names, answers=answers, name=name)


def from_texts(
    model: OpenedModel,
    clean: Sequence[str],
    corrupt: Sequence[str],
    *,
    right: Any,
    wrong: Any = (),
    names: Names = None,
    name: str = "custom",
    answers: str = "one token",
) -> Task:
    """Make a task of texts, tokenised by the model's own tokenizer with its own special tokens.

    `right` and `wrong` hold for each example a string or a list of alternative strings, taken exactly as given: most
    tokenizers want the leading space (" Mary"). `names` and `answers` are as in `from_tokens`.

    Raises UnalignedPair, ManyTokenAnswer or BadInput, each naming the example.

    >>> task = from_texts(model, ["Rome is in"], ["Paris is in"], right=[" Italy"], wrong=[" France"])
    """
    check_mode(answers)
    tokenizer = tokenizer_of(model)
    for what, texts in (("clean", clean), ("corrupt", corrupt)):
        _check_texts(texts, what)
    _check_counts(clean, corrupt)
    prompts = _Prompts(
        [encode(model, text) for text in clean],
        [encode(model, text) for text in corrupt],
        texts=list(zip(clean, corrupt, strict=True)),
        show=partial(token_strings, tokenizer),
        vocab_size=model.vocab_size,
    )
    sides = (
        _read_texts(tokenizer, clean, right, what="right", mode=answers),
        _read_texts(tokenizer, clean, wrong, what="wrong", mode=answers),
    )
    return _finish(prompts, sides, names=names, answers=answers, name=name)


def _finish(
    prompts: _Prompts,
    sides: tuple[list[tuple[Answer, ...]], list[tuple[Answer, ...]]],
    *,
    names: Names,
    answers: str,
    name: str,
) -> Task:
    pairs = tuple(
        _make_pair(prompts, index, (sides[0][index], sides[1][index]), names=named, mode=answers)
        for index, named in enumerate(_names_of(names, prompts.clean))
    )
    comparable = all(pair.wrong for pair in pairs) and all(len(a) == 1 for p in pairs for a in (*p.right, *p.wrong))
    return Task(
        name,
        pairs,
        metric="logit_diff" if comparable else "logprob",
        settings={"n": len(pairs), "answers": answers},
        tokens=tuple(prompts.show(ids) for ids in prompts.clean),
    )


def _make_pair(
    prompts: _Prompts,
    index: int,
    sides: tuple[tuple[Answer, ...], tuple[Answer, ...]],
    *,
    names: Mapping[str, int],
    mode: str,
) -> Pair:
    clean, corrupt = prompts.clean[index], prompts.corrupt[index]
    for each in (clean, corrupt, *sides[0], *sides[1]):
        check_ids(each, prompts.vocab_size, what=f"example {index}")
    _check_aligned(prompts, index)
    right = fit(sides[0], mode, show=prompts.show, what=f"a right answer of example {index}")
    wrong = fit(sides[1], mode, show=prompts.show, what=f"a wrong answer of example {index}")
    check_sides(right, wrong, show=prompts.show, index=index)
    texts = prompts.texts[index] if prompts.texts else ("", "")
    return Pair(clean, corrupt, right, wrong, names, *texts)


def _check_aligned(prompts: _Prompts, index: int) -> None:
    clean, corrupt = prompts.clean[index], prompts.corrupt[index]
    if len(clean) != len(corrupt):
        raise UnalignedPair(
            f"example {index}: the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}, but "
            "patching needs them aligned position by position.\n"
            f"  clean:   {list(prompts.show(clean))}\n"
            f"  corrupt: {list(prompts.show(corrupt))}\n"
            "Swap words for words of as many tokens, or leave this example out."
        )
    if clean == corrupt:
        raise BadInput(
            f"example {index}: clean and corrupt are the same tokens {list(prompts.show(clean))}, so no patch can "
            "change anything. Change in the corrupt prompt what decides the answer."
        )


def _names_of(names: Names, clean: Sequence[Ids]) -> list[dict[str, int]]:
    """Return each example's named positions counted from the first token, `end` among them."""
    given = [names or {}] * len(clean) if names is None or isinstance(names, Mapping) else list(names)
    if len(given) != len(clean):
        raise BadInput(
            f"names has {len(given)} entries, but there are {len(clean)} examples: give one or one for each."
        )
    return [_resolve(each, len(ids), index) for index, (each, ids) in enumerate(zip(given, clean, strict=True))]


def _resolve(named: Mapping[str, int], length: int, index: int) -> dict[str, int]:
    for name, position in named.items():
        if not is_id(position) or not -length <= position < length:
            raise BadInput(
                f"example {index}: position {name!r} is {position!r}, but its prompt has {length} tokens, 0 to "
                f"{length - 1} (negative counts from the end)."
            )
    return {"end": length - 1} | {name: position % length for name, position in named.items()}


def _check_texts(texts: Any, what: str) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{what} must be a list of texts, but got {texts!r}. Token ids go to from_tokens.")
    if not len(texts):
        raise BadInput(f"{what} is empty: give at least one prompt.")


def _check_counts(clean: Sequence[Any], corrupt: Sequence[Any]) -> None:
    if len(clean) != len(corrupt):
        raise BadInput(
            f"there are {len(clean)} clean prompts and {len(corrupt)} corrupt ones: give one corrupt for each clean."
        )


def _read_texts(tokenizer: Any, clean: Sequence[str], given: Any, *, what: str, mode: str) -> list[tuple[Answer, ...]]:
    found = []
    for index, entry in enumerate(per_example(given, len(clean), what=what)):
        texts = entry if isinstance(entry, list) else [entry]
        label = f"{what} answer of example {index}"
        found.append(tuple(_answer_ids(tokenizer, clean[index], text, what=label, mode=mode) for text in texts))
    return found


def _answer_ids(tokenizer: Any, prompt: str, answer: Any, *, what: str, mode: str) -> Answer:
    if not isinstance(answer, str) or not answer:
        raise BadInput(f"{what} is {answer!r}: give a text, or a list of alternative texts. Ids go to from_tokens.")
    ids = continue_with(tokenizer, prompt, answer=answer)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or (unknown is not None and unknown in ids):
        raise BadInput(f"{what}, {answer!r}, holds characters that the tokenizer does not know. Choose another answer.")
    if mode == "one token" and len(ids) > 1:
        raise ManyTokenAnswer(
            f"{what}, {answer!r}, has {len(ids)} tokens, {list(token_strings(tokenizer, ids))}, and one is needed."
            f"{_suggest(tokenizer, prompt, answer)} Choose an answer of one token, or say answers='first token' "
            "(score its first token) or answers='all tokens' (keep it whole, metric logprob)."
        )
    return ids


def _suggest(tokenizer: Any, prompt: str, answer: str) -> str:
    other = answer.lstrip(" ") if answer.startswith(" ") else " " + answer
    if len(continue_with(tokenizer, prompt, answer=other)) != 1:
        return ""
    change = "without" if answer.startswith(" ") else "with"
    return f" {other!r}, {change} the leading space, is one token: did you mean that?"
