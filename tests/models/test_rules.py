"""Rules of relevance: the model's own values to the bit, gradients by hand, relevance conserved, nothing left behind.

All families of the zoo are covered, none is refused. Relevance is conserved in all but the mixtures of experts, whose
routers' weights are products that no rule speaks of.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspatch.core.errors import BadInput, NotProved, UnknownName
from crosspatch.models import runs
from crosspatch.models.blocks import final_stream, logits_of
from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.models.rules import RULES, Coverage, relevance_rules
from crosspatch.models.runs import Lane, Prompts, run_lanes, workbench
from naive.rules import identity_gradient, norm_gradient, shares
from zoo import VOCAB, ZOO, fresh, opened

DOUBLE = torch.float64
RELP = ("ln", "identity", "half", "ah")
SETS = [(rule,) for rule in RULES] + [RELP, ("ln", "identity", "half", "uniform")]
EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
GATED = ("phi3", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "stablelm", "cohere", "granite")
every_family = pytest.mark.parametrize("name", ZOO)


def ids_of(*shape: int) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(3))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@contextmanager
def streams(module: nn.Module, blocks: str) -> Iterator[list[Tensor]]:
    """Keep what each block reads in the module's own forward, and what the last one gives."""
    seen: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, __: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    parts = list(module.get_submodule(blocks))  # pyright: ignore
    hooks = [part.register_forward_pre_hook(before, with_kwargs=True) for part in parts]
    hooks.append(parts[-1].register_forward_hook(after))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gradients(module: nn.Module, name: str, ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The difference of two last logits, every stream, and its gradient by the module's own forward."""
    with streams(module, ZOO[name].blocks) as seen:
        logits = module(input_ids=ids, use_cache=False).logits
    metric = (logits[:, -1, 5] - logits[:, -1, 7]).sum()
    return metric.detach(), seen, list(torch.autograd.grad(metric, seen))


def precise(name: str, kernel: str | None = None, **settings: Any) -> nn.Module:
    """Build a module in double precision; the kernel that runs all experts in one call has none."""
    module = fresh(name, kernel=kernel, **settings)
    if name in EXPERTS:
        module.set_experts_implementation("eager")
    return module.double()


@lru_cache
def double(name: str) -> Model:
    """Return an opened model in double precision that tests share."""
    return open_model(precise(name))


def ruled(name: str, rules: Collection[str], ids: Tensor) -> list[Tensor]:
    model = double(name)
    with relevance_rules(model.module, model.anatomy, rules) as coverage:
        grads = gradients(model.module, name, ids)[2]
    coverage.require()
    return grads


# Values.


@every_family
@pytest.mark.parametrize("kernel", [None, "eager"])
def test_values_are_the_modules_own(name: str, kernel: str | None) -> None:
    """Logits of the own forward are the same to the bit with each rule and with all; nothing that ran was missed."""
    module = fresh(name, kernel=kernel) if kernel else opened(name).module
    anatomy, ids = opened(name).anatomy, ids_of(2, 9)
    expected = module(input_ids=ids).logits
    for rules in SETS:
        with relevance_rules(module, anatomy, rules) as coverage:
            assert torch.equal(module(input_ids=ids).logits, expected), rules
        coverage.require()


@every_family
def test_packed_values_are_the_modules_own(name: str) -> None:
    """Streams of packed tokens, rows that start late among them, and the readout are the same to the bit."""
    model, prompts = opened(name), Prompts.of([list(range(5, 14)), list(range(20, 26))], torch.device("cpu"))
    lanes = [Lane(prompts), Lane(prompts, ("attn.out", "mlp.out"), (3, 2))]

    def run() -> list[Tensor]:
        with workbench(model, prompts) as bench:
            one, two = run_lanes(bench, lanes)
            last = final_stream(model.module, model.anatomy.readout, one.stream[-1][:, 5])
            logits = logits_of(model.module, model.anatomy.readout, last)
        return [*one.stream, *two.stream, *two.seen["mlp.out"].values(), logits]

    expected = run()
    for rules in SETS:
        with relevance_rules(model.module, model.anatomy, rules) as coverage:
            found = run()
        coverage.require()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), rules


