"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" → Mary."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import IOI_TEMPLATES, NAMES, OBJECTS, PLACES
from crosspatch.tasks.pair import Pair, Task
from crosspatch.tasks.tokens import OpenedModel, continue_with, encode, token_strings, tokenizer_of

CORRUPTIONS = ("S2", "S1+IO", "ABC")
ORDERS = ("mixed", "ABBA", "BABA")
FEWEST_NAMES = 20


Cast = tuple[str, str, str]  # the names standing as IO, S1 and S2


@dataclass(frozen=True)
class _Words:
    """Hold the words that this tokenizer can use: names with their one token, places and objects of one length each."""

    names: dict[str, int]
    places: Sequence[str]
    objects: Sequence[str]


@dataclass(frozen=True)
class _Scene:
    """Hold everything of a prompt but its names."""

    template: int
    order: str
    place: str
    object: str


def ioi(
    model: OpenedModel,
    n: int = 64,
    *,
    seed: int = 0,
    corrupt: str = "S2",
    order: str = "mixed",
    template: int | None = None,
) -> Task:
    """Make `n` pairs of indirect object identification: two names, one named again; the answer is the other (IO).

    `corrupt`: "S2" puts IO in the place of the repeated name, so that the answer flips to S; "S1+IO" replaces the first
    two names, "ABC" all three, by other random names. `order`: IO first ("ABBA"), S first ("BABA"), or half each.
    `template` fixes one of the wordings, and with it one length and layout for all prompts; None mixes them.
    Positions: IO, S1, S1+1, S2, S2+1, end. The same seed gives the same task.

    Raises BadInput for an option that does not exist, a model without tokenizer, or one that has fewer than 20 of the
    names as single tokens.
    """
    _check_options(n, corrupt, order, template)
    tokenizer = tokenizer_of(model)
    words = _usable_words(tokenizer, model.name)
    rng = Random(seed)
    scenes = _draw_scenes(n, rng, words=words, order=order, template=template)
    pairs = [_make_pair(model, words, scene=scene, corrupt=corrupt, rng=rng) for scene in scenes]
    return Task(
        "ioi",
        tuple(pairs),
        settings={
            "n": n,
            "seed": seed,
            "corrupt": corrupt,
            "order": order,
            "template": "mixed" if template is None else template,
        },
        tokens=tuple(token_strings(tokenizer, pair.clean) for pair in pairs),
    )


def _check_options(n: int, corrupt: str, order: str, template: int | None) -> None:
    if n < 1:
        raise BadInput(f"n={n}: ask for at least one pair.")
    for what, given, allowed in (("corrupt", corrupt, CORRUPTIONS), ("order", order, ORDERS)):
        if given not in allowed:
            raise BadInput(f"{what}={given!r} is not one of {', '.join(map(repr, allowed))}.")
    if template is not None and not 0 <= template < len(IOI_TEMPLATES):
        raise BadInput(f"template={template} does not exist: give 0 to {len(IOI_TEMPLATES) - 1}, or None to mix them.")


def _usable_words(tokenizer: Any, model: str) -> _Words:
    names = {name: ids[0] for name in NAMES if len(ids := continue_with(tokenizer, "and", answer=f" {name}")) == 1}
    names = {name: token for name, token in names.items() if token != tokenizer.unk_token_id}
    if len(names) < FEWEST_NAMES:
        raise BadInput(
            f"only {len(names)} of {len(NAMES)} names are single tokens for the tokenizer of {model!r}, and ioi needs "
            f"{FEWEST_NAMES}. Give prompts of your own with from_texts."
        )
    return _Words(names, _of_one_length(tokenizer, PLACES), _of_one_length(tokenizer, OBJECTS))


def _of_one_length(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Keep the largest group of words with equally many tokens, so that one template has one length."""
    groups: dict[int, list[str]] = {}
    for word in words:
        groups.setdefault(len(continue_with(tokenizer, "the", answer=f" {word}")), []).append(word)
    return max(groups.values(), key=len)


def _draw_scenes(n: int, rng: Random, *, words: _Words, order: str, template: int | None) -> list[_Scene]:
    templates = list(range(len(IOI_TEMPLATES))) if template is None else [template]
    orders = ["ABBA", "BABA"] if order == "mixed" else [order]
    chosen = _spread(templates, n, rng), _spread(orders, n, rng)
    return [_Scene(t, o, rng.choice(words.places), rng.choice(words.objects)) for t, o in zip(*chosen, strict=True)]


def _spread(options: list[Any], n: int, rng: Random) -> list[Any]:
    """Use each option equally often, in random order."""
    repeated = (options * (n // len(options) + 1))[:n]
    return rng.sample(repeated, n)


def _make_pair(model: OpenedModel, words: _Words, *, scene: _Scene, corrupt: str, rng: Random) -> Pair:
    io, s, x, y, z = rng.sample(list(words.names), 5)
    clean: Cast = (io, s, s)
    other: Cast = {"S2": (io, s, io), "S1+IO": (x, y, s), "ABC": (x, y, z)}[corrupt]
    texts = _write(scene, clean), _write(scene, other)
    ids = encode(model, texts[0])
    places = _locate(model, words, scene=scene, cast=clean, spare=x)
    return Pair(
        clean=ids,
        corrupt=encode(model, texts[1]),
        right=((words.names[io],),),
        wrong=((words.names[s],),),
        names=_name_positions(places, len(ids)),
        clean_text=texts[0],
        corrupt_text=texts[1],
    )


def _write(scene: _Scene, cast: Cast) -> str:
    io, s1, s2 = cast
    first, second = (io, s1) if scene.order == "ABBA" else (s1, io)
    template = IOI_TEMPLATES[scene.template]
    return template.format(first=first, second=second, giver=s2, place=scene.place, object=scene.object)


def _locate(model: OpenedModel, words: _Words, *, scene: _Scene, cast: Cast, spare: str) -> dict[str, int]:
    """Find each name's token: the only one that changes when that name is replaced by another of one token."""
    ids = encode(model, _write(scene, cast))
    found: dict[str, int] = {}
    io, s1, s2 = cast
    swaps: dict[str, Cast] = {"IO": (spare, s1, s2), "S1": (io, spare, s2), "S2": (io, s1, spare)}
    for name, (role, swap) in zip(cast, swaps.items(), strict=True):
        swapped = encode(model, _write(scene, swap))
        changed = [index for index, (a, b) in enumerate(zip(ids, swapped, strict=False)) if a != b]
        if len(swapped) != len(ids) or len(changed) != 1 or ids[changed[0]] != words.names[name]:
            raise BadInput(
                f"the tokenizer of {model.name!r} merges {name!r} with the words around it in "
                f"{_write(scene, cast)!r}, so positions cannot be named. Give prompts of your own with from_texts."
            )
        found[role] = changed[0]
    return found


def _name_positions(places: dict[str, int], length: int) -> dict[str, int]:
    after = {f"{role}+1": places[role] + 1 for role in ("S1", "S2") if places[role] + 1 < length}
    return dict(sorted({**places, **after, "end": length - 1}.items(), key=lambda item: item[1]))
