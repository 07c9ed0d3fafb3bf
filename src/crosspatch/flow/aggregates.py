"""Routes over a data set: how important each component is, how often it appears, and what sets two sets apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64

from crosspatch.core.errors import BadInput, MissingExtra, UnknownName
from crosspatch.core.stats import bootstrap_difference, bootstrap_mean
from crosspatch.draw import Display, Displayed, number, with_interval
from crosspatch.flow.results import Route, Routes, component_name
from crosspatch.flow.walk import KINDS

if TYPE_CHECKING:
    import pandas as pd

BY = ("weight", "importance", "flow")
MOST = 12  # components in a shell
FEWEST = 2  # prompts that an interval needs


@dataclass(frozen=True, eq=False, repr=False)
class Components(Displayed):
    """How important each head, MLP and bias is to each prompt: `values` `[component, prompt]`, 0 if not on the route.

    A component's importance is the sum of its edges on the route, by `by`: "weight", "importance" or "flow" (see
    `RouteEdge`). A column of `values` is one prompt's vector, ready for a projection such as PCA.
    """

    names: tuple[str, ...]
    values: Float64[np.ndarray, "component prompt"]
    by: str
    model: str
    task: str

    def __getitem__(self, name: str) -> Float64[np.ndarray, " prompt"]:
        """Return one component's importance in each prompt. Raises UnknownName if there is no such component."""
        if name not in self.names:
            raise UnknownName.of("component", name, self.names)
        return self.values[self.names.index(name)]

    @property
    def mean(self) -> Float64[np.ndarray, " component"]:
        """Average over prompts."""
        return self.values.mean(axis=1)

    @property
    def frequency(self) -> Float64[np.ndarray, " component"]:
        """Share of the prompts on whose route each component is."""
        return (self.values > 0).mean(axis=1)

    def interval(self, level: float = 0.95) -> tuple[Float[np.ndarray, " component"], Float[np.ndarray, " component"]]:
        """Give the ends of the bootstrap intervals of the means over prompts; NaN for fewer than two prompts."""
        return bootstrap_mean(self.values, level=level)

    def top(self, k: int = MOST) -> list[tuple[str, float, float]]:
        """List (component, mean, frequency), the most important first."""
        order = np.argsort(-self.mean, kind="stable")[:k]
        return [(self.names[i], float(self.mean[i]), float(self.frequency[i])) for i in order]

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a component. Raises MissingExtra without pandas."""
        low, high = self.interval()
        columns = {"mean": self.mean, "low": low, "high": high, "frequency": self.frequency}
        return _frame(self.names, columns)

    def display(self) -> Display:
        """List the most important components, with the share of routes that they are on."""
        head = f"Components: {self.model} · {self.task} · {self.values.shape[1]} prompts, by {self.by}"
        rows = [(name, number(mean, 3), f"{share:.0%}") for name, mean, share in self.top()]
        return Display(head, ("component", "mean", "on routes"), rows)


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Displayed):
    """By how much components are more important in one set of prompts than in another.

    `first` and `second` `[component, prompt]` hold every prompt's values; with `paired` prompt i of one belongs to
    prompt i of the other, and differences are taken before they are averaged.
    """

    names: tuple[str, ...]
    first: Float64[np.ndarray, "component prompt"]
    second: Float64[np.ndarray, "component other"]
    paired: bool
    title: str

    @cached_property
    def difference(self) -> Float64[np.ndarray, " component"]:
        """Mean of the first set minus mean of the second."""
        return self.first.mean(axis=1) - self.second.mean(axis=1)

    @property
    def frequency(self) -> Float64[np.ndarray, " component"]:
        """Share of routes with each component in the first set, minus that in the second."""
        return (self.first > 0).mean(axis=1) - (self.second > 0).mean(axis=1)

    def interval(self, level: float = 0.95) -> tuple[Float[np.ndarray, " component"], Float[np.ndarray, " component"]]:
        """Give the ends of the bootstrap intervals of the differences; NaN for fewer than two prompts."""
        if self.paired:
            return bootstrap_mean(self.first - self.second, level=level)
        return bootstrap_difference(self.first, self.second, level=level)

    def top(self, k: int = MOST) -> list[tuple[str, float]]:
        """List (component, difference), the largest first."""
        order = np.argsort(-self.difference, kind="stable")[:k]
        return [(self.names[i], float(self.difference[i])) for i in order]

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a component. Raises MissingExtra without pandas."""
        low, high = self.interval()
        means = {"first": self.first.mean(axis=1), "second": self.second.mean(axis=1)}
        return _frame(self.names, {"difference": self.difference, "low": low, "high": high, **means})

    def display(self) -> Display:
        """List the components that differ most, with intervals where there are prompts enough."""
        low, high = self.interval()
        places = {name: place for place, name in enumerate(self.names)}
        rows = [
            (name, with_interval(value, float(low[places[name]]), float(high[places[name]])))
            if self._sure
            else (name, number(value))
            for name, value in self.top()
        ]
        return Display(f"Contrast: {self.title}", ("component", "difference"), rows)

    @property
    def _sure(self) -> bool:
        return min(self.first.shape[1], self.second.shape[1]) >= FEWEST


