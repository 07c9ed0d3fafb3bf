"""Prove an anatomy on the model itself: nothing that convention guessed is believed until the model's outputs agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crosspatch.core.errors import NotFinite, NotProved
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.attention import own_kernel
from crosspatch.models.blocks import (
    at_least_single,
    block_list,
    final_stream,
    logits_by_forward,
    logits_of,
    readout_parts,
)
from crosspatch.models.hooks import visiting
from crosspatch.models.model import Check, Model
from crosspatch.models.runs import Lane, Prompts, run_lanes, workbench
from crosspatch.models.trace import Trace, trace
from crosspatch.models.weights import device_of, untracked

LENGTH = 7  # tokens of a proving prompt: long enough that heads attend to different things
# Largest relative error between two ways to compute one thing, by precision: sums in another order, no more. Models in
# double precision still take the softmax of attention in single precision, most of them.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# What a sweep takes to act on its own token only, until the next block reads the stream.
LOCAL = ("attn.q", "attn.head", "mlp.in", "mlp.hidden")
BY_PATH = "Patch it as any module instead: crosspatch.Trial and patch_any."


def proving_ids(anatomy: Anatomy, device: torch.device) -> Int[Tensor, "batch pos"]:
    """Return two prompts of tokens spread over the vocabulary; the same for every run."""
    ids = torch.randint(0, anatomy.vocab, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return ids.to(device)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value; infinity where it is not a number."""
    found, expected = at_least_single(found), at_least_single(expected)
    error = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    return float("inf") if math.isnan(error) else error


def prove(module: nn.Module, anatomy: Anatomy) -> tuple[Anatomy, tuple[Check, ...]]:
    """Return the anatomy with what a run tells filled in and what failed refused, and the checks made.

    Raises:
        NotProved: not even the residual stream between blocks could be followed, or blocks do not run by themselves.
    """
    ids = proving_ids(anatomy, device_of(module.get_submodule(anatomy.embedding)) or torch.device("cpu"))
    with untracked(module):
        seen = first_trace(module, anatomy, ids)
        prover = Prover(module, replace(anatomy, tuples=seen.tuples), ids, seen)
        for step in (
            prover.stream,
            prover.causality,
            prover.readout,
            prover.sums,
            prover.order,
            prover.heads,
            prover.locality,
            prover.packing,
        ):
            step()
    return prover.anatomy, tuple(prover.checks)


def first_trace(module: nn.Module, anatomy: Anatomy, ids: Int[Tensor, "batch pos"]) -> Trace:
    """Run the model once; a module that is no causal language model stops here.

    Raises:
        NotProved: it cannot be called with token ids alone, or gives no logits for each of them.
        NotFinite: it gives NaN.
    """
    try:
        seen = trace(module, anatomy, ids)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise NotProved(
            f"{type(module).__name__} could not be run as a language model, module(input_ids=…).logits: {error}. "
            f"{BY_PATH}"
        ) from error
    if torch.isnan(seen.logits).any():
        raise NotFinite(
            f"{type(module).__name__} gives NaN on random tokens: its weights hold NaN, or its forward overflows in "
            f"{str(seen.logits.dtype).removeprefix('torch.')}. Load it in another dtype, or look at its weights."
        )
    if seen.logits.shape[:-1] != ids.shape:
        raise NotProved(
            f"{type(module).__name__} gives logits {list(seen.logits.shape)} for prompts {list(ids.shape)}: not one "
            f"row a token. {BY_PATH}"
        )
    return seen


