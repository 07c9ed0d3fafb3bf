"""`generate_any`: let an encoder–decoder write on while activations are patched from a second run."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
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
from crosspatch.models.kept import of_rows
from crosspatch.models.seq2seq import EncoderDecoder
from crosspatch.modules.cells import Cell, cells_of, place_of, select
from crosspatch.modules.decoded import NOTHING, Decoded
from crosspatch.modules.reading import NEAR, Beside, Reading, behind_heard
from crosspatch.modules.sweeping import Counts, viewed, writer
from crosspatch.modules.trial import Trial
from crosspatch.replay import Spot, writing
from crosspatch.replay.values import mapped
from crosspatch.sites import Address, Group, Site, members_of
from crosspatch.sites.site import TOGETHER

MANY = 8  # patched rows an example from which on those of an example have a forward of their own


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
    allow. A row ends with one of the tokens `end` (by default those of that config), or after `max_tokens`.

    The source run reads a text once for all patched rows beside it that have said the same. Patched rows of an example
    share the keys and values of what was heard, where no site can change them. Up to `rows` rows share a forward, or
    half as many if each, and the source run beside it, holds keys and values of its own; fewer if memory is short.

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
    base, source = writer_on.prepared({spot for cell in cells for spot in cell.spots})
    for alike in writer_on.alike(cells):
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
        "source_rows": count.beside,
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
        self.takes_rows = False  # whether rows of the cache can be taken
        self.behind: frozenset[Spot] = frozenset()  # the decoder's spots at which rows may share what was heard

    def prepared(self, spots: Collection[Spot]) -> tuple[Int[np.ndarray, "example step"], ...]:
        """Run the encoder on both runs, note what the source run has at spots in it; continue both, unpatched.

        Raises:
            NotProved: a spot was not reached, or the prompt's logits are not those of the module's own forward.
        """

        def noting(spot: Spot, value: Tensor) -> Tensor:
            self.values[spot] = viewed(self.trial, value, spot).clone()
            return value

        written = {spot for spot in spots if self.module.is_encoder(spot.path)}
        for run in (self.base, self.source):
            acts = {spot: partial(noting, spot) for spot in written} if run == self.source else {}
            with writing(self.trial.outline, acts) as reached:
                self.heard[run] = self.module.heard(self.trial.inputs(run))
            _refuse_missed(acts, reached)
        self._prove()
        if self.takes_rows and written != set(spots):
            self.behind = behind_heard(self._reading("clean", [0]), set(spots) - written)
        plain = [Cell(0, example, ()) for example in range(self.trial.count)]
        return tuple(np.stack(self._all(plain, run)) for run in (self.base, self.source))

    def alike(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Yield cells that write in the encoder only, in the decoder only, in both, each example's side by side."""
        found: dict[tuple[frozenset[bool], bool], list[Cell]] = {}
        for cell in sorted(cells, key=lambda cell: cell.example):
            halves = frozenset(self.module.is_encoder(spot.path) for spot in cell.spots)
            found.setdefault((halves, self.behind.issuperset(cell.spots)), []).append(cell)
        yield from found.values()

    def patched(self, cells: Sequence[Cell]) -> list[Int[np.ndarray, " step"]]:
        """Continue rows that write alike; return what each says."""
        return self._all(cells, self.base)

    def _prove(self) -> None:
        """Check that an encoder run by itself leads to the logits that the module's own forward has at the prompt."""
        examples = list(range(min(self.trial.count, self.rows)))
        own = getattr(self.trial.outline.result, "logits", None)
        reading = self._reading("clean", examples)
        logits = reading.read(reading.prompt)
        self.takes_rows = of_rows(reading.past)
        expected = own[examples, -1].float() if isinstance(own, Tensor) else logits
        if logits.isnan().any():
            raise NotFinite("a logit at the prompt is NaN: the module's forward overflows, or its weights hold NaN.")
        share = max(NEAR, 8 * torch.finfo(own.dtype).eps) if isinstance(own, Tensor) else NEAR
        if not float((logits - expected).abs().max()) <= share * float(expected.abs().max()):
            raise NotProved(
                f"{type(self.trial.module).__name__} gives other logits for what its encoder gives by itself than in "
                "a forward of its own: it does more between the two halves than can be taken up."
            )

    def _all(self, cells: Sequence[Cell], run: str) -> list[Int[np.ndarray, " step"]]:
        spots = self._spots(cells)
        apart = bool(spots) and self.behind.issuperset(cells[0].spots) and _have_many(cells)
        each = self.rows if apart or not spots else max(1, self.rows // 2)
        return [row for part in _parts(cells, each, apart=apart) for row in self._tried(part, run)]

    def _spots(self, cells: Sequence[Cell]) -> set[Spot]:
        """Return where cells write in the decoder."""
        return {spot for cell in cells for spot in cell.spots if not self.module.is_encoder(spot.path)}

    def _tried(self, cells: Sequence[Cell], run: str) -> list[Int[np.ndarray, " step"]]:
        """Continue some rows, half of them at a time if memory is short."""
        attempt = Attempt()
        with attempt:
            said = self._continued(cells, run)
            self.count.runs += 1
            self.count.rows += len(cells)
            return list(said.numpy())
        if len(cells) == 1:
            raise MemoryShortage("not even one row fits in memory: give fewer examples, or shorter inputs.")
        self.count.halvings += 1
        half = len(cells) // 2
        return [row for part in (cells[:half], cells[half:]) for row in self._tried(part, run)]

    def _continued(self, cells: Sequence[Cell], run: str) -> Int[Tensor, "row step"]:
        """Continue rows together; where the decoder is written, the source run reads along."""
        said = torch.full((len(cells), self.max_tokens), NOTHING)
        rows, beside, live = self._patched_rows(cells, run), self._beside(cells), list(range(len(cells)))
        ended, fresh = torch.zeros(len(cells), dtype=torch.bool), rows.prompt
        for step in range(self.max_tokens):
            logits = self._read(rows, beside, [cells[row] for row in live], fresh, first=step == 0)
            chosen = self._likeliest(logits.cpu(), step, ended)
            said[live, step] = torch.where(ended, NOTHING, chosen)
            ended |= torch.isin(chosen, self.ends)
            if ended.all() or step + 1 == self.max_tokens:
                break
            kept = [row for row in range(len(live)) if not (self.takes_rows and ended[row])]
            live, ended, fresh = [live[row] for row in kept], ended[kept], chosen[kept][:, None].to(fresh.device)
            rows.take(kept)
            if beside:
                beside.follow(kept, chosen[kept].tolist())
        return said

    def _read(
        self,
        rows: Reading,
        beside: Beside | None,
        cells: Sequence[Cell],
        tokens: Int[Tensor, "row token"],
        *,
        first: bool,
    ) -> Float[Tensor, "row vocab"]:
        """Let the source run read, then the patched rows; return their logits."""
        if beside is None:
            return rows.read(tokens)
        acts, reached = beside.read()
        self.count.beside += len(beside.tokens)
        if first:
            _refuse_missed(acts, reached)
        writes = {
            spot: writer(self.trial, cells, spot, _source(beside.values, spot, beside.of)) for spot in beside.spots
        }
        with writing(self.trial.outline, writes) as reached:
            logits = rows.read(tokens)
        if first:
            _refuse_missed(writes, reached)
        return logits

    def _patched_rows(self, cells: Sequence[Cell], run: str) -> Reading:
        """Return a row for each cell; where that changes nothing, rows of an example share what was heard."""
        examples = [cell.example for cell in cells]
        spots = {spot for cell in cells for spot in cell.spots}
        own = list(dict.fromkeys(examples))
        if len(own) == len(cells) or not spots or not self.behind.issuperset(spots):
            return self._reading(run, examples, cells)
        rows = self._reading(run, own)
        rows.hear()
        rows.take([own.index(example) for example in examples])
        return rows

    def _beside(self, cells: Sequence[Cell]) -> Beside | None:
        """Return the source run that is to be read beside cells, if they write in the decoder."""
        if not (spots := self._spots(cells)):
            return None
        examples = [cell.example for cell in cells]
        if not self.takes_rows:
            return Beside(self._reading(self.source, examples), spots, range(len(cells)))
        own = list(dict.fromkeys(examples))
        return Beside(self._reading(self.source, own), spots, [own.index(example) for example in examples])

    def _likeliest(
        self, logits: Float[Tensor, "row vocab"], step: int, ended: Bool[Tensor, " row"]
    ) -> Int[Tensor, " row"]:
        if logits[~ended].isnan().any():
            raise NotFinite(
                f"step {step}: a logit of a row is NaN: what was written, or the forward itself, overflows."
            )
        return self.module.allowed(logits, step).argmax(-1)

    def _reading(self, run: str, examples: Sequence[int], cells: Sequence[Cell] = ()) -> Reading:
        """Return rows of a run for some examples; for cells that write in the encoder, it is run."""
        rows = torch.tensor(examples, dtype=torch.long)
        spots = {spot for cell in cells for spot in cell.spots if self.module.is_encoder(spot.path)}
        if not spots:
            heard = mapped(self.heard[run], lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
            return Reading(self.trial, self.module, run, examples, heard)
        acts = {spot: writer(self.trial, cells, spot, _source(self.values, spot, examples)) for spot in spots}
        with writing(self.trial.outline, acts):
            heard = self.module.heard(self.trial.outline.taken(self.trial.inputs(run), rows))
        return Reading(self.trial, self.module, run, examples, heard)


def _have_many(cells: Sequence[Cell]) -> bool:
    return len(cells) >= MANY * len({cell.example for cell in cells})


def _parts(cells: Sequence[Cell], most: int, *, apart: bool) -> Iterator[Sequence[Cell]]:
    """Cut cells that lie by example into parts of like size, with `apart` each of one example."""
    groups = [list(group) for _, group in groupby(cells, lambda cell: cell.example)] if apart else [cells]
    for group in groups:
        each = -(-len(group) // -(-len(group) // most))
        yield from (group[first : first + each] for first in range(0, len(group), each))


def _source(values: Mapping[Spot, Tensor], spot: Spot, numbers: Sequence[int]) -> Any:
    return lambda row: values[spot][numbers[row]]


def _refuse_missed(writes: Mapping[Spot, Any], reached: Collection[Spot]) -> None:
    if missed := [spot for spot in writes if spot not in reached]:
        raise NotProved(f"{missed[0].path!r} was not reached where the module is run in two halves; leave it out.")
