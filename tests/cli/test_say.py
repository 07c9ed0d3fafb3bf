"""How verbs speak: results apart from messages, text broken only at terminals, JSON that any reader takes."""

import io
import json
import sys

import pytest
from rich.console import Console

from crosspatch.cli.say import Voice, prose, to_json

LONG = (
    "! " + "a sentence of many words that no narrow terminal could hold in one line without breaking it somewhere " * 2
)


def written(text, *, terminal, width=40):
    """Write text to a console and give what came out."""
    out = io.StringIO()
    prose(Console(file=out, force_terminal=terminal, width=width, color_system=None), text)
    return out.getvalue()


def test_text_is_broken_between_words_at_a_terminal():
    """No line is wider than the terminal, no word is cut, and what follows a mark stands under its text."""
    lines = written(LONG.strip(), terminal=True).splitlines()
    assert max(map(len, lines)) < 40
    assert " ".join(line.strip() for line in lines) == LONG.strip()
    assert all(line.startswith("  ") for line in lines[1:])


def test_text_stays_whole_in_a_pipe():
    """A file or a pipe gets each sentence as one line, as grep wants it."""
    assert written(LONG.strip(), terminal=False) == LONG.strip() + "\n"


def test_square_brackets_are_no_markup():
    """Sites are shown as they are written, not taken for colours."""
    assert written("attn.head[5, 3]@S2 [red] [/]", terminal=False) == "attn.head[5, 3]@S2 [red] [/]\n"


@pytest.mark.parametrize("quiet", [True, False])
def test_messages_and_results_have_their_streams(capsys, quiet):
    """Messages go to standard error unless quiet, results to standard output in any case."""
    voice = Voice(quiet=quiet)
    voice.say("a message")
    voice.show("a result")
    told = capsys.readouterr()
    assert told.out == "a result\n"
    assert told.err == ("" if quiet else "a message\n")


def test_json_takes_the_place_of_results(capsys):
    """With JSON wanted, standard output has the document and nothing else."""
    voice = Voice(json=True)
    voice.show("a result")
    voice.show_as_is("a table")
    voice.document({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    Voice().document({"a": 1})
    assert capsys.readouterr().out == ""


def test_json_has_no_nan_and_no_foreign_letters():
    """Numbers that are none become null; the text is ASCII, whatever the terminal; numpy's numbers are numbers."""
    import numpy as np

    text = to_json({"a": [float("nan"), float("inf"), np.float32(0.5)], "b": "Zoë → ·", "c": {1: (True, None)}})
    assert text.isascii()
    assert json.loads(text) == {"a": [None, None, 0.5], "b": "Zoë → ·", "c": {"1": [True, None]}}


def test_a_terminal_without_arrows_gets_question_marks():
    """Where the encoding lacks a sign, the program writes a substitute and does not crash."""
    import subprocess

    code = "import sys; sys.argv = ['crosspatch', 'tasks']\nfrom crosspatch.cli import main; main()"
    code = f"from crosspatch.cli import tasks\ntasks.list_text = lambda info, published=False: '→'\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={"PYTHONIOENCODING": "ascii", "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"?\n")
