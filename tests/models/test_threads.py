"""A model is used by one thread at a time: another is refused before anything is changed, and both work afterwards."""

import threading

import numpy as np
import pytest

import crosspatch as xp
from crosspatch.core.errors import BadInput
from crosspatch.models.guard import one_thread
from zoo import make_task, opened, uneven

TASK = make_task(*uneven())
PADDED = "gptj"  # whose attention is its own code


def elsewhere(act):
    """Run something in another thread; give what it raised."""
    raised = []

    def work():
        try:
            act()
        except BaseException as problem:
            raised.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    return raised


@pytest.mark.parametrize("name", ["llama", PADDED])
def test_a_second_thread_is_refused_and_nothing_is_broken(name):
    """While one thread holds the model, as a served workbench does within a sweep; its numbers are its own."""
    model, before = opened(name), xp.patch(opened(name), TASK, sites="resid.pre@1")
    kernel = getattr(model.module.config, "_attn_implementation", None)
    with xp.capture(model, "resid.post[0]") as seen:
        raised = elsewhere(lambda: xp.patch(model, TASK, sites="resid.pre@1"))
        raised += elsewhere(lambda: xp.capture(model, "resid.pre[0]").__enter__())
        assert [type(problem) for problem in raised] == [BadInput, BadInput]
        assert "another thread" in str(raised[0])
        assert seen is not None
    assert getattr(model.module.config, "_attn_implementation", None) == kernel

    def again():
        np.testing.assert_array_equal(xp.patch(model, TASK, sites="resid.pre@1").raw, before.raw)

    assert elsewhere(again) == []
    again()


def test_one_thread_may_use_it_within_itself():
    """And lets go of it only when the outermost use has ended."""
    module = opened("llama").module

    def use():
        with one_thread(module):
            pass

    with one_thread(module):
        use()
        assert len(elsewhere(use)) == 1
    assert elsewhere(use) == []


def test_other_models_are_not_meant():
    with one_thread(opened("llama").module):
        assert elsewhere(lambda: xp.patch(opened("gpt2"), TASK, sites="resid.pre@1")) == []
