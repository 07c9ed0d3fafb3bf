"""The grid of an audit: each corruption and direction is one sweep, off which all metrics and windows are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from crosspatch.core.errors import BadInput, CrosspatchError
from crosspatch.draw import Display, Displayed
from crosspatch.engine import Effects, Options, Paths, patch_metrics, path_patch, plan_patch, windows
from crosspatch.engine.corrupting import by_layout
from crosspatch.engine.patching import DIRECTIONS, Question, prepare
from crosspatch.engine.select import select_single
from crosspatch.metrics import METRICS, get_metric
from crosspatch.models.model import Model
from crosspatch.sites import KINDS, Address, Site
from crosspatch.tasks import Task, check_metric, corrupt
from crosspatch.tasks.pair import RESAMPLE, TOKENS

MAIN = TOKENS
CORRUPTIONS_AT_MOST = 4
METRICS_READ = ("logit_diff", "prob", "logprob", "kl", "accuracy")


@dataclass(frozen=True)
class Setting:
    """One way to patch: how the corrupt run is made, which run is the base, and what is measured."""

    corruption: str
    direction: str
    metric: str

    def __str__(self) -> str:
        return f"{self.corruption}, {self.direction}, {self.metric}"


@dataclass(frozen=True)
class AuditPlan(Displayed):
    """Say what an audit runs.

    No corruptions means: token replacement, Gaussian noise (`draws` a pair), the task's own first alternative or other
    examples' tokens, and mean or zero embeddings, as far as the task allows. `windows` are widths of joint layer
    windows of the kinds without units. `edges`: also measure each head's and MLP's direct effect on the logits, which
    shows backup. `seed` draws noise and examples.
    """

    sites: str | Sequence[Site] = "attn.head, mlp.out"
    corruptions: Sequence[str] = ()
    metrics: Sequence[str] = METRICS_READ
    directions: Sequence[str] = DIRECTIONS
    windows: Sequence[int] = (3, 5)
    draws: int = 3
    edges: bool = True
    seed: int = 0

    def display(self) -> Display:
        """List what is run; an empty list of corruptions is what the task allows."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        lists = {name: ", ".join(map(str, value)) for name, value in told.items() if isinstance(value, list | tuple)}
        rows = [(name, lists.get(name, str(value)) or "all that fit") for name, value in told.items()]
        return Display("Plan of an audit", ("what", "which"), rows)


@dataclass(frozen=True, eq=False)
class GridRun:
    """What the grid gave: effects by setting (single sites and windows), direct effects, its cost, what was left out.

    The first setting's corruption is the main one. `forwards` is the work of all sweeps and of the direct effects, in
    plain forwards of one prompt; `single` that of the sweeps alone with one metric and without windows.
    """

    effects: Mapping[Setting, Effects]
    direct: Effects | None
    forwards: float
    single: float
    left_out: Sequence[str] = field(default_factory=tuple)


def run_grid(model: Model, task: Task, plan: AuditPlan, options: Options) -> GridRun:
    """Run the grid of a plan.

    Raises:
        UnknownName, BadInput: a site, metric, corruption or direction that does not exist, or nothing left to compare.
    """
    left_out: list[str] = []
    tasks, metrics, singles, sites = _laid_out(model, task, plan, left_out)
    found: dict[Setting, Effects] = {}
    forwards = single = 0.0
    for name, made in tasks.items():
        for direction in plan.directions:
            own = _own_journal(options, f"{name}-{direction}")
            results = patch_metrics(model, made, metrics, sites=sites, direction=direction, options=own)
            found |= {Setting(name, direction, metric): effects for metric, effects in results.items()}
            forwards += _forwards(next(iter(results.values())))
            single += plan_patch(model, made, sites=singles, direction=direction, options=options).forwards
    if not found:
        raise BadInput(f"nothing is left to audit: {'; '.join(left_out) or 'no corruption, metric or direction'}.")
    first = next(iter(tasks.values()))
    direct = None
    if plan.edges and "noise" in plan.directions:
        metric = main_setting(tuple(found)).metric
        own = _own_journal(options, "direct")
        direct = _direct(model, first, singles, metric=metric, options=own, left_out=left_out)
    forwards += _forwards(direct) if direct is not None else 0.0
    return GridRun(found, direct, forwards, single, tuple(left_out))


@dataclass(frozen=True, repr=False)
class GridCost(Displayed):
    """What a grid would cost: its settings, its sweeps, work in plain forwards and operations, what is left out."""

    settings: int
    sweeps: int
    forwards: float
    flops: int
    left_out: Sequence[str]

    def display(self) -> Display:
        """Say what an audit would run."""
        rows = [
            ("settings", str(self.settings)),
            ("sweeps", str(self.sweeps)),
            ("work in forwards", f"{self.forwards:,.0f}"),
            ("operations", f"{self.flops:.1e}"),
        ]
        return Display("Cost of an audit", ("what", "how much"), rows, [f"left out: {text}" for text in self.left_out])


