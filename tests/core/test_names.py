"""Names and counts as text."""

import pytest

from crosspatch.core.names import counted, plain_name


@pytest.mark.parametrize(("count", "told"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (12345, "12,345 pairs")])
def test_a_count_has_its_plural_unless_it_is_one(count, told):
    assert counted(count, "pair") == told


@pytest.mark.parametrize(
    ("name", "plain"), [("google/gemma-3-270m", "gemma-3-270m"), ("../a b", "a-b"), ("...", "unnamed")]
)
def test_a_name_is_fit_for_a_folder(name, plain):
    assert plain_name(name) == plain
