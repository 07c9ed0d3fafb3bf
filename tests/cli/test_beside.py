"""What stands beside a run: attention of the heads it swept, and the same sweep by other metrics; on its page again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from crosspatch import load
from crosspatch.circuits import load_circuit, load_scorecard
from crosspatch.cli.folder import ATTENTION
from crosspatch.core.store import file_names
from crosspatch.lenses import HeadPatterns
from crosspatch.lenses.head_patterns import BESIDE

FEW = ("--task", "ioi", "--n", 4, "--require-accuracy", 0)
HEADS = (*FEW, "--sites", "attn.head@end")


def page(folder):
    return (Path(folder) / "report.html").read_text(encoding="utf-8")


def test_the_light_module_knows_the_files():
    assert file_names(BESIDE) == ATTENTION


@pytest.mark.parametrize(
    "words",
    [
        ("patch", *HEADS),
        ("patch", *FEW, "--sites", "attn.k@S2"),
        ("path", *FEW),
        ("attribute", *HEADS, "--by", "atp", "--verify", 0),
    ],
    ids=["patch", "keys", "path", "attribute"],
)
def test_a_sweep_of_heads_keeps_their_attention(call, tiny, words):
    """In the run folder and on its page; the page written again from the folder is the same."""
    verb, *rest = words
    result = call(verb, tiny, *rest, "--out", "run")
    assert result.exit_code == 0, result.output
    kept = HeadPatterns.load("run")
    assert (len(kept.chosen), len(kept.patterns), kept.runs) == (12, 4, ("clean", "corrupt"))
    first = page("run")
    assert "Attention of all 12 heads on all 4 pairs is on this page." in first
    assert call("report", "run").exit_code == 0
    assert page("run") == first
    assert call("runs", "remove", "run", "--yes").exit_code == 0
    assert not Path("run").exists()


def test_verify_reads_the_attention_too(call, tiny):
    call("patch", tiny, *HEADS, "--out", "run")
    told = call("runs", "verify", "run")
    assert told.exit_code == 0
    assert "ok     attention: checksum right; 12 heads on 4 of 4 pairs" in told.stdout
    arrays = Path("run/attention.safetensors")
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"\x07")
    told = call("runs", "verify", "run")
    assert told.exit_code == 3
    assert "FAILED attention: " in told.stdout
    assert "ok     results: " in told.stdout


def test_a_sweep_without_heads_keeps_none_and_takes_old_ones_away(call, tiny):
    call("patch", tiny, *HEADS, "--out", "run")
    for name in ("meta.json", "arrays.safetensors"):
        Path("run", name).unlink()
    assert call("patch", tiny, *FEW, "--sites", "resid.pre@end", "--out", "run").exit_code == 0
    assert not set(ATTENTION) & {path.name for path in Path("run").iterdir()}
    assert 'id="attention"' not in page("run")


def test_noise_keeps_the_clean_run_alone(call, tiny):
    call("patch", tiny, *HEADS, "--corrupt", "zero", "--out", "run")
    assert HeadPatterns.load("run").runs == ("clean",)


def test_several_metrics_are_compared_on_each_page(call, tiny):
    result = call("patch", tiny, *HEADS, "--metric", "prob,kl", "--out", "both")
    assert result.exit_code == 0, result.output
    for metric, other in (("prob", "kl"), ("kl", "prob")):
        first = page(f"both/{metric}")
        assert "Metrics compared" in first
        assert f"1 {metric}</text>" in first
        assert f"2 {other}</text>" in first
        assert call("report", f"both/{metric}").exit_code == 0
        assert page(f"both/{metric}") == first
        assert HeadPatterns.found(f"both/{metric}") is not None


@pytest.mark.parametrize("lost", [(), ("kl",)], ids=["complete", "one lost"])
def test_metrics_that_are_complete_are_not_run_again(call, tiny, lost):
    """Resumed, they are kept as they are; where one is gone, the sweep is run again for all."""
    words = ("patch", tiny, *HEADS, "--metric", "prob,kl", "--out", "both")
    assert call(*words).exit_code == 0
    first = page("both/prob")
    for metric in lost:
        assert call("runs", "remove", f"both/{metric}", "--yes").exit_code == 0
    result = call(*words, "--resume")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("complete already") == (0 if lost else 2)
    assert (page("both/prob") == first) is not bool(lost)
    assert "Metrics compared" in page("both/kl")


def test_a_metric_that_was_moved_away_is_not_missed(call, tiny):
    call("patch", tiny, *FEW, "--sites", "resid.pre@end", "--metric", "prob,kl", "--out", "both")
    Path("both/kl").rename("both/other")
    assert call("report", "both/prob").exit_code == 0
    assert "Metrics compared" not in page("both/prob")


def test_a_folder_of_another_question_is_not_taken_for_a_metric(call, tiny):
    """Only a name beside the folder is followed, and only if it holds the same sweep."""
    call("patch", tiny, *FEW, "--sites", "resid.pre@end", "--metric", "prob,kl", "--out", "both")
    call("patch", tiny, *FEW, "--sites", "mlp.out@end", "--metric", "kl", "--out", "elsewhere")
    Path("both/kl").rename("kl")
    Path("elsewhere").rename("both/kl")
    assert call("report", "both/prob").exit_code == 0
    assert "Metrics compared" not in page("both/prob")
    meta = Path("both/prob/meta.json")
    meta.write_text(meta.read_text().replace('"kl": "kl"', '"kl": "../kl"'))
    assert json.loads(meta.read_text())["meta"]["provenance"]["settings"]["metrics"]["kl"] == "../kl"
    assert call("report", "both/prob").exit_code == 0
    assert "Metrics compared" not in page("both/prob")


def test_damaged_attention_is_told(call, tiny):
    call("patch", tiny, *HEADS, "--out", "run")
    Path("run/attention.safetensors").write_bytes(b"short")
    result = call("report", "run")
    assert result.exit_code != 0
    assert "attention.safetensors" in result.stderr


# ---- several runs on one page ----------------------------------------------------------------------------------


def test_several_folders_are_compared(call, document, tiny):
    """The page goes into the first folder, and is taken away with it."""
    for seed in (0, 1):
        call("patch", tiny, *HEADS, "--seed", seed, "--out", f"run-{seed}")
    said = call("report", "run-0", "run-1")
    assert said.exit_code == 0, said.output
    assert said.stdout.splitlines()[-1] == "report → run-0/compare.html"
    text = Path("run-0/compare.html").read_text(encoding="utf-8")
    assert "<bdi>run-0</bdi> against <bdi>run-1</bdi>" in text
    told = document("report", "run-0", "run-1", "--out", "both.html")
    assert told["path"] == "both.html"
    assert list(told["findings"]) == ["run-0", "run-1"]
    assert Path("both.html").read_text(encoding="utf-8") == text
    assert call("runs", "remove", "run-0", "--yes").exit_code == 0
    assert not Path("run-0").exists()


def test_folders_of_one_name_are_told_apart_by_their_paths(call, tiny):
    for seed in (0, 1):
        call("patch", tiny, *HEADS, "--seed", seed, "--out", f"{seed}/run")
    call("report", "0/run", "1/run", "--out", "both.html")
    assert "<bdi>0/run</bdi> against <bdi>1/run</bdi>" in Path("both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "run"), "with itself"),
        (("run", "nowhere"), "nowhere"),
        (("run", "study"), "holds no run of patching"),
        (("run", "other", "circuit"), "2 runs and 1 circuit do not come on one page"),
        (("run", "other", "--format", "csv"), "give one folder for other forms"),
        (("run", "other", "--out", "-"), "give one folder for other forms"),
        (("run", "other"), "different units"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, tiny, words, told):
    call("patch", tiny, *HEADS, "--out", "run")
    call("patch", tiny, *HEADS, "--metric", "prob", "--out", "other")
    for what in ("circuit", "study"):
        Path(what).mkdir()
        Path(what, "meta.json").write_text(f'{{"meta": {{"what": "{what}"}}}}')
    result = call("report", *words)
    assert result.exit_code == 2
    assert told in result.stderr.replace("\n", " ")


def test_a_run_and_its_circuit_come_on_one_page(call, document, tiny):
    """The run's page with the circuit's sections, in whatever order the folders are given; Python writes the same."""
    call("patch", tiny, *HEADS, "--out", "run")
    document("circuit", "find", tiny, *FEW, "--size", 20, "--out", "found")
    told = document("report", "found", "run")
    circuit, score = load_circuit("found"), load_scorecard("found/score")
    assert told == {
        "format": "html",
        "path": "run/report.html",
        "finding": load("run").finding(),
        "circuit": circuit.finding(score),
    }
    text = page("run")
    assert 'id="attention"' in text
    assert 'id="picture"' in text
    own = load("run").report("own.html", attention=HeadPatterns.load("run"), circuit=circuit, score=score)
    assert own.read_text(encoding="utf-8") == text
    assert call("report", "run", "found", "--out", "both.html").exit_code == 0
    assert Path("both.html").read_text(encoding="utf-8") == text


def test_a_circuit_of_another_model_stays_off_the_page(call, document, tiny):
    shutil.copytree(tiny, "other")
    model = LlamaForCausalLM.from_pretrained("other")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained("other")
    call("patch", "other", *HEADS, "--out", "run")
    document("circuit", "find", tiny, *FEW, "--size", 20, "--no-score", "--out", "found")
    before = page("run")
    result = call("report", "run", "found")
    assert result.exit_code == 2
    assert "give a circuit of the same model" in result.stderr.replace("\n", " ")
    assert page("run") == before
