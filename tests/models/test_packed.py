"""Runs on packed and on padded tokens: every stream, activation and pattern is the model's own."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from crosspatch.engine.patching import patch
from crosspatch.engine.writing import needed_kinds
from crosspatch.models.attention import Segment
from crosspatch.models.open import open_model
from crosspatch.models.packed import positions_of
from crosspatch.models.runs import Lane, Prompts, Run, run_lanes, workbench
from crosspatch.sites import Site
from naive.families import activation, patterns, spot_of
from naive.patching import difference, patched, read, run
from zoo import BASE, LLAMA_SIZES, VOCAB, ZOO, make_pair, make_task, opened

DOUBLE = torch.float64
# One family of each way to be handed positions, masks and heads; all families are swept in test_families.
FAMILIES = ["gpt2", "gptj", "opt", "bloom", "falcon_7b", "phi3", "mistral", "gemma2", "gemma3", "olmo2", "cohere"]
# These take the softmax of attention in single precision, whose rounding differs between shapes.
SINGLE_SOFTMAX = ("gptj", "bloom")
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def tokens(length: int, seed: int = 0, start: Sequence[int] = ()) -> tuple[int, ...]:
    """Random tokens that begin with the given ones."""
    drawn = torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return (*start, *drawn[len(start) :])


Rows = Sequence[Sequence[int]]


def lanes_of(name: str, first: Rows, other: Rows, starts: Sequence[int]) -> list[Run]:
    """Run two lanes and keep every activation of the second."""
    model = opened(name, DOUBLE)
    kinds = needed_kinds(sorted(set(model.anatomy.kinds()) - {"logits", "resid.mid"}))
    prompts = [Prompts.of(rows, model.device) for rows in (first, other)]
    with workbench(model, prompts[0]) as bench:
        return run_lanes(bench, [Lane(prompts[0]), Lane(prompts[1], kinds, starts)])


def stream_by_hand(name: str, ids: tuple[int, ...], layer: int) -> torch.Tensor:
    """The stream entering a layer, or leaving the last."""
    last = layer == len(opened(name, DOUBLE).module.get_submodule(ZOO[name].blocks))
    return activation(name, "resid.post" if last else "resid.pre", layer - last, ids, DOUBLE)


@pytest.mark.parametrize("name", FAMILIES)
def test_lanes_give_the_models_own_activations(name: str) -> None:
    """Prompts of unequal lengths in one call, the second lane from a later start: all kinds, in double precision."""
    first = [tokens(9, 1), tokens(5, 2), tokens(9, 3)]
    starts = (4, 2, 0)
    other = [tokens(len(ids), 10 + i, ids[:start]) for i, (ids, start) in enumerate(zip(first, starts, strict=True))]
    whole, late = lanes_of(name, first, other, starts)
    beast, close = ZOO[name], {"atol": 1e-6, "rtol": 1e-6} if name in SINGLE_SOFTMAX else CLOSE
    for row, (ids, own, start) in enumerate(zip(first, other, starts, strict=True)):
        for layer in range(4):
            torch.testing.assert_close(whole.stream[layer][row, : len(ids)], stream_by_hand(name, ids, layer), **close)
            found, expected = late.stream[layer][row, start : len(ids)], stream_by_hand(name, own, layer)[start:]
            torch.testing.assert_close(found, expected, **close)
        for kind in beast.spots:
            for layer in range(3):
                columns = beast.columns(kind, None)
                found = late.seen[kind][layer][row, start : len(ids), columns]
                torch.testing.assert_close(found, activation(name, kind, layer, own, DOUBLE)[start:, columns], **close)
        for layer, expected in enumerate(patterns(name, own, DOUBLE) if not beast.own_attention else ()):
            found = late.patterns[layer][row, :, start : len(ids), : len(ids)]
            # Attention weights are computed in float32 by all of transformers' eager kernels.
            torch.testing.assert_close(found, expected[:, start:], atol=1e-6, rtol=1e-6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 7), st.integers(0, 99)), min_size=1, max_size=4))
def test_any_lengths_and_starts_pack(rows: list[tuple[int, int, int]]) -> None:
    """Whatever lengths and shared prefixes meet in one call, each row is as if it were alone."""
    for name in ("gemma3", "gpt2"):
        starts = tuple(min(start, length - 1) for length, start, _ in rows)
        first = [tokens(length, seed) for length, _, seed in rows]
        other = [tokens(len(ids), 7, ids[:start]) for ids, start in zip(first, starts, strict=True)]
        whole, late = lanes_of(name, first, other, starts)
        for row, start in enumerate(starts):
            alone = stream_by_hand(name, first[row], 3), stream_by_hand(name, other[row], 3)
            torch.testing.assert_close(whole.stream[3][row, : len(first[row])], alone[0], **CLOSE)
            torch.testing.assert_close(late.stream[3][row, start : len(first[row])], alone[1][start:], **CLOSE)


def test_positions_follow_the_segments() -> None:
    """Rows of one segment repeat its positions."""
    segments = [Segment(2, 3, torch.tensor([0, 1])), Segment(0, 1, torch.tensor([4]))]
    assert positions_of(segments).tolist() == [2, 3, 4, 2, 3, 4, 0]
    assert [segment.tokens for segment in segments] == [6, 1]


def test_a_prompt_of_one_token_runs() -> None:
    """The shortest prompt there is."""
    whole, _ = lanes_of("llama", [(5,)], [(6,)], (0,))
    torch.testing.assert_close(whole.stream[3][0], stream_by_hand("llama", (5,), 3), **CLOSE)


def test_a_late_start_needs_the_keys_before_it() -> None:
    """Rows that start late without a lane before them are an error, not an answer."""
    model = opened("llama")
    prompts = Prompts.of([(5, 6, 7)], model.device)
    segments = [Segment(1, 2, torch.tensor([0]))]
    with workbench(model, prompts) as bench, pytest.raises(RuntimeError, match="keys and values before it"):
        bench.call(0, torch.zeros(2, 32), segments, past=None, visits=(), job=bench.job)


def tiny(model_type: str, **sizes: object) -> torch.nn.Module:
    """Build another family that is not in the zoo, with weights as there."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**BASE, **sizes})).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(4) if weight.ndim > 1 else weight.add_(torch.randn(weight.shape) * 0.1)
    return module


