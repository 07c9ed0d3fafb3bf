"""What the page says of an estimate's verified sites: a scatter, and a table of both numbers."""

from dataclasses import dataclass

from crosspatch.attribution import Estimate
from crosspatch.draw import Point, number, scatter_svg, with_interval
from crosspatch.engine.effects import Effects

TOP, DRAWN = "largest estimates", "drawn from the rest"


@dataclass(frozen=True)
class Line:
    """One verified site: both numbers, why it was chosen, and what is wrong with its estimate."""

    site: str
    estimate: str
    exact: str
    chosen: str
    note: str


@dataclass(frozen=True)
class Verification:
    """A sentence, a scatter and a table."""

    text: str
    svg: str
    lines: tuple[Line, ...]


def verification(effects: Effects) -> Verification | None:
    """Describe what was verified; None for effects that are no estimate, or of which nothing was verified."""
    if not isinstance(effects, Estimate) or effects.agreement is None or effects.exact is None:
        return None
    found = effects.agreement
    wrong, missed = set(found.sign_errors), set(found.false_negatives)
    chosen = [TOP if top else DRAWN for top in found.top]
    points = [
        Point(float(estimate), float(exact), str(site), group)
        for site, estimate, exact, group in zip(found.sites, found.estimate, found.exact, chosen, strict=True)
    ]
    rows = effects.exact.rows(range(len(found.sites)))
    lines = tuple(
        Line(
            str(site),
            number(float(found.estimate[i])),
            with_interval(row.effect, row.low, row.high),
            chosen[i],
            "wrong sign" if site in wrong else "missed" if site in missed else "",
        )
        for i, (site, row) in enumerate(zip(found.sites, rows, strict=True))
    )
    what = "effect" if effects.signed else "mean |effect|"
    svg = scatter_svg(points, x=f"estimated {what}", y=f"exact {what}", title="estimated against exact effects")
    return Verification(str(found), svg, lines)
