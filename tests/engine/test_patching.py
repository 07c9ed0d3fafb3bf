"""`patch`: what it refuses and warns of, where its numbers say they come from, and that the model is left alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builders_tasks import word_tokenizer
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine.patching import patch, plan_patch, task_hash
from crosspatch.engine.sweep import Options
from crosspatch.metrics import metric_from
from crosspatch.models.hooks import has_foreign_hooks
from crosspatch.models.open import open_model
from crosspatch.sites import Site
from crosspatch.tasks import Task
from naive.patching import difference, patched, read, run
from zoo import ZOO, fresh, make_pair, make_task, opened, uneven

SITES = "resid.pre[1], attn.head[1], mlp.out[1]"


def state(module: nn.Module) -> tuple[object, ...]:
    """Everything about a module that a sweep must leave as it is."""
    return (
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in module.named_modules()},
        {name: (p.requires_grad, p.grad is None, p.data_ptr()) for name, p in module.named_parameters()},
        {name: p.sum().item() for name, p in module.named_parameters()},
        {name: id(m.__dict__.get("forward")) for name, m in module.named_modules()},
        {name: m.training for name, m in module.named_modules()},
        module.config.to_json_string(),
        module.config._attn_implementation,
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


def lived_in(name: str) -> tuple[nn.Module, list[int]]:
    """A module as its owner may hold it: frozen in part, with hooks, and `forward` wrapped as accelerate does."""
    module, calls = fresh(name), []
    block = module.get_submodule(f"{ZOO[name].blocks}.1")
    own = block.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    block.forward = wrapped  # type: ignore[method-assign]
    block.get_submodule(ZOO[name].spots["mlp.in"][0]).register_forward_hook(lambda *_: None)
    block.register_forward_pre_hook(lambda *_: None)
    next(module.parameters()).requires_grad_(False)
    return module, calls


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["llama", "opt", "bloom"])
def test_the_model_is_left_as_it_was(name: str, error: type[BaseException] | None) -> None:
    """Hooks, flags, weights, wrapped forwards, mode and configuration; also after an error in the middle and Ctrl-C."""
    module, calls = lived_in(name)
    model, task = open_model(module), make_task(*uneven())
    count = [0]

    def fail(*_: Any) -> None:
        count[0] += 1
        if error and count[0] > 4:
            raise error("mine")

    module.get_submodule(f"{ZOO[name].blocks}.2").get_submodule(ZOO[name].spots["attn.head"][0]).register_forward_hook(
        fail
    )
    before = state(module)
    calls.clear()
    if error is ValueError:
        with pytest.raises(ValueError, match="mine"):
            patch(model, task, sites=SITES, options=Options(tokens=20))
    else:
        effects = patch(model, task, sites=SITES, options=Options(tokens=20))
        assert np.isnan(effects.raw).any() == (error is not None)
    assert calls
    assert count[0] > 4
    assert state(module) == before


def test_hooks_of_the_users_own_act_and_are_told() -> None:
    """A hook that changes the model changes it for the sweep as for a plain forward."""
    module, pair = fresh("llama"), make_pair(7, (2, 5))
    model = open_model(module)
    plain = patch(model, make_task(pair), sites=[Site("resid.pre", 1, None, 3)])
    module.model.layers[2].mlp.register_forward_hook(lambda _, __, output: 2 * output)
    module.model.layers[0].register_forward_hook(lambda *_: None)
    effects = patch(model, make_task(pair), sites=[Site("resid.pre", 1, None, 3)])
    block = module.model.layers[1], "in"
    logits = patched(module, pair.corrupt, block, read(module, pair.clean, *block), ([3], slice(None)))
    assert effects.raw[0, 0] == pytest.approx(difference(logits) - difference(run(module, pair.corrupt)), abs=1e-4)
    assert abs(effects.raw[0, 0] - plain.raw[0, 0]) > 1e-3
    assert plain.warnings == ()
    assert effects.warnings == (
        "Forward hooks of your own are on model.layers.0 and others: they act during the sweep too, on packed tokens "
        "[1, token, width].",
    )
    assert len(has_foreign_hooks(module)) == 2


def test_warnings_of_layout_and_precision() -> None:
    """One index in prompts of several layouts, and half precision; negative and named positions are fine."""
    task = make_task(*uneven())
    (told,) = patch(opened("llama"), task, sites="resid.pre[0]@3").warnings
    assert "prefer named positions" in told
    assert patch(opened("llama"), task, sites="resid.pre[0]@-1|mid|all").warnings == ()
    same = make_task(make_pair(7, (2,)), make_pair(7, (2,), seed=1))
    assert patch(opened("llama"), same, sites="resid.pre[0]@3").warnings == ()
    half = patch(opened("llama", torch.bfloat16), same, sites="resid.pre[0]@3").warnings
    assert [text.split(":")[0] for text in half] == ["The model runs in half precision"]


def test_provenance_says_where_numbers_come_from() -> None:
    """Settings, hashes, plan and timings, all of them JSON."""
    task = replace(make_task(*uneven()), settings={"seed": 3, "n": 3})
    effects = patch(opened("llama"), task, sites=SITES, direction="noise", metric="prob", options=Options(tokens=50))
    settings = effects.provenance["settings"]
    plan = plan_patch(opened("llama"), task, sites=SITES, direction="noise", options=Options(tokens=50))
    expected = {
        "family": "llama",
        "dtype": "float32",
        "device": "cpu",
        "model_hash": opened("llama").fingerprint,
        "data_hash": task_hash(task),
        "n": 3,
        "direction": "noise",
        "metric": "prob",
        "sites": SITES,
        "complete": True,
        "halvings": 0,
        "packs": plan.packs,
    }
    assert {name: settings[name] for name in expected} == expected
    assert effects.provenance["seed"] == 3
    assert settings["plan"]["token_blocks"] == plan.token_blocks
    assert settings["plan"]["forwards_saved"] == pytest.approx(plan.forwards_saved)
    assert set(settings["timings"]) == {"runs", "patches"}
    assert (effects.model, effects.task, effects.metric, effects.metric_unit, effects.layers) == (
        "LlamaForCausalLM",
        "random tokens",
        "prob",
        "probability",
        3,
    )


def test_examples_are_shown_as_text_or_as_ids() -> None:
    """With a tokenizer the reader sees words, without one the ids; alternatives are joined."""
    pair = make_pair(4, (1,), right=((5,), (9,)), wrong=((7,),))
    bare = patch(opened("llama"), make_task(pair), sites="resid.pre[0]").examples[0]
    assert bare.clean_tokens == tuple(str(token) for token in pair.clean)
    assert (bare.right, bare.wrong, dict(bare.names)) == ("5 | 9", "7", {"mid": 1, "end": 3})
    tokenizer = word_tokenizer()
    model = replace(opened("llama"), tokenizer=tokenizer)
    shown = patch(model, make_task(pair), sites="resid.pre[0]").examples[0]
    assert shown.right.split(" | ") == tokenizer.convert_ids_to_tokens([5, 9])
    assert len(shown.corrupt_tokens) == 4


def test_a_metric_is_the_tasks_unless_given() -> None:
    """By name, as an object, or as a function."""
    task = make_task(*uneven(), metric="prob")
    assert patch(opened("llama"), task, sites=SITES).metric == "prob"
    assert patch(opened("llama"), task, sites=SITES, metric="rank").metric == "rank"
    mine = metric_from(lambda out: out.right[:, 0] * 2, name="mine")
    double = patch(opened("llama"), task, sites=SITES, metric=mine)
    once = patch(opened("llama"), task, sites=SITES, metric="right_logit")
    assert double.metric == "mine"
    np.testing.assert_allclose(double.raw, 2 * once.raw, rtol=1e-6)


Change = Callable[[Task], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda _: {"direction": "both"}, BadInput, r"direction 'both': use 'denoise' .* or 'noise'"),
        (lambda _: {"metric": "logit_dif"}, UnknownName, r"metric 'logit_dif'.*logit_diff"),
        (lambda t: {"task": make_task(replace(t.pairs[0], wrong=()))}, BadInput, "wrong"),
        (
            lambda t: {"task": make_task(t.pairs[0], replace(t.pairs[1], corrupt=t.pairs[1].clean))},
            BadInput,
            "example 1",
        ),
        (lambda t: {"task": make_task(replace(t.pairs[0], wrong=((97,),)))}, BadInput, r"token id 97, but .* 0\.\.96"),
    ],
)
def test_what_is_refused_before_the_model_runs(change: Change, error: type[Exception], words: str) -> None:
    """A dry run refuses what a run refuses, and neither calls the model."""
    module = fresh("llama")
    model, task = open_model(module), make_task(*uneven())
    module.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    given = {"sites": SITES} | change(task)
    asked = given.pop("task", task)
    for ask in (patch, plan_patch):
        with pytest.raises(error, match=words):
            ask(model, asked, **given)


def test_the_hash_of_a_task_knows_its_tokens_and_answers() -> None:
    """Anything that changes numbers changes the hash; texts and names of tasks do not."""
    task = make_task(*uneven())
    same = replace(task, name="other", pairs=tuple(replace(pair, clean_text="x") for pair in task.pairs))
    assert task_hash(same) == task_hash(task)
    first = task.pairs[0]
    for changed in (
        replace(first, clean=(*first.clean[:-1], 96)),
        replace(first, right=((6,),)),
        replace(first, wrong=((6,),)),
        replace(first, names={"mid": 2}),
    ):
        assert task_hash(make_task(changed, *task.pairs[1:])) != task_hash(task)


def test_effects_are_single_precision() -> None:
    """Whatever the model's precision, results are float32."""
    for dtype in (torch.bfloat16, torch.float64):
        effects = patch(opened("llama", dtype), make_task(*uneven()), sites=SITES)
        assert {effects.raw.dtype, effects.base.dtype, effects.source.dtype} == {np.dtype(np.float32)}


def test_a_custom_metric_sees_what_it_asked_for() -> None:
    """Vocabulary and reference are there when asked for, and only then."""
    seen: list[Any] = []

    def score(out: Any) -> Tensor:
        seen.append((out.logits is not None, out.reference is not None))
        return out.right[:, 0]

    for needs, reference in (("answers", False), ("vocab", False), ("vocab", True)):
        seen.clear()
        metric = metric_from(score, name="mine", needs=needs, needs_reference=reference)
        patch(opened("llama"), make_task(*uneven()), sites="resid.pre[1]", metric=metric)
        assert set(seen) == {(needs == "vocab", reference)}
