"""Run one peer on saved weights, in the peers' environment: `python peer_child.py request.json answer.json`.

The request names the peer, the folder with weights and tokenizer, and cases (prompts, answers, sites). The answer holds
metric values, and seconds of the sampled sites in each repetition: the peer's, and those of plain hooks (one forward a
site, all logits) taken in turns with it in this same process.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosspatch.engine.by_hand import by_hand, one_forward
from crosspatch.engine.measure import in_turns
from crosspatch.models import open_model
from crosspatch.models.anatomy import Anatomy
from crosspatch.sites import Site
from crosspatch.tasks import Task, from_tokens


@dataclass(frozen=True)
class Case:
    """One sweep on a sample of sites, all of one kind. Heads are patched at all positions together."""

    task: Task
    sites: tuple[Site, ...]
    own: int  # sites that plain hooks run, for the ratio inside this process

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Case":
        """Read a case from the request."""
        task = from_tokens(data["clean"], data["corrupt"], right=data["right"], wrong=data["wrong"])
        return cls(task, tuple(Site(*site) for site in data["sites"]), data["own"])

    def ids(self, side: str) -> Tensor:
        """Return the prompts of one side `[pair, pos]`; all have one length."""
        return torch.tensor([getattr(pair, side) for pair in self.task.pairs])

    def logit_diff(self, logits: Tensor) -> Tensor:
        """Return right − wrong logits at the last position `[pair]`."""
        rows = torch.arange(len(self.task.pairs))
        right, wrong = (torch.tensor([getattr(p, side)[0][0] for p in self.task.pairs]) for side in ("right", "wrong"))
        return logits[rows, -1, right] - logits[rows, -1, wrong]


Runner = Callable[[], Tensor]


class TransformerLens:
    """TransformerLens's own patching functions on its bridge over the transformers module."""

    package = "transformer-lens"

    def __init__(self, folder: str, anatomy: Anatomy) -> None:
        del anatomy
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(folder, hf_model=load_module(folder), device="cpu")

    def runner(self, case: Case) -> Runner:
        """Return a function that patches the case's sites `[site, pair]`; the clean run is cached beforehand."""
        import pandas as pd
        from transformer_lens import patching

        heads = case.sites[0].kind == "attn.head"
        sweep = patching.get_act_patch_attn_head_out_all_pos if heads else patching.get_act_patch_resid_pre
        second = ("head", "unit") if heads else ("pos", "position")
        index = pd.DataFrame([(s.layer, getattr(s, second[1])) for s in case.sites], columns=["layer", second[0]])
        corrupt = case.ids("corrupt")
        _, cache = self.bridge.run_with_cache(case.ids("clean"))

        def run() -> Tensor:
            # An index of one's own replaces the axes that the function would run over.
            axes = {"index_axis_names": None, "index_df": index}
            return sweep(self.bridge, corrupt, cache, case.logit_diff, reduce="none", **axes).values

        return run

    def estimates(self, case: Case) -> Tensor:
        """Attribution patching as its demonstrations write it: caching hooks forward and backward, one value a node.

        The nodes of the stream, attention outputs, MLP outputs, then heads: `[kind, layer, pair, pos]`, heads added up.
        """
        names = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
        wanted = {f"blocks.{layer}.{name}" for layer in range(self.bridge.cfg.n_layers) for name in names}
        clean = self.bridge.run_with_cache(case.ids("clean"), names_filter=lambda name: name in wanted)[1]
        values: dict[str, Tensor] = {}
        slopes: dict[str, Tensor] = {}

        def keep(into: dict[str, Tensor], name: str, tensor: Tensor, hook: Any) -> None:
            del hook  # whose name may be another one of the same place
            into[name] = tensor.detach()

        hooks = [[(name, partial(keep, into, name)) for name in wanted] for into in (values, slopes)]
        with torch.enable_grad(), self.bridge.hooks(fwd_hooks=hooks[0], bwd_hooks=hooks[1]):
            case.logit_diff(self.bridge(case.ids("corrupt"))).sum().backward()
        found = {name: ((clean[name] - values[name]) * slopes[name]).flatten(2).sum(-1) for name in wanted}
        layers = range(self.bridge.cfg.n_layers)
        return torch.stack([torch.stack([found[f"blocks.{layer}.{name}"] for layer in layers]) for name in names])

    def edges(self, case: Case, receiver: Sequence[int]) -> tuple[Tensor, float]:
        """Patch the edge from each sender of the case to a head's query; give `[path, pair]` and seconds a path.

        The library's function runs every later head as a receiver, one forward each.
        """
        from transformer_lens import patching

        corrupt, (layer, head) = case.ids("corrupt"), receiver
        caches = [self.bridge.run_with_cache(case.ids(side))[1] for side in ("clean", "corrupt")]
        found, forwards, began = [], 0, time.perf_counter()
        for site in case.sites:
            arguments = (self.bridge, corrupt, *caches, case.logit_diff)
            grid = patching.get_act_patch_direct_path(*arguments, site.layer, site.unit, verbose=False)
            found.append(grid[layer, head])
            forwards += int((grid != 0).sum())
        return torch.stack(found)[:, None], (time.perf_counter() - began) / forwards


