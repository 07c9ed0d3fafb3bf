"""One process: layers that are offloaded, weights in few bits or half precision, and modules that are compiled."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import questions
import torch
from torch import nn

import crosspatch as xp
import zoo
from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.models import guard
from crosspatch.models import layout as layouts
from crosspatch.models.weights import device_of
from naive.patching import difference, patched, read, run

PARTS = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
MIXED = dict.fromkeys(PARTS, "cpu") | {"model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in (*questions.FAMILIES, "gpt2"):
        zoo.module_of(family).save_pretrained(folder / family)
    return folder


def auto(family, folder):
    """What fits into a budget that is too small stays on disk."""
    layout = xp.Layout(device_map="auto", max_memory={"cpu": 60_000}, offload=folder / "out")
    return xp.open_model(folder / family, layout=layout)


def mapped(family, folder):
    return xp.open_model(folder / family, layout=xp.Layout(device_map=MIXED, offload=folder / "out"))


def in_memory(family, folder):
    """A module that its owner has dispatched: weights in memory, fetched for each forward."""
    module = xp.open_model(folder / family).module
    return xp.open_model(accelerate.cpu_offload(module, execution_device=torch.device("cpu")))


@pytest.mark.parametrize("way", [auto, mapped, in_memory])
@pytest.mark.parametrize("family", questions.FAMILIES)
def test_offloaded_layers_change_nothing(family, way, folder):
    """All answers, the device and the fingerprint are those of the model in memory."""
    model = way(family, folder)
    waiting = [name for name, p in model.module.named_parameters() if p.is_meta]
    assert any("layers.2" in name for name in waiting)
    every = questions.answers if way is mapped else questions.main
    assert not questions.unequal(every(model), every(zoo.opened(family)), to=1e-7)
    assert model.device == torch.device("cpu")
    assert model.fingerprint == xp.open_model(folder / family).fingerprint
    assert waiting == [name for name, p in model.module.named_parameters() if p.is_meta]


def test_the_embedding_may_be_offloaded(folder):
    """Prompts, the embedding and the readout, too, when nothing at all is in memory."""
    layout = xp.Layout(device_map=dict.fromkeys((*PARTS, "model.layers"), "disk"), offload=folder / "out")
    model = xp.open_model(folder / "llama", layout=layout)
    assert all(p.is_meta for p in model.module.parameters())
    asked = {"sites": "resid.pre@*, mlp.hidden[1, 3]@end", "metric": "kl"}
    expected = xp.patch(zoo.opened("llama"), questions.task(), **asked).raw
    np.testing.assert_allclose(xp.patch(model, questions.task(), **asked).raw, expected, atol=1e-7)


def test_tasks_ask_an_offloaded_model(folder):
    """The check of a task's answers runs where the model computes, not where its weights wait."""
    report = xp.tasks.check(auto("llama", folder), questions.task())
    expected = xp.tasks.check(zoo.opened("llama"), questions.task())
    assert (report.accuracy, report.wrong) == (expected.accuracy, expected.wrong)
    assert report.logit_diff == pytest.approx(expected.logit_diff, abs=1e-6)


