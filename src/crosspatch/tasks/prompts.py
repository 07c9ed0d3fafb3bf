"""From a template to prompts whose slots are named positions, and from these to aligned pairs and a task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from crosspatch.core.errors import BadInput, UnalignedPair
from crosspatch.tasks.pair import Pair, Task
from crosspatch.tasks.tokens import OpenedModel, encode, token_strings

Span = tuple[int, int]  # first token, one past the last


@dataclass(frozen=True)
class Prompt:
    """Hold a prompt's text and ids, and the span of tokens of each named slot of its template."""

    text: str
    ids: tuple[int, ...]
    spans: Mapping[str, Span]


@dataclass(frozen=True)
class Drawn:
    """Hold one example as drawn: both prompts, the answers' ids, and other corrupt prompts by name."""

    clean: Prompt
    corrupt: Prompt
    right: Sequence[int]
    wrong: Sequence[int]
    others: Mapping[str, Prompt]


def compose(model: OpenedModel, template: str, words: Mapping[str, str]) -> Prompt:
    """Write the template with `words` in its slots and find each slot's tokens; slots that begin with _ have no name.

    A slot spans the tokens that its words add to the tokens of the text before them. Raises BadInput if the tokenizer
    merges a slot's words with those around it, or ends prompts with a special token.
    """
    text = template.format(**words)
    ids = encode(model, text)
    spans: dict[str, Span] = {}
    written = ""
    for literal, slot, _, _ in Formatter().parse(template):
        written += literal
        if slot is not None:
            start, written = written.rstrip(" "), written + words[slot]
            if not slot.startswith("_"):
                ends = [_count(model, part, ids) for part in (start, written)]
                if None in ends:
                    raise _merged(model, words[slot], text)
                spans[slot] = (ends[0] or 0, ends[1] or 0)
    return Prompt(text, ids, spans)


def last_token(model: OpenedModel, text: str, stop: int) -> int | None:
    """Return the position of the token that ends at character `stop` of the text; None if a token runs across it."""
    count = _count(model, text[:stop], tuple(model.tokenizer.encode(text)))
    return None if count is None else count - 1


def _count(model: OpenedModel, start: str, ids: tuple[int, ...]) -> int | None:
    """Count the tokens that the start of a text takes of the whole text's; None if they are others."""
    if start:
        head = tuple(model.tokenizer.encode(start))
    else:  # the special tokens alone: the same that a prompt begins with
        bare = model.tokenizer.encode("a", add_special_tokens=False)
        head = tuple(model.tokenizer.encode("a"))[: -len(bare)]
    return len(head) if ids[: len(head)] == head else None


def _merged(model: OpenedModel, word: str, text: str) -> BadInput:
    return BadInput(
        f"the tokenizer of {model.name!r} merges {word!r} with the words around it in {text!r}, so positions cannot "
        "be named. Give prompts of your own with from_texts."
    )


def align(model: OpenedModel, clean: Prompt, other: Prompt) -> None:
    """Raise UnalignedPair if the prompts differ in length or in where their slots are, BadInput if they are equal."""
    if len(clean.ids) != len(other.ids) or clean.spans != other.spans:
        raise UnalignedPair(
            f"the tokenizer of {model.name!r} gives {len(clean.ids)} tokens for {clean.text!r} and {len(other.ids)} "
            f"for {other.text!r}, which do not match position by position. Give prompts of your own with from_texts."
        )
    if clean.ids == other.ids:
        raise BadInput(
            f"the tokenizer of {model.name!r} gives the same tokens for {clean.text!r} and {other.text!r}, so no patch "
            "can change anything. Give prompts of your own with from_texts."
        )


def make_pair(model: OpenedModel, drawn: Drawn, names: Mapping[str, int] | None = None) -> Pair:
    """Make an aligned pair whose names are the last tokens of the clean prompt's slots, `names`, and end.

    Raises UnalignedPair or BadInput if the prompts do not fit one another.
    """
    for other in (drawn.corrupt, *drawn.others.values()):
        align(model, drawn.clean, other)
    ids = drawn.clean.ids
    places = {**(names or {}), **{slot: stop - 1 for slot, (_, stop) in drawn.clean.spans.items()}}
    return Pair(
        clean=ids,
        corrupt=drawn.corrupt.ids,
        right=tuple((each,) for each in drawn.right),
        wrong=tuple((each,) for each in drawn.wrong),
        names=dict(sorted({**places, "end": len(ids) - 1}.items(), key=lambda item: item[1])),
        clean_text=drawn.clean.text,
        corrupt_text=drawn.corrupt.text,
    )


def make_task(
    model: OpenedModel,
    name: str,
    *,
    drawn: Iterable[Drawn],
    settings: Mapping[str, str | int | float],
    pairs: Sequence[Pair] = (),
) -> Task:
    """Make the task of what was drawn; `pairs` are given where their names need more than their slots."""
    examples = list(drawn)
    made = tuple(pairs) or tuple(make_pair(model, each) for each in examples)
    others = examples[0].others if examples else {}
    return Task(
        name,
        made,
        settings=settings,
        tokens=tuple(token_strings(model.tokenizer, pair.clean) for pair in made),
        alternatives={other: tuple(each.others[other].ids for each in examples) for other in others},
    )
