"""Quick answers about one pair: sites patched together, a head's attention, what a position decodes to."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine.logits import PatchedLogits, patched_logits
from crosspatch.engine.select import select_sites
from crosspatch.engine.sweep import Options
from crosspatch.lenses import LensView, logit_lens
from crosspatch.lenses.head_patterns import ONE, WEIGHTINGS, read_head_patterns
from crosspatch.models.model import Model
from crosspatch.sites import Address, Group, members_of
from crosspatch.tasks import from_tokens, token_strings
from crosspatch.workbench.asked import AskedHead, AskedLens, AskedPair, AskedPatch
from crosspatch.workbench.pairs import TOP, chances, checked_ids, task_of
from crosspatch.workbench.state import Result, State

LENS_TOP, NAMED = 5, 8
PATTERNS = 1 << 28  # bytes of attention that one pair may take
RUNS = ("clean", "corrupt")


def patch_together(state: State, asked: AskedPatch) -> dict[str, Any]:
    """Patch a selection in one run and describe what the model says then, beside both other runs."""
    _check(state, asked.pair)
    began, task = time.perf_counter(), task_of(state.model, asked.pair)
    found = patched_logits(
        state.model,
        task,
        sites=(_together(select_sites(state.model, task, asked.sites, most=state.limits.cells), asked.sites),),
        direction=asked.direction,
        metric=asked.metric,
        options=Options(memory=state.limits.memory),
    )
    effects = found.effects
    value, base, source = float(effects.raw[0, 0]), float(effects.base[0]), float(effects.source[0])
    return {
        "result": state.results.add(Result(asked, True, effects)),
        "sites": [str(member) for member in members_of(effects.sites[0])],
        "length": len(effects.examples[0].clean_tokens),
        "direction": asked.direction,
        "metric": effects.metric,
        "unit": effects.metric_unit,
        "base": base,
        "source": source,
        "patched": base + value,
        "effect": value / (source - base) if source != base else None,
        "tokens": _beside(state.model, found),
        "cautions": list(effects.cautions()),
        "seconds": time.perf_counter() - began,
    }


def _together(chosen: Sequence[Address], text: str) -> Address:
    """Join sites into one group: named as they were selected, or by their number where that is long."""
    many = [member for address in chosen for member in members_of(address)]
    return chosen[0] if len(chosen) == 1 else Group(text if len(many) <= NAMED else f"{len(many):,} sites", tuple(many))


def _beside(model: Model, found: PatchedLogits) -> list[dict[str, Any]]:
    """List the likeliest tokens of any of the three runs, with their probabilities in all, the patched run's first."""
    rows = {"base": found.base[0], "source": found.source[0], "patched": found.patched[0]}
    chance = {name: chances(row) for name, row in rows.items()}
    best = dict.fromkeys(int(i) for row in rows.values() for i in np.argsort(-row, kind="stable")[:TOP])
    order = sorted(best, key=lambda i: -float(chance["patched"][i]))
    words = token_strings(model.tokenizer, order)
    return [
        {"token": word, **{name: float(row[i]) for name, row in chance.items()}}
        for i, word in zip(order, words, strict=True)
    ]


def attention_of(state: State, asked: AskedHead) -> dict[str, Any]:
    """Give one head's pattern `[query][key]` in the clean and the corrupt run, with tokens.

    `written` is the length of what the head writes for each key alone, where that is known.
    """
    both = _check(state, asked.pair)
    layers, heads = state.model.anatomy.layers, state.model.anatomy.heads
    if asked.layer >= layers or asked.head >= heads:
        raise UnknownName(
            f"layer {asked.layer}, head {asked.head}: this model has layers 0..{layers - 1} and heads 0..{heads - 1}."
        )
    if layers * heads * sum(len(ids) ** 2 for ids in both) > PATTERNS:
        raise BadInput("these prompts are too long for the workbench's view of attention: use `crosspatch lens`.")
    name = repr(both)
    found = state.patterns.get(name)
    if found is None:
        found = read_head_patterns(state.model, from_tokens(*([ids] for ids in both), right=[0]), room=PATTERNS)
        state.patterns.add(found, name)
    place = found.chosen.index((asked.layer, asked.head))
    weights, sizes = found.patterns[0][:, place], [each[:, place] for each in found.sizes]
    return {
        "layer": asked.layer,
        "head": asked.head,
        "one": ONE,
        "tokens": dict(zip(RUNS, ([*run] for run in found.tokens[0]), strict=True)),
        **{run: values.tolist() for run, values in zip(RUNS, weights, strict=True)},
        "written": dict(zip(RUNS, sizes[0].tolist(), strict=True)) if sizes else None,
        "weightings": WEIGHTINGS if sizes else {},
    }


def lens_of(state: State, asked: AskedLens) -> dict[str, Any]:
    """Give the likeliest tokens that each layer's stream decodes to at a position, in both runs."""
    both = _check(state, asked.pair)
    if asked.position >= len(both[0]):
        raise UnknownName(f"position {asked.position}: these prompts have {len(both[0])} tokens, counted from 0.")
    # Nothing after a position changes what stands at it, and decoding all positions would take seconds.
    ends = [ids[: asked.position + 1] for ids in both] if state.model.anatomy.causal else both
    at = "end" if state.model.anatomy.causal else "all"
    view, place = logit_lens(state.model, ends, at=at, k=LENS_TOP), asked.position if at == "all" else 0
    return {
        "position": asked.position,
        "layers": ["before layer 0", *(f"after layer {layer}" for layer in range(view.top.shape[1] - 1))],
        **{run: _decoded(view, number, place) for number, run in enumerate(RUNS)},
    }


def _decoded(view: LensView, example: int, place: int) -> list[list[dict[str, Any]]]:
    ids, logprobs = view.top[example, :, place], view.top_logprob[example, :, place]
    return [
        [
            {"token": view.words[int(token)], "p": float(np.exp(logprob))}
            for token, logprob in zip(row, values, strict=True)
        ]
        for row, values in zip(ids, logprobs, strict=True)
    ]


def _check(state: State, pair: AskedPair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    clean, corrupt = (checked_ids(state.model, text, state.limits) for text in (pair.clean, pair.corrupt))
    return clean, corrupt
