"""What the workbench answers equals what the library says, for one tab and for many at once."""

import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import crosspatch as xp
from builders_workbench import PAIR, served, tiny
from crosspatch.core.errors import BadInput
from crosspatch.lenses import attention, logit_lens
from crosspatch.tasks import from_tokens
from crosspatch.workbench import Limits
from crosspatch.workbench.code import script_of

SITES = "resid.post, attn.head"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tiny(), tmp_path_factory.mktemp("runs")) as running:
        yield running


def task(pair=None):
    pair = pair or PAIR
    return xp.tasks.from_texts(tiny(), [pair["clean"]], [pair["corrupt"]], right=[pair["right"]], wrong=[pair["wrong"]])


def swept(server, asked, tab="test"):
    """Run a sweep to its end; give what was told first and its events."""
    status, made = server.ask("POST", "sweeps", asked, tab=tab)
    assert status == 200, made
    return made, server.events(made["sweep"])


def assert_of_the_gap(cells, effects):
    """Cells are coloured by their share of the gap, however small it is."""
    np.testing.assert_allclose(cells / effects.mean_gap, effects.values[:, 0], atol=1e-4)


def cells_of(made, events):
    """Put the cells that were told together, in the order of the sites."""
    raw = dict.fromkeys(range(len(made["sites"])))
    for _, kind, content in events:
        if kind == "begun":
            raw |= dict.fromkeys(content["still"], 0.0)
        if kind == "cells":
            raw |= dict(zip(content["sites"], content["raw"], strict=True))
    return np.array([raw[site] for site in range(len(made["sites"]))], float)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_cells_are_those_of_patch(server, direction):
    """Every cell of every map, both ways, and the finding."""
    asked = {"pair": PAIR, "sites": SITES, "direction": direction}
    made, events = swept(server, asked)
    effects = xp.patch(tiny(), task(), sites=SITES, direction=direction)
    assert made["sites"] == [str(site) for site in effects.sites]
    np.testing.assert_allclose(cells_of(made, events), effects.raw[:, 0], atol=2e-6)
    assert_of_the_gap(cells_of(made, events), effects)
    kinds = [kind for _, kind, _ in events]
    assert kinds[0] == "begun"
    assert kinds[-1] == "done"
    assert events[-1][2]["finding"] == effects.finding()
    assert events[0][2]["base"] == pytest.approx(float(effects.base[0]), abs=1e-6)


@pytest.mark.parametrize("metric", ["prob", "kl", "prob_diff"])
def test_cells_are_exact_where_the_gap_is_tiny(server, metric):
    """Probabilities of a random model are small, and so are their differences."""
    effects = xp.patch(tiny(), task(), sites=SITES, metric=metric)
    assert abs(effects.mean_gap) < 1e-3
    made, events = swept(server, {"pair": PAIR, "sites": SITES, "metric": metric})
    assert_of_the_gap(cells_of(made, events), effects)


def test_maps_are_told_with_their_sites(server):
    """A map is drawn by the server, and each of its cells names its site."""
    made, _ = swept(server, {"pair": PAIR, "sites": "resid.post"})
    (panel,) = made["panels"]
    assert panel["svg"].startswith("<svg")
    assert np.array(panel["index"]).shape == (3, 16)
    assert made["sites"][panel["index"][2][11]] == "resid.post[2]@11"


def test_events_go_on_where_a_page_left_off(server):
    """A reloaded page is told of the sweep again; a broken connection goes on after what it has."""
    made, events = swept(server, {"pair": PAIR, "sites": SITES})
    assert server.events(made["sweep"]) == events
    assert server.stream(made["sweep"], last=0) == events[1:]
    for odd in ("-1", "x", "²", "9" * 40, ""):
        assert server.stream(made["sweep"], last=odd) == events
    status, again = server.ask("GET", f"sweeps/{made['sweep']}")
    assert status == 200
    assert again["sites"] == made["sites"]
    assert again["asked"]["pair"]["clean"] == PAIR["clean"]


