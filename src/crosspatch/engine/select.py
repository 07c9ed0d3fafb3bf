"""From a selection's text and a task to the sites of a sweep."""

from collections.abc import Iterable, Iterator, Sequence

from crosspatch.core.errors import BadInput
from crosspatch.models.model import Model
from crosspatch.sites import EACH, KINDS, Address, Edge, Group, Pattern, Site, members_of, parse, resolve_position
from crosspatch.tasks import Task, layout_of


def one_layout(task: Task) -> bool:
    """Whether all prompts have one length and the same named positions, so that an index means one thing in all."""
    return len({layout_of(pair) for pair in task.pairs}) == 1


def star_positions(task: Task) -> tuple[int | str, ...]:
    """Return what "each position" means: every index where prompts share a layout, else the task's named positions.

    Prompts of several lengths and no names are indexed from their first token.
    """
    names = [name for name in task.pairs[0].names if all(name in pair.names for pair in task.pairs)]
    if one_layout(task) or not names:
        return tuple(range(max(len(pair.clean) for pair in task.pairs)))
    return tuple(sorted(names, key=lambda name: sum(pair.names[str(name)] for pair in task.pairs)))


def select_sites(
    model: Model, task: Task, sites: str | Sequence[Address], *, most: int | None = None
) -> tuple[Address, ...]:
    """Expand a selection for this model and task; a kind without `@` is swept at its customary positions.

    These are: each position for layer-wide kinds, all positions together for heads and neurons. With `most`, a
    selection of more sites is refused before it is expanded any further.

    Raises:
        UnknownName: a kind, layer, unit or named position that does not exist.
        BadInput: a kind that this model cannot offer, `logits`, which is read and not patched, or too many sites.
    """
    star = star_positions(task)
    chosen: Iterable[Address] = (
        (site for pattern in parse(sites).patterns for site in _expanded(model, task, pattern))
        if isinstance(sites, str)
        else sites
    )
    placed: dict[Address, None] = {}
    for site in (each for given in chosen for each in _placed(given, star)):
        placed[site] = None
        if most is not None and len(placed) > most:
            raise BadInput(f"more than {most:,} sites are selected: choose fewer layers, units or positions.")
    for site in placed:
        for member in members_of(site):
            _check(model, task, member)
    return tuple(placed)


def select_single(model: Model, task: Task, sites: str | Sequence[Address]) -> tuple[Site, ...]:
    """Expand a selection as `select_sites` does, and refuse groups.

    Raises:
        UnknownName: as `select_sites` does.
        BadInput: a group among the sites.
    """
    chosen = select_sites(model, task, sites)
    for site in chosen:
        if isinstance(site, Group):
            raise BadInput(f"{site} is a group of sites, and single sites are needed here.")
    return tuple(site for site in chosen if isinstance(site, Site))


def _expanded(model: Model, task: Task, pattern: Pattern) -> Iterator[Site]:
    model.anatomy.require(pattern.kind)
    # Numbers are indices also where `*` stands for names: 2:6 is counted in tokens of the longest prompt.
    indices = range(max(len(pair.clean) for pair in task.pairs))
    return pattern.expand(model.extent, star_positions(task) if EACH in (pattern.positions or ()) else indices)


def _placed(site: Address, star: Sequence[int | str]) -> tuple[Address, ...]:
    if isinstance(site, Group) or site.position is not None:
        return (site,)
    places = ("all",) if KINDS[site.kind].unit is not None else tuple(star)
    return tuple(Site(site.kind, site.layer, site.unit, place) for place in places)


def _check(model: Model, task: Task, site: Site | Edge) -> None:
    if isinstance(site, Edge):
        model.require(Site("attn.pattern", site.layer, site.head))
        for place in (site.query, site.key):
            _check_place(task, site, place)
        return
    model.require(site)
    if site.kind == "logits":
        raise BadInput("logits are what the metric reads; patch a site before them, such as resid.post.")
    if site.position is None:
        raise BadInput(f"{site} in a group: say at which position, such as {site}@end, or @all.")
    _check_place(task, site, site.position)


def _check_place(task: Task, site: Site | Edge, place: int | str) -> None:
    if isinstance(place, str) and place != "all":
        for pair in task.pairs:
            resolve_position(place, pair.names, len(pair.clean))
    longest = max(len(pair.clean) for pair in task.pairs)
    if isinstance(place, int) and not -longest <= place < longest:
        raise BadInput(f"{site}: the longest prompt has {longest} tokens, positions 0..{longest - 1}.")


def selection_text(sites: str | Sequence[Address]) -> str:
    """Return the selection as text, for provenance."""
    if isinstance(sites, str):
        return sites
    return ", ".join(str(site) for site in sites[:8]) + (" …" if len(sites) > 8 else "")
