"""Every result shows itself: in a notebook without script or network, in a terminal of any width, in a short line."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console

from builders import small_effects
from builders_circuits import random_masks
from crosspatch.attribution import Agreement, Bound, Certificate, Conserved, Estimate, Recommendation, direct
from crosspatch.attribution.estimators import estimator
from crosspatch.attribution.recall import Order, recall_curve
from crosspatch.attribution.recommending import Candidate
from crosspatch.audio import Transcript
from crosspatch.circuits import Circuit, Graph, Roc, compare_circuits, faithfulness_curve, score
from crosspatch.engine import ExampleView, cache_activations, capture, plan_patch
from crosspatch.engine.generated import Generated
from crosspatch.engine.measure import Row
from crosspatch.flow import components, contrast, routes
from crosspatch.lenses import EncoderLens, attention, label_heads, logit_lens, probe, probe_layers, train_tuned_lens
from crosspatch.modules import Decoded, Trial, patch_modules
from crosspatch.referee import AuditPlan, GridCost
from crosspatch.sites import Site
from crosspatch.studies import Finding, Study
from crosspatch.tasks.checking import TaskCheck
from referee.made import audit_of, grid
from zoo import make_task, opened, uneven

EVIL = "<script>alert(1)</script>"
SMALL = Graph(2, 2, 2)


def evil_model():
    return replace(opened("llama"), name=EVIL)


def evil_task():
    made = make_task(*uneven())
    pairs = tuple(replace(pair, clean_text=EVIL, corrupt_text=EVIL) for pair in made.pairs)
    tokens = tuple((EVIL,) * len(pair.clean) for pair in pairs)
    return replace(made, name=EVIL, pairs=pairs, settings={EVIL: EVIL}, tokens=tokens)


def evil_effects():
    pairs = tuple(ExampleView((EVIL,) * 16, (EVIL,) * 16, EVIL, EVIL, {}) for _ in range(8))
    sites = [Site("resid.pre", layer, None, place) for layer in range(2) for place in (10, 11)]
    raw = np.random.default_rng(0).normal(1, 0.2, (4, 8))
    words = dict.fromkeys(("model", "task", "metric", "metric_unit"), EVIL)
    return small_effects(sites, raw, examples=pairs, warnings=(EVIL,), **words)


def evil_estimate():
    how = {"settings": {"estimator": "atp", "estimator_title": EVIL}}
    found = evil_effects()
    return Estimate(**{name: getattr(found, name) for name in found.__dataclass_fields__} | {"provenance": how})


def circuit():
    included = random_masks(SMALL, 0.5)[0]
    return Circuit(SMALL, included, np.ones(SMALL.shape, np.float32), settings={"title": EVIL, "task": EVIL})


def scorecard():
    model, task = opened("llama"), make_task(*uneven())
    from crosspatch.circuits import graph_of

    graph = graph_of(model)
    found = score(Circuit(graph, graph.full(), np.ones(graph.shape, np.float32)), model, task, random=0, knockouts=0)
    return replace(found, warnings=(EVIL,))


def captured():
    model = evil_model()
    with capture(model, "resid.post, attn.head[0|2]") as seen, torch.no_grad():
        model.module(input_ids=torch.tensor([[1, 2, 3]]))
    return seen


def generated():
    rows = {"tokens": ((1, 2),), "logprobs": ((-1.0, -2.0),), "ended": (False,), "patched_steps": ((0, 1),)}
    one = Generated(((1,),), (EVIL,), texts=(EVIL,), warnings=(EVIL,), **rows)
    return replace(one, unpatched=replace(one, texts=("b",), tokens=((1, 3),)))


def decoded():
    tokens = np.array([[[1, 2]], [[1, 3]]])
    sites = tuple(Site("resid.pre", layer, None, 1) for layer in range(2))
    return Decoded(sites, tokens, tokens[0], tokens[1], np.array([[0]]), frozenset({2}), "denoise", (EVIL,))


def module_effects():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)).eval()
    first, second = torch.zeros(3, 2), torch.ones(3, 2)
    found = patch_modules(module, base=first, source=second, metric=lambda output: output[:, 0])
    return replace(found, paths=(EVIL, *found.paths[1:]), skipped={EVIL: EVIL})


def trial():
    module = torch.nn.Sequential(torch.nn.Linear(2, 1)).eval()
    given = (torch.zeros(3, 2), torch.ones(3, 2))
    return Trial(module, *given, lambda out: out[:, 0], 3, name=EVIL, metric_name=EVIL, names={"end": 0})


def study():
    finding = Finding(EVIL, EVIL * 4, "agrees", 0.9, 0.8, 1.0, "of words", 9, "clips")
    return Study(EVIL, EVIL, "https://example.org", EVIL, (finding,), (), (EVIL,))


def agreement():
    numbers = np.array([0.5, -0.2, 0.1, 0.0])
    return Agreement(evil_effects().sites, numbers, numbers * 2, np.array([True, True, False, False]), True)


def recommendation():
    found = agreement()
    how = Candidate(estimator("atp"), found, {"resid.pre": found}, 1.5)
    return Recommendation((how,), {EVIL: EVIL}, 4)


def certificate():
    return Certificate(evil_estimate(), evil_effects(), bound(), 0.1, 12.0, 3)


def bound():
    return Bound(0.1, 0.99, None, np.zeros(4), EVIL)


def evil_routes():
    return replace(routes(opened("llama"), make_task(*uneven())), model=EVIL, task=EVIL)


def evil_route():
    found = evil_routes()[0]
    return replace(found, tokens=(EVIL,) * len(found.tokens))


def curve():
    values = np.random.default_rng(0).normal(1, 0.1, (3, 8))
    return faithfulness_curve(values, full=np.ones(8), empty=np.zeros(8), fractions=(0.1, 0.5, 1.0))


def probes():
    features = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    labels = [EVIL if one[0] > 0 else "no" for one in features]
    return features, labels


def lens_of(model):
    return logit_lens(model, evil_task())


def tuned():
    return train_tuned_lens(evil_model(), [(1, 2, 3, number) for number in range(4, 14)], steps=2)


def small_cache(tmp_path):
    return cache_activations(opened("llama"), [[1, 2, 3]], sites="resid.post", path=tmp_path / "x")


def audit():
    return audit_of(grid())


RESULTS = {
    "Effects": evil_effects,
    "Estimate": evil_estimate,
    "Top": lambda: evil_effects().top(),
    "Grid": lambda: evil_effects().grid("resid.pre"),
    "Plan": lambda: plan_patch(opened("llama"), make_task(*uneven()), sites="resid.pre"),
    "Generated": generated,
    "Captured": captured,
    "ActivationCache": small_cache,
    "Row of a bench": lambda: Row(EVIL, (1.0, 2.0), 3, 4, 0.0, 0.1, None),
    "Model": evil_model,
    "Task": evil_task,
    "Pair": lambda: evil_task().pairs[0],
    "TaskCheck": lambda: TaskCheck(EVIL, 4, True, 0.5, 1.0, -1.0, (1, 2), True),
    "Transcript": lambda: Transcript(EVIL, (1, 2, 3), 1, "en", False),
    "EncoderLens": lambda: EncoderLens(((Transcript(EVIL * 3, (1, 2), 1, "en", True),),) * 3),
    "LensView": lambda: lens_of(evil_model()),
    "TunedLens": tuned,
    "AttentionView": lambda: attention(evil_model(), evil_task(), "attn.head[0, 1]"),
    "HeadLabels": lambda: label_heads(evil_model(), evil_task()),
    "ProbeResult": lambda: probe(*probes()),
    "ProbedLayers": lambda: probe_layers({0: probes()[0], 1: probes()[0]}, probes()[1]),
    "Decomposition": lambda: direct(evil_model(), evil_task()),
    "TopParts": lambda: direct(evil_model(), evil_task()).top(),
    "Agreement": agreement,
    "Bound": bound,
    "Certificate": certificate,
    "Recommendation": recommendation,
    "RecallCurve": lambda: recall_curve(Order(EVIL, np.arange(12), np.zeros(12)), np.arange(12.0)),
    "Conserved": lambda: Conserved(np.ones((3, 2)), np.ones(2)),
    "Circuit": circuit,
    "Scorecard": scorecard,
    "Overlap": lambda: compare_circuits(circuit(), circuit()),
    "Roc": lambda: Roc.of(np.array([0.5]), np.array([0.7])),
    "FaithfulnessCurve": curve,
    "Route": evil_route,
    "Routes": evil_routes,
    "Components": lambda: components(evil_routes()),
    "Contrast": lambda: contrast(evil_routes(), evil_routes()),
    "AuditPlan": lambda: AuditPlan(sites=EVIL, corruptions=(EVIL,)),
    "GridCost": lambda: GridCost(2, 3, 4.0, 5, (EVIL,)),
    "Audit": audit,
    "Study": study,
    "Decoded": decoded,
    "ModuleEffects": module_effects,
    "Trial": trial,
}


@pytest.fixture
def result(request, tmp_path):
    make = RESULTS[request.param]
    return make(tmp_path) if make is small_cache else make()


class Tags(HTMLParser):
    """Notes the tags that a browser would open."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


@pytest.mark.parametrize("result", RESULTS, indirect=True)
def test_a_result_shows_itself(result):
    """HTML has no script and asks for nothing; rich draws at two widths; the line in a shell is short and no dump."""
    html = result._repr_html_()
    tags = Tags()
    tags.feed(html)
    assert tags.seen
    assert not tags.seen & {"script", "iframe", "link", "img", "object", "style"}
    assert EVIL not in html
    assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    for width in (60, 120):
        out = io.StringIO()
        Console(file=out, width=width, color_system=None).print(result)
        lines = out.getvalue().splitlines()
        assert lines
        assert max(map(len, lines)) <= width
    line = repr(result)
    assert len(line) < 4000
    assert not re.search(r"array\(|tensor\(|dtype=|object at 0x", line)


def test_hostile_texts_do_reach_what_is_shown():
    """Else the test above would prove nothing."""
    for name in ("Effects", "Task", "Captured", "Study", "Decoded", "Generated", "Trial", "Route", "Bound"):
        assert "&lt;script&gt;" in RESULTS[name]()._repr_html_(), name