def plan_grid(model: Model, task: Task, plan: AuditPlan, options: Options) -> GridCost:
    """Return what `run_grid` would do, without running the model (direct effects, a few per cent, are not counted).

    Raises:
        UnknownName, BadInput: as `run_grid` does.
    """
    left_out: list[str] = []
    tasks, metrics, _, sites = _laid_out(model, task, plan, left_out)
    asked = [Question(sites, direction, metrics) for direction in plan.directions]
    plans = [prepare(model, made, each, options=options).plan() for made in tasks.values() for each in asked]
    forwards, flops = sum(each.forwards for each in plans), sum(each.flops for each in plans)
    return GridCost(len(plans) * len(metrics), len(plans), forwards, flops, tuple(left_out))


def _laid_out(
    model: Model, task: Task, plan: AuditPlan, left_out: list[str]
) -> tuple[dict[str, Task], list[str], tuple[Site, ...], tuple[Address, ...]]:
    """Return the corrupted tasks by name, the metrics, the single sites and all that is swept; note what is not."""
    tasks = dict(_corrupted(task, plan, left_out))
    metrics = _metrics(task, plan, left_out)
    singles = select_single(model, task, plan.sites)
    return tasks, metrics, singles, (*singles, *_windows(model, task, singles, plan.windows, left_out))


def _own_journal(options: Options, name: str) -> Options:
    """Give each sweep of an audit a journal of its own, in the folder of the whole."""
    return options if options.journal is None else replace(options, journal=options.journal / name.replace("/", "_"))


def main_setting(settings: Sequence[Setting]) -> Setting:
    """Return the setting that others are compared with: the first corruption and direction, by logit difference."""
    first = settings[0]
    return next((s for s in settings if s.metric == "logit_diff" and s.corruption == first.corruption), first)


def _forwards(effects: Effects) -> float:
    return float(effects.provenance["settings"]["plan"]["forwards"])


def _corrupted(task: Task, plan: AuditPlan, left_out: list[str]) -> Iterator[tuple[str, Task]]:
    """Yield the task under each corruption, its own first; one that it does not allow is noted, unless asked for."""
    own = task.corruption.by
    # Other tokens have taken the place of the task's own corrupt prompts in any other corruption by tokens.
    plain = MAIN if task.corruption.of_embeddings else own
    others = (plain, "gaussian", *[*task.alternatives, RESAMPLE][:1], "mean", "zero")
    names, made = tuple(dict.fromkeys(plan.corruptions or (own, *others))), 0
    for name in names:
        if not plan.corruptions and made == CORRUPTIONS_AT_MOST:
            return
        try:
            corrupted = task if name == own else corrupt(task, name, draws=plan.draws, seed=plan.seed)
            if name == "mean":
                by_layout(task.pairs)
        except CrosspatchError as error:
            if plan.corruptions:
                raise
            left_out.append(f"corruption {name}: {error}")
            continue
        made += 1
        yield name, corrupted


def _metrics(task: Task, plan: AuditPlan, left_out: list[str]) -> list[str]:
    """Return the metrics that the task's answers allow, its own among them."""
    allowed = []
    for name in dict.fromkeys((*plan.metrics, *(m for m in (task.metric,) if m in METRICS))):
        try:
            check_metric(task, get_metric(name))
            allowed.append(name)
        except BadInput as error:
            left_out.append(f"metric {name}: {error}")
    return allowed


def _windows(
    model: Model, task: Task, singles: Sequence[Site], widths: Sequence[int], left_out: list[str]
) -> list[Address]:
    """Return the windows of the swept kinds that have a layer and no units, where all layers were swept."""
    found: list[Address] = []
    swept = {(site.kind, site.layer, site.position) for site in singles}
    kinds = dict.fromkeys(site.kind for site in singles if KINDS[site.kind].unit is None and site.layer is not None)
    layers = model.anatomy.layers
    if kinds:
        left_out += [f"windows of {w} layers: {model.name} has {layers}" for w in widths if w > layers]
    for kind in kinds:
        places = list(dict.fromkeys(s.position for s in singles if s.kind == kind and s.position is not None))
        for width in (w for w in dict.fromkeys(widths) if 1 < w <= layers):
            asked = windows(model, task, kind, width, positions=places)
            found.extend(
                each
                for each in asked
                if swept.issuperset((kind, m.layer, m.position) for m in each.members if isinstance(m, Site))
            )
    return found


def _direct(
    model: Model, task: Task, singles: Sequence[Site], *, metric: str, options: Options, left_out: list[str]
) -> Effects | None:
    """Return each head's and MLP's edge to the logits under the main corruption, noising."""
    sites = [site for site in singles if site.kind in ("attn.head", "attn.out", "mlp.out")]
    refused = [kind for kind in ("attn.head", "mlp.out") if kind in model.anatomy.refused]
    if sites and refused:
        left_out.append(f"direct effects: {model.name} does not offer {', '.join(refused)}")
    if not sites or refused:
        return None
    return path_patch(model, task, paths=Paths(sites, through="nothing"), metric=metric, options=options)
