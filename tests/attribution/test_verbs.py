"""The verbs `attribute` and `lens` on a tiny model: what they print, write and refuse."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import crosspatch
from builders_tasks import word_tokenizer
from crosspatch.attribution import Decomposition, Estimate
from crosspatch.cli.app import app


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Save a random Llama of two layers with a tokenizer that knows the words of the tasks."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="crosspatch")
    assert result.exit_code == code, result.output
    return result


def test_attribute_lists_parts_that_add_up(tiny, tmp_path):
    """One JSON document, whose folder holds the same numbers."""
    words = ("attribute", tiny, "--task", "ioi", "--by", "direct", "--n", 4, "--top", 3, "--out", tmp_path / "out")
    told = json.loads(call(*words, "--json", "--quiet").stdout)
    saved = Decomposition.load(tmp_path / "out")
    assert (told["task"], told["by"], told["method"], told["n"], len(told["top"])) == ("ioi", "head", "direct", 4, 3)
    assert told["error"] == saved.error < told["tolerance"]
    assert told["logits"] == pytest.approx(float(saved.values.sum(0).mean()), abs=1e-5)
    first = told["top"][0]
    assert first["mean"] == pytest.approx(float(saved[first["part"]].mean()))


def test_attribute_draws_and_says_its_check(tiny):
    """Maps, a table and the largest error."""
    out = call(
        "attribute", tiny, "--task", "ioi", "--n", 4, "--parts", "token", "--set", "template=0", "--quiet"
    ).stdout
    assert "all heads, by source token" in out
    assert "parts add up to the logit difference: largest error" in out


def test_lens_shows_attention(tiny):
    """A map and a table of the chosen head; the mean in JSON has a row a position."""
    words = ("lens", tiny, "--task", "ioi", "--heads", "attn.head[1, 0]", "--n", 3, "--set", "template=0", "--quiet")
    out = call(*words).stdout
    assert "attn.head[1, 0]" in out
    assert "attention of 1 heads" in out
    told = json.loads(call(*words, "--weighting", "value", "--json").stdout)
    assert told["weighting"] == "value"
    assert len(told["mean"]["attn.head[1, 0]"]) == len(told["positions"]) == len(told["labels"])


def test_lens_labels_heads(tiny, tmp_path):
    """On a task, and on repeated random tokens without one; the table of all scores is in JSON."""
    told = json.loads(
        call("lens", tiny, "--task", "ioi", "--n", 3, "--quiet", "--json", "--out", tmp_path / "o").stdout
    )
    assert len(told["scores"]) == 6 * 4
    assert (tmp_path / "o" / "meta.json").exists()
    told = json.loads(call("lens", tiny, "--repeated", 2, "--quiet", "--json").stdout)
    assert told["prompts"] == "repeated random tokens, 2 prompts"
    assert "heads attend to a target" in call("lens", tiny, "--repeated", 2, "--quiet").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --task NAME"),
        (("--task", "ioi", "--repeated", 2), "give --task NAME"),
        (("--repeated", 2, "--heads", "attn.head[0, 0]"), "give --task NAME"),
        (("--task", "ioi", "--heads", "attn.hed[0, 0]"), "attn.head"),
    ],
)
def test_lens_refuses_what_makes_no_sense(tiny, words, message):
    """Before a model is opened, with what to do instead."""
    assert message in call("lens", tiny, *words, code=2).stderr


def test_attribute_refuses_an_unknown_task(tiny):
    """Exit 2, with the closest name."""
    assert "Did you mean 'ioi'" in call("attribute", tiny, "--task", "ioj", code=2).stderr


def test_attribute_estimates_and_verifies(tiny, tmp_path):
    """A run folder with estimate, exact effects and page; one JSON document; the same command goes on from it."""
    words = (
        "attribute",
        tiny,
        "--task",
        "ioi",
        "--by",
        "relp",
        "--preset",
        "ln",
        "--n",
        4,
        "--sites",
        "attn.head, mlp.out@end",
    )
    words = (*words, "--verify", 3, "--out", tmp_path / "out", "--require-accuracy", 0, "--set", "template=0")
    told = json.loads(call(*words, "--json", "--quiet").stdout)
    assert told["estimator"] == {"estimator": "relp", "signed": True, "preset": "ln", "rules": ["ln"]}
    assert (told["agreement"]["verified"], told["agreement"]["drawn"]) == (3, 3)
    assert len(told["agreement"]["exact"]) == 6
    saved = crosspatch.load(tmp_path / "out")
    assert isinstance(saved, Estimate)
    assert saved.finding() == told["finding"]
    assert "Estimate against truth" in (tmp_path / "out" / "report.html").read_text()
    again = call(*words, "--resume")
    assert "Patched exactly, 6 sites" in again.stdout
    refused = call(*words[:5], "atp", *words[8:], "--resume", code=2)
    assert "another question" in refused.output


def test_attribute_plans_an_estimate(tiny):
    """The dry run counts blocks that are pulled back as much as blocks that are run."""
    words = ("attribute", tiny, "--task", "ioi", "--n", 4, "--set", "template=0", "--dry-run", "--json", "--quiet")
    plain, star = (json.loads(call(*words, "--by", by).stdout)["plan"] for by in ("atp", "atp-drop"))
    assert star["token_blocks"] > plain["token_blocks"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--by", "atp", "--parts", "head"), "--parts with --by atp: it belongs to --by direct"),
        (("--by", "direct", "--verify", "3"), "--verify with --by direct: it belongs to estimates"),
        (("--by", "direct", "--workers", "2"), "--workers with --by direct"),
        (("--by", "atp", "--preset", "ln"), "only 'relp' has presets"),
        (("--by", "atp", "--metric", "rank"), "no gradient"),
        (("--by", "atp", "--steps", "3"), "only 'ig'"),
    ],
)
def test_attribute_refuses_what_belongs_elsewhere(tiny, words, said, tmp_path):
    out = call("attribute", tiny, "--task", "ioi", "--n", 3, "--out", tmp_path / "o", *words, code=2).output
    assert said in " ".join(out.split())
