"""`generate_any`: let an encoder–decoder write on while activations are patched from a second run."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.core.errors import BadInput, MemoryShortage, NotFinite, NotProved
from crosspatch.core.provenance import here
from crosspatch.engine.attempt import Attempt
from crosspatch.models.decoding import most_tokens
from crosspatch.models.fingerprint import fingerprint
from crosspatch.models.seq2seq import EncoderDecoder
from crosspatch.modules.cells import Cell, cells_of, place_of, select
from crosspatch.modules.decoded import NOTHING, Decoded
from crosspatch.modules.sweeping import Counts, viewed, writer
from crosspatch.modules.trial import Trial
from crosspatch.replay import Spot, writing
from crosspatch.replay.values import mapped, tensors
from crosspatch.sites import Address, Group, Site, members_of
from crosspatch.sites.site import TOGETHER

NEAR = 1e-3  # share of the largest logit by which the prompt's logits may miss the module's own


def generate_any(
    trial: Trial,
    *,
    sites: str | Sequence[Address],
    direction: str = "denoise",
    max_tokens: int = 64,
    rows: int = 64,
    end: int | Collection[int] | None = None,
) -> Decoded:
    """Continue a trial's prompts greedily, patched at every site of a selection, one at a time.

    The module is an encoder–decoder of transformers (Whisper, T5, BART); the trial's inputs are a mapping that holds
    the encoder's input and `decoder_input_ids`, the prompts, alike in both runs. Its metric is not used. The base run
    (corrupt for "denoise", clean for "noise") is continued token by token.

    At each step, a site of the decoder gets what the source run has there when it reads the *same tokens*: the source's
    encoder input, behind it the prompt and all that the patched row has said. So the site is written at the prompt's
    positions, and then at each new one; positions other than `@all` are refused. What is read once stays in the
    module's cache: `decoder.cross.k` and `decoder.cross.v` are made, and written, when the prompt is read, and act at
    all steps.
    A site of the encoder, with any position, is written when the encoder runs. Without a position, all are meant.

    The likeliest token is taken that `suppress_tokens` and `begin_suppress_tokens` of the module's generation config
    allow. A row ends with one of the tokens `end` (by default those of that config), or after `max_tokens`. Up to
    `rows` rows share a forward, a patched one and the source run beside it being two; fewer if memory is short.

    Raises:
        UnknownName, BadInput: a site, position or direction that cannot be used; a module or inputs of another kind.
        NotFinite: a logit is NaN.
        NotProved: the encoder run by itself does not lead to the logits of the module's own forward.
        MemoryShortage: not even one row fits in memory.

    >>> said = generate_any(trial, sites="decoder.cross.out", max_tokens=30)  # doctest: +SKIP
    """
    module = EncoderDecoder.of(trial.module)
    prompt = _prompt(trial, module, max_tokens)
    if direction not in ("denoise", "noise"):
        raise BadInput(f"direction {direction!r}: use 'denoise' (clean values into the corrupt run) or 'noise'.")
    began, ends = time.perf_counter(), _ends(module, end)
    chosen = tuple(dict.fromkeys(_everywhere(site) for site in select(trial, sites, spread=False)))
    cells = _cells(trial, module, chosen, rows)
    runs = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    writer_on = _WritingOn(trial, module, runs, (max_tokens, rows, ends), Counts())
    tokens = np.full((len(chosen), trial.count, max_tokens), NOTHING)
    base, source = writer_on.prepared({spot for cell in cells for spot in cell.spots if module.is_encoder(spot.path)})
    for alike in _alike(module, cells):
        for cell, said in zip(alike, writer_on.patched(alike), strict=True):
            tokens[cell.site, cell.example] = said
    count = writer_on.count
    settings = {
        "module": type(trial.module).__name__,
        "model_hash": fingerprint(trial.module),
        "sites": sites if isinstance(sites, str) else ", ".join(map(str, sites)),
        "direction": direction,
        "max_tokens": max_tokens,
        "n": trial.count,
        "runs": count.runs,
        "rows": count.rows,
        "halvings": count.halvings,
        "seconds": time.perf_counter() - began,
    }
    warnings = tuple(f"The generation config asks for {each}, which is not used here." for each in module.left_out())
    return Decoded(chosen, tokens, base, source, prompt.numpy(), ends, direction, warnings, here(**settings))


def _prompt(trial: Trial, module: EncoderDecoder, max_tokens: int) -> Int[Tensor, "example token"]:
    """Return what is continued.

    Raises:
        BadInput: it is not the same in both runs, is not one prompt an example, or leaves no room for so many tokens.
    """
    if isinstance(max_tokens, bool) or max_tokens < 1:
        raise BadInput(f"max_tokens={max_tokens!r}: give 1 or more.")
    prompt, other = (module.prompt(trial.inputs(run)) for run in ("clean", "corrupt"))
    if not torch.equal(prompt, other):
        raise BadInput("decoder_input_ids differ between the clean and the corrupt run: both must continue one prompt.")
    if len(prompt) != trial.count:
        raise BadInput(f"decoder_input_ids hold {len(prompt)} prompts for {trial.count} examples: give one for each.")
    most, length = most_tokens(trial.module), prompt.shape[1]
    if most is not None and length + max_tokens - 1 > most:
        raise BadInput(
            f"the prompt has {length} tokens, and max_tokens={max_tokens}: the decoder has positions for {most}. "
            "Shorten one of them."
        )
    return prompt.cpu()


def _ends(module: EncoderDecoder, end: int | Collection[int] | None) -> frozenset[int]:
    if end is None:
        return module.ends()
    return frozenset((end,) if isinstance(end, int) else end)


def _everywhere(address: Address) -> Address:
    """Let what has no position mean all of them."""
    if isinstance(address, Group):
        members = (_everywhere(each) if isinstance(each, Site) else each for each in address.members)
        return replace(address, members=tuple(members))  # pyright: ignore[reportArgumentType]
    return replace(address, position=TOGETHER) if address.position is None else address


def _cells(trial: Trial, module: EncoderDecoder, sites: Sequence[Address], rows: int) -> list[Cell]:
    """Return the patched rows.

    Raises:
        BadInput: a position in the decoder, a position that an example lacks, or no room for a row and its source.
    """
    for site in sites:
        for member in members_of(site):
            if not isinstance(member, Site) or module.is_encoder(place_of(trial, member).spot.path):
                continue
            if member.position != TOGETHER:
                raise BadInput(
                    f"{member}: what the decoder has is written wherever a step reads, so leave out its position, or "
                    "give @all. Positions of one forward are patched with patch_any."
                )
            _refuse_padding(trial, member)
    cells = list(cells_of(trial, sites, None))
    having = {(cell.site, cell.example) for cell in cells}
    for number, site in enumerate(sites):
        for example in range(trial.count):
            if (number, example) not in having:
                raise BadInput(f"{site}: example {example} has no such position; its `lengths` say how many are real.")
    least = 1 + any(not module.is_encoder(spot.path) for cell in cells for spot in cell.spots)
    if rows < least:
        raise BadInput(f"rows={rows}: a forward holds {least} rows at least, a patched one and its source run.")
    return cells


def _refuse_padding(trial: Trial, member: Site) -> None:
    stack = trial.stack(member.kind).name
    real = set(trial.lengths.get(stack, ()))
    if len(real) > 1:
        raise BadInput(f"lengths of {stack!r} are {sorted(real)}: continue prompts of one length, without padding.")


def _alike(module: EncoderDecoder, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield cells that write in the encoder only, in the decoder only, in both."""
    found: dict[frozenset[bool], list[Cell]] = {}
    for cell in cells:
        found.setdefault(frozenset(module.is_encoder(spot.path) for spot in cell.spots), []).append(cell)
    yield from found.values()