def check_streams(module: torch.nn.Module, layer: int) -> None:
    """Denoise the stream of one layer by hand and by the sweep, on pairs of two lengths."""
    pairs = make_pair(9, (3, 7)), make_pair(6, (2, 4), seed=1)
    sites = [Site("resid.pre", layer, None, at) for at in (3, 4, -1)]
    effects = patch(open_model(module), make_task(*pairs), sites=sites)
    block, scale = module.model.layers[layer], float(abs(effects.raw).max())
    for j, pair in enumerate(pairs):
        value = read(module, pair.clean, block, "in")
        for i, at in enumerate((3, 4, len(pair.clean) - 1)):
            logits = patched(module, pair.corrupt, (block, "in"), value, ([at], slice(None)))
            slow = difference(logits) - difference(run(module, pair.corrupt))
            assert effects.raw[i, j] == pytest.approx(slow, abs=1e-4 * scale)


def test_blocks_that_attend_twice_are_not_packed() -> None:
    """Differential attention keeps two sets of values: whole rows are run, and they are right."""
    module = tiny("diffllama", **LLAMA_SIZES, head_dim=8)
    assert not open_model(module).anatomy.packed
    check_streams(module, 1)


def test_blocks_that_are_handed_something_of_their_tokens() -> None:
    """Gemma 4 hands each block an embedding of the token itself: base and source rows get their own."""
    sizes = {"head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 2, "sliding_window": 4}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    own = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 0}
    module = tiny("gemma4_text", **LLAMA_SIZES, **sizes, layer_types=kinds, **own)
    model = open_model(module)
    assert not model.anatomy.packed
    assert "attn.head" in model.anatomy.refused  # heads are wider in layers of full attention
    check_streams(module, 1)
    check_streams(module, 2)


def test_rotary_tables_that_depend_on_the_length() -> None:
    """Long and short prompts have other tables (longrope): they are not run together."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0, 2.0, 5.0, 4.0]}
    short = {"original_max_position_embeddings": 7}
    sizes = {**LLAMA_SIZES, **short, "rope_parameters": rope | short}
    module = tiny("phi3", **sizes)
    assert open_model(module).anatomy.by_length
    check_streams(module, 1)


def test_spots_of_the_zoo_are_modules() -> None:
    """The table that these tests lean on names modules that exist in every block."""
    for name, beast in ZOO.items():
        for kind in beast.spots:
            assert all(spot_of(name, kind, layer, torch.float32)[0] for layer in range(3))
