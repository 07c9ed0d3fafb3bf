"""Two processes that hold a model together patch it as one process does, site by site."""

import numpy as np
import pytest
import questions
import torch
from lockstep import streams_in_step
from ranks import run_ranks

import crosspatch as xp
import zoo

SAVED = (*questions.FAMILIES, "gpt2", "bloom")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in SAVED:
        zoo.module_of(family).save_pretrained(folder / family)
    zoo.fresh("llama", num_key_value_heads=1).save_pretrained(folder / "one_key")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """All answers of one process."""
    found = {}
    for family in questions.FAMILIES:
        model = xp.open_model(folder / family)
        found |= {f"{family} {name}": value for name, value in questions.answers(model).items()}
        found[f"{family} fingerprint"] = model.fingerprint
    return found


@pytest.fixture(scope="module")
def split(folder):
    return run_ranks("tensor_parallel", folder)


@pytest.fixture(scope="module")
def sharded(folder):
    return run_ranks("fsdp", folder)


def numbers(found):
    return {name: value for name, value in found.items() if "fingerprint" not in name}


@pytest.mark.parametrize("rank", [0, 1])
def test_tensor_parallel_equals_one_process(alone, split, rank):
    """Every kind of site and every verb, on both ranks, to 1e-5 of the largest effect."""
    assert not questions.unequal(split[rank], numbers(alone))


@pytest.mark.parametrize("rank", [0, 1])
def test_fsdp_equals_one_process(alone, sharded, rank):
    """Weights that are gathered block by block are the weights: equal, not only close."""
    assert not questions.unequal(sharded[rank], numbers(alone), to=1e-7)


@pytest.mark.parametrize("family", questions.FAMILIES)
def test_a_model_is_recognised_however_it_is_split(alone, split, sharded, family):
    """Split or whole, the fingerprint is that of the weights; FSDP's own hooks are not taken for the user's."""
    for found in (*split, *sharded):
        assert str(found[f"{family} fingerprint"]) == alone[f"{family} fingerprint"]
        assert not any("hooks" in warning for warning in found[f"{family} warnings"])
        assert not found["unsound"].size


@pytest.mark.parametrize("family", questions.FAMILIES)
def test_half_precision_over_processes(split, sharded, folder, family):
    """In bfloat16 gathered weights give the same numbers; sums over ranks differ by the roundings of that precision."""
    alone = xp.open_model(folder / family, dtype="bfloat16")
    expected = xp.patch(alone, questions.task(), sites="resid.pre@*, attn.head[*, *]@end").raw
    for rank in (0, 1):
        np.testing.assert_allclose(sharded[rank][f"{family} half"], expected, atol=1e-6)
        close = 0.05 * np.nanmax(np.abs(expected))
        np.testing.assert_allclose(split[rank][f"{family} half"], expected, atol=close)
        np.testing.assert_array_equal(split[rank][f"{family} half"], split[0][f"{family} half"])


def test_a_rank_numbers_its_own_heads(alone, split):
    """The trap: by hand, head 1 of each rank is written, heads 1 and 3 of the model; sites name the model's heads."""
    found = split[0]
    np.testing.assert_allclose(found["naive"], found["heads 1 and 3"], atol=1e-5)
    assert np.abs(found["naive"] - found["head 1"]).max() > 1e-2
    with torch.no_grad(), xp.write(zoo.opened("llama"), {"attn.head[1, 1]": xp.Zero()}):
        np.testing.assert_allclose(found["head 1"], zoo.opened("llama").module(questions.prompt()).logits, atol=1e-5)


def test_a_module_that_was_split_by_its_owner_is_recognised(alone, split):
    """A module from transformers' own `DistributedConfig` is patched by global heads."""
    expected = xp.patch(zoo.opened("llama"), questions.task(), sites="attn.head[*, *]@end").raw
    np.testing.assert_allclose(split[1]["own"], expected, atol=1e-5)


def test_an_interrupted_run_goes_on_from_one_journal(split):
    """Both ranks keep what is done in one folder, and agree on what is left."""
    expected = xp.patch(zoo.opened("llama"), questions.task(), sites="resid.pre@*").raw
    for found in split:
        assert 0 < np.isnan(found["interrupted"]).sum() < expected.size
        np.testing.assert_allclose(found["resumed"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("no plan", "BadInput", "no tensor-parallel plan"),
        ("uneven", "BadInput", "num_key_value_heads is 1"),
        ("processes", "BadInput", "3 processes are asked for, and 2 are running"),
        ("layout", "BadInput", "neither FSDP2 nor tensor parallelism of transformers"),
        ("pipeline", "BadInput", "is a pipeline stage"),
        ("memory", "MemoryShortage", "smaller budget for all"),
    ],
)
def test_what_cannot_be_split_is_refused_on_all_ranks(split, name, error, words):
    """Each rank gets the same error, so that none waits for another."""
    for found in split:
        assert str(found[f"refused {name}"]).startswith(error)
        assert words in str(found[f"refused {name}"])


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_ranks_run_packs_of_their_own_in_step(sharded, family):
    """Each rank walks other packs, from other blocks; together they have what one process has, and none waits."""
    expected = streams_in_step(zoo.opened(family), 0, 1)
    parts = [found[f"{family} in step"] for found in sharded]
    ran = [~np.isnan(part[:, 0]) for part in parts]
    assert (ran[0] ^ ran[1]).all()
    assert min(ran[0].sum(), ran[1].sum()) > 5
    np.testing.assert_allclose(np.where(ran[0][:, None], *parts), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_module_sharded_by_hand_is_patched_and_still_trains(sharded, family):
    """`fully_shard` on blocks and model is enough; opening and patching leave nothing behind that training trips on."""
    expected = xp.patch(zoo.opened(family), questions.task(), sites="resid.pre@*, attn.head[*, *]@end").raw
    module = zoo.fresh(family)
    module(questions.prompt()).logits.square().mean().backward()
    for found in sharded:
        np.testing.assert_allclose(found[f"{family} own"], expected, atol=1e-6)
        for name, parameter in module.named_parameters():
            np.testing.assert_allclose(found[f"{family} grad {name}"], parameter.grad, atol=1e-6)
