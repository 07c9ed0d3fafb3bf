"""What a sweep will take of the memory is foreseen; a machine that cannot hold one pair refuses before it starts."""

from dataclasses import replace

import pytest
import torch

from crosspatch.core.errors import MemoryShortage
from crosspatch.engine import memory
from crosspatch.engine.patching import patch, plan_patch
from crosspatch.engine.sweep import Options
from zoo import make_pair, make_task, opened

MIB = 1 << 20


def peak(tokens: int = 7, pairs: int = 1, **asked: object) -> int:
    task = make_task(*(make_pair(tokens, [3], seed=seed) for seed in range(pairs)))
    return plan_patch(opened("llama"), task, **asked).peak_bytes  # pyright: ignore[reportArgumentType]


def test_more_takes_more() -> None:
    """Longer prompts, more pairs, patterns and whole vocabularies are all in the estimate."""
    least = peak(sites="resid.pre")
    assert peak(tokens=14, sites="resid.pre") > least
    assert peak(pairs=6, sites="resid.pre") > least
    assert peak(sites="attn.pattern") > peak(sites="attn.head[*, all]")
    wide = memory.Sizes(opened("llama"), memory.Extents((9,), (0,), ((8,),)), 10, 4, patterns=False)
    alone = {"pairs": 1, "call": 0, "cells": 0}
    assert replace(wide, unembedding=MIB).peak(**alone) - wide.peak(**alone) == 1.5 * MIB


def test_masks_grow_with_the_square_of_the_prompt() -> None:
    """Every kind of layer has a mask of its own, and one more of each is in the making."""
    one = memory.Sizes(opened("llama"), memory.Extents((1000,), (0,), ((8,),)), 10, 4, patterns=False)
    two = memory.Sizes(opened("gemma3"), memory.Extents((1000,), (0,), ((8,),)), 10, 4, patterns=False)
    assert one.masks(1) == 1000**2 * (4 + 5)
    assert two.masks(1) == 2 * one.masks(1)
    assert one.masks(64) == 1000**2 * 4 + memory.MASKS * 5


def test_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1024)
    model, calls = opened("llama"), []
    handle = model.module.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(MemoryShortage, match=r"one pair of 7 tokens need .* MiB .*; 0 MiB are free: use shorter"):
        patch(model, make_task(make_pair(7, [3])), sites="resid.pre", options=Options())
    handle.remove()
    assert not calls
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert patch(model, make_task(make_pair(7, [3])), sites="resid.pre").raw.size


def test_free_memory_is_read_where_the_system_tells(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    here = torch.device("cpu")
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n", encoding="ascii")
    monkeypatch.setattr(memory, "MEMORY", told)
    assert memory.free_bytes(here) == 2 * MIB
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.free_bytes(here) == 3 * 4096

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert memory.free_bytes(here) is None
