"""Attention patterns: seen and replaced in the watched layers only, by the model's own eager kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from crosspatch.engine.access import capture, write
from crosspatch.engine.edits import Replace, Scale
from crosspatch.models.attention import NAME
from crosspatch.models.open import open_model
from zoo import VOCAB, ZOO, fresh, module_of, opened

ROUTED = [name for name, beast in ZOO.items() if not beast.own_attention]
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def eager(name: str, **inputs: Tensor) -> tuple[Tensor, ...]:
    """The patterns `[batch, head, query, key]` that transformers itself gives, layer by layer."""
    return module_of(name, kernel="eager")(output_attentions=True, **inputs).attentions


@torch.no_grad()
def logits(module: nn.Module, **inputs: Tensor) -> Tensor:
    return module(**inputs).logits


@contextmanager
def spied(kernel: str, note: Callable[[nn.Module], None]) -> Iterator[None]:
    """Count the calls of one of transformers' kernels."""
    own = ALL_ATTENTION_FUNCTIONS[kernel]

    def spy(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        note(module)
        return own(module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[kernel] = spy
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[kernel] = own


@pytest.mark.parametrize("name", ROUTED)
def test_patterns_are_those_of_the_eager_kernel(name: str) -> None:
    """Softcaps, sinks and sliding windows are in them; the logits stay the model's own."""
    model = opened(name)
    with capture(model, "attn.pattern") as seen:
        found = logits(model.module, input_ids=IDS)
    for layer, expected in enumerate(eager(name, input_ids=IDS)):
        torch.testing.assert_close(seen[f"attn.pattern[{layer}, all]"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, logits(model.module, input_ids=IDS), atol=1e-4, rtol=1e-4)


def test_sliding_windows_and_sinks_show_in_the_pattern() -> None:
    """Keys out of the window of 4 get nothing; a sink takes a share, so a row sums to less than one."""
    with capture(opened("gpt_oss"), "attn.pattern") as seen:
        logits(opened("gpt_oss").module, input_ids=IDS)
    sliding, full = seen["attn.pattern[0, all]"], seen["attn.pattern[1, all]"]
    assert sliding[..., 8, :5].max() == 0 < sliding[..., 8, 5:].min()
    assert full[..., 8, 0].min() > 0
    assert full.triu(1).max() == 0
    assert full.sum(-1).max() < 1 - 1e-3
    with capture(opened("llama"), "attn.pattern") as seen:
        logits(opened("llama").module, input_ids=IDS)
    torch.testing.assert_close(seen["attn.pattern[0, all]"].sum(-1), torch.ones(2, 4, 9))


@pytest.mark.parametrize("side", ["left", "right"])
def test_patterns_of_a_padded_batch(side: str) -> None:
    """Under an attention mask the pattern of real queries is the eager kernel's, and padding gets nothing."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, slice(3) if side == "left" else slice(6, 9)] = 0
    with capture(opened("qwen2"), "attn.pattern[1]", mask=mask) as seen:
        logits(opened("qwen2").module, input_ids=IDS, attention_mask=mask)
    expected = eager("qwen2", input_ids=IDS, attention_mask=mask)[1]
    real = mask[1].bool()
    found = seen["attn.pattern[1, all]"]
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1][:, real], expected[1][:, real], atol=1e-6, rtol=1e-5)
    assert found[1][:, real][..., ~real].abs().max() == 0


def test_other_layers_keep_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the watched layer meets the eager kernel, and leaves SDPA only where its pattern is replaced."""
    model, calls, slow = opened("llama"), [], []
    own, modules = modeling_llama.eager_attention_forward, [layer.self_attn for layer in model.module.model.layers]

    def note(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slow.append(module)
        return own(module, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", note)
    with spied("sdpa", calls.append):
        with capture(model, "attn.pattern[1]"):
            logits(model.module, input_ids=IDS)
        assert (calls, slow) == (modules, [modules[1]])
        calls.clear()
        with write(model, {"attn.pattern[1]": Scale(0.5)}):
            logits(model.module, input_ids=IDS)
        assert (calls, slow) == ([modules[0], modules[2]], [modules[1], modules[1]])
        calls.clear()
        logits(model.module, input_ids=IDS)
        assert (calls, len(slow)) == (modules, 2)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_configuration_is_put_back(kernel: str, error: type[BaseException] | None) -> None:
    """The chosen kernel is as it was, however the block ends."""
    module = module_of("llama", kernel=kernel)
    model = open_model(module)
    assert module.config._attn_implementation == kernel
    if error:
        with pytest.raises(error), capture(model, "attn.pattern"):
            raise error
    else:
        with capture(model, "attn.pattern"):
            assert module.config._attn_implementation == NAME
    assert module.config._attn_implementation == kernel
    assert all(layer.self_attn.config._attn_implementation == kernel for layer in module.model.layers)


def test_an_eager_model_stays_eager_in_nested_contexts() -> None:
    """A kernel that is not SDPA is remembered by the inner of two contexts too: sinks are not lost."""
    model = opened("gpt_oss")
    with capture(model, "attn.pattern[0]") as outer, capture(model, "attn.pattern[2]") as inner:
        found = logits(model.module, input_ids=IDS)
    torch.testing.assert_close(found, logits(model.module, input_ids=IDS), atol=1e-5, rtol=1e-5)
    patterns = eager("gpt_oss", input_ids=IDS)
    torch.testing.assert_close(outer["attn.pattern[0, all]"], patterns[0])
    torch.testing.assert_close(inner["attn.pattern[2, all]"], patterns[2])


def test_no_context_turns_an_eager_model_to_sdpa() -> None:
    """Layers that nobody watches keep the eager kernel too, in the inner of two contexts as in one."""
    model, calls = open_model(module_of("llama", kernel="eager")), []
    with spied("sdpa", calls.append), capture(model, "attn.pattern[0]"), capture(model, "attn.pattern[1]"):
        logits(model.module, input_ids=IDS)
    assert calls == []


def test_a_pattern_is_replaced_by_hand() -> None:
    """Uniform attention of one head: the head gives the mean of the values up to the query."""
    model = opened("llama")
    uniform = torch.ones(9, 9).tril() / torch.arange(1, 10)[:, None]
    with write(model, {"attn.pattern[1, 2]": Replace(uniform)}), capture(model, "attn.head[1], attn.v[1]") as seen:
        logits(model.module, input_ids=IDS)
    values = seen["attn.v[1, 1]"]  # heads 2 and 3 share the second key-value head
    torch.testing.assert_close(seen["attn.head[1, 2]"], uniform @ values)
    with capture(model, "attn.head[1]") as untouched:
        logits(model.module, input_ids=IDS)
    for head in (0, 1, 3):
        torch.testing.assert_close(seen[f"attn.head[1, {head}]"], untouched[f"attn.head[1, {head}]"])


def test_nested_contexts_see_each_others_patterns() -> None:
    """The outer context acts first, the inner one on what it left, on one layer as on two."""
    model = opened("llama")
    with (
        capture(model, "attn.pattern[1]") as before,
        write(model, {"attn.pattern[1, 0]": Scale(0.5)}),
        capture(model, "attn.pattern[1]") as after,
        write(model, {"attn.pattern[2, 0]": Scale(0.0)}),
        capture(model, "attn.head[2]") as heads,
    ):
        logits(model.module, input_ids=IDS)
    torch.testing.assert_close(after["attn.pattern[1, 0]"], before["attn.pattern[1, 0]"] / 2)
    torch.testing.assert_close(after["attn.pattern[1, 1]"], before["attn.pattern[1, 1]"])
    assert heads["attn.head[2, 0]"].abs().max() == 0 < heads["attn.head[2, 1]"].abs().max()


def test_crosspatch_attention_outside_its_context_is_an_error() -> None:
    """A configuration that names it by mistake does not silently attend."""
    module = fresh("llama")
    with capture(open_model(module), "attn.pattern"):
        pass  # registers the name
    module.config._attn_implementation_internal = NAME
    with pytest.raises(RuntimeError, match="outside its context"):
        logits(module, input_ids=IDS)