# Gradients.


@every_family
@pytest.mark.parametrize("last", ["ah", "uniform"])
def test_packed_gradients_are_those_of_the_own_forward(name: str, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks called one by one on packed tokens and `final_stream` give the own forward's relevance of every stream."""
    model, ids = double(name), ids_of(2, 7)
    if not model.anatomy.readout.direct:
        pytest.skip("only the own forward gives this model's logits")
    rules = ("ln", "identity", "half", last)
    expected = ruled(name, rules, ids)
    monkeypatch.setattr(runs, "untracked", lambda _: torch.enable_grad())
    prompts = Prompts.of(ids.tolist(), ids.device)
    with relevance_rules(model.module, model.anatomy, rules) as coverage, workbench(model, prompts) as bench:
        with streams(model.module, ZOO[name].blocks) as seen:
            run = run_lanes(bench, [Lane(prompts)])[0]
        last_stream = final_stream(model.module, model.anatomy.readout, run.stream[-1][:, -1])
        logits = logits_of(model.module, model.anatomy.readout, last_stream)
    coverage.require()
    found = torch.autograd.grad((logits[:, 5] - logits[:, 7]).sum(), seen)
    for ours, own in zip(found, expected, strict=True):
        assert torch.allclose(ours.reshape(own.shape), own, rtol=1e-5, atol=1e-7 * float(own.abs().max()))


@every_family
def test_norms_have_a_constant_scale(name: str) -> None:
    """The gradient through each norm of each family is that of a gain, found from its values; and was not before."""
    model = double(name)
    norms = {path: part for path, part in model.module.named_modules() if "Norm" in type(part).__name__}
    assert norms
    for path, norm in norms.items():
        weight = next(norm.parameters())
        x = noise(1, 6, *weight.shape).requires_grad_()
        seed = noise(*x.shape, seed=1)
        with relevance_rules(model.module, model.anatomy, ("ln",)) as coverage:
            y = norm(x)
        coverage.require()
        assert coverage.norms == 1, path
        found = torch.autograd.grad(y, x, seed)[0]
        centred = "LayerNorm" in type(norm).__name__
        by_hand = norm_gradient(x, y, getattr(norm, "bias", None), seed, centred=centred)
        assert torch.allclose(found, by_hand, rtol=1e-4, atol=1e-5 * float(found.abs().max())), path
        plain = torch.autograd.grad(norm(x), x, seed)[0]
        assert not torch.allclose(plain, by_hand, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-3), nn.RMSNorm(8), nn.LayerNorm(8, bias=False)])
def test_torchs_own_norms(norm: nn.Module, dtype: torch.dtype) -> None:
    """Each of torch's own norms, alone in a module that has blocks, in single and in half precision."""
    model, norm = opened("llama"), norm.to(dtype)
    block = model.module.get_submodule("model.layers.0")
    x = noise(5, 8, dtype=dtype).requires_grad_()
    seed = noise(5, 8, seed=1, dtype=dtype)
    block.add_module("extra", norm)
    try:
        with relevance_rules(model.module, model.anatomy, ("ln",)) as coverage:
            y = norm(x)
    finally:
        del block.extra
    coverage.require()
    assert torch.equal(y, norm(x))
    found = torch.autograd.grad(y, x, seed)[0].double()
    bias = getattr(norm, "bias", None)
    exact = norm_gradient(x.double(), y.double(), bias, seed.double(), centred=isinstance(norm, nn.LayerNorm))
    assert torch.allclose(
        found, exact, rtol=1e-3 if dtype == torch.float32 else 0.1, atol=1e-4 if bias is None else 0.1
    )


