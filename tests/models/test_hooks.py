"""Hooks and stand-ins: what they see and write, and that nothing of them stays."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crosspatch.models.anatomy import Point
from crosspatch.models.blocks import stand_ins
from crosspatch.models.hooks import (
    attach,
    first_tensor,
    has_foreign_hooks,
    main_tensor,
    visiting,
    with_first_tensor,
    with_main_tensor,
)

ONE, TWO = torch.ones(1, 2), torch.full((1, 2), 2.0)


class Doubles(nn.Module):
    """Doubles its input and gives it in some form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, hidden_states: Tensor, scale: float = 2.0) -> Any:
        return self.form(hidden_states * scale)


class Nest(nn.Module):
    """Holds a module and calls it by keyword or by position."""

    def __init__(self, inner: nn.Module, *, keyword: bool) -> None:
        super().__init__()
        self.inner, self.keyword = inner, keyword

    def forward(self, hidden: Tensor) -> Any:
        return self.inner(hidden_states=hidden, scale=3.0) if self.keyword else self.inner(hidden, 3.0)


def plain(value: Tensor) -> Tensor:
    return value


@pytest.mark.parametrize("keyword", [True, False])
def test_inputs_are_read_and_written_by_position_and_by_keyword(keyword: bool) -> None:
    """The activation is the first positional tensor or `hidden_states`; other arguments stay."""
    nest, seen = Nest(Doubles(plain), keyword=keyword), []
    with visiting([(nest, Point("inner", "input"), lambda value: seen.append(value) or value + 1)]):
        assert torch.equal(nest(ONE), 3 * TWO)
    assert torch.equal(seen[0], ONE)
    assert torch.equal(nest(ONE), 3 * ONE)


@pytest.mark.parametrize("form", [plain, lambda x: (x, "rest"), lambda x: [x, "rest"]])
def test_outputs_are_read_and_written_in_the_form_they_have(form: Callable[[Tensor], Any]) -> None:
    """A tensor, or the first of a tuple or list, whose rest stays."""
    module = Doubles(form)
    with visiting([(module, Point("", "output"), lambda value: value + 1)]):
        changed = module(ONE)
    assert type(changed) is type(form(ONE))
    assert torch.equal(first_tensor(changed), TWO + 1)
    assert changed[1] == "rest" if isinstance(changed, tuple | list) else True


def test_a_visit_that_returns_nothing_changes_nothing() -> None:
    """Reading leaves the very same objects in place."""
    output = (ONE, "rest")
    module = Doubles(lambda _: output)
    with visiting([(module, Point("", "output"), lambda _: None), (module, Point("", "input"), lambda _: None)]):
        assert module(TWO) is output


def test_later_visits_see_what_earlier_ones_wrote() -> None:
    """Several visits of one point act in order."""
    module = Doubles(plain)
    with visiting([(module, Point("", "output"), lambda x: x + 1), (module, Point("", "output"), lambda x: x * 10)]):
        assert torch.equal(module(ONE), (TWO + 1) * 10)


def test_arguments_are_found_and_replaced() -> None:
    """The helper pairs agree with each other, with and without keywords."""
    for args, kwargs in (((ONE, 5), {"a": 1}), ((), {"hidden_states": ONE, "a": 1}), ((None,), {"hidden_states": ONE})):
        assert main_tensor(args, kwargs) is ONE
        assert main_tensor(*with_main_tensor(args, kwargs, TWO)) is TWO
        assert with_main_tensor(args, kwargs, TWO)[1].get("a") == kwargs.get("a")
    assert with_first_tensor((ONE, 1), TWO) == (TWO, 1)
    assert with_first_tensor(ONE, TWO) is TWO


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_leave_however_their_block_ends(error: type[BaseException]) -> None:
    """After an exception, also inside a hook, and after Ctrl-C no hook is left."""
    module = Nest(Doubles(plain), keyword=True)

    def fail(_: Tensor) -> Tensor:
        raise error

    with pytest.raises(error), visiting([(module, Point("inner", side), fail) for side in ("input", "output")]):
        module(ONE)
    assert has_foreign_hooks(module) == ()
    with (
        pytest.raises(AttributeError),
        visiting([(module, Point("", "input"), fail), (module, Point("no", "input"), fail)]),
    ):
        pass
    assert has_foreign_hooks(module) == ()


def test_foreign_hooks_are_named() -> None:
    """Paths of modules on which somebody keeps hooks of either kind."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    handles = [module[1].register_forward_hook(lambda *_: None), module.register_forward_pre_hook(lambda *_: None)]
    assert has_foreign_hooks(module) == ("", "1")
    for handle in handles:
        handle.remove()
    handle = attach(module, Point("0", "input"), lambda _: None)
    assert has_foreign_hooks(module) == ("0",)
    handle.remove()
    assert has_foreign_hooks(module) == ()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_stand_ins_put_forward_attributes_back(error: type[BaseException] | None) -> None:
    """A `forward` that somebody set on an instance (as accelerate does) is there again; where none was, none is."""
    blocks = [nn.Identity(), nn.Identity()]
    own = partial(torch.add, other=10.0)
    blocks[1].forward = own  # type: ignore[method-assign]

    def run() -> None:
        with stand_ins(blocks, lambda index, value: value + index):
            assert torch.equal(torch.stack([block(ONE) for block in blocks]), torch.stack([ONE, TWO]))
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert "forward" not in blocks[0].__dict__
    assert blocks[1].__dict__["forward"] is own
