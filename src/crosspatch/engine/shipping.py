"""Tell a sweep's question to other processes as plain data, and open it there: the plan that a journal holds."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.journal import ABOUT, read_about
from crosspatch.engine.ablation import Ablation
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.engine.units import SweepJob
from crosspatch.metrics import METRICS, get_metric
from crosspatch.models.checkpoint import save_module
from crosspatch.models.hooks import has_foreign_hooks
from crosspatch.models.layout import Layout
from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.sites import Address, Group, Site, group_from_json, group_to_json
from crosspatch.tasks import Corruption, Pair

WEIGHTS = "model"  # in the journal's folder: a module that was given as such
INLINE = "Run it in this process (executor inline), or under torchrun (executor ranks)."


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelData(_Data):
    """How the model is opened, and what tells that it is the same."""

    name: str
    what: str
    dtype: str | None
    attention: str | None
    layout: dict[str, Any] | None = None
    fingerprint: str


class PairData(_Data):
    """A pair of prompts as token ids."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    right: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    names: dict[str, int]


class CorruptionData(_Data):
    """How corrupt runs are made."""

    by: str
    at: tuple[str, ...]
    sigma: float
    draws: int
    seed: int


class AblationData(_Data):
    """What is written instead of patches."""

    by: str
    reference: tuple[PairData, ...]
    seed: int


class PathsData(_Data):
    """Which paths are patched; the senders are the question's sites."""

    to: str | tuple[tuple[str, int | None, int | None, int | str | None], ...]
    through: str
    local: bool


class QuestionData(_Data):
    """A sweep's question: everything that another process needs to run any unit of it."""

    model: ModelData
    pairs: tuple[PairData, ...]
    sites: tuple[dict[str, Any], ...]
    metrics: tuple[str, ...]
    direction: str
    corruption: CorruptionData
    ablation: AblationData | None
    paths: PathsData | None
    more: dict[str, Any] = {}


def require_described(sweep: Sweep) -> None:
    """Raise where a question cannot be told to other processes.

    Raises:
        BadInput: a metric of the user's own, hooks of the user's own on the model, or weights that cannot be saved.
    """
    own = next((metric.name for metric in sweep.metrics if METRICS.get(metric.name) is not metric), None)
    if own is not None:
        raise BadInput(f"metric {own!r} is a function of your own, which other processes cannot find. {INLINE}")
    hooked = has_foreign_hooks(sweep.model.module)
    if hooked and sweep.model.opened is None:
        raise BadInput(f"the module has hooks of your own (on {hooked[0]!r}), which other processes lack. {INLINE}")
    if sweep.model.opened is None and not hasattr(sweep.model.module, "save_pretrained"):
        raise BadInput(
            f"other processes cannot open a {type(sweep.model.module).__name__} that was given as a module: give "
            f"open_model a name, a hub id or a folder. {INLINE}"
        )


def describe(sweep: Sweep, folder: Path, *, shipped: bool) -> dict[str, Any] | None:
    """Write a sweep's question as plain data; None for one that cannot be told, where nobody needs it.

    A module that was given as such is saved beside the journal (safetensors), if the question is `shipped`.
    """
    model = sweep.model
    if not shipped and (model.opened is None or any(METRICS.get(m.name) is not m for m in sweep.metrics)):
        return None
    what = model.opened or str(_saved(model, folder / WEIGHTS))
    paths = getattr(sweep, "paths", None)
    to = [(s.kind, s.layer, s.unit, s.position) for s in sweep.receivers] if paths else []  # pyright: ignore[reportAttributeAccessIssue]
    config = getattr(model.module, "config", None)
    data = QuestionData(
        model=ModelData(
            name=model.name,
            what=what,
            dtype=str(next(model.module.parameters()).dtype).removeprefix("torch."),
            attention=getattr(config, "_attn_implementation", None),
            layout=model.layout.to_json() if model.layout else None,
            fingerprint=model.fingerprint,
        ),
        pairs=tuple(map(_pair_data, sweep.pairs[:: sweep.corruption.draws])),
        sites=tuple(map(_address_to_json, sweep.sites)),
        metrics=tuple(metric.name for metric in sweep.metrics),
        direction=sweep.direction,
        corruption=CorruptionData(**asdict(sweep.corruption)),
        ablation=_ablation_data(sweep.ablation) if sweep.ablation else None,
        more=dict(sweep.more()),
        paths=PathsData(to=tuple(to) or "logits", through=paths.through, local=paths.local) if paths else None,
    )
    return data.model_dump(mode="json")


