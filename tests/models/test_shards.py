"""Tensor-parallel plans, read without processes: which points are split, and which plans are refused."""

import pytest
import torch

from crosspatch.core.errors import BadInput
from crosspatch.models import shards
from crosspatch.models.shards import Shard, plan_of, style_at, with_shards
from zoo import module_of, opened

PLAN = module_of("llama").tp_plan
SHARD = Shard(None, 1, 2)


def of_plan(plan: dict[str, str]) -> torch.nn.Module:
    """Return a module that has a plan."""
    module = torch.nn.Module()
    module.tp_plan = plan  # type: ignore[assignment]
    return module


def shared(plan: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return the anatomy of a Llama-shaped model that is split by a plan."""
    anatomy = opened("llama").anatomy
    monkeypatch.setattr(shards, "tensor_parallel", lambda _: SHARD)
    return with_shards(of_plan(plan), anatomy)


def test_parts_are_where_the_plan_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections' outputs and what the last matrices read are parts; sums over ranks are whole."""
    anatomy = shared(PLAN, monkeypatch)
    split = {kind for kind, point in anatomy.points.items() if point.shard}  # type: ignore[attr-defined]
    assert split == {"attn.q", "attn.k", "attn.v", "attn.head", "mlp.hidden"}
    assert anatomy.heads_shard == SHARD  # type: ignore[attr-defined]


def test_a_plan_that_gathers_leaves_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Phi-3's does: hooks see all columns."""
    other = {"colwise": "colwise_gather_output", "rowwise": "rowwise_split_input"}
    plan = {name: other.get(style, style) for name, style in PLAN.items()}
    anatomy = shared(plan, monkeypatch)
    assert not any(point.shard for point in anatomy.points.values())  # type: ignore[attr-defined]
    assert anatomy.heads_shard is None  # type: ignore[attr-defined]


def test_parts_in_turn_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed matrix is split in turn, so that its parts end to end are not its columns."""
    anatomy = shared({**PLAN, "model.layers.*.self_attn.q_proj": "packed_colwise"}, monkeypatch)
    with pytest.raises(BadInput, match="cannot be laid end to end"):
        anatomy.require("attn.q")  # type: ignore[attr-defined]
    anatomy.require("attn.k")  # type: ignore[attr-defined]


@pytest.mark.parametrize("style", ["sequence_parallel", "mla_kv_a_proj", "made_up"])
def test_styles_that_are_not_known(style: str) -> None:
    """What such a style does to activations is not guessed."""
    with pytest.raises(BadInput, match=f"not known here: {style}.*device_map='auto'"):
        plan_of(of_plan({"model.norm": style}))


def test_every_style_of_transformers_is_known_or_refused() -> None:
    """A new style of a later version stands out here."""
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    refused = {"sequence_parallel", "mla_kv_a_proj", "grouped_gemm", "ep_dispatch_experts"}
    assert set(ALL_PARALLEL_STYLES.valid_keys()) - set(shards.STYLES) == refused


def test_numbers_of_layers_are_stars() -> None:
    """Numbers inside a name are not."""
    plan = {"layers.*.mlp": "colwise", "w1": "rowwise"}
    assert [style_at(plan, path) for path in ("layers.3.mlp", "layers.3.mlp.x", "w1")] == ["colwise", "", "rowwise"]


def test_a_visit_of_the_whole_changes_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a visit writes beyond this rank's part is another rank's to write."""
    monkeypatch.setattr(Shard, "whole", lambda _, part, axis: torch.cat([part - 2, part], axis))
    act = SHARD.over(lambda whole: whole * 10, -1)
    assert act(torch.tensor([[2.0, 3.0]])).tolist() == [[20.0, 30.0]]  # type: ignore[union-attr]
    assert SHARD.over(lambda _: None, -1)(torch.zeros(1, 2)) is None
    assert SHARD.own(torch.arange(4), 0).tolist() == [2, 3]
