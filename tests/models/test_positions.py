"""Which models have learned their positions, and how many."""

import pytest

from crosspatch.core.errors import BadInput
from crosspatch.models.positions import learned_positions, require_positions
from zoo import ZOO, opened

LEARNED = {"gpt2", "gpt_bigcode", "opt", "gpt_neo", "starcoder"}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_only_tables_of_positions_bound_a_prompt(name):
    """A table has as many positions as the configuration says; models that work them out have no bound."""
    model = opened(name)
    most = learned_positions(model.module, model.anatomy)
    if model.anatomy.family in LEARNED:
        assert most == model.module.config.max_position_embeddings
        require_positions(model.module, model.anatomy, most)
        with pytest.raises(BadInput, match=f"learned {most:,} positions"):
            require_positions(model.module, model.anatomy, most + 1)
    else:
        assert most is None