def _saved(model: Model, folder: Path) -> Path:
    if not folder.exists():
        save_module(model.module, folder)
    return folder.resolve()


Build = Callable[["QuestionData", Model], Sweep]


def open_job(folder: Path, device: str | None = None, *, build: Build | None = None) -> SweepJob:
    """Open the job that a journal's plan describes, on a device; for workers. `build` makes another kind of sweep.

    Raises:
        CorruptFile: the plan is none that this crosspatch wrote.
        BadInput: the model that is opened is not the one that the plan was made with.
    """
    about = read_about(Path(folder) / ABOUT)
    if about["plan"].get("question", 0) is None:
        raise BadInput(
            f"{str(folder)!r} was begun by a process that held the model or a metric itself: only it can go on with it."
        )
    try:
        question = QuestionData.model_validate(about["plan"]["question"])
        cuts = about["plan"]["cuts"]
        torch.set_num_threads(int(cuts["threads"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise CorruptFile(f"{str(folder)!r} holds no plan that other processes can run: {error}.") from error
    sweep = (build or plain_sweep)(question, _opened(question.model, device))
    sweep.adopt(cuts)
    return SweepJob(sweep)


def _opened(data: ModelData, device: str | None) -> Model:
    layout = Layout.from_json(data.layout) if data.layout else None
    model = open_model(data.what, dtype=data.dtype, device=device, layout=layout)
    set_attention = getattr(model.module, "set_attn_implementation", None)
    now = getattr(getattr(model.module, "config", None), "_attn_implementation", None)
    if set_attention is not None and data.attention not in (None, now):
        set_attention(data.attention)
    if model.fingerprint != data.fingerprint:
        raise BadInput(
            f"{data.what} is not the model that this work was begun with (fingerprint {model.fingerprint}, it was "
            f"{data.fingerprint}): its weights or its configuration have changed."
        )
    return model


def plain_sweep(question: QuestionData, model: Model) -> Sweep:
    """Set up the sweep that a question asks for."""
    from crosspatch.engine.paths import Paths, PathSweep

    corruption = Corruption(**question.corruption.model_dump())
    pairs = tuple(pair for each in question.pairs for pair in [_pair(each)] * corruption.draws)
    sites = tuple(map(_address_from_json, question.sites))
    metrics = tuple(map(get_metric, question.metrics))
    given = (model, pairs, sites, metrics, question.direction, Options(), corruption)
    if question.paths is not None:
        to, through, local = question.paths.to, question.paths.through, question.paths.local
        receivers = () if isinstance(to, str) else tuple(Site(*each) for each in to)
        paths = Paths(sites, to if isinstance(to, str) else receivers, question.direction, through, local)  # pyright: ignore[reportArgumentType]
        return PathSweep(*given, paths=paths, receivers=receivers)
    return Sweep(*given, _ablation(question.ablation) if question.ablation else None)


def _pair_data(pair: Pair) -> PairData:
    names = {str(name): int(place) for name, place in pair.names.items()}
    return PairData(clean=pair.clean, corrupt=pair.corrupt, right=pair.right, wrong=pair.wrong, names=names)


def _pair(data: PairData) -> Pair:
    return Pair(data.clean, data.corrupt, data.right, data.wrong, data.names)


def _ablation_data(ablation: Ablation) -> AblationData:
    reference = tuple(map(_pair_data, ablation.reference))
    return AblationData(by=ablation.by, reference=reference, seed=ablation.seed)


def _ablation(data: AblationData) -> Ablation:
    return Ablation(data.by, tuple(map(_pair, data.reference)), data.seed)


def _address_to_json(site: Address) -> dict[str, Any]:
    if isinstance(site, Group):
        return {"group": group_to_json(site)}
    return {"site": [site.kind, site.layer, site.unit, site.position]}


def _address_from_json(entry: Mapping[str, Any]) -> Address:
    return group_from_json(entry["group"]) if "group" in entry else Site(*entry["site"])