def test_a_joint_patch_is_that_of_patched_logits(server):
    """The metric, and the probabilities of what comes next in all three runs."""
    sites = "resid.post[0]@10, attn.head[1, 2]@all"
    status, found = server.ask("POST", "patch", {"pair": PAIR, "sites": sites})
    assert status == 200, found
    expected = xp.patched_logits(tiny(), task(), sites=sites)
    assert found["patched"] - found["base"] == pytest.approx(float(expected.effects.raw[0, 0]), abs=1e-5)
    words = {each["token"]: each for each in found["tokens"]}
    for name in ("base", "source", "patched"):
        chance = torch.tensor(getattr(expected, name)[0]).softmax(-1)
        best = tiny().tokenizer.decode([int(chance.argmax())])
        assert words[best][name] == pytest.approx(float(chance.max()), abs=1e-5)


def test_a_pair_is_read(server):
    """Tokens side by side, answers with their probabilities, both runs' metric."""
    status, sheet = server.ask("POST", "pair", PAIR)
    assert (status, sheet["aligned"], sheet["guessed"]) == (200, True, [])
    assert [place for place, token in enumerate(sheet["tokens"]) if token["differs"]] == [11]
    effects = xp.patch(tiny(), task(), sites="resid.post[2]@end")
    assert sheet["measured"]["clean"] == pytest.approx(float(effects.source[0]), abs=1e-5)
    assert sheet["measured"]["corrupt"] == pytest.approx(float(effects.base[0]), abs=1e-5)


def test_answers_that_are_left_empty_are_the_runs_own(server):
    """The likeliest token after each prompt, as text that gives these tokens again."""
    status, sheet = server.ask("POST", "pair", PAIR | {"right": [], "wrong": []})
    assert (status, sheet["guessed"]) == (200, ["right", "wrong"])
    guessed = PAIR | {"right": sheet["right"], "wrong": sheet["wrong"]}
    ids = torch.tensor([task(guessed).pairs[0].clean])
    with torch.no_grad():
        order = tiny().module(ids).logits[0, -1].argsort(descending=True)[:24].tolist()
    assert task(guessed).pairs[0].right[0][0] in order
    assert task(guessed).pairs[0].right != task(guessed).pairs[0].wrong


@pytest.mark.parametrize("side", ["right", "wrong"])
def test_what_was_typed_of_the_answers_stays(server, side):
    """Only the side that was left empty is filled, and never with the other side's answer."""
    other = "wrong" if side == "right" else "right"
    status, sheet = server.ask("POST", "pair", PAIR | {other: []})
    assert (status, sheet[side], sheet["guessed"]) == (200, PAIR[side], [other])
    assert len(sheet[other]) == 1
    assert sheet[other] != PAIR[side]
    assert sheet["metric"] == "logit_diff"
    best = sheet["runs"]["clean" if other == "right" else "corrupt"][0]["token"]
    taken = server.ask("POST", "pair", PAIR | {side: [best], other: []})[1]
    assert taken[other] != [best]


def test_a_long_answer_is_refused_or_counted_as_chosen(server):
    """As on the command line: by its first token, or whole."""
    long = PAIR | {"right": [" Mary Mary"], "wrong": []}
    status, found = server.ask("POST", "pair", long)
    assert (status, "one is needed" in found["error"]) == (422, True)
    first = server.ask("POST", "pair", long | {"answers": "first token"})[1]
    whole = server.ask("POST", "pair", long | {"answers": "all tokens"})[1]
    assert (first["metric"], whole["metric"]) == ("logit_diff", "logprob")


def test_prompts_that_do_not_align_are_shown(server):
    """With the reason: they are to be put right, and are no error."""
    status, sheet = server.ask("POST", "pair", PAIR | {"corrupt": PAIR["corrupt"] + " to"})
    assert (status, sheet["aligned"]) == (200, False)
    assert "16 tokens and the corrupted one 17" in sheet["reason"]
    assert sheet["tokens"][-1]["clean"] is None
    assert "same tokens" in server.ask("POST", "pair", PAIR | {"corrupt": PAIR["clean"]})[1]["reason"]


def test_attention_is_the_model_s_own(server):
    """One head in both runs."""
    status, found = server.ask("POST", "attention", {"pair": PAIR, "layer": 1, "head": 3})
    assert status == 200
    module = tiny().module
    task = from_tokens(*([tiny().tokenizer.encode(PAIR[run])] for run in ("clean", "corrupt")), right=[0])
    for run in ("clean", "corrupt"):
        ids = torch.tensor([tiny().tokenizer.encode(PAIR[run])])
        before = module.config._attn_implementation
        module.set_attn_implementation("eager")
        with torch.no_grad():
            own = module(ids, output_attentions=True).attentions[1][0, 3]
        module.set_attn_implementation(before)
        np.testing.assert_allclose(np.array(found[run]) / found["one"], own.numpy(), atol=0.0021)
        weighted = attention(tiny(), task, "attn.head[1, 3]", run=run, weighting="value").patterns[0, 0]
        np.testing.assert_allclose(own.numpy() * found["written"][run], weighted, rtol=1e-4, atol=1e-6)


