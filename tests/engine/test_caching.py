"""Activation caches: equal to plain hooks, in each family's own precision, resumed, shared by ranks, refused."""

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, CorruptFile, UnknownName
from crosspatch.core.progress import SilentProgress
from crosspatch.engine import ActivationCache, Options, cache_activations, capture
from zoo import D, make_pair, opened

PROMPTS = [make_pair(length, (2,), seed=length).clean for length in (7, 9, 6, 8, 9)]
SITES = "resid.pre, resid.mid[1], resid.post, attn.head, attn.q[2], mlp.hidden[0:2], mlp.out"


class StopAfter(SilentProgress):
    """Presses Ctrl-C after some chunks."""

    def __init__(self, chunks):
        self.left = chunks

    def advance(self, done, note=""):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3", "bloom"])
def test_a_cache_holds_what_hooks_see(name, tmp_path):
    """Every site of every prompt, with no padding, whatever the lengths and the cutting into chunks."""
    model = opened(name)
    for memory in (None, 60_000):
        options = Options(memory=memory)
        cache = cache_activations(model, PROMPTS, sites=SITES, path=tmp_path / f"{memory}", options=options)
        assert cache.complete
        assert len(cache) == len(PROMPTS)
        for number, prompt in enumerate(PROMPTS):
            with capture(model, SITES) as seen, torch.no_grad():
                model.module(input_ids=torch.tensor([prompt]))
            for kind, layer in seen:
                wanted = seen.stores[kind, layer][0]
                if kind in model.anatomy.points:
                    wanted = wanted[..., model.anatomy.points[kind].columns(None)]
                torch.testing.assert_close(cache[f"{kind}[{layer}]", number], wanted, atol=1e-5, rtol=1e-5)


def test_half_precision_is_kept_as_it_is(tmp_path):
    """A bfloat16 model's stream comes back bit for bit; a float32 model may be stored in half the room."""
    from safetensors.torch import load_file

    model = opened("llama", torch.bfloat16)
    cache = cache_activations(model, PROMPTS, sites="resid.post", path=tmp_path / "a")
    held = load_file(tmp_path / "a")["resid.post[1]"]
    assert held.dtype == torch.bfloat16
    assert held.shape == (sum(map(len, PROMPTS)), D)
    assert torch.equal(torch.cat([cache["resid.post[1]", n] for n in range(len(PROMPTS))]), held)
    small = cache_activations(opened("llama"), PROMPTS, sites="mlp.out", path=tmp_path / "b", dtype=torch.bfloat16)
    assert small["mlp.out[0]", 2].dtype == torch.bfloat16


def test_an_interrupted_cache_goes_on(tmp_path):
    """What was finished can be read at once and is not run again."""
    model, path, small = opened("llama"), tmp_path / "x", 60_000
    options = Options(memory=small, progress=StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        cache_activations(model, PROMPTS, sites="mlp.out", path=path, options=options)
    part = ActivationCache.load(path)
    assert 0 < part.file.done.sum() < len(PROMPTS)
    assert part["mlp.out[0]", 0].shape == (7, D)
    with pytest.raises(BadInput, match="prompt 4 is not in this cache: it holds"):
        part["mlp.out[0]", 4]
    before = np.array(part.file.array("mlp.out[0]", "<f4"))
    whole = cache_activations(model, PROMPTS, sites="mlp.out", path=path, options=Options(memory=small))
    assert whole.complete
    first = int(part.file.part(2)[0])
    np.testing.assert_array_equal(before[:first], whole.file.array("mlp.out[0]", "<f4")[:first])


def test_ranks_fill_one_file(tmp_path, monkeypatch):
    """Each does its own chunks; together the file is that of one process."""
    model, options = opened("llama"), Options(memory=60_000)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        cache = cache_activations(model, PROMPTS, sites="resid.post", path=tmp_path / "x", options=options)
        assert cache.complete == (rank == "1")
    monkeypatch.delenv("WORLD_SIZE")
    alone = cache_activations(model, PROMPTS, sites="resid.post", path=tmp_path / "y", options=options)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert alone.sites == ("resid.post[0]", "resid.post[1]", "resid.post[2]")


def test_what_is_refused(tmp_path):
    """Sites without a width at each token, units, positions, empty prompts, other questions, damaged files."""
    model, path = opened("llama"), tmp_path / "x"
    for sites, told in (
        ("attn.pattern", "not kept in such a file"),
        ("logits, embed", "not kept in such a file"),
        ("attn.head[0, 1]", "leave units and positions out"),
        ("resid.post@-1", "leave units and positions out"),
    ):
        with pytest.raises(BadInput, match=told):
            cache_activations(model, PROMPTS, sites=sites, path=path)
    with pytest.raises(UnknownName):
        cache_activations(model, PROMPTS, sites="resid.post[9]", path=path)
    for prompts in ([], [(1, 2), ()]):
        with pytest.raises(BadInput, match="a token at least"):
            cache_activations(model, prompts, sites="resid.post", path=path)
    assert not path.exists()
    cache = cache_activations(model, PROMPTS, sites="mlp.out", path=path)
    for other in (
        lambda: cache_activations(model, PROMPTS[:2], sites="mlp.out", path=path),
        lambda: cache_activations(model, PROMPTS, sites="mlp.out[0]", path=path),
        lambda: cache_activations(opened("qwen3"), PROMPTS, sites="mlp.out", path=path),
        lambda: cache_activations(model, PROMPTS, sites="mlp.out", path=path, dtype=torch.float16),
    ):
        with pytest.raises(BadInput, match="another question"):
            other()
    with pytest.raises(UnknownName, match="site in this cache"):
        cache["resid.post[0]", 0]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptFile):
        ActivationCache.load(path)