@every_family
def test_activations_multiply(name: str) -> None:
    """The gradient through each activation is f(z) / z, also at zero."""
    model = double(name)
    activations = {
        path: part
        for path, part in model.module.named_modules()
        if path.rpartition(".")[2] in ("act", "act_fn", "activation_fn", "gelu_impl")
    }
    assert activations or name == "gpt_oss"  # writes its own inline, see below
    for path, activation in activations.items():
        z = torch.cat([noise(50) * 2, torch.zeros(1, dtype=DOUBLE)]).requires_grad_()
        with relevance_rules(model.module, model.anatomy, ("identity",)) as coverage:
            y = activation(z)
        assert coverage.activations == 1, path
        found = torch.autograd.grad(y.sum(), z)[0]
        assert torch.allclose(
            found, identity_gradient(z, y, torch.ones_like(y)), rtol=1e-5, atol=1e-4 * (name == "opt")
        )
        assert torch.equal(y, activation(z))


def test_gated_mlp_by_hand() -> None:
    """Llama's MLP with both rules: half of what each factor gets, and a coefficient in place of the slope."""
    model = double("llama")
    mlp = model.module.get_submodule("model.layers.1.mlp")
    x, seed = noise(4, 32).requires_grad_(), noise(4, 32, seed=1)
    with relevance_rules(model.module, model.anatomy, ("identity", "half")) as coverage:
        found = torch.autograd.grad(mlp(x), x, seed)[0]
    assert (coverage.activations, coverage.products) == (1, 1)
    gate, up, down = (mlp.get_submodule(f"{part}_proj").weight for part in ("gate", "up", "down"))
    z, u, back = x @ gate.T, x @ up.T, seed @ down
    slope = identity_gradient(z, F.silu(z), torch.ones_like(z))
    by_hand = (0.5 * back * u * slope) @ gate + (0.5 * back * F.silu(z)) @ up
    assert torch.allclose(found, by_hand, rtol=1e-9)