@dataclass
class Prover:
    """Runs the checks in order; each may refuse a kind or fill in a fact."""

    module: nn.Module
    anatomy: Anatomy
    ids: Int[Tensor, "batch pos"]
    seen: Trace
    checks: list[Check] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        """Largest relative error that counts as equal in this model's precision."""
        return TOLERANCE.get(self.seen.logits.dtype, 1e-1)

    def note(self, name: str, ok: bool, detail: str) -> bool:
        """Record a check and return whether it held."""
        self.checks.append(Check(name, ok, detail))
        return ok

    def equal(self, name: str, found: Tensor, expected: Tensor, what: str) -> bool:
        """Record that two ways to compute one thing agree."""
        error = distance(found, expected)
        return self.note(name, error <= self.tolerance, f"{what}: largest relative error {error:.1e}")

    def refuse(self, kinds: Sequence[str], reason: str) -> None:
        """Take kinds away, with the reason that a user will read."""
        points = {kind: point for kind, point in self.anatomy.points.items() if kind not in kinds}
        self.anatomy = replace(
            self.anatomy, points=points, refused={**self.anatomy.refused, **dict.fromkeys(kinds, reason)}
        )

    def stream(self) -> None:
        """Each block reads what the one before it wrote."""
        layers, entering, leaving = self.anatomy.layers, self.seen.entering, self.seen.leaving
        shapes = {tuple(stream.shape) for stream in (*entering.values(), *leaving.values())}
        why = ""
        if self.seen.calls != layers:
            why = f"its {layers} blocks are called {self.seen.calls} times in a forward"
        elif len(shapes) > 1 or any(shape[:-1] != self.ids.shape for shape in shapes):
            why = f"what passes between them has shapes {sorted(shapes)}, not [batch, pos, width] of one width"
        elif gaps := [i for i in range(layers - 1) if not torch.equal(entering[i + 1], leaving[i])]:
            why = f"block {gaps[0] + 1} does not read what block {gaps[0]} writes"
        if why:
            raise NotProved(
                f"the blocks {self.anatomy.blocks!r} of this {self.anatomy.family} model form no residual stream: "
                f"{why}. {BY_PATH}"
            )
        self.anatomy = replace(self.anatomy, d_model=entering[0].shape[-1])
        self.note("blocks form one stream", True, f"{layers} blocks; each reads what the one before it wrote")

    def causality(self) -> None:
        """A changed last token changes nothing before it."""
        other = self.ids.clone()
        other[:, -1] = (other[:, -1] + 1) % self.anatomy.vocab
        moved = trace(self.module, self.anatomy, other).leaving[self.anatomy.layers - 1]
        error = distance(moved[:, :-1], self.seen.leaving[self.anatomy.layers - 1][:, :-1])
        causal = error <= self.tolerance
        self.anatomy = replace(self.anatomy, causal=causal)
        self.note("causal", True, "yes" if causal else "no: every position is recomputed")

    def readout(self) -> None:
        """Norms and unembedding, applied to the last stream, give the model's logits; else its own forward does."""
        last = self.seen.leaving[self.anatomy.layers - 1]
        stream, names, unembed = last, [], self.anatomy.readout.unembed
        for name, given, output in self.seen.after:
            holds_it = f"{unembed}.".startswith(f"{name}.")
            if not holds_it and given.shape == stream.shape and torch.equal(given, stream):
                stream, names = output, [*names, name]
        readout = replace(self.anatomy.readout, norms=tuple(names))
        rows, expected, path = last.flatten(0, 1), self.seen.logits.flatten(0, 1), " → ".join((*names, unembed))
        try:
            parts = readout_parts(self.module, readout)
            found = logits_of(parts, readout, final_stream(parts, readout, rows))
        except (RuntimeError, TypeError, ValueError, AttributeError):
            found = torch.full_like(expected, torch.nan)  # parts that do not fit together give no logits
        ok = found.shape == expected.shape and distance(found, expected) <= self.tolerance
        self.anatomy = replace(self.anatomy, readout=replace(readout, direct=ok))
        if not ok and distance(logits_by_forward(self.module, self.anatomy, rows), expected) > self.tolerance:
            raise NotProved(
                f"the logits of this {self.anatomy.family} model do not follow from the last block's output at the "
                f"same position: {path} gives others. {BY_PATH}"
            )
        detail = path if ok else "by the model's own forward, for the whole vocabulary"
        self.note("logits from the stream", True, detail)

    def sums(self) -> None:
        """The stream plus what attention and the MLP add is the stream after the block."""
        if not all((kind, 0) in self.seen.parts for kind in ("attn.out", "mlp.out")):
            self.refuse(("resid.mid",), "attention or MLP was not found in the block")
            return
        errors = []
        for i in range(self.anatomy.layers):
            entering = self.seen.entering[i]
            added = self.seen.parts["attn.out", i] + self.seen.parts["mlp.out", i].view_as(entering)
            errors.append(distance(entering + added, self.seen.leaving[i]))
        ok = self.note(
            "parts sum to the block",
            max(errors) <= self.tolerance,
            f"attn.out + mlp.out: largest relative error {max(errors):.1e}",
        )
        if not ok:
            self.refuse(
                ("attn.out", "mlp.out", "resid.mid"), "attn.out and mlp.out do not add up to what the block writes"
            )

    def order(self) -> None:
        """Whether the MLP reads what attention wrote (sequential) or both read the same stream (parallel)."""
        if not {"attn.out", "mlp.in"} <= set(self.anatomy.points):
            return
        block = block_list(self.module, self.anatomy)[0]
        with visiting([(block, self.anatomy.points["attn.out"], lambda value: value + 1)]):
            moved = trace(self.module, self.anatomy, self.ids)
        sequential = distance(moved.parts["mlp.in", 0], self.seen.parts["mlp.in", 0]) > 0
        self.anatomy = replace(self.anatomy, sequential=sequential)
        self.note("order in the block", True, "attention, then MLP" if sequential else "attention and MLP in parallel")
        if not sequential:
            self.refuse(("resid.mid",), "attention and MLP read the same stream, so there is no stream between them")

    def locality(self) -> None:
        """A query, a head's output or an MLP's input changed at one token changes its block at that token only."""
        for kind in LOCAL:
            if kind in self.anatomy.points and not all(self._is_local(kind, i) for i in {0, self.anatomy.layers - 1}):
                self.note(f"{kind} by token", False, "changed at one token, it changes others")
                lost = (kind, "attn.pattern") if kind == "attn.head" else (kind,)
                self.refuse(lost, "changed at one token, it changes what its block gives at others")

    def _is_local(self, kind: str, layer: int) -> bool:
        point, token = self.anatomy.points[kind], LENGTH // 2

        def shift(value: Tensor) -> Tensor:
            flat = value.clone().reshape(-1, value.shape[-1])
            flat[token::LENGTH, point.columns(None)] += 1
            return flat.view_as(value)

        with visiting([(block_list(self.module, self.anatomy)[layer], point, shift)]):
            moved = trace(self.module, self.anatomy, self.ids).leaving[layer]
        others = [i for i in range(LENGTH) if i != token]
        return distance(moved[:, others], self.seen.leaving[layer][:, others]) <= self.tolerance

    def heads(self) -> None:
        """A query, key or value head that is wiped out moves the heads that read it, and no other."""
        if "attn.head" not in self.anatomy.points:
            found = [kind for kind in ("attn.q", "attn.k", "attn.v") if kind in self.anatomy.points]
            self.refuse((*found, "attn.pattern"), "no attention with heads was found in every block")
            return
        for kind in ("attn.q", "attn.k", "attn.v"):
            if kind in self.anatomy.points and not self._prove_heads(kind):
                self.refuse((kind,), "its columns could not be told apart by head")

    def _prove_heads(self, kind: str) -> bool:
        """Check a kind's columns; where a norm mixes the heads of a projection (OLMo 2), take them behind that norm."""
        point = self.anatomy.points[kind]
        parent, _, _ = point.path.rpartition(".")
        behind = replace(point, path=f"{parent}.{kind[-1]}_norm", shard=None)
        count, wrong = len(point.starts), self._wrong_heads(kind)
        if wrong and _has(block_list(self.module, self.anatomy)[0], behind.path):
            self.anatomy = replace(self.anatomy, points={**self.anatomy.points, kind: behind})
            wrong = self._wrong_heads(kind)
        detail = f"{count} heads" + (f"; head {wrong[0]} moves other heads" if wrong else "")
        return self.note(f"{kind} heads", count > 0 and not wrong, detail)

    def _wrong_heads(self, kind: str) -> list[int]:
        count = len(self.anatomy.points[kind].starts)
        probed = sorted({0, count // 2, count - 1}) if count else []
        return [unit for unit in probed if self._moved_heads(kind, unit) != self._readers(unit, count)]

    def _readers(self, unit: int, count: int) -> set[int]:
        each = self.anatomy.heads // count if count else 1
        return set(range(unit * each, (unit + 1) * each))

    def _moved_heads(self, kind: str, unit: int) -> set[int]:
        """Wipe out one unit of the first block and return the heads whose output changes."""
        point, head = self.anatomy.points[kind], self.anatomy.points["attn.head"]

        def wipe(value: Tensor) -> Tensor:
            value = value.clone()
            value[..., point.columns(unit)] = 0
            return value

        block = block_list(self.module, self.anatomy)[0]
        with visiting([(block, point, wipe)]):
            moved = trace(self.module, self.anatomy, self.ids).parts["attn.head", 0]
        before = self.seen.parts["attn.head", 0]
        # In half precision another head may move by a last bit: a share of the model's own tolerance counts as still.
        return {
            h
            for h in range(self.anatomy.heads)
            if distance(moved[..., head.columns(h)], before[..., head.columns(h)]) > 1e-2 * self.tolerance
        }

    def packing(self) -> None:
        """Blocks called one by one, on packed tokens or else on whole rows, give the model's own stream."""
        routed = self.anatomy.attention and self.anatomy.causal and _routes_attention(self.module, self.anatomy)
        error = self._error_of_blocks(packed=True) if routed else float("inf")
        packed = error <= self.tolerance
        self.anatomy = replace(self.anatomy, packed=packed)
        if packed:
            detail = f"packed rows equal the model's own: largest relative error {error:.1e}"
        else:
            detail = "no: its attention is its own code, so whole rows are run from the patched block on"
            whole = self._error_of_blocks(packed=False)
            if whole > self.tolerance:
                raise NotProved(
                    f"the blocks {self.anatomy.blocks!r} of this {self.anatomy.family} model do not run by themselves: "
                    f"called one by one they miss the model's own stream by {whole:.1e}. {BY_PATH}"
                )
        self.note("prefixes shared", True, detail)
        if not packed and "attn.pattern" not in self.anatomy.refused:
            self.refuse(("attn.pattern",), "its attention is its own code and gives no pattern that could be replaced")

    def _error_of_blocks(self, *, packed: bool) -> float:
        """Run two lanes of two prompts through the blocks; where tokens are packed, the second lane starts late."""
        first = [self.ids[0].tolist(), self.ids[1, : LENGTH - 2].tolist()]
        other = [first[0], [*first[1][:2], *((token + 1) % self.anatomy.vocab for token in first[1][2:])]]
        starts, lanes = (3, 2), [Prompts.of(tokens, self.ids.device) for tokens in (first, other)]
        model = Model(self.module, None, "", "", replace(self.anatomy, packed=packed))
        try:
            with workbench(model, lanes[0]) as bench:
                runs = run_lanes(bench, [Lane(lanes[0]), Lane(lanes[1], starts=starts)])
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            # The proof is the point: whatever a strange block does when it is called so, it is not run that way.
            return float("inf")
        errors = []
        for run, prompts in zip(runs, (first, other), strict=True):
            for stream, tokens, start in zip(run.stream[-1], prompts, starts, strict=True):
                ids = torch.tensor([tokens], device=self.ids.device)
                own = trace(self.module, self.anatomy, ids).leaving[self.anatomy.layers - 1][0]
                errors.append(distance(stream[start : len(tokens)], own[start:]))
        return max(errors)


def _has(block: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in block.named_modules())


def _routes_attention(module: nn.Module, anatomy: Anatomy) -> bool:
    """Whether the blocks call transformers' attention interface, which packed rows need."""
    attention = block_list(module, anatomy)[0].get_submodule(anatomy.attention)
    return own_kernel(attention) is not None and hasattr(attention, "config")
