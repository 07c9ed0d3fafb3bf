"""Activations of many prompts in one file larger than memory: filled in any order, resumed, read as safetensors."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.core.tensors import TensorFile
from crosspatch.draw import Display, Displayed
from crosspatch.engine.plan import bytes_per_prompt_token, chunk_pairs, memory_budget
from crosspatch.engine.sweep import Options
from crosspatch.engine.writing import needed_kinds
from crosspatch.executors.ranks import place_of
from crosspatch.models.model import Model
from crosspatch.models.runs import Lane, Prompts, Run, run_lanes, workbench
from crosspatch.sites import EACH, KINDS, Site, from_transformer_lens, parse, to_transformer_lens
from crosspatch.sites.extent import list_layers
from crosspatch.sites.transformer_lens import is_transformer_lens_name

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, repr=False)
class ActivationCache(Displayed):
    """Activations on disk, one tensor a site: `cache["resid.post[3]", 5]` is prompt 5's `[pos, width]`.

    TransformerLens's names are understood too: `cache["blocks.3.hook_resid_post", 5]`.
    """

    file: TensorFile

    @classmethod
    def load(cls, path: str | Path) -> "ActivationCache":
        """Open what `cache_activations` wrote, complete or not. Raises BadInput without it, CorruptFile if damaged."""
        return cls(TensorFile.found(path))

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are held."""
        return tuple(name for name in self.file.fields if name not in ("done", "offsets"))

    @property
    def complete(self) -> bool:
        """Whether all prompts are there."""
        return bool(self.file.done.all())

    def display(self) -> Display:
        """List the sites with their width and precision, and say how many prompts are there."""
        fields = {site: self.file.fields[site] for site in self.sites}
        rows = [(site, str(each.shape[-1]), each.dtype) for site, each in fields.items()]
        there = f"{int(self.file.done.sum()):,} of {len(self):,} prompts"
        return Display(f"Activations of {there}, {len(rows)} sites", ("site", "width", "dtype"), rows)

    def __len__(self) -> int:
        return len(self.file.done)

    def __getitem__(self, key: tuple[str, int]) -> Float[Tensor, "pos width"]:
        """Return the activation of a site for one prompt; only its bytes are read.

        Raises:
            UnknownName: the site is not held.
            BadInput: there is no such prompt, or it has not been run yet.
        """
        site, prompt = _own(key[0]), key[1]
        if site not in self.sites:
            raise UnknownName.of("site in this cache", site, self.sites)
        if not 0 <= prompt < len(self) or not self.file.done[prompt]:
            there = int(self.file.done.sum())
            raise BadInput(f"prompt {prompt} is not in this cache: it holds {there} of {len(self)}.")
        first, last = self.file.part(prompt)
        dtype = self.file.fields[site].dtype
        rows = torch.from_numpy(self.file.array(site, NUMPY[dtype])[first:last].copy())
        return rows.view(torch.bfloat16) if dtype == "BF16" else rows

    def to_transformer_lens(
        self, model: Model, prompts: Sequence[int] | None = None, *, sites: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Give activations of prompts of one length (default: all) under TransformerLens's names, in its shapes.

        `blocks.3.hook_resid_pre` is `[batch, pos, d_model]`, `blocks.3.attn.hook_z` (`hook_q`, `hook_k`, `hook_v`)
        `[batch, pos, head, d_head]`, `blocks.3.mlp.hook_post` `[batch, pos, d_mlp]`. `model` is the one that was run,
        and says how heads are cut. Numbers are the module's own; TransformerLens may fold norms and centre weights.

        Raises:
            BadInput: prompts of several lengths or none, one not run yet, or a site without a name there.
            UnknownName: a site is not held.
        """
        chosen = list(range(len(self)) if prompts is None else prompts)
        found = {}
        for site in self.sites if sites is None else sites:
            kind, _, layer = _own(site).removesuffix("]").partition("[")
            rows = [self[site, prompt] for prompt in chosen]
            if len({len(row) for row in rows}) != 1:
                raise BadInput("a batch is of prompts of one length: name some, such as prompts=[0].")
            whole = torch.stack(rows)
            if KINDS[kind].unit in ("head", "kv_head"):
                whole = whole.unflatten(-1, (-1, model.anatomy.points[kind].width))
            found[to_transformer_lens(Site(kind, int(layer)))] = whole
        return found


def cache_activations(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    sites: str,
    path: str | Path,
    dtype: torch.dtype | None = None,
    options: Options | None = None,
) -> ActivationCache:
    """Run prompts (token ids) and keep activations in a file, packed without padding; give the cache.

    A site is a kind with layers, such as "resid.post[3:6], mlp.hidden": whole widths, all positions. What is in the
    file already is not run again; ranks of a launcher fill one file together, each with every n-th chunk of prompts.
    `dtype` (default: the model's own) is what is stored. Ctrl-C keeps what is done.

    Raises:
        UnknownName, BadInput: a site that this model does not have or that has no place in such a file, an empty
            prompt, or a file of another question.
        DiskFull: there is no room; what was finished is kept.

    >>> cache = cache_activations(model, prompts, sites="resid.post", path="resid.safetensors")  # doctest: +SKIP
    """
    options, kinds = options or Options(), _kinds(model, sites)
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise BadInput("there must be prompts, and each must have a token at least.")
    dtype = dtype or next(model.module.parameters()).dtype
    widths = {_name(kind, layer): (NAMES[dtype], _width(model, kind)) for kind, layer in kinds}
    asked = [model.fingerprint, [list(prompt) for prompt in prompts], sorted(widths), str(dtype)]
    fingerprint = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
    file = TensorFile.open(path, fingerprint, widths=widths, parts=[len(prompt) for prompt in prompts])
    options.progress.start(len(prompts), "prompts")
    try:
        for numbers in _chunks(model, prompts, kinds, options):
            left = [number for number in numbers if not file.done[number]]
            if left:
                _run_chunk(model, [prompts[n] for n in numbers], kinds, file=file, numbers=numbers, dtype=dtype)
            options.progress.advance(len(numbers))
    finally:
        options.progress.close()
    return ActivationCache(file)


def _kinds(model: Model, sites: str) -> list[tuple[str, int]]:
    """Expand a selection to kinds and layers."""
    found: dict[tuple[str, int], None] = {}
    for pattern in parse(sites).patterns:
        if pattern.kind in ("attn.pattern", "logits", "embed"):
            raise BadInput(f"{pattern.kind} is not kept in such a file: give sites inside the blocks, or resid.pre[0].")
        model.anatomy.require(pattern.kind)
        if pattern.positions is not None or pattern.units not in ((), (EACH,)):
            raise BadInput(f"{pattern}: whole widths of all positions are kept; leave units and positions out.")
        layers = list_layers(pattern.kind, pattern.layers, model.extent)
        found |= dict.fromkeys((pattern.kind, layer or 0) for layer in layers)
    return list(found)


def _name(kind: str, layer: int) -> str:
    return f"{kind}[{layer}]"


def _own(site: str) -> str:
    """Give the name that a tensor of the file has; TransformerLens's names are translated."""
    if not is_transformer_lens_name(site):
        return site
    found = from_transformer_lens(site)
    return _name(found.kind, found.layer or 0)


def _width(model: Model, kind: str) -> int:
    point = model.anatomy.points.get(kind)
    return len(point.starts) * point.width if point and point.starts else model.anatomy.d_model


def _chunks(
    model: Model, prompts: Sequence[Sequence[int]], kinds: Sequence[tuple[str, int]], options: Options
) -> Iterator[list[int]]:
    """Yield prompts that are run together: this rank's chunks of as many as the memory allows."""
    lengths = [len(prompt) for prompt in prompts]
    budget = model.agreed(memory_budget(options.memory, model.device))
    each = max(lengths) * bytes_per_prompt_token(model, needed_kinds([kind for kind, _ in kinds]), max(lengths))
    rank, world = (None if model.together else place_of(os.environ)) or (0, 1)
    yield from chunk_pairs(lengths, each, budget, by_length=model.anatomy.by_length)[rank::world]


def _run_chunk(
    model: Model,
    prompts: Sequence[Sequence[int]],
    kinds: Sequence[tuple[str, int]],
    *,
    file: TensorFile,
    numbers: Sequence[int],
    dtype: torch.dtype,
) -> None:
    given = Prompts.of(prompts, model.device)
    with workbench(model, given) as bench:
        run = run_lanes(bench, [Lane(given, needed_kinds(sorted({kind for kind, _ in kinds})))])[0]
    whole = {_name(kind, layer): _activation(model, run, kind, layer) for kind, layer in kinds}
    for row, number in enumerate(numbers):
        parts = {name: value[row, : len(prompts[row])].to(dtype).cpu() for name, value in whole.items()}
        file.fill(number, {name: part.contiguous().view(torch.uint8).numpy().tobytes() for name, part in parts.items()})


def _activation(model: Model, run: Run, kind: str, number: int) -> Float[Tensor, "pair pos width"]:
    if kind == "resid.pre":
        return run.stream[number]
    if kind == "resid.post":
        return run.stream[number + 1]
    if kind == "resid.mid":
        return run.stream[number] + run.seen["attn.out"][number]
    value, point = run.seen[kind][number], model.anatomy.points[kind]
    return value[..., point.columns(None)] if point.starts else value