def experts_of(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The experts of a block, and a choice of them for four tokens with fixed weights."""
    module = double(name).module.get_submodule(f"{ZOO[name].blocks}.1.mlp.experts")
    return module, (torch.tensor([[0, 1], [2, 3], [1, 3], [0, 2]]), noise(4, 2, seed=2).abs())


def mlp_of(name: str) -> nn.Module:
    block = double(name).module.get_submodule(f"{ZOO[name].blocks}.1")
    return block.get_submodule(ZOO[name].spots["mlp.in"][0])


@pytest.mark.parametrize("name", [*GATED, *EXPERTS])
def test_factors_get_half(name: str) -> None:
    """With the half rule alone, a gated MLP, or experts with fixed weights, hand on half of the plain gradient."""
    model = double(name)
    mlp, more = experts_of(name) if name in EXPERTS else (mlp_of(name), ())
    x, seed = noise(4, 32).requires_grad_(), noise(4, 32, seed=1)

    def gradient(rules: Sequence[str]) -> tuple[Tensor, Coverage]:
        with relevance_rules(model.module, model.anatomy, rules) as coverage:
            out = experts(x) if more else mlp(x[None])
        coverage.require()
        return torch.autograd.grad(out.reshape(4, 32), x, seed)[0], coverage

    def experts(hidden: Tensor) -> Tensor:
        # Called by their parent's forward in a model; alone they are in no MLP, so a parent stands around them.
        parent = model.module.get_submodule(f"{ZOO[name].blocks}.1.mlp")
        parent.__dict__["forward"] = lambda h: mlp(h, *more)
        try:
            return parent(hidden)
        finally:
            del parent.__dict__["forward"]

    plain, half = gradient(()), gradient(("half",))
    assert half[1].products >= 1
    assert torch.allclose(half[0], 0.5 * plain[0], rtol=1e-9)
    assert not torch.allclose(gradient(("identity",))[0], plain[0], rtol=1e-3)


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {*GATED, *EXPERTS}))
def test_plain_mlps_have_no_product(name: str) -> None:
    """An MLP without a gate keeps its gradient under the half rule, and no product is counted."""
    ids, model = ids_of(1, 6), double(name)
    assert all(torch.equal(a, b) for a, b in zip(ruled(name, ("half",), ids), ruled(name, (), ids), strict=True))
    with relevance_rules(model.module, model.anatomy, ("half",)) as coverage:
        model.module(input_ids=ids)
    assert coverage.products == 0


def test_inline_activation() -> None:
    """GPT-OSS writes gate · sigmoid(α · gate) without a module: its sigmoid counts as a constant."""
    model, (experts, choice) = double("gpt_oss"), experts_of("gpt_oss")
    del choice
    parent = model.module.get_submodule("model.layers.1.mlp")
    pair = (noise(3, 10) * 0.5).requires_grad_()
    parent.__dict__["forward"] = experts._apply_gate
    try:
        with relevance_rules(model.module, model.anatomy, ("identity", "half")) as coverage:
            out = parent(pair)
    finally:
        del parent.__dict__["forward"]
    coverage.require()
    found = torch.autograd.grad(out.sum(), pair)[0]
    gate, up = pair[..., ::2], pair[..., 1::2]
    slope = torch.sigmoid(experts.alpha * gate)
    assert torch.allclose(found[..., ::2], 0.5 * (up + 1) * slope, atol=1e-4)
    assert torch.allclose(found[..., 1::2], 0.5 * gate * slope, rtol=1e-9)


@every_family
@pytest.mark.parametrize("kernel", [None, "eager"])
@pytest.mark.parametrize(
    ("rule", "parts"),
    [("ah", {"attn.q": 0.0, "attn.k": 0.0}), ("uniform", {"attn.q": 0.25, "attn.k": 0.25, "attn.v": 0.5})],
)
def test_attention_rules_are_shares_of_projections(
    name: str, kernel: str | None, rule: str, parts: dict[str, float]
) -> None:
    """Gradients of every stream are those of a model whose projections hand on a part of theirs, or nothing."""
    module, anatomy, ids = precise(name, kernel), opened(name).anatomy, ids_of(2, 7)
    with shares(module, name, parts):
        by_hand = gradients(module, name, ids)[2]
    with relevance_rules(module, anatomy, (rule,)) as coverage:
        found = gradients(module, name, ids)[2]
    coverage.require()
    assert coverage.attentions == anatomy.layers
    for ours, own in zip(found, by_hand, strict=True):
        assert torch.allclose(ours, own, rtol=1e-5, atol=1e-6 * float(own.abs().max()))
    plain = gradients(module, name, ids)[2]
    assert not torch.allclose(plain[0], by_hand[0], rtol=1e-2)


# Relevance.


def without_biases(name: str) -> nn.Module:
    """A family's module, in double precision, that is linear where all rules hold: no biases, no cap on its logits."""
    capped = {"final_logit_softcapping": None} if name == "gemma2" else {}
    module = precise(name, **capped)
    with torch.no_grad():
        for path, weight in module.named_parameters():
            if path.rpartition(".")[2] == "bias":
                weight.zero_()
    return module


@pytest.mark.parametrize("name", [name for name in ZOO if name not in EXPERTS])
def test_relevance_is_conserved(name: str) -> None:
    """Stream times gradient sums to the metric at every layer with all rules, and with fewer it does not."""
    module, anatomy, ids = without_biases(name), opened(name).anatomy, ids_of(1, 9)

    def relevance(rules: Collection[str]) -> tuple[float, list[float]]:
        with relevance_rules(module, anatomy, rules) as coverage:
            metric, seen, grads = gradients(module, name, ids)
        coverage.require()
        return float(metric), [float((x.detach() * g).sum()) for x, g in zip(seen, grads, strict=True)]

    metric, sums = relevance(RELP)
    assert sums == pytest.approx([metric] * len(sums), rel=1e-4)
    _, less = relevance(("ln",))
    assert any(value != pytest.approx(metric, rel=1e-2) for value in less)


@pytest.mark.parametrize("name", EXPERTS)
def test_routers_keep_their_gradient(name: str) -> None:
    """The softmax and the weights of a router are not attention's: with all rules it still moves the metric."""
    model, ids = double(name), ids_of(1, 9)
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    router = next(part for part in model.module.modules() if "Router" in type(part).__name__)
    hook = router.register_forward_hook(keep)
    try:
        with relevance_rules(model.module, model.anatomy, RELP):
            logits = model.module(input_ids=ids).logits
    finally:
        hook.remove()
    for value in router.parameters():
        grads = torch.autograd.grad(logits[0, -1, 5] - logits[0, -1, 7], value, retain_graph=True, allow_unused=True)
        assert grads[0] is not None
        assert float(grads[0].abs().max()) > 0


# What is left behind.


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything in every part's own dictionary that a hook or a rule could have changed."""
    return {
        f"{path}.{key}": OrderedDict(value) if isinstance(value, dict) else value
        for path, part in module.named_modules()
        for key, value in part.__dict__.items()
        if key not in ("_parameters", "_buffers")
    } | {path: (id(p), p.requires_grad) for path, p in module.named_parameters()}


@every_family
def test_nothing_is_left_behind(name: str) -> None:
    """Hooks, attributes and gradients are as before, also after an error inside a forward that ended the rules too."""
    model, ids = double(name), ids_of(1, 6)
    before, plain = state_of(model.module), ruled(name, (), ids)
    ruled(name, RELP, ids)
    assert state_of(model.module) == before

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    hook = model.module.get_submodule(f"{ZOO[name].blocks}.1").register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), relevance_rules(model.module, model.anatomy, RELP):
        model.module(input_ids=ids)
    hook.remove()
    assert state_of(model.module) == before
    again = gradients(model.module, name, ids)[2]
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


