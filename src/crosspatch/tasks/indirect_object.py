"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" → Mary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import IOI_TEMPLATES, NAMES, OBJECTS, PLACES
from crosspatch.tasks.pair import Pair, Task
from crosspatch.tasks.prompts import Drawn, Prompt, compose, make_pair, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, of_one_length, spread, usable

CORRUPTIONS = ("S2", "S1+IO", "ABC")
ORDERS = ("mixed", "ABBA", "BABA")
FEWEST_NAMES = 20


Cast = tuple[str, str, str]  # the names standing as IO, S1 and S2


@dataclass(frozen=True)
class _Words:
    """Hold the words that this tokenizer can use: names with their one token, places and objects of one length each."""

    names: Mapping[str, int]
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
    Positions: IO, S1, S1+1, S2, S2+1, end. The task's `alternatives` hold the corrupt prompts of the other two ways,
    which are those that the same seed gives with that `corrupt`. The same seed gives the same task.

    Raises BadInput for an option that does not exist, a model without tokenizer, or one that has fewer than 20 of the
    names as single tokens.
    """
    _check_options(n, corrupt, order, template)
    tokenizer = tokenizer_of(model)
    words = _Words(
        usable(model, NAMES, after="and", fewest=FEWEST_NAMES, of="ioi: names"),
        of_one_length(tokenizer, PLACES),
        of_one_length(tokenizer, OBJECTS),
    )
    rng = Random(seed)
    scenes = _draw_scenes(n, rng, words=words, order=order, template=template)
    drawn = [_draw(model, words, scene=scene, corrupt=corrupt, rng=rng) for scene in scenes]
    settings = {
        "n": n,
        "seed": seed,
        "corrupt": corrupt,
        "order": order,
        "template": "mixed" if template is None else template,
    }
    return make_task(model, "ioi", drawn=drawn, settings=settings, pairs=[_make_pair(model, each) for each in drawn])


def _check_options(n: int, corrupt: str, order: str, template: int | None) -> None:
    check_n(n)
    check_choice("corrupt", corrupt, CORRUPTIONS)
    check_choice("order", order, ORDERS)
    if template is not None and not 0 <= template < len(IOI_TEMPLATES):
        raise BadInput(f"template={template} does not exist: give 0 to {len(IOI_TEMPLATES) - 1}, or None to mix them.")


def _draw_scenes(n: int, rng: Random, *, words: _Words, order: str, template: int | None) -> list[_Scene]:
    templates = list(range(len(IOI_TEMPLATES))) if template is None else [template]
    orders = ["ABBA", "BABA"] if order == "mixed" else [order]
    chosen = spread(templates, n, rng), spread(orders, n, rng)
    return [_Scene(t, o, rng.choice(words.places), rng.choice(words.objects)) for t, o in zip(*chosen, strict=True)]


def _draw(model: OpenedModel, words: _Words, *, scene: _Scene, corrupt: str, rng: Random) -> Drawn:
    io, s, x, y, z = rng.sample(list(words.names), 5)
    casts: dict[str, Cast] = {"S2": (io, s, io), "S1+IO": (x, y, s), "ABC": (x, y, z)}
    prompts = {way: _write(model, scene, cast) for way, cast in casts.items()}
    return Drawn(
        clean=_write(model, scene, (io, s, s)),
        corrupt=prompts.pop(corrupt),
        right=[words.names[io]],
        wrong=[words.names[s]],
        others=prompts,
    )


def _write(model: OpenedModel, scene: _Scene, cast: Cast) -> Prompt:
    """Write a scene with its roles as slots, so that they name positions."""
    first, second = ("{IO}", "{S1}") if scene.order == "ABBA" else ("{S1}", "{IO}")
    wording = IOI_TEMPLATES[scene.template]
    template = wording.format(first=first, second=second, giver="{S2}", place=scene.place, object=scene.object)
    return compose(model, template, dict(zip(("IO", "S1", "S2"), cast, strict=True)))


def _make_pair(model: OpenedModel, drawn: Drawn) -> Pair:
    stops = {role: drawn.clean.spans[role][1] for role in ("S1", "S2")}
    return make_pair(model, drawn, {f"{role}+1": at for role, at in stops.items() if at < len(drawn.clean.ids)})
