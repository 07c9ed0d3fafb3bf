"""Effects: what a sweep found, pair by pair, with intervals, tests, grids, words and files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.stats import (
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_ratio,
    familywise_p,
    sign_flip_p,
    smallest_p,
)
from crosspatch.core.store import read_result, write_result, write_whole
from crosspatch.draw import Panel, Scale, TerminalMap, maps_figure, maps_plotly, nice_limit, number, table_latex
from crosspatch.engine.exporting import to_pandas, to_polars, to_tensors
from crosspatch.engine.grids import ExampleView, Grid, empty_grid, fill_grid, hint_of, kinds_of
from crosspatch.engine.tables import Row, Top
from crosspatch.engine.wording import LEVEL, Claim, acting, ends, pitfalls, sentence
from crosspatch.sites import Address, Group, Site, group_from_json, group_to_json

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from plotly.graph_objects import Figure
    from rich.console import Group as Stack
    from torch import Tensor

EffectScale = Literal["normalised", "raw"]
MOST_CELLS = 5000  # of one kind in a heat map; more cannot be told apart
_WHOLE = 1e-3  # share of the gap by which a site may miss the source run and still be called the whole of it


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of patching each site on each pair.

    `raw` is metric(patched) − metric(base), NaN where not run; `base` and `source` are the unpatched runs' metric.
    `direction` is "denoise" (base corrupted, source clean) or "noise" (the reverse).
    Raises BadInput when shapes disagree or the direction is neither.
    """

    sites: tuple[Address, ...]
    raw: Float32[np.ndarray, "site example"]
    base: Float32[np.ndarray, " example"]
    source: Float32[np.ndarray, " example"]
    direction: str
    metric: str
    metric_unit: str
    model: str
    task: str
    layers: int
    examples: tuple[ExampleView, ...]
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.examples)
        if self.raw.shape != (len(self.sites), n) or self.base.shape != (n,) or self.source.shape != (n,):
            raise BadInput(
                f"effects of {len(self.sites)} sites on {n} pairs need raw [{len(self.sites)}, {n}], base and source "
                f"[{n}]; given {list(self.raw.shape)}, {list(self.base.shape)} and {list(self.source.shape)}."
            )
        if self.direction not in ("denoise", "noise"):
            raise BadInput(f"direction {self.direction!r} is unknown: it is 'denoise' or 'noise'.")

    @property
    def n(self) -> int:
        """Count the pairs."""
        return len(self.examples)

    @property
    def kinds(self) -> tuple[str, ...]:
        """List the kinds of site, in the order they were swept."""
        return kinds_of(self.sites)

    @property
    def gap(self) -> Float[np.ndarray, " example"]:
        """Give metric(source) − metric(base) of each pair, in the metric's unit."""
        return self.source - self.base

    @cached_property
    def mean_gap(self) -> float:
        """Average the gap over the pairs, in the metric's unit; NaN without any."""
        return float(_mean(self.gap[None].astype(np.float64))[0])

    @property
    def scale(self) -> EffectScale:
        """Tell which scale is used by default: normalised, or raw where the mean gap is zero or unknown."""
        return "normalised" if np.isfinite(self.mean_gap) and self.mean_gap != 0 else "raw"

    @cached_property
    def values(self) -> Float32[np.ndarray, "site example"]:
        """Divide each raw effect by the mean gap: 0 is the base run, 1 the source run; NaN without a gap."""
        divisor = self.mean_gap if self.scale == "normalised" else np.nan
        return (self.raw / divisor).astype(np.float32)

    def mean(self, scale: EffectScale | None = None) -> Float32[np.ndarray, " site"]:
        """Average each site's effect over the pairs that it was run on; NaN where there is none."""
        raw = _mean(self.raw.astype(np.float64))
        return (raw if (scale or self.scale) == "raw" else raw / self._divisor).astype(np.float32)

    def interval(self, level: float = 0.95, scale: EffectScale | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Give the ends of each site's bootstrap interval over pairs, `[site]`; NaN for fewer than two pairs.

        On the normalised scale pairs are drawn jointly with their gaps, so the interval holds the gap's uncertainty.
        """
        key = ("interval", level, scale or self.scale)
        if key not in self._memo:
            normalised = key[2] == "normalised" and self.scale == "normalised"
            ratio = normalised and bootstrap_ratio(self.raw, self.gap, level=level)
            bounds = ratio or bootstrap_mean(self.raw, level=level)
            hide = np.nan if key[2] == "normalised" and not normalised else 1.0
            self._memo[key] = tuple((bound * hide).astype(np.float32) for bound in bounds)
        return self._memo[key]

    def p_values(self) -> Float[np.ndarray, " site"]:
        """Test each site by flipping the signs of its effects: could they as well be negative? Two-sided."""
        if "p" not in self._memo:
            self._memo["p"] = sign_flip_p(self.raw)
        return self._memo["p"]

    def q_values(self) -> Float[np.ndarray, " site"]:
        """Correct the p-values for the number of sites (Benjamini–Hochberg).

        Sites whose effect is zero by construction (clean and corrupted runs agree there) are no tests: their q is 1.
        """
        if "q" not in self._memo:
            p, still = self.p_values(), (np.nan_to_num(self.raw) == 0).all(axis=1)
            q = benjamini_hochberg(np.where(still, np.nan, p))
            self._memo["q"] = np.where(still & ~np.isnan(p), 1.0, q)
            self._memo["tested"] = int((~np.isnan(q)).sum())
        return self._memo["q"]

    def top(self, k: int = 10, *, kind: str | None = None) -> Top:
        """List the k sites with the largest absolute mean effect, of one kind if given."""
        mean = self.mean()
        allowed = np.array([kind is None or site.kind == kind for site in self.sites], dtype=bool)
        ranked = [int(i) for i in np.argsort(-np.abs(np.nan_to_num(mean)), kind="stable")]
        return Top(self.rows([i for i in ranked if allowed[i] and not np.isnan(mean[i])][:k]), self._headers)

    def rows(self, indices: Sequence[int]) -> tuple[Row, ...]:
        """Summarise the sites at these places of `sites`."""
        part = self.only(indices)
        low, high = part.interval()
        numbers = (part.mean(), low, high, part.mean("raw"), self.q_values()[list(indices)])
        ran = (~np.isnan(part.raw)).sum(axis=1)
        return tuple(
            Row(
                index,
                self.sites[index],
                *(float(column[k]) for column in numbers),
                n=int(ran[k]),
                hint=hint_of(self.sites[index].position, self.examples),
            )
            for k, index in enumerate(indices)
        )

    def only(self, indices: Sequence[int]) -> "Effects":
        """Keep the sites at these places of `sites`, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, sites=tuple(self.sites[i] for i in chosen), raw=self.raw[chosen])

    def grid(self, kind: str, scale: EffectScale | None = None) -> Grid:
        """Arrange the mean effects of one kind as `[layer, column]`. Raises UnknownName if it was not swept."""
        grid = empty_grid(kind, self.sites, layers=self.layers, examples=self.examples)
        part = self.only(grid.index[grid.index >= 0].tolist())
        low, high = part.interval(scale=scale)
        return fill_grid(grid, mean=part.mean(scale), low=low, high=high)

    def finding(self) -> str:
        """Say in one sentence which site matters most, with its number, its interval and how sure it is."""
        return sentence(self.claim())

    def claim(self) -> Claim:
        """Pick the strongest site that stands after correction for the number of sites.

        Where the pairs are too few for the correction of `q_values` to let any single site stand, all sites are tested
        together (`familywise_p`).
        A site that alone gives the whole source run (the embedding of the only word that differs) is true but says
        nothing; it is picked only if nothing else stands. Among sites within 5 % of the strongest, the one nearest the
        middle of the model is picked: the first and the last layers hold everything by construction.
        """
        size, p = np.abs(self.mean().astype(np.float64)), self.q_values()
        together = smallest_p(self.n) * max(self._memo["tested"], 1) >= LEVEL
        p = familywise_p(self.raw) if together else p
        ran, whole = ~np.isnan(size), self._whole()
        stands = ran & (p < LEVEL)
        pools = (stands & ~whole, stands, ran & ~whole, ran)
        pool = next((pool for pool in pools if pool.any()), None)
        best = None if pool is None else self._most_central(pool & (size >= 0.95 * size[pool].max()), size)
        return Claim(
            row=None if best is None else self.rows([best])[0],
            stands=best is not None and bool(stands[best]),
            testable=smallest_p(self.n) < LEVEL,
            familywise=float(p[best]) if together and best is not None else float("nan"),
            whole=best is not None and bool(whole[best]),
            direction=self.direction,
            metric=self.metric,
            unit=self.metric_unit,
            normalised=self.scale == "normalised",
            n=self.n,
            act=acting(self.direction, self.provenance.get("settings", {})),
        )

    def cautions(self) -> tuple[str, ...]:
        """List the sweep's own warnings and the known pitfalls that these numbers fall into."""
        own = pitfalls(base=self.base, source=self.source, raw=self.raw, direction=self.direction, metric=self.metric)
        return tuple(dict.fromkeys((*self.warnings, *own)))

    def colours(self, scale: EffectScale | None = None) -> Scale:
        """Choose one colour scale for all kinds, with words for its ends."""
        normalised = (scale or self.scale) == "normalised"
        # Twice the whole gap and more is rare; it is marked, so that the rest keeps its colours.
        limit = nice_limit(self.mean(), cap=2.0 if self.scale == "normalised" else float("inf"))
        limit *= 1.0 if normalised or self.scale == "raw" else abs(self.mean_gap)
        return Scale(limit, *ends(self.direction, normalised=normalised))

    def merge(self, other: "Effects") -> "Effects":
        """Join the sites of another sweep of the same model, task and metric. Raises BadInput if they differ."""
        from crosspatch.engine.joining import concat

        return concat([self, other])

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a site. Raises MissingExtra without pandas."""
        return to_pandas(self)

    def to_polars(self) -> "pl.DataFrame":
        """Make a polars table, one row a site; positions are texts. Raises MissingExtra without polars."""
        return to_polars(self)

    def to_tensors(self, kind: str | None = None, scale: EffectScale | None = None) -> "dict[str, Tensor]":
        """Give mean effects, of one kind if given, as TransformerLens's patching helpers shape them: float32, CPU.

        Keys are its names of activations: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out` are
        `[layer, pos]`; `z`, `q`, `k`, `v` are `[layer, pos, head]`, `pattern` is `[layer, head, pos]` and `post`
        `[layer, pos, neuron]`. What was patched at all positions together has `_all_pos` behind its name and no pos
        axis: `z_all_pos` is `[layer, head]`. NaN was not run; units go up to the last one swept.

        Raises:
            UnknownName: the kind was not swept.
            BadInput: a site has no place there: a kind without a name in TransformerLens, a group, all heads together,
                or a position that is not the same token in all pairs.
        """
        return to_tensors(self, kind=kind, scale=scale)

    def to_plotly(self, kind: str | None = None, scale: EffectScale | None = None) -> "Figure":
        """Draw a heat map a kind, or of one, as a plotly figure. Raises UnknownName, BadInput, MissingExtra."""
        return maps_plotly(self.panels(kind, scale), self.colours(scale))

    def to_latex(self, k: int = 10, *, kind: str | None = None) -> str:
        """Write the k strongest sites as a LaTeX table, for the package booktabs; all texts are escaped."""
        top = self.top(k, kind=kind)
        return table_latex(top.headers, [row.cells() for row in top])

    def figure(
        self, path: str | Path, *, kind: str | None = None, scale: EffectScale | None = None, width: float = 3.3
    ) -> Path:
        """Write heat maps for a paper as `.svg`, `.png` (300 dots an inch) or `.pdf`; give the path.

        `width` is in inches: 3.3 is one column of a page of two, 6.8 both. All kinds share one colour scale.

        Raises:
            UnknownName: the kind was not swept.
            BadInput: another ending, a kind with too many sites for a picture, or a file that cannot be written.
            MissingExtra: matplotlib is not installed.
        """
        form = Path(path).suffix.lower().removeprefix(".")
        content = maps_figure(self.panels(kind, scale), self.colours(scale), form=form, width=width)
        write_whole(Path(path), content)
        return Path(path)

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON, never pickle); give it. Raises BadInput if it cannot."""
        arrays = {"raw": self.raw, "base": self.base, "source": self.source}
        names = ("direction", "metric", "metric_unit", "model", "task", "layers")
        meta = {"what": "effects", **{name: getattr(self, name) for name in names}}
        meta["sites"] = {part: [getattr(site, part) for site in self.sites] for part in _SITE}
        groups = {str(i): group_to_json(site) for i, site in enumerate(self.sites) if isinstance(site, Group)}
        meta |= {"groups": groups} if groups else {}
        meta["examples"] = [asdict(replace(example, names=dict(example.names))) for example in self.examples]
        meta |= {"warnings": list(self.warnings), "provenance": dict(self.provenance)}
        return write_result(folder, arrays, meta)

    @classmethod
    def load(cls, folder: str | Path) -> "Effects":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder)
        try:
            if meta.pop("what") != "effects":
                raise KeyError("what")
            columns = meta.pop("sites")
            groups = {int(i): group_from_json(entry) for i, entry in meta.pop("groups", {}).items()}
            rows = enumerate(zip(*(columns[part] for part in _SITE), strict=True))
            sites = tuple(groups[i] if i in groups else Site(*parts) for i, parts in rows)
            examples = tuple(_example(entry) for entry in meta.pop("examples"))
            return cls(sites=sites, examples=examples, warnings=tuple(meta.pop("warnings")), **arrays, **meta)
        except (KeyError, TypeError, ValueError, LookupError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no effects as crosspatch writes them: {error}.") from error

    def report(
        self,
        path: str | Path,
        *,
        attention: Any = None,
        others: Sequence["Effects"] = (),
        circuit: Any = None,
        score: Any = None,
    ) -> Path:
        """Write one self-contained HTML page; give its path. Raises BadInput if it cannot be written.

        `attention`, the `lenses.HeadPatterns` of the same model and task, shows what a head attends to when clicked;
        `others`, the same sweep by other metrics, are compared with this one; a `circuit` of the same model, and its
        `score`, have sections of their own.
        """
        from crosspatch.report import content_of_circuit, write_page

        content = None if circuit is None and score is None else content_of_circuit(circuit, score)
        return write_page(self, path, attention=attention, others=others, circuit=content)

    @cached_property
    def _memo(self) -> dict[Any, Any]:
        return {}

    @property
    def _divisor(self) -> float:
        return self.mean_gap if self.scale == "normalised" else float("nan")

    @property
    def _headers(self) -> tuple[str, ...]:
        effect = "effect [95%]" if self.scale == "normalised" else f"{self.metric} [95%]"
        return ("site", effect, f"raw ({self.metric_unit})" if self.metric_unit else "raw", "q", "pairs")

    def _whole(self) -> np.ndarray:
        """Tell for each site whether it brings every pair all the way to the source run, `[site]` bool."""
        missed = np.abs(self.raw - self.gap[None]) > _WHOLE * np.abs(self.gap[None])
        return np.asarray(~missed.any(axis=1) & bool((self.gap != 0).any()))

    def _most_central(self, ties: np.ndarray, size: np.ndarray) -> int:
        places = [int(i) for i in np.flatnonzero(ties)]
        middle = (self.layers - 1) / 2
        depth = {i: middle if (layer := self.sites[i].layer) is None else abs(layer - middle) for i in places}
        return min(places, key=lambda i: (depth[i], -size[i], i))

    def drawable(self, kind: str | None = None, scale: EffectScale | None = None) -> list[Grid]:
        """Give the grids of the kinds, or of one, with few enough sites for a picture."""
        counts = Counter(site.kind for site in self.sites)
        kinds = self.kinds if kind is None else (kind,)
        return [self.grid(each, scale) for each in kinds if counts[each] <= MOST_CELLS]

    def panels(self, kind: str | None = None, scale: EffectScale | None = None) -> list[Panel]:
        """Give what pictures show of the kinds, or of one. Raises UnknownName if it was not swept."""
        return [grid.panel() for grid in self.drawable(kind, scale)]

    def __repr__(self) -> str:
        return (
            f"Effects of {len(self.sites)} sites ({', '.join(self.kinds)}) on {self.n} pairs: {self.model}, "
            f"{self.task}, {self.direction}, {self.metric} gap {number(self.mean_gap)}\n{self.finding()}"
        )

    def _repr_html_(self) -> str:
        from crosspatch.engine.notebook import notebook_html

        claim = self.claim()
        best = None if claim.row is None else claim.row.index
        return notebook_html(self.finding(), self.drawable(), scale=self.colours(), top=self.top(5), best=best)

    def __rich__(self) -> "Stack":
        from rich.console import Group as Stack
        from rich.text import Text

        scale, grids = self.colours(), self.drawable()
        maps = [TerminalMap(grid.panel(), scale, legend=grid is grids[-1]) for grid in grids]
        notes = [Text(f"! {text}", style="yellow") for text in self.cautions()]
        return Stack(*maps, self.top(5).__rich__(), Text(self.finding(), style="bold"), *notes)


_SITE = ("kind", "layer", "unit", "position")


def _mean(values: Float[np.ndarray, "site example"]) -> Float[np.ndarray, " site"]:
    """Average each row over its values; NaN for a row without any."""
    there = ~np.isnan(values)
    count = there.sum(axis=1)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _example(entry: Mapping[str, Any]) -> ExampleView:
    tokens = (tuple(entry["clean_tokens"]), tuple(entry["corrupt_tokens"]))
    return ExampleView(*tokens, str(entry["right"]), str(entry["wrong"]), dict(entry["names"]))
