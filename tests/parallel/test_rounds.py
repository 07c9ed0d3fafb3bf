"""Processes that hold a model together run a sweep's units in rounds, and keep them as one process does."""

import numpy as np
import pytest
import questions
from ranks import run_ranks

import crosspatch as xp
import zoo
from crosspatch.core.errors import BadInput
from crosspatch.core.journal import Journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    zoo.module_of("llama").save_pretrained(folder / "llama")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return run_ranks("rounds", folder)


@pytest.fixture(scope="module")
def alone(folder):
    options = xp.Options(tokens=40, memory=80_000, threads=1)
    return xp.patch(xp.open_model(folder / "llama"), questions.task(), sites=questions.SITES, options=options)


def test_fsdp_ranks_share_the_packs_and_all_hold_the_result(found, alone):
    """A pack is run by one rank, but for the last of a chunk; the bits are those of one process."""
    packs, settings = [int(rank["fsdp first packs"]) for rank in found], alone.provenance["settings"]
    assert 6 < settings["packs"] <= sum(packs) <= settings["packs"] + settings["plan"]["chunks"]
    assert max(packs) - min(packs) <= settings["plan"]["chunks"]
    for rank in found:
        np.testing.assert_array_equal(rank["fsdp first"], alone.raw)
        np.testing.assert_array_equal(rank["fsdp first base"], alone.base)


def test_tensor_parallel_ranks_run_the_same_packs(found, alone):
    """Both run all of them, and only rank 0 commits."""
    assert [int(rank["tp first packs"]) for rank in found] == [alone.provenance["settings"]["packs"]] * 2
    for rank in found:
        np.testing.assert_allclose(rank["tp first"], alone.raw, atol=1e-5 * np.nanmax(np.abs(alone.raw)))


def test_what_a_journal_holds_is_not_run_again(found, folder, alone):
    """Neither with FSDP2 nor with tensor parallelism; the journal is any other."""
    for rank in found:
        for name in ("fsdp", "tp"):
            assert int(rank[f"{name} again packs"]) == 0
            np.testing.assert_array_equal(rank[f"{name} again"], rank[f"{name} first"])
    assert len(list((folder / "fsdp").glob("*.log"))) == 2
    assert len(list((folder / "tp").glob("*.log"))) == 1
    units = Journal.found(folder / "fsdp").done()
    assert len(units) == alone.provenance["settings"]["packs"] + alone.provenance["settings"]["plan"]["chunks"]


def test_other_executors_are_refused_for_a_model_held_together(monkeypatch):
    """It cannot be sent away: its processes run it themselves."""
    model = zoo.opened("llama")
    monkeypatch.setattr(type(model), "together", True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr(type(model), "agreed", lambda self, number: number)
    with pytest.raises(BadInput, match="2 processes hold together: they run it themselves"):
        xp.patch(model, questions.task(), sites="mlp.out", options=xp.Options(crew=xp.Crew("local", 2)))
