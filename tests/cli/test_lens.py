"""`lens --view logit|tuned`: each layer decoded, as a map and a table, as JSON, on disk; misfits are refused."""

import numpy as np
import pytest

from crosspatch.lenses import LensView, train_tuned_lens
from crosspatch.models import open_model
from crosspatch.tasks import ioi

ASK = ("--task", "ioi", "--n", 3, "--set", "template=0", "--quiet")


def test_logit_lens_is_shown_and_saved(call, document, tiny, here):
    """A map, a row a layer and where it saturates; JSON and folder hold the same numbers."""
    out = call("lens", tiny, *ASK, "--view", "logit").stdout
    assert "saturates at layer" in " ".join(out.split())
    assert out.split("log p")[1].count("\n") == 7  # a line, a row a layer, the end: nothing is folded
    assert "…" not in out.split("log p")[1].split("top tokens")[0]
    told = document("lens", tiny, *ASK, "--view", "logit", "--at", "all", "--out", here / "view")
    saved = LensView.load(here / "view")
    assert told["layers"] == saved.layers == 4
    assert told["kl"][1]["mean"] == pytest.approx(float(saved.by_layer("kl")[0][1]))
    assert (told["at"], told["run"]) == ("all", "clean")


def test_tuned_lens_is_read_from_its_folder(document, tiny, here):
    """The saved lens is applied."""
    model = open_model(str(tiny))
    prompts = [pair.clean for pair in ioi(model, 12).pairs]
    train_tuned_lens(model, prompts, steps=2).save(here / "tuned")
    told, plain = (
        document("lens", tiny, *ASK, "--view", *words) for words in (("tuned", "--lens", here / "tuned"), ("logit",))
    )
    assert told["lens"] == "tuned lens"
    means = [[layer["mean"] for layer in each["kl"]] for each in (told, plain)]
    assert not np.allclose(means[0][:-1], means[1][:-1])
    assert means[0][-1] == means[1][-1] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--view", "tuned"), "belong together"),
        (("--view", "logit", "--lens", "x"), "belong together"),
        (("--view", "logit", "--heads", "attn.head[0, 0]"), "leave --heads"),
        (("--at", "all"), "shows all tokens"),
        (("--view", "tuned", "--lens", "nowhere"), "no result folder"),
    ],
)
def test_what_does_not_belong_is_refused(call, tiny, words, message):
    """Exit 2, with what to do instead."""
    result = call("lens", tiny, *ASK, *words)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