class NNsight:
    """The idiom of nnsight's documentation: one trace a site, the clean activation written in place."""

    package = "nnsight"

    def __init__(self, folder: str, anatomy: Anatomy) -> None:
        import nnsight

        self.model, self.anatomy = nnsight.NNsight(load_module(folder)), anatomy

    def blocks(self) -> Any:
        """Return nnsight's view of the list of blocks."""
        return reduce(getattr, self.anatomy.blocks.split("."), self.model)

    def runner(self, case: Case) -> Runner:
        """Return a function that patches the case's sites `[site, pair]`; the clean run is saved beforehand."""
        return self._heads(case) if case.sites[0].kind == "attn.head" else self._stream(case)

    def _stream(self, case: Case) -> Runner:
        import nnsight

        model, blocks, corrupt = self.model, self.blocks(), case.ids("corrupt")
        with model.trace(case.ids("clean")):
            clean = nnsight.save([block.input.clone() for block in blocks])

        def cell(site: Site) -> Tensor:
            layer, position = site.layer, site.position
            with model.trace(corrupt):
                blocks[layer].input[:, position] = clean[layer][:, position]
                logits = nnsight.save(model.output.logits)
            return case.logit_diff(logits)

        return lambda: torch.stack([cell(site) for site in case.sites])

    def _heads(self, case: Case) -> Runner:
        import nnsight

        model, corrupt, point = self.model, case.ids("corrupt"), self.anatomy.points["attn.head"]
        outputs = [reduce(getattr, point.path.split("."), block) for block in self.blocks()]
        with model.trace(case.ids("clean")):
            clean = nnsight.save([output.input.clone() for output in outputs])

        def cell(site: Site) -> Tensor:
            layer, columns = site.layer, point.columns(site.unit)
            with model.trace(corrupt):
                outputs[layer].input[:, :, columns] = clean[layer][:, :, columns]
                logits = nnsight.save(model.output.logits)
            return case.logit_diff(logits)

        return lambda: torch.stack([cell(site) for site in case.sites])


class PyVene:
    """The idiom of pyvene's documentation: one intervenable model a site, with a source and a base prompt."""

    package = "pyvene"

    def __init__(self, folder: str, anatomy: Anatomy) -> None:
        del anatomy
        self.module = load_module(folder)

    def runner(self, case: Case) -> Runner:
        """Return a function that patches the case's sites `[site, pair]`; source and base run together in each call."""
        import pyvene

        base, source = {"input_ids": case.ids("corrupt")}, [{"input_ids": case.ids("clean")}]
        heads = case.sites[0].kind == "attn.head"
        component, unit = ("head_attention_value_output", "h") if heads else ("block_input", "pos")

        def cell(site: Site) -> Tensor:
            where = {"layer": site.layer, "component": component, "unit": unit}
            config = pyvene.IntervenableConfig([where | {"intervention_type": pyvene.VanillaIntervention}])
            intervenable = pyvene.IntervenableModel(config, model=self.module)
            _, out = intervenable(base, source, {"sources->base": site.unit if heads else site.position})
            return case.logit_diff(out.logits)

        return lambda: torch.stack([cell(site) for site in case.sites])


PEERS = {peer.package: peer for peer in (TransformerLens, NNsight, PyVene)}


def load_module(folder: str) -> torch.nn.Module:
    """Load the saved model; each user gets a copy, because peers change the one that they are given."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def measured(case: Case, runner: Runner, plain: Callable[[Sequence[Site]], Tensor], repeat: int) -> dict[str, Any]:
    """Return values of both ways and their seconds in each repetition."""
    own = case.sites[: case.own]
    values, plain_values = runner(), plain(own)
    spent = in_turns({"peer": runner, "plain": lambda: plain(own)}, repeat, torch.device("cpu"))
    return {
        "values": np.asarray(values, np.float64).tolist(),
        "plain_values": np.asarray(plain_values, np.float64).tolist(),
        "seconds": spent["peer"],
        "plain_seconds": spent["plain"],
    }


def main(request_path: str, answer_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    opened = open_model(load_module(request["folder"]))
    peer = PEERS[request["peer"]](request["folder"], opened.anatomy)
    results = []
    for case in map(Case.of, request["cases"]):
        hand = by_hand(opened, case.task, case.sites)
        plain = lambda sites, hand=hand: one_forward(hand, sites)  # noqa: E731
        results.append(measured(case, peer.runner(case), plain, request["repeat"]))
    packages = (peer.package, "torch", "transformers", "numpy")
    paths, edges = request["paths"], None
    if paths and hasattr(peer, "edges"):
        case = Case.of(paths)
        runs = [peer.edges(case, paths["receiver"]) for _ in range(request["repeat"])]
        edges = {"values": np.asarray(runs[0][0], np.float64).tolist(), "seconds": [seconds for _, seconds in runs]}
    estimates = None
    if request["estimates"] and hasattr(peer, "estimates"):
        run = partial(peer.estimates, Case.of(request["estimates"]))
        values = run()
        spent = in_turns({"peer": run}, request["repeat"], torch.device("cpu"))["peer"]
        estimates = {"values": np.asarray(values, np.float64).tolist(), "seconds": spent}
    answer = {
        "estimates": estimates,
        "paths": edges,
        "versions": {name: version(name) for name in packages},
        "cases": results,
    }
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