def test_the_lens_is_the_logit_lens(server):
    """At the position that is asked for, though only what comes before it is run."""
    status, found = server.ask("POST", "lens", {"pair": PAIR, "position": 7})
    assert status == 200
    ids = [tiny().tokenizer.encode(PAIR[run]) for run in ("clean", "corrupt")]
    view = logit_lens(tiny(), ids, at="all", k=5)
    for number, run in enumerate(("clean", "corrupt")):
        for layer, said in enumerate(found[run]):
            assert [each["token"] for each in said] == [view.words[int(i)] for i in view.top[number, layer, 7]]
            np.testing.assert_allclose(
                [each["p"] for each in said], np.exp(view.top_logprob[number, layer, 7]), atol=1e-5
            )


def test_a_sweep_is_cancelled(tmp_path):
    """At its next step, wherever it stands; those beside it go on."""
    with served(tiny(), tmp_path) as server:
        gate = threading.Event()
        hold = server.state.line.ask("other", lambda: gate.wait(10))
        asked = {"pair": PAIR, "sites": SITES}
        made = []
        threads = [
            threading.Thread(target=lambda: made.append(server.ask("POST", "sweeps", asked)[1])) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join()
        assert hold.result(5)
        last = server.ask("POST", "sweeps", asked)[1]
        server.ask("DELETE", f"sweeps/{last['sweep']}")
        ends = [server.events(each["sweep"])[-1] for each in (*made, last)]
        assert ends[-1][1] in ("cancelled", "done")
        assert [end[1] for end in ends[:-1]] == ["done", "done"]


def test_cancelling_says_how_far_it_came(tmp_path, monkeypatch):
    """A slow sweep stops after the unit that runs, and holds nothing of the model then."""
    from crosspatch.engine.units import SweepJob

    run, begun, going = SweepJob.run, threading.Event(), threading.Event()

    def slow(job, unit):
        begun.set()
        going.wait(10)
        return run(job, unit)

    monkeypatch.setattr(SweepJob, "run", slow)
    with served(tiny(), tmp_path) as server:
        _, made = server.ask("POST", "sweeps", {"pair": PAIR, "sites": SITES})
        assert begun.wait(10)
        assert server.ask("DELETE", f"sweeps/{made['sweep']}")[1] == {"cancelled": True}
        going.set()
        number, kind, content = server.events(made["sweep"])[-1]
        assert kind == "cancelled"
        assert content["done"] < content["of"] == len(made["sites"])
        assert number == 1  # the two runs were told, and nothing after


def test_fifty_at_once_neither_crash_nor_mix(server):
    """Fifty requests from twenty-five tabs, of five pairs: each has its own pair's numbers."""
    names = [" Mary", " Anna", " Tom", " Kate", " Sarah", " James"]
    names = [name for name in names if len(tiny().tokenizer.encode(name, add_special_tokens=False)) == 1]
    text = "When{} and John went to the store,{} gave a drink to"
    pairs = [
        {
            "clean": text.format(name, " John"),
            "corrupt": text.format(name, " Paul"),
            "right": [name],
            "wrong": [" John"],
        }
        for name in names
    ]
    assert len(pairs) >= 2
    expected = [xp.patch(tiny(), task(pair), sites="resid.post[1]@end") for pair in pairs]
    sweeps = [xp.patch(tiny(), task(pair), sites="mlp.out") for pair in pairs]
    problems = []

    def ask(number):
        which = number % len(pairs)
        try:
            if number % 2:
                made, events = swept(server, {"pair": pairs[which], "sites": "mlp.out"}, tab=f"tab {number}")
                assert [kind for _, kind, _ in events][-1] == "done", events[-1]
                np.testing.assert_allclose(cells_of(made, events), sweeps[which].raw[:, 0], atol=2e-6)
            else:
                body = {"pair": pairs[which], "sites": "resid.post[1]@end"}
                status, found = server.ask("POST", "patch", body, tab=f"tab {number}")
                assert status == 200, found
                got = found["patched"] - found["base"]
                assert got == pytest.approx(float(expected[which].raw[0, 0]), abs=1e-5)
        except BaseException as problem:
            problems.append(f"{number}: {problem!r}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_too_many_sites_are_refused_before_they_are_listed(tmp_path, monkeypatch):
    """For a sweep and for a joint patch, with a way out; no more of them is made than may be."""
    from crosspatch.sites import Pattern

    made, expand = [], Pattern.expand

    def counted(pattern, *given):
        for site in expand(pattern, *given):
            made.append(site)
            yield site

    monkeypatch.setattr(Pattern, "expand", counted)
    with served(tiny(), tmp_path, Limits(cells=40)) as server:
        for path in ("sweeps", "patch"):
            made.clear()
            status, found = server.ask("POST", path, {"pair": PAIR, "sites": "mlp.hidden[*, *]@*"})
            assert status == 422
            assert "more than 40 sites" in found["error"]
            assert "choose fewer" in found["error"]
            assert len(made) == 41
        assert server.ask("POST", "patch", {"pair": PAIR, "sites": "resid.post[0:2]@*"})[0] == 200


def test_prompts_beyond_the_learned_positions_are_refused(server):
    """This GPT-2 has learned 512; the workbench, and `patch` itself, say so before anything is run."""
    long = PAIR | {"clean": PAIR["clean"] + " drink" * 600, "corrupt": PAIR["corrupt"] + " drink" * 600}
    for path, more in (("pair", None), ("sweeps", {"sites": "resid.post"}), ("lens", {"position": 1})):
        status, found = server.ask("POST", path, long if more is None else {"pair": long, **more})
        assert (status, "learned 512 positions" in found["error"]) == (422, True), found
    with pytest.raises(BadInput, match="learned 512 positions"):
        xp.plan_patch(tiny(), task(long), sites="resid.post")
    with pytest.raises(BadInput, match="learned 512 positions"):
        logit_lens(tiny(), [tiny().tokenizer.encode(long["clean"])])


def test_streams_end_and_go_on(tmp_path, monkeypatch):
    """One stays open for a while only; what it had not told, the next one tells, from its last event on."""
    from crosspatch.engine.units import SweepJob

    run, gate = SweepJob.run, threading.Event()

    def slow(job, unit):
        if unit:
            gate.wait(20)
        return run(job, unit)

    monkeypatch.setattr(SweepJob, "run", slow)
    monkeypatch.setattr("crosspatch.workbench.app.STREAM", 0.2)
    with served(tiny(), tmp_path) as server:
        _, made = server.ask("POST", "sweeps", {"pair": PAIR, "sites": SITES})
        first = []
        while not first:
            first = server.stream(made["sweep"])
        assert [kind for _, kind, _ in first] == ["begun"]
        gate.set()
        rest = []
        while not rest or rest[-1][1] != "done":
            rest += server.stream(made["sweep"], last=(rest or first)[-1][0])
        numbers = [number for number, *_ in (*first, *rest)]
        assert numbers == list(range(len(numbers)))


def test_an_answer_without_its_space_is_pointed_at(server):
    """The commonest slip: " Mary" was meant."""
    logits = torch.zeros(tiny().vocab_size)
    spaced = tiny().tokenizer.encode(" Mary", add_special_tokens=False)[0]
    logits[spaced] = 20.0
    from crosspatch.workbench.asked import AskedPair
    from crosspatch.workbench.pairs import space_cautions

    found = space_cautions(tiny(), AskedPair(**(PAIR | {"right": ["Mary"], "wrong": [" John"]})), logits.numpy())
    assert len(found) == 1
    assert "“ Mary” is far likelier" in found[0]
    assert space_cautions(tiny(), AskedPair(**PAIR), logits.numpy()) == []


def test_findings_are_run_folders_and_code_that_finds_them_again(tmp_path):
    """Kept at once, listed again after a restart, loaded by the library, reproduced by the exported Python."""
    with served(tiny(), tmp_path) as server:
        made, events = swept(server, {"pair": PAIR, "sites": SITES})
        joint = server.ask("POST", "patch", {"pair": PAIR, "sites": "resid.post[0]@11, mlp.out[1]@end"})[1]
        for result, note in ((events[-1][2]["result"], "the map <b>"), (joint["result"], "")):
            status, kept = server.ask("POST", "findings", {"result": result, "note": note})
            assert status == 200, kept
        listed = server.ask("GET", "findings")[1]
        assert [each["joint"] for each in listed] == [False, True]
        script = server.raw("GET", f"/{server.token}/api/findings/all/python")[2].decode()
        page = server.raw("GET", f"/{server.token}/api/findings/all/report")[2].decode()
    effects = xp.load(listed[0]["folder"])
    np.testing.assert_allclose(effects.raw[:, 0], cells_of(made, events), atol=1e-6)
    assert "the map &lt;b&gt;" in page
    assert re.search(r'class="unit"[^>]*>share of the gap<', page)
    assert "<script src" not in page
    names = {}
    script = script.replace("xp.open_model(module, tokenizer=tokenizer)", "tiny()")
    exec(compile(script, "findings.py", "exec"), {"tiny": tiny, "print": lambda *_: None}, names)
    np.testing.assert_allclose(names["found_1"].raw, effects.raw, atol=1e-6)
    assert float(names["found_2"].effects.raw[0, 0]) == pytest.approx(joint["patched"] - joint["base"], abs=1e-5)
    with served(tiny(), tmp_path) as server:
        again = server.ask("GET", "findings")[1]
        assert [each["name"] for each in again] == [each["name"] for each in listed]
        assert again[0]["note"] == "the map <b>"
        assert server.ask("DELETE", f"findings/{again[0]['name']}")[0] == 200
        assert len(server.ask("GET", "findings")[1]) == 1
    assert xp.load(listed[0]["folder"]).n == 1


def test_a_finding_is_downloaded_under_its_own_name_and_dropped_only_whole(tmp_path, monkeypatch):
    """Two of them are two files; one that cannot be taken off the list stays on it, with its page."""

    def stuck(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    with served(tiny(), tmp_path) as server:
        _, events = swept(server, {"pair": PAIR, "sites": "resid.post@15"})
        name = server.ask("POST", "findings", {"result": events[-1][2]["result"], "note": ""})[1]["name"]
        for what, title in ((name, name), ("all", "findings")):
            for form, ending in (("report", "html"), ("python", "py")):
                _, headers, _ = server.raw("GET", f"/{server.token}/api/findings/{what}/{form}")
                told = {key.lower(): value for key, value in headers.items()}["content-disposition"]
                assert f'filename="{title}.{ending}"' in told
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", stuck)
            status, told = server.ask("DELETE", f"findings/{name}")
        assert status == 422
        assert "Permission denied" in told["error"]
        assert [each["name"] for each in server.ask("GET", "findings")[1]] == [name]
        assert server.raw("GET", f"/{server.token}/api/findings/{name}/report")[0] == 200


def test_the_code_opens_the_model_as_it_was_laid_out():
    """Weights in fewer bits are another model."""
    laid = replace(tiny(), opened="gpt2", layout=xp.Layout(bits=4))
    opening = script_of(laid, []).splitlines()[2]
    assert opening.startswith("model = xp.open_model('gpt2', layout=xp.Layout(")
    kept = eval(opening.split("layout=")[1][:-1], {"xp": xp})
    assert kept == laid.layout


def test_what_goes_wrong_in_a_sweep_is_told_as_its_last_event(tmp_path, monkeypatch):
    """And the workbench goes on."""
    from crosspatch.core.errors import NotFinite
    from crosspatch.engine.units import SweepJob

    def broken(job, unit):
        raise NotFinite("logit_diff is nan")

    with served(tiny(), tmp_path) as server:
        with monkeypatch.context() as patched:
            patched.setattr(SweepJob, "run", broken)
            _, events = swept(server, {"pair": PAIR, "sites": SITES})
        assert events[-1][1:] == ("failed", {"error": "logit_diff is nan"})
        assert swept(server, {"pair": PAIR, "sites": SITES})[1][-1][1] == "done"


def test_the_module_is_as_it_was(server):
    """Patches leave no hook and no flag behind."""

    def marks():
        parts = tiny().module.modules()
        hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks), part.training) for part in parts]
        return hooks, [weight.requires_grad for weight in tiny().module.parameters()]

    before = marks()
    swept(server, {"pair": PAIR, "sites": SITES})
    server.ask("POST", "patch", {"pair": PAIR, "sites": "mlp.out[1]@end"})
    assert marks() == before
