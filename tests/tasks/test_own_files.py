"""Files of the user's own prompts: what is read, and that every mistake is told with its line."""

import json

import pytest

from builders_tasks import piece_tokenizer, stub
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.tasks import find_task, from_file, from_texts, get_task

CLEAN, CORRUPT = " the city of Rome is", " the city of Oslo is"
CSV = (
    f"clean,corrupt,right,wrong,subject\n{CLEAN},{CORRUPT}, Italy, Norway,Rome\n"
    f"{CORRUPT},{CLEAN}, Norway, Italy| France,Oslo\n"
)
SUBJECTS, PLACES = "clean,corrupt,right,subject\n", "clean;corrupt;right;positions\n"


@pytest.fixture(scope="module")
def model():
    return stub(piece_tokenizer())


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def put(content, name="my prompts.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def expected(model):
    return from_texts(
        model,
        [CLEAN, CORRUPT],
        [CORRUPT, CLEAN],
        right=[" Italy", " Norway"],
        wrong=[" Norway", [" Italy", " France"]],
        names={"subject": -2},
    )


def test_a_csv_file_is_the_task_of_its_texts(model, write):
    """Pairs, tokens and metric as from_texts makes them; the name is the file's."""
    task = from_file(model, write(CSV))
    twin = expected(model)
    assert (task.pairs, task.tokens, task.metric) == (twin.pairs, twin.tokens, "logit_diff")
    assert task.name == "my-prompts"
    assert task.settings == {"n": 2, "file": "my prompts.csv", "rows": 2, "answers": "one token"}


@pytest.mark.parametrize(
    "content",
    [
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        "\ufeff" + CSV,
        CSV.encode("utf-16"),
        CSV.replace("\n", "\r\n"),
        "\n" + CSV.replace("\n", "\n\n,,,,\n"),
        CSV.replace("clean,corrupt", '"Clean", CORRUPT'),
        CSV.replace(CLEAN, f'"{CLEAN}"'),
    ],
    ids=["semicolons", "tabs", "BOM", "UTF-16", "CRLF", "empty lines", "header's case", "quotes"],
)
def test_ways_of_writing_csv(model, write, content):
    """What spreadsheets save reads as the same task."""
    assert from_file(model, write(content)).pairs == expected(model).pairs


def test_a_jsonl_file_is_the_same_task(model, write):
    """Answers as a text or a list, positions as words or as [words, which of them]."""
    rows = [
        {"clean": CLEAN, "corrupt": CORRUPT, "right": " Italy", "wrong": [" Norway"], "positions": {"subject": "Rome"}},
        {"clean": CORRUPT, "corrupt": CLEAN, "right": [" Norway"], "wrong": [" Italy", " France"], "subject": "Oslo"},
    ]
    text = "\n\n".join(map(json.dumps, rows))
    assert from_file(model, write(text, "rows.jsonl")).pairs == expected(model).pairs
    twice = {
        **rows[0],
        "clean": CLEAN + " Rome of",
        "corrupt": CORRUPT + " Rome of",
        "positions": {"late": ["Rome", 2]},
    }
    (pair,) = from_file(model, write(json.dumps(twice), "twice.jsonl")).pairs
    assert pair.names == {"late": 6, "end": 7}


def test_positions_in_csv_are_json(model, write):
    """A cell of JSON in double quotes."""
    text = f'clean,corrupt,right,positions\n{CLEAN},{CORRUPT}, Italy,"{{""place"": ""city""}}"\n'
    task = from_file(model, write(text))
    assert task.pairs[0].names == {"end": 5, "place": 2}
    assert task.metric == "logprob"  # no wrong answer


def test_files_are_tasks_of_the_registry(model, write):
    """By their path, all rows or the first n; an option that files lack is refused."""
    path = str(write(CSV))
    assert get_task(path, model).pairs == expected(model).pairs
    first = get_task(path, model, n=1, seed=5)
    assert first.pairs == expected(model).pairs[:1]
    assert (first.settings["n"], first.settings["rows"]) == (1, 2)
    assert set(find_task(path).options) == {"answers"}
    with pytest.raises(UnknownName, match="option of task"):
        get_task(path, model, corrupt="S2")
    with pytest.raises(BadInput, match="n=0"):
        from_file(model, path, n=0)


HEAD = "clean,corrupt,right,wrong\n"
GOOD = f"{CLEAN},{CORRUPT}, Italy, Norway\n"
FILES = {
    "no rows": (HEAD, "has no rows"),
    "nothing": ("", r"line 1: column 'clean' is missing; column 'corrupt' is missing; column 'right' is missing"),
    "column missing": ("clean,right\na,b\n", r"line 1: column 'corrupt' is missing"),
    "column misspelt": ("clean,corrupt,right,worng\n", r"column 'worng' is unknown \(did you mean 'wrong'\?\)"),
    "column unknown": ("clean,corrupt,right,verb\n", r"column 'verb' is unknown \(other positions go into 'positions'"),
    "column twice": ("clean,corrupt,right,right\n", "a column stands twice"),
    "cells missing": (HEAD + GOOD + " a, b\n", r"1 problem:\s+line 3: 2 cells for 4 columns"),
    "comma in a text": (HEAD + f"{CLEAN}, you see,{CORRUPT}, Italy, Norway\n", r"line 2: 5 cells for 4 .*quotes"),
    "quote left open": (HEAD + GOOD + '"a', "line 3: no CSV"),
    "no answer": (HEAD + f"{CLEAN},{CORRUPT},, Norway\n", "line 2: 'right' is missing"),
    "empty answer": (HEAD + f"{CLEAN},{CORRUPT}, Italy|, Norway\n", "line 2: 'right' is empty"),
    "no prompt": (HEAD + GOOD + f",{CORRUPT}, Italy, Norway\n", "line 3: 'clean' is missing"),
    "unequal lengths": (HEAD + f"{CLEAN} of,{CORRUPT}, Italy, Norway\n", "line 2: the clean prompt has 7 tokens and"),
    "the same": (HEAD + f"{CLEAN},{CLEAN}, Italy, Norway\n", "line 2: clean and corrupt are the same"),
    "long answer": (HEAD + f"{CLEAN},{CORRUPT}, Zanzibar, Norway\n", r"right answer of line 2, ' Zanzibar', has"),
    "unknown answer": (HEAD + f"{CLEAN},{CORRUPT}, 東京, Norway\n", "right answer of line 2, ' 東京', holds"),
    "both sides": (HEAD + f"{CLEAN},{CORRUPT}, Italy, Italy\n", "line 2: .* both a right and a wrong"),
    "words not there": (SUBJECTS + f"{CLEAN},{CORRUPT}, Italy,Paris\n", "line 2: 'subject': 'Paris' stands 0"),
    "part of a word": (SUBJECTS + f"{CLEAN},{CORRUPT}, Italy,Rom\n", "'Rom' stands 0 times"),
    "words twice": (SUBJECTS + f"{CLEAN} city,{CORRUPT} city, Italy,city\n", "stands 2 times: say which"),
    "positions no JSON": (PLACES + f"{CLEAN};{CORRUPT}; Italy;verb=is\n", "line 2: positions is no JSON"),
    "positions no mapping": (PLACES + f"{CLEAN};{CORRUPT}; Italy;[1]\n", "line 2: 'positions' must map"),
    "a name no site can spell": (PLACES + f'{CLEAN};{CORRUPT}; Italy;{{"a b": "is"}}\n', "line 2: 'a b' cannot name"),
    "Latin-1": (HEAD.encode() + GOOD.encode() + "é".encode("latin-1"), "line 3: the file is no utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_mistakes_in_csv_are_told_with_their_line(model, write, case):
    """Each with what is wrong and where."""
    content, said = FILES[case]
    with pytest.raises(BadInput, match=rf"(?s)my prompts\.csv.*{said}"):
        from_file(model, write(content))


LINES = {
    "no JSON": ("{clean}", "line 1: no JSON: .* at column 2"),
    "no object": ('["a"]', "line 1: no JSON object"),
    "key missing": (json.dumps({"clean": "a", "right": "b"}), "line 1: 'corrupt' is missing"),
    "key unknown": (json.dumps({"clean": "a", "corrupt": "c", "right": "b", "rigth": "b"}), "did you mean 'right'"),
    "a number": (json.dumps({"clean": 3, "corrupt": "c", "right": "b"}), "line 1: 'clean' is 3: input should"),
    "position zero": (
        json.dumps({"clean": "a", "corrupt": "c", "right": "b", "positions": {"x": ["a", 0]}}), "must map names"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_mistakes_in_jsonl_are_told_with_their_line(model, write, case):
    """Each with what is wrong and where."""
    content, said = LINES[case]
    with pytest.raises(BadInput, match=rf"(?s)rows\.jsonl has 1 problem.*{said}"):
        from_file(model, write(content, "rows.jsonl"))


def test_all_problems_come_at_once(model, write):
    """Ten are listed, the rest counted; those of the form and those of the tokens stand together, by line."""
    bad = "".join(f"{CLEAN},{CORRUPT}, Zanzibar, Norway\n" if i % 2 else " a, b\n" for i in range(12))
    with pytest.raises(BadInput) as error:
        from_file(model, write(HEAD + bad))
    lines = str(error.value).splitlines()
    assert lines[0] == "my prompts.csv has 12 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [f"line {i}" for i in range(2, 12)]
    assert lines[11:] == ["  … and 2 more"]


def test_files_that_are_none_are_refused(model, tmp_path):
    """A missing file, a folder, another ending, a way to treat answers that does not exist."""
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        from_file(model, tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadInput, match="cannot be read"):
        from_file(model, tmp_path / "folder.csv")
    with pytest.raises(BadInput, match=r"ends in \.csv, \.tsv, \.jsonl, \.ndjson"):
        from_file(model, tmp_path / "prompts.xlsx")
    with pytest.raises(BadInput, match="answers='two'"):
        from_file(model, tmp_path / "none.csv", answers="two")


def test_long_answers_can_be_kept(model, write):
    """Whole, for metrics that add over tokens, or by their first token."""
    path = write(HEAD + f"{CLEAN},{CORRUPT}, Zanzibar, Norway\n")
    whole = from_file(model, path, answers="all tokens")
    assert len(whole.pairs[0].right[0]) > 1
    assert whole.metric == "logprob"
    assert len(get_task(str(path), model, answers="first token").pairs[0].right[0]) == 1
