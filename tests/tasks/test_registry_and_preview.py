"""The table of generators and the look at a task."""

import subprocess
import sys

import pytest

from builders_tasks import piece_tokenizer, stub
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.tasks import TASKS, capitals, from_texts, from_tokens, get_task, ioi, preview


@pytest.fixture(scope="module")
def model():
    return stub(piece_tokenizer())


def test_tasks_are_built_by_name(model):
    """The registry calls the generator with what was asked for."""
    assert get_task("ioi", model, n=4, seed=2, corrupt="ABC") == ioi(model, 4, seed=2, corrupt="ABC")
    assert get_task("capitals", model, n=4, seed=2) == capitals(model, 4, seed=2)
    assert set(TASKS) == {
        *("ioi", "capitals", "greater_than", "docstring", "induction", "facts"),
        *("sva", "gender_bias", "colours", "arithmetic", "boxes"),
    }
    assert all(len(info.published) > 40 and info.name == name for name, info in TASKS.items())


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_listed_value_of_every_option_works_and_the_first_is_the_default(name):
    """What the table offers is what the generator takes."""
    model = stub(piece_tokenizer(everything=True))
    default = get_task(name, model, n=2)
    for option, told in TASKS[name].options.items():
        assert told.summary
        assert get_task(name, model, n=2, **{option: told.values[0]}) == default
        for value in told.values:
            if (option, value) != ("known_only", True):
                assert get_task(name, model, n=2, **{option: value}).name == name


def test_option_values_may_come_as_text(model):
    """As they do from a command line."""
    assert get_task("ioi", model, n=2, template="3") == ioi(model, 2, template=3)
    assert get_task("ioi", model, n=2, template="none") == ioi(model, 2)
    assert get_task("capitals", model, n=2, known_only="False") == capitals(model, 2)


def test_unknown_tasks_options_and_values_list_what_exists(model):
    """Three mistakes, three messages."""
    with pytest.raises(UnknownName, match=r"unknown task 'IOI2'.*ioi, capitals.*from_tokens, from_texts or a file"):
        get_task("IOI2", model)
    with pytest.raises(UnknownName, match=r"option of task 'ioi' 'corupt'\. Did you mean 'corrupt'\?.*order, template"):
        get_task("ioi", model, corupt="S2")
    with pytest.raises(BadInput, match=r"task 'ioi': order='AABB' is not one of 'mixed', 'ABBA', 'BABA' \(the answer"):
        get_task("ioi", model, order="AABB")


def test_listing_tasks_loads_no_torch():
    """The command line lists tasks at once; the same check sees torch once it is loaded."""
    code = "import sys; from crosspatch.tasks import TASKS, preview, from_tokens; {}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code.format("list(TASKS)")], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code.format("import torch")], check=False).returncode == 1


def test_a_preview_lines_up_tokens_and_names(model):
    """Names stand over their tokens, changes are marked, leading spaces are visible."""
    task = from_texts(
        model,
        [" the city of Rome is"],
        [" the city of Oslo is"],
        right=[" Italy"],
        wrong=[" Norway"],
        names={"art": 1, "subject": -2},
    )
    lines = preview(task, model.tokenizer).split("\n")
    assert lines[0] == "Task('custom', 1 pairs of 6 tokens, metric 'logit_diff')"
    assert lines[2] == "pair 0   right: ·Italy   wrong: ·Norway"
    assert lines[3:] == [
        "  position 0   1    2     3   4       5",
        "  name         art            subject end",
        "  clean    <s> ·the ·city ·of ·Rome   ·is",
        "  corrupt  <s> ·the ·city ·of ·Oslo   ·is",
        "                              ^^^^^",
    ]


def test_a_preview_without_tokenizer_uses_what_the_task_knows(model):
    """IOI's corrupt tokens and answers all stand in clean prompts; what stands nowhere shows as #id."""
    task = ioi(model, 2)
    assert preview(task) == preview(task, model.tokenizer)
    bare = from_tokens([[2, 7]], [[2, 8]], right=[4])
    assert "right: #4   wrong: none" in preview(bare)
    assert "  corrupt  2 #8" in preview(bare)


def test_a_preview_wraps_at_the_width(model, monkeypatch):
    """That of the terminal, or the one given; a column is never cut."""
    task = ioi(model, 3, template=0)
    for width in (40, 60, 90):
        text = preview(task, model.tokenizer, width=width)
        assert max(len(line) for line in text.splitlines() if line.startswith("  ")) <= width
        monkeypatch.setenv("COLUMNS", str(width))
        assert preview(task, model.tokenizer) == text
    assert preview(task, model.tokenizer, width=40) != preview(task, model.tokenizer, width=60)
    assert preview(task, model.tokenizer, width=1) == preview(task, model.tokenizer, width=31)  # 20 beside the heads


def test_a_preview_is_as_long_as_asked_and_wraps(model):
    """k pairs, lines of at most 120 characters, every token once."""
    ids = [[2, *range(10, 60)]]
    task = from_tokens(ids, [[3, *range(10, 60)]], right=[4])
    text = preview(task, model.tokenizer)
    assert max(map(len, text.splitlines())) <= 120
    assert sum(line.startswith("  clean") for line in text.splitlines()) > 1
    shown = "".join(line[10:] for line in text.splitlines() if line.startswith("  clean")).split()
    assert len(shown) == 51
    many = ioi(model, 5)
    assert [preview(many, k=k).count("pair ") for k in (0, 1, 3, 9)] == [0, 1, 3, 5]


def test_a_preview_shows_line_breaks_as_text():
    """A token that is a line break must not break the line."""
    task = from_tokens([[2, 7]], [[2, 8]], right=[4])
    from dataclasses import replace

    text = preview(replace(task, tokens=(("\n", "\t"),)))
    assert "  clean    \\n \\t" in text