@pytest.mark.parametrize("where", ["self_attn.q_proj", "mlp.act_fn", "mlp", "input_layernorm"])
@pytest.mark.parametrize("kind", ["before", "after"])
def test_rules_outlive_a_forward_that_ended_early(where: str, kind: str) -> None:
    """A forward that raised in the middle of a part, and was caught, leaves the rules as they were."""
    model, ids = double("llama"), ids_of(1, 6)
    expected = ruled("llama", RELP, ids)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    part = model.module.get_submodule(f"model.layers.1.{where}")
    with relevance_rules(model.module, model.anatomy, RELP) as coverage:
        hook = part.register_forward_pre_hook(fail) if kind == "before" else part.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model.module(input_ids=ids)
        hook.remove()
        found = gradients(model.module, "llama", ids)[2]
    coverage.require()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("wanted", [True, False])
def test_parameters_may_want_gradients_or_not(wanted: bool) -> None:
    """Gradients of the stream are the same whether parameters keep theirs."""
    module, anatomy, ids = precise("gpt2").requires_grad_(wanted), opened("gpt2").anatomy, ids_of(1, 6)
    start = module.get_submodule("transformer.wte")(ids).detach().requires_grad_()
    with relevance_rules(module, anatomy, RELP) as coverage:
        logits = module(inputs_embeds=start).logits
    coverage.require()
    found = torch.autograd.grad(logits[0, -1, 5] - logits[0, -1, 7], start)[0]
    expected = ruled("gpt2", RELP, ids)[0]
    assert torch.allclose(found, expected, rtol=1e-9)
    assert all(weight.requires_grad is wanted for weight in module.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "mixtral", "gpt_oss", "cohere", "bloom"])
def test_half_precision(name: str) -> None:
    """A module in bfloat16 gives its own values, and gradients in bfloat16 near those of the same weights in single."""
    module, anatomy, ids = fresh(name, dtype=torch.bfloat16), opened(name).anatomy, ids_of(1, 6)
    expected = module(input_ids=ids).logits
    with relevance_rules(module, anatomy, RELP) as coverage:
        assert torch.equal(module(input_ids=ids).logits, expected)
        found = gradients(module, name, ids)[2]
    coverage.require()
    assert all(grad.dtype == torch.bfloat16 and grad.isfinite().all() for grad in found)
    with relevance_rules(module.float(), anatomy, RELP):
        exact = gradients(module, name, ids)[2]
    # Of the last block only: rounding grows on the way back through weights this large.
    near = torch.cosine_similarity(found[-1].float().flatten(), exact[-1].flatten(), dim=0)
    assert near > 0.9


# Refusals.