@pytest.mark.parametrize("family", questions.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_out_in_single(family, dtype, folder):
    """Offloaded and whole, the numbers of a half-precision model are the same, and finer than its logits could be."""
    layout = xp.Layout(device_map=MIXED, offload=folder / "out")
    model = xp.open_model(folder / family, layout=layout, dtype=dtype)
    whole = xp.open_model(folder / family, dtype=dtype)
    found, expected = (xp.patch(m, questions.task(), sites="resid.pre@*, attn.head[*, *]@end") for m in (model, whole))
    np.testing.assert_allclose(found.raw, expected.raw, atol=1e-7)
    coarse = torch.from_numpy(expected.base).to(dtype).float().numpy()
    assert (coarse != expected.base).any()
    exact = xp.patch(zoo.opened(family), questions.task(), sites="resid.pre@*, attn.head[*, *]@end")
    assert np.nanmax(np.abs(expected.raw - exact.raw)) < 0.05 * np.nanmax(np.abs(exact.raw))


QUANTISED = [(8, "torchao"), (4, "torchao"), (8, "bitsandbytes"), (4, "bitsandbytes")]


@pytest.mark.parametrize(("bits", "package"), QUANTISED)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_few_bits(bits, package, tmp_path, monkeypatch):
    """A quantised model is patched as it is: the sweep is one forward a patch on the same module."""
    monkeypatch.setattr(layouts, "_PACKAGES", {bits: (package,)})
    zoo.fresh("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    if not find_spec(package):
        with pytest.raises(MissingExtra, match=package):
            xp.open_model(tmp_path, layout=xp.Layout(bits=bits))
        return
    model = xp.open_model(tmp_path, layout=xp.Layout(bits=bits))
    module, anatomy = model.module, model.anatomy
    assert (anatomy.d_mlp, anatomy.heads, anatomy.kv_heads, anatomy.d_head) == (128, 4, 2, 16)
    pair = zoo.make_pair(9, (3, 7))
    sites = [f"attn.head[{layer}, {head}]@end" for layer in range(3) for head in (0, 3)]
    found = xp.patch(model, zoo.make_task(pair), sites=", ".join(sites)).raw[:, 0]
    base, expected = difference(run(module, pair.corrupt)), []
    for layer in range(3):
        spot = module.model.layers[layer].self_attn.o_proj, "in"
        value = read(module, pair.clean, *spot)
        for head in (0, 3):
            at = [8], list(range(16 * head, 16 * head + 16))
            expected.append(difference(patched(module, pair.corrupt, spot, value, at)) - base)
    # bitsandbytes' 8 bits quantise activations too, by the largest of each call: packed rows differ by a rounding.
    close = 2e-2 if (bits, package) == (8, "bitsandbytes") else 1e-5
    np.testing.assert_allclose(found, expected, atol=close * np.abs(expected).max())
    assert model.fingerprint == xp.open_model(module).fingerprint != zoo.opened("llama").fingerprint
    xp.attribution.direct(model, zoo.make_task(pair))


def test_quantising_needs_a_package(monkeypatch, folder):
    """The error says what to install."""
    monkeypatch.setattr(layouts, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="pip install torchao"):
        xp.open_model(folder / "llama", layout=xp.Layout(bits=8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tp": 2, "device_map": "auto"}, "exclude each other: choose one"),
        ({"tp": 2, "fsdp": 2}, "exclude each other: choose one"),
        ({"tp": 0}, "1 or more"),
        ({"fsdp": 2, "bits": 8}, "quantised weights are not split"),
        ({"bits": 3}, "give 8, 4, or None"),
        ({"offload": "out"}, "belong to a device map"),
    ],
)
def test_layouts_that_contradict_themselves(settings, words):
    """Each says what to choose between."""
    with pytest.raises(BadInput, match=words):
        xp.Layout(**settings)


@pytest.mark.parametrize("settings", [{"tp": 2}, {"fsdp": 2}])
def test_several_processes_need_torchrun(settings, folder, monkeypatch):
    """One process alone is told how to start two."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match="torchrun --nproc-per-node 2"):
        xp.open_model(folder / "llama", layout=xp.Layout(**settings))


def test_a_device_and_a_layout_that_places():
    """The device is said once."""
    with pytest.raises(BadInput, match="leave device out"):
        xp.open_model("gemma-3-270m", device="cpu", layout=xp.Layout(device_map="auto"))


def test_a_device_and_a_kernel(folder):
    """A layout that places nothing goes with a device."""
    model = xp.open_model(folder / "llama", device="cpu", layout=xp.Layout(attention="eager"))
    assert model.module.config._attn_implementation == "eager"
    assert model.device == torch.device("cpu")


def test_compiled_code_would_ignore_a_patch():
    """The danger: a hook that comes after the first call of a compiled module does nothing, and nothing is said."""
    module = zoo.fresh("llama")
    with torch.no_grad():
        plain = module(questions.prompt()).logits
        hook = {"module": module.model.layers[1].mlp, "act": lambda _, __, output: output * 0}
        assert (_hooked(module, hook) - plain).abs().max() > 1e-2
        module.compile(backend="eager")
        module(questions.prompt())
        assert (_hooked(module, hook) - plain).abs().max() < 1e-5


def _hooked(module, hook):
    handle = hook["module"].register_forward_hook(hook["act"])
    logits = module(questions.prompt()).logits
    handle.remove()
    return logits


def compiled_whole(module):
    module.compile(backend="eager")


def compiled_layer(module):
    module.model.layers[1].compile(backend="eager")


def wrapped_layer(module):
    module.model.layers[1] = torch.compile(module.model.layers[1], backend="eager")


def compiled_forward(module):
    module.model.layers[1].mlp.forward = torch.compile(module.model.layers[1].mlp.forward, backend="eager")


@pytest.mark.parametrize("way", [compiled_whole, compiled_layer, wrapped_layer, compiled_forward])
def test_a_compiled_module_is_refused(way):
    """When it is opened, and at each later verb if it was compiled after that."""
    module = zoo.fresh("llama")
    model = xp.open_model(module)
    way(module)
    task, prompt = questions.task(), questions.prompt()
    for ask in (
        lambda: xp.open_model(module),
        lambda: xp.patch(model, task, sites="resid.pre@end"),
        lambda: xp.path_patch(model, task, paths=xp.Paths("attn.head[0, *]@end")),
        lambda: xp.capture(model, "mlp.out").__enter__(),
        lambda: xp.write(model, {"mlp.out[1]": xp.Zero()}).__enter__(),
        lambda: xp.patch_modules(module, base=prompt, source=prompt, metric=lambda output: output.logits[:, -1, 5]),
    ):
        with pytest.raises(BadInput, match="compiled code ignores hooks silently"):
            ask()


def test_a_wrapper_of_compile_is_taken_off():
    """`torch.compile(module)` leaves the module inside as it was: that one is patched, with the same numbers."""
    module = zoo.fresh("llama")
    model = xp.open_model(torch.compile(module, backend="eager"))
    assert model.module is module
    expected = xp.patch(zoo.opened("llama"), questions.task(), sites="attn.head[*, *]@end").raw
    np.testing.assert_array_equal(xp.patch(model, questions.task(), sites="attn.head[*, *]@end").raw, expected)


def test_wrappers_and_pieces_are_refused():
    """Each is named, with what to give instead."""
    module = zoo.fresh("llama")
    with pytest.raises(BadInput, match=r"DataParallel is a wrapper: give the module inside"):
        xp.open_model(nn.DataParallel(module).eval())
    whole = accelerate.hooks.AlignDevicesHook(execution_device="cpu", offload=True, place_submodules=True)
    whole.weights_map = dict(module.state_dict())
    accelerate.hooks.add_hook_to_module(module, whole)
    with pytest.raises(BadInput, match="offloaded as one piece"):
        xp.open_model(module)


def test_wrapped_parts_are_refused():
    """Names of parts would lead to the wrapper."""
    module = zoo.fresh("llama")
    module.model.layers[1] = nn.DataParallel(module.model.layers[1]).eval()
    with pytest.raises(BadInput, match=r"model.layers.1 is wrapped in DataParallel"):
        xp.open_model(module)


def test_two_ways_of_splitting_are_refused(monkeypatch):
    """Tensor parallelism and FSDP2 at once, and experts on other ranks, are not proved."""
    module = zoo.fresh("llama")
    monkeypatch.setattr(guard, "tensor_parallel", lambda _: True)
    monkeypatch.setattr(guard, "is_fsdp", lambda _: True)
    with pytest.raises(BadInput, match="use one of them"):
        xp.open_model(module)
    module.config.distributed_config = SimpleNamespace(ep_size=4)
    with pytest.raises(BadInput, match="ep_size=4"):
        xp.open_model(module)


def test_processes_need_a_transformers_that_knows_them(monkeypatch):
    """The error names the version."""
    monkeypatch.setitem(sys.modules, "transformers.distributed.configuration_utils", None)
    with pytest.raises(MissingExtra, match=r"transformers 5.19 or newer"):
        xp.Layout(tp=2).arguments(None, torch.float32)


def test_hooks_in_a_row_say_where_a_part_computes():
    """Accelerate chains hooks; the one that moves inputs says where to. A part without weights has no place."""
    part = nn.Linear(2, 2)
    for hook in (accelerate.hooks.ModelHook(), accelerate.hooks.AlignDevicesHook(execution_device="meta")):
        accelerate.hooks.add_hook_to_module(part, hook, append=True)
    assert device_of(nn.Sequential(part)) == torch.device("meta")
    assert device_of(nn.ReLU()) is None


@pytest.mark.parametrize("by", ["atp*", "ig", "relp"])
def test_estimates_of_an_offloaded_model(by, folder):
    """Gradients pass weights that wait on disk, and nothing is left on a device."""
    sites = "resid.pre, attn.head, attn.q@*"
    layout = xp.Layout(device_map=MIXED, offload=folder / "out")
    away = xp.open_model(folder / "llama", layout=layout)
    preset = {"preset": "cp"} if by == "relp" else {}
    found, expected = (
        xp.attribute(model, questions.task(), sites=sites, by=by, **preset)
        for model in (away, xp.open_model(folder / "llama"))
    )
    np.testing.assert_allclose(found.raw, expected.raw, atol=1e-5 * np.nanmax(np.abs(expected.raw)))