def components(found: Routes, *, by: str = "weight") -> Components:
    """Add up the edges of each component on each prompt's route.

    Raises:
        UnknownName: another `by`.
        BadInput: routes whose heads were summed.
    """
    if by not in BY:
        raise UnknownName.of("importance", by, BY)
    values = np.zeros((len(found.components), len(found)))
    places = {name: place for place, name in enumerate(found.components)}
    for prompt, route in enumerate(found):
        for name, total in _totals(route, by).items():
            if name not in places:
                raise BadInput("heads were summed in these routes: give those that `routes` found.")
            values[places[name], prompt] = total
    return Components(found.components, values, by, found.model, found.task)


def _totals(route: Route, by: str) -> dict[str, float]:
    """Add up a route's edges by component, the stream's own apart."""
    ends = np.stack([route.edges[name] for name in ("kind", "layer", "unit")])
    distinct, place = np.unique(ends, axis=1, return_inverse=True)
    sums = np.bincount(place.ravel(), route.edges[by], minlength=distinct.shape[1])
    rows: Mapping[Any, float] = dict(zip(map(tuple, distinct.T.tolist()), sums.tolist(), strict=True))
    return {component_name(*key): total for key, total in rows.items() if KINDS[key[0]] != "resid"}


def contrast(
    first: Routes | Components, second: Routes | Components, *, paired: bool = False, by: str = "weight"
) -> Contrast:
    """Subtract the importance of components in one set of prompts from that in another (Ferrando & Voita 2024).

    Some heads are important to any text; what is left is what this behaviour adds. `paired`: prompt i of both sets
    belong together, such as the clean and corrupt prompt of a pair. `by` applies to routes.

    Raises:
        BadInput: sets of different models or kinds of importance, or pairs of unequal number.
    """
    one, two = (components(each, by=by) if isinstance(each, Routes) else each for each in (first, second))
    if one.names != two.names or one.by != two.by:
        raise BadInput(
            f"{one.model} by {one.by} and {two.model} by {two.by} cannot be compared: give two sets of one model, "
            "both by the same importance."
        )
    if paired and one.values.shape[1] != two.values.shape[1]:
        counts = f"{one.values.shape[1]} and {two.values.shape[1]}"
        raise BadInput(f"{counts} prompts make no pairs: give as many of both, or leave out paired=True.")
    title = f"{one.model} · {one.task} minus {two.task}, by {one.by}"
    return Contrast(one.names, one.values, two.values, paired, title)


def _frame(names: tuple[str, ...], columns: Mapping[str, np.ndarray]) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
    return pd.DataFrame({"component": list(names), **columns})