def test_names_and_nesting() -> None:
    """Unknown names, rules that exclude each other, and rules inside rules are refused."""
    model = opened("llama")
    open_rules = partial(relevance_rules, model.module, model.anatomy)
    with pytest.raises(UnknownName, match="'lm'"), open_rules(("lm",)):
        pass
    with pytest.raises(BadInput, match="exclude"), open_rules(("ah", "uniform")):
        pass
    with open_rules(("ln",)), pytest.raises(BadInput, match="already open"), open_rules(("half",)):
        pass
    with open_rules(()) as coverage:
        model.module(input_ids=ids_of(1, 4))
    coverage.require()


class Odd(nn.Module):
    """Parts that no rule understands."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(8, 32)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        z, up = self.gate_proj(x), self.up_proj(x)
        if self.how == "activation":
            return self.down_proj(z / (1 + z.abs()))
        if self.how == "product":
            return self.down_proj(self.act_fn(z) + z * up)
        return self.down_proj(self.act_fn(z).mul_(up))


class OddNorm(nn.Module):
    """A norm by the largest entry."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.abs().amax(-1, keepdim=True)


class OddAttention(nn.Module):
    """Attention by exponentials."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        scores = (hidden_states @ hidden_states.transpose(1, 2) / 1e3).exp().tril()
        return scores / scores.sum(-1, keepdim=True) @ hidden_states, None


@pytest.mark.parametrize(
    ("path", "odd", "rule", "reason"),
    [
        ("mlp", Odd("activation"), "identity", "no activation function"),
        ("mlp", Odd("product"), "half", "no factor is known"),
        ("mlp", Odd("in place"), "half", "writes over"),
        ("input_layernorm", OddNorm(), "ln", "no scale"),
        ("self_attn", OddAttention(), "ah", "attention"),
        ("self_attn", OddAttention(), "uniform", "attention"),
    ],
)
def test_what_no_rule_reached_is_refused(path: str, odd: nn.Module, rule: str, reason: str) -> None:
    """A norm, an MLP or an attention that met no rule is named, and only if its own rule was asked for."""
    module, anatomy, ids = fresh("llama"), opened("llama").anatomy, ids_of(1, 5)
    module.get_submodule("model.layers.1").add_module(path, odd)
    for asked in RULES:
        with relevance_rules(module, anatomy, (asked,)) as coverage:
            module(input_ids=ids)
        if asked == rule or {asked, rule} == {"ah", "uniform"}:
            with pytest.raises(NotProved, match=rf"model\.layers\.1\.{path}.*{reason}"):
                coverage.require()
        else:
            coverage.require()


def test_norms_of_heads_are_covered() -> None:
    """StableLM and Cohere with norms of queries and keys, one module a head: each is met."""
    for name, settings in (("stablelm", {"qk_layernorm": True}), ("cohere", {"use_qk_norm": True})):
        module, ids = fresh(name, **settings), ids_of(1, 6)
        anatomy = open_model(module).anatomy
        expected = module(input_ids=ids).logits
        with relevance_rules(module, anatomy, ("ln", "uniform")) as coverage:
            assert torch.equal(module(input_ids=ids).logits, expected)
        coverage.require()
        assert coverage.norms > opened(name).anatomy.layers * 2 + 1


def test_gradient_checkpointing_is_refused() -> None:
    """A module that runs its blocks again in backward is refused while it does so."""
    module = fresh("llama")
    block = module.get_submodule("model.layers.1")
    assert not block.gradient_checkpointing  # transformers' own switch, under whatever method sets it
    block.gradient_checkpointing = True
    with relevance_rules(module, opened("llama").anatomy, RELP):
        pass
    with pytest.raises(BadInput, match="checkpointing"), relevance_rules(module.train(), opened("llama").anatomy, RELP):
        pass


def test_streams_are_told_apart() -> None:
    """The twin keeps one stream a block and the last one: no two are the same tensor."""
    seen = gradients(double("llama").module, "llama", ids_of(1, 4))[1]
    assert len(seen) == 4
    assert all(a is not b for a, b in pairwise(seen))