class _WritingOn:
    """Two runs of a trial that are continued, the first of them patched from the second."""

    def __init__(
        self,
        trial: Trial,
        module: EncoderDecoder,
        runs: tuple[str, str],
        limits: tuple[int, int, frozenset[int]],
        count: Counts,
    ) -> None:
        self.trial, self.module, self.count = trial, module, count
        self.base, self.source = runs
        self.max_tokens, self.rows, ends = limits
        self.ends = torch.tensor(sorted(ends), dtype=torch.long)
        self.heard: dict[str, Any] = {}
        self.values: dict[Spot, Float[Tensor, "example position column"]] = {}

    def prepared(self, spots: Collection[Spot]) -> tuple[Int[np.ndarray, "example step"], ...]:
        """Run the encoder on both runs, note what the source run has at spots in it; continue both, unpatched.

        Raises:
            NotProved: a spot was not reached, or the prompt's logits are not those of the module's own forward.
        """

        def noting(spot: Spot, value: Tensor) -> Tensor:
            self.values[spot] = viewed(self.trial, value, spot).clone()
            return value

        for run in (self.base, self.source):
            acts = {spot: _bound(noting, spot) for spot in spots} if run == self.source else {}
            with writing(self.trial.outline, acts) as reached:
                self.heard[run] = self.module.heard(self.trial.inputs(run))
            _refuse_missed(acts, reached)
        self._prove()
        plain = [Cell(0, example, ()) for example in range(self.trial.count)]
        return tuple(np.stack(self._all(plain, run, 1)) for run in (self.base, self.source))

    def patched(self, cells: Sequence[Cell]) -> list[Int[np.ndarray, " step"]]:
        """Continue rows that write alike; return what each says."""
        beside = 1 + any(not self.module.is_encoder(spot.path) for spot in cells[0].spots)
        return self._all(cells, self.base, beside)

    def _prove(self) -> None:
        """Check that an encoder run by itself leads to the logits that the module's own forward has at the prompt."""
        examples = list(range(min(self.trial.count, self.rows)))
        own = getattr(self.trial.outline.result, "logits", None)
        heard, given, prompt = self._side("clean", examples)
        with torch.no_grad():
            logits, _ = self.module.step(heard, given, prompt, None)
        expected = own[examples, -1].float() if isinstance(own, Tensor) else logits
        if logits.isnan().any():
            raise NotFinite("a logit at the prompt is NaN: the module's forward overflows, or its weights hold NaN.")
        share = max(NEAR, 8 * torch.finfo(own.dtype).eps) if isinstance(own, Tensor) else NEAR
        if not float((logits - expected).abs().max()) <= share * float(expected.abs().max()):
            raise NotProved(
                f"{type(self.trial.module).__name__} gives other logits for what its encoder gives by itself than in "
                "a forward of its own: it does more between the two halves than can be taken up."
            )

    def _all(self, cells: Sequence[Cell], run: str, beside: int) -> list[Int[np.ndarray, " step"]]:
        each = max(1, self.rows // beside)
        parts = [cells[first : first + each] for first in range(0, len(cells), each)]
        return [row for part in parts for row in self._tried(part, run, beside)]

    def _tried(self, cells: Sequence[Cell], run: str, beside: int) -> list[Int[np.ndarray, " step"]]:
        """Continue some rows, half of them at a time if memory is short."""
        attempt = Attempt()
        with attempt:
            said = self._continued(cells, run, beside)
            self.count.runs += 1
            self.count.rows += len(cells)
            return list(said.numpy())
        if len(cells) == 1:
            raise MemoryShortage("not even one row fits in memory: give fewer examples, or shorter inputs.")
        self.count.halvings += 1
        half = len(cells) // 2
        return [row for part in (cells[:half], cells[half:]) for row in self._tried(part, run, beside)]

    def _continued(self, cells: Sequence[Cell], run: str, beside: int) -> Int[Tensor, "row step"]:
        """Continue rows together; where the decoder is written (`beside` 2), the source run reads along."""
        many, examples = len(cells), [cell.example for cell in cells]
        heard, given, prompt = self._side(run, examples, cells)
        if beside == 2:
            other = self._side(self.source, examples)
            heard, given, prompt = (self._joined(*each) for each in zip((heard, given, prompt), other, strict=True))
        spots = {spot for cell in cells for spot in cell.spots if not self.module.is_encoder(spot.path)}
        writes = {
            spot: writer(self.trial, cells, spot, rows=2 * many, source=lambda value, row: value[many + row])
            for spot in spots
        }
        said = torch.full((many, self.max_tokens), NOTHING)
        ended, past, fresh = torch.zeros(many, dtype=torch.bool), None, prompt
        for step in range(self.max_tokens):
            with (
                writing(self.trial.outline, writes) if writes else nullcontext(set[Spot]()) as reached,
                torch.no_grad(),
            ):
                logits, past = self.module.step(heard, given, fresh, past)
            if step == 0:
                _refuse_missed(writes, reached)
            chosen = self._likeliest(logits[:many].cpu(), step, ended)
            said[:, step] = torch.where(ended, NOTHING, chosen)
            ended |= torch.isin(chosen, self.ends)
            if ended.all():
                break
            fresh = chosen.repeat(beside)[:, None].to(prompt.device)
        return said

    def _likeliest(
        self, logits: Float[Tensor, "row vocab"], step: int, ended: Bool[Tensor, " row"]
    ) -> Int[Tensor, " row"]:
        if logits[~ended].isnan().any():
            raise NotFinite(
                f"step {step}: a logit of a row is NaN: what was written, or the forward itself, overflows."
            )
        return self.module.allowed(logits, step).argmax(-1)

    def _side(
        self, run: str, examples: Sequence[int], cells: Sequence[Cell] = ()
    ) -> tuple[Any, dict[str, Any], Int[Tensor, "row token"]]:
        """Return what the encoder gave for some examples of a run, what each step is given, and the prompts.

        For cells that write in the encoder, it is run.
        """
        rows = torch.tensor(examples, dtype=torch.long)
        inputs = self.trial.outline.taken(self.trial.inputs(run), rows)
        spots = {spot for cell in cells for spot in cell.spots if self.module.is_encoder(spot.path)}
        if spots:
            acts = {
                spot: writer(self.trial, cells, spot, rows=len(cells), source=_source(self.values[spot], examples))
                for spot in spots
            }
            with writing(self.trial.outline, acts):
                heard = self.module.heard(inputs)
        else:
            heard = mapped(self.heard[run], lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
        return heard, self.module.for_decoder(inputs), self.module.prompt(inputs)

    def _joined(self, one: Any, other: Any) -> Any:
        """Put the rows of one nested value behind those of another; what all rows share stays."""
        if type(one) is dict:
            shared = self.trial.shared
            return {name: each if name in shared else self._joined(each, other[name]) for name, each in one.items()}
        rest = tensors(other)
        return mapped(one, lambda tensor: torch.cat([tensor, next(rest)]))


def _bound(noting: Any, spot: Spot) -> Any:
    return lambda value: noting(spot, value)


def _source(values: Float[Tensor, "example position column"], examples: Sequence[int]) -> Any:
    return lambda _, row: values[examples[row]]


def _refuse_missed(writes: Mapping[Spot, Any], reached: Collection[Spot]) -> None:
    if missed := [spot for spot in writes if spot not in reached]:
        raise NotProved(f"{missed[0].path!r} was not reached where the module is run in two halves; leave it out.")
