"""The questions that are asked of a model however it is laid out: all kinds of site and every verb that writes."""

import numpy as np
import torch

import crosspatch as xp
import zoo
from crosspatch.attribution import direct
from crosspatch.lenses import attention

SITES = (
    "embed@*, resid.pre@*, resid.mid@*, attn.out@mid, mlp.out@*, attn.head[*, *]@end, attn.q[*, *]@end, "
    "attn.k[*, *]@mid, attn.v[*, *]@mid, attn.pattern[*, *]@end, mlp.hidden@end, mlp.hidden[1, 3]@end, "
    "mlp.hidden[1, 40]@end"
)
FAMILIES = ("llama", "qwen3", "gemma3")
KINDS = ("resid.pre", "attn.q", "attn.k", "attn.head", "attn.pattern", "attn.out", "mlp.hidden", "mlp.out")
UNITS = ("attn.q", "attn.k", "attn.head", "attn.pattern", "mlp.hidden")


def task(metric="logit_diff"):
    return zoo.make_task(*zoo.uneven(), metric=metric)


def alike():
    return zoo.make_task(*(zoo.make_pair(9, (3, 7), seed=seed) for seed in range(3)))


def main(model):
    """Return the effects of every kind of site, both ways."""
    return {way: xp.patch(model, task(), sites=SITES, direction=way).raw for way in ("denoise", "noise")}


def answers(model):
    """Return the numbers that answer each question, by name."""
    found = main(model)
    found["kl"] = xp.patch(model, task("kl"), sites="resid.pre@end, attn.head[1, *]@end").raw
    some = "attn.head[*, *]@end, mlp.hidden@end, attn.k[0, *]@mid"
    found |= {by: xp.ablate(model, alike(), sites=some, by=by).raw for by in ("zero", "mean")}
    edges = [*xp.cuts(model, "end", 3), *xp.cuts(model, "end", 2, heads=[1], width=1)]
    found["cuts"] = xp.patch(model, task(), sites=edges, direction="noise").raw
    found["path"] = xp.path_patch(model, task(), paths=xp.Paths("attn.head[0, *]", to="attn.q[2, 3]@end")).raw
    found["path to logits"] = xp.path_patch(model, task(), paths=xp.Paths("attn.head[*, *]@end")).raw
    together = xp.group(model, task(), "attn.head[0|2, 3]@end, mlp.out[1]@mid")
    found["group"] = xp.patch(model, task(), sites=[together]).raw
    noisy = xp.tasks.corrupt(alike(), "gaussian", draws=2)
    found["noisy"] = xp.patch(model, noisy, sites="resid.pre@end, attn.head[1, *]@end").raw
    found |= seen(model) | written(model)
    found["direct"] = direct(model, task(), by="token").values
    found["looked at"] = attention(model, task(), "attn.head[*, *]", weighting="value").patterns
    return {name: np.asarray(value) for name, value in found.items()}


def prompt():
    return torch.tensor([zoo.uneven()[0].clean])


def seen(model):
    """Return what `capture` shows of one plain forward."""
    with xp.capture(model, ", ".join(KINDS)) as captured, torch.no_grad():
        model.module(prompt())
    return {f"seen {kind}": captured[f"{kind}[1, all]" if kind in UNITS else f"{kind}[1]"].numpy() for kind in KINDS}


def written(model):
    """Return the logits after `write` has changed one head, one neuron and one pattern."""
    edits = {"attn.head[1, 3]@-1": xp.Zero(), "mlp.hidden[2, 40]": xp.Scale(3.0)}
    edits |= {"attn.pattern[2, 1]@-1": xp.Scale(0.5)}
    with xp.write(model, edits), torch.no_grad():
        return {"written": model.module(prompt()).logits.numpy()}


def unequal(found, expected, *, to=1e-5):
    """Name the answers that differ by more than a share of the largest effect, with the largest difference."""
    apart = {}
    for name, value in expected.items():
        assert np.array_equal(np.isnan(found[name]), np.isnan(value))
        # What one path carries is small beside the runs that it is the difference of.
        scale = expected[name.replace("path", "noise")] if name.endswith("path") else value
        apart[name] = float(np.nanmax(np.abs(found[name] - value)) / np.nanmax(np.abs(scale)))
    return {name: share for name, share in apart.items() if not share <= to}
