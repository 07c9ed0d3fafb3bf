"""`capture_any`: what any module has at its sites."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.modules.cells import place_of, select
from crosspatch.modules.sweeping import viewed
from crosspatch.modules.trial import Trial
from crosspatch.replay import see
from crosspatch.sites import Address, Site, resolve_position
from crosspatch.sites.site import TOGETHER

Captured = dict[Site, Float[Tensor, "example position column"]]


def capture_any(trial: Trial, sites: str | Sequence[Address], *, run: str = "clean", step: int = 0) -> Captured:
    """Run a trial's module once and return what it has at sites, as `[example, position, column]`.

    A site without `@` gives all positions, one with a position that one (its axis stays). `step` is the call of a
    submodule that is called several times.

    Raises:
        UnknownName, BadInput: a run, site or step that this module does not have.
    """
    if run not in ("clean", "corrupt"):
        raise UnknownName.of("run", run, ("clean", "corrupt"))
    written = [sites] if isinstance(sites, Site) else sites
    chosen = [each for each in select(trial, written, spread=False) if isinstance(each, Site)]
    if not chosen:
        raise BadInput(f"{sites}: nothing to capture; groups are captured by their members.")
    places = {site: place_of(trial, site) for site in chosen}
    spots = {site: place.at_call(step).spot for site, place in places.items()}
    for spot in spots.values():
        trial.outline.call(spot)
    _, values = see(trial.module, trial.inputs(run), tuple(dict.fromkeys(spots.values())))
    return {site: _taken(trial, site, values[spot]) for site, spot in spots.items()}


def _taken(trial: Trial, site: Site, value: Tensor) -> Float[Tensor, "example position column"]:
    place = place_of(trial, site)
    columns = viewed(trial, value, place.spot)[..., place.columns(site.unit)]
    if site.position in (None, TOGETHER):
        return columns
    length = columns.shape[1]
    at = [resolve_position(site.position, trial.names_of(e), length) for e in range(trial.count)]  # pyright: ignore[reportArgumentType]
    return columns[torch.arange(trial.count), torch.tensor(at)].unsqueeze(1)