@pytest.mark.parametrize(("name", "output"), [("llama", "self_attn.o_proj"), ("gpt2", "attn.c_proj")])
def test_names_and_shapes_are_those_of_transformer_lens(name, output, tmp_path):
    """Each head's z is its part of what the output projection reads: told by a plain hook, cut by hand."""
    model = opened(name)
    sites = "resid.pre, attn.head, attn.k, attn.out, mlp.hidden"
    cache = cache_activations(model, PROMPTS, sites=sites, path=tmp_path / "x")
    found = cache.to_transformer_lens(model, [1, 4])
    assert {key for key in found if key.startswith("blocks.1.")} == {
        "blocks.1.hook_resid_pre",
        "blocks.1.attn.hook_z",
        "blocks.1.attn.hook_k",
        "blocks.1.hook_attn_out",
        "blocks.1.mlp.hook_post",
    }
    block, seen = model.module.get_submodule(model.anatomy.blocks)[1], []
    handle = block.get_submodule(output).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.module(input_ids=torch.tensor([PROMPTS[1], PROMPTS[4]]))
    handle.remove()
    heads, z = model.module.config.num_attention_heads, found["blocks.1.attn.hook_z"]
    assert z.shape == (2, 9, heads, D // heads)
    for head in range(heads):
        part = seen[0][..., head * (D // heads) : (head + 1) * (D // heads)]
        torch.testing.assert_close(z[:, :, head], part, atol=1e-5, rtol=1e-5)
    kv_heads = getattr(model.module.config, "num_key_value_heads", heads)
    assert found["blocks.1.attn.hook_k"].shape == (2, 9, kv_heads, D // heads)
    assert found["blocks.1.hook_resid_pre"].shape == (2, 9, D)
    assert found["blocks.1.mlp.hook_post"].ndim == 3


def test_what_has_no_name_there_and_prompts_of_many_lengths(tmp_path):
    model = opened("llama")
    cache = cache_activations(model, PROMPTS, sites="resid.post, mlp.in[0]", path=tmp_path / "x")
    assert torch.equal(cache["blocks.2.hook_resid_post", 3], cache["resid.post[2]", 3])
    assert list(cache.to_transformer_lens(model, [0], sites=["resid.post[1]"])) == ["blocks.1.hook_resid_post"]
    name = "blocks.2.hook_resid_post"
    assert list(cache.to_transformer_lens(model, [0], sites=[name])) == [name]
    for call, told in (
        (lambda: cache.to_transformer_lens(model), "prompts of one length"),
        (lambda: cache.to_transformer_lens(model, []), "prompts of one length"),
        (lambda: cache.to_transformer_lens(model, [0]), "mlp.in has no name in TransformerLens"),
    ):
        with pytest.raises(BadInput, match=told):
            call()
    with pytest.raises(UnknownName, match="site in this cache"):
        cache["blocks.2.hook_mlp_out", 0]
