"""Score, mask and judge edges with one peer, in its own environment: `circuits_child.py request.json answer.json`.

The request names the peer, the folder with the weights of a GPT-2, and cases: prompts, answers, a circuit by the names
of its edges. Each case's scores, names and logits go to a file of arrays; the answer holds seconds of each repetition
(all ways in turns), forwards that a way makes, and what was loaded and set up once. Scores come out in one convention,
whatever the peer's: (corrupt − clean) · gradient at clean, summed over pairs and positions.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edges import Edges

Run = Callable[[], Any]
# The second counts this process's own work, on all threads: what a busy machine leaves comparable.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Case:
    """Prompt pairs of one length, their answers, and the edges of a circuit."""

    clean: Tensor
    corrupt: Tensor
    right: Tensor
    wrong: Tensor
    circuit: list[str]

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Case":
        """Read a case from the request."""
        return cls(*(torch.tensor(data[side]) for side in ("clean", "corrupt", "right", "wrong")), data["circuit"])

    def metric(self, logits: Tensor) -> Tensor:
        """Return right − wrong logits at the last position `[pair]`."""
        rows = torch.arange(len(self.right))
        return logits[rows, -1, self.right] - logits[rows, -1, self.wrong]


@dataclass
class Ways:
    """What is timed of one case: calls by name, and how to read scores, logits and faithfulness off their results."""

    runs: dict[str, Run]
    scores: Callable[[Any], dict[str, float]]
    logits: Callable[[Any], Tensor]
    recovered: Callable[[Any], float]
    once: frozenset[str] = frozenset()  # ways too slow to be repeated


class AutoCircuit:
    """auto-circuit: masks on the edges, scores are gradients of the masks."""

    package = "auto-circuit"

    def __init__(self, folder: str) -> None:
        from auto_circuit.utils.graph_utils import patchable_model

        self.plain, flagged = hooked(folder), hooked(folder)
        for flag in ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in"):
            setattr(flagged.cfg, flag, True)
        flagged.requires_grad_(False)  # as its own loader does
        self.counted = flagged.embed
        self.model = patchable_model(flagged, factorized=True, slice_output="last_seq", separate_qkv=True)
        self.names = {edge: neutral(edge.src.name, edge.dest.name) for edge in self.model.edges}

    def ways(self, case: Case) -> Ways:
        """Return its mask gradients, its masked forward (the corrupt run kept, or made again), and its percentage."""
        from auto_circuit.data import PromptDataLoader, PromptDataset
        from auto_circuit.metrics.prune_metrics.answer_diff_percent import measure_answer_diff_percent
        from auto_circuit.prune import run_circuits
        from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
        from auto_circuit.types import PatchType
        from auto_circuit.utils.ablation_activations import src_ablations

        pairs = len(case.clean)
        answers = [[row[None] for row in side] for side in (case.right, case.wrong)]
        loader = PromptDataLoader(
            PromptDataset(case.clean, case.corrupt, *answers), seq_len=None, diverge_idx=0, batch_size=pairs
        )
        kept = {edge for edge, name in self.names.items() if name in set(case.circuit)}
        circuit = self.model.circuit_prune_scores(edges=kept)
        other = src_ablations(self.model, case.corrupt)
        wanted = {"grad_function": "logit", "answer_function": "avg_diff", "mask_val": 0.0}

        def again(other: Tensor) -> Tensor:
            from auto_circuit.utils.graph_utils import patch_mode

            for name, mask in self.model.patch_masks.items():
                mask.data = 1 - circuit[name]
            with patch_mode(self.model, other), torch.inference_mode():
                return self.model(case.clean)[self.model.out_slice]

        def judge() -> float:
            outs = run_circuits(self.model, loader, [len(kept)], circuit, PatchType.TREE_PATCH)
            return measure_answer_diff_percent(self.model, loader, outs)[0][1] / 100

        return Ways(
            {
                "forward": partial(forward, self.plain, case.clean),
                "eap": partial(mask_gradient_prune_scores, self.model, loader, None, **wanted),
                "masked": lambda: again(src_ablations(self.model, case.corrupt)),
                "masked again": partial(again, other),
                "faithfulness": judge,
            },
            # The gradient is that of minus the mean over the batch.
            lambda scores: {name: -pairs * float(edge.prune_score(scores)) for edge, name in self.names.items()},
            lambda logits: logits,
            lambda recovered: recovered,
        )


class CircuitKit:
    """circuitkit: the code of EAP-IG with repairs, on TransformerLens 3."""

    package = "circuitkit"

    def __init__(self, folder: str) -> None:
        import circuitkit  # before transformer_lens, which it changes

        self.plain = hooked(folder)
        stand_in(folder, self.plain.cfg.d_vocab)
        self.model = circuitkit.load_model(folder, dtype="float32", device="cpu").eval()
        self.counted = self.model.embed

    def ways(self, case: Case) -> Ways:
        """Return its edge attribution and its evaluation of a graph, alone and between two baselines."""
        from circuitkit.backends.eap.attribute import attribute
        from circuitkit.backends.eap.evaluate import evaluate_baseline, evaluate_graph
        from circuitkit.backends.eap.graph import Graph
        from circuitkit.backends.eap.metrics import logit_diff_legacy

        pairs = len(case.clean)
        loader = WordBatch(case)
        scored, circuit = Graph.from_model(self.model), Graph.from_model(self.model)
        for name in case.circuit:
            circuit.edges[name].in_graph = True
        circuit.prune()  # as each evaluation does
        if circuit.count_included_edges() != len(case.circuit):
            raise ValueError("circuitkit drops edges of the circuit: prune it first")
        singly = partial(logit_diff_legacy, mean=False)

        def last(logits: Tensor, *_: Any) -> Tensor:
            return logits[:, -1]

        def score() -> Any:
            attribute(self.model, scored, loader, logit_diff_legacy, "EAP", quiet=True)
            return scored

        def judge() -> float:
            found = evaluate_graph(self.model, circuit, loader, singly, quiet=True).mean()
            sides = (evaluate_baseline(self.model, loader, singly, corrupt, quiet=True) for corrupt in (False, True))
            clean, corrupt = (side.mean() for side in sides)
            return float((found - corrupt) / (clean - corrupt))

        def mask() -> Tensor:
            return evaluate_graph(self.model, circuit, loader, last, quiet=True)

        return Ways(
            {
                "forward": partial(forward, self.plain, case.clean),
                "eap": score,
                "masked": mask,
                "faithfulness": judge,
            },
            # Its scores are a mean over pairs of the gradient of a mean over pairs.
            lambda graph: {name: pairs**2 * float(edge.score) for name, edge in graph.edges.items()},
            lambda logits: logits,
            lambda recovered: recovered,
        )


class WordBatch:
    """All pairs of a case as one batch of texts that carry their own start, as circuitkit's loaders give them."""

    pair_padding_side, templated = "right", True

    def __init__(self, case: Case) -> None:
        clean, corrupt = (
            [" ".join(f"w{n}" for n in row) for row in ids.tolist()] for ids in (case.clean, case.corrupt)
        )
        self.batch = clean, corrupt, torch.stack([case.right, case.wrong], 1)

    def __iter__(self) -> Iterator[Any]:
        yield self.batch


class TransformerLens:
    """TransformerLens's bridge: edges at each position, one pair at a time; its gradients are those of the second run.

    Named the other way round, the pair has its gradient at clean: clean is handed over as the corrupt prompt.
    """

    package = "transformer-lens"

    def __init__(self, folder: str) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        module = load_module(folder)
        stand_in(folder, module.config.vocab_size)
        self.plain = self.model = TransformerBridge.boot_transformers(folder, hf_model=module, device="cpu")
        self.model.eval()
        self.counted = self.model.embed

    def ways(self, case: Case) -> Ways:
        """Return edge attribution and faithfulness of the first pair; it has no masked forward of its own."""
        from transformer_lens.tools.analysis import attribution_patching as tl

        clean, corrupt, config = case.clean[:1], case.corrupt[:1], tl.EdgeAttributionConfig(granularity="edge")

        def metric(logits: Tensor) -> Tensor:
            return logits[0, -1, case.right[0]] - logits[0, -1, case.wrong[0]]

        def name(writer: Any, reader: Any) -> str:
            sender = "input" if writer.kind == "embed" else place(writer.layer, writer.head)
            letter = reader.kind.removesuffix("_input")
            receiver = "logits" if reader.kind == "logits" else place(reader.layer, reader.head)
            return f"{sender}->{receiver}" + (f"<{letter}>" if reader.head is not None else "")

        def summed(result: Any) -> dict[str, float]:
            found: dict[str, float] = {}
            for (writer, reader), score in result.edge_scores.items():
                found[name(writer, reader)] = found.get(name(writer, reader), 0.0) + score
            return found

        def score() -> Any:
            with torch.enable_grad():
                return tl.attribution_patch(self.model, corrupt, clean, metric, config)

        positions = range(clean.shape[1])
        kept = [self.edge(name, position, tl.Node) for name in case.circuit for position in positions]
        return Ways(
            {
                "forward": partial(forward, self.plain, clean),
                "eap": score,
                "faithfulness": lambda: tl.faithfulness(self.model, clean, corrupt, metric, kept),
            },
            summed,
            lambda logits: logits,
            lambda result: result.recovered,
            frozenset(["eap", "faithfulness"]),
        )

    def edge(self, name: str, position: int, node: Any) -> tuple[Any, Any]:
        """Return an edge in the library's own terms, at one position."""
        sender, _, receiver = name.partition("->")
        receiver, _, letter = receiver.removesuffix(">").partition("<")
        writer = "embed" if sender == "input" else "attn_head_out" if "h" in sender else "mlp_out"
        reader = f"{letter}_input" if letter else "logits" if receiver == "logits" else "mlp_in"
        last = (self.model.cfg.n_layers - 1, None)
        return (
            node(writer, position, *((None, None) if sender == "input" else where(sender))),
            node(reader, position, *(last if receiver == "logits" else where(receiver))),
        )


PEERS = {peer.package: peer for peer in (AutoCircuit, CircuitKit, TransformerLens)}


def place(layer: int, head: int | None) -> str:
    """Return the neutral name of a head or an MLP."""
    return f"m{layer}" if head is None else f"a{layer}.h{head}"


def where(name: str) -> tuple[int, int | None]:
    """Return layer and head of a neutral name, the inverse of `place`."""
    layer, _, head = name[1:].partition(".h")
    return int(layer), int(head) if head else None


def neutral(sender: str, receiver: str) -> str:
    """Translate auto-circuit's names: "Resid Start", "A5.3", "MLP 2"; "A5.3.Q", "MLP 2", "Resid End"."""

    def node(name: str) -> str:
        if name.startswith("Resid"):
            return "input" if name == "Resid Start" else "logits"
        if name.startswith("MLP"):
            return f"m{name.removeprefix('MLP ')}"
        layer, head, *letter = name.removeprefix("A").split(".")
        return f"a{layer}.h{head}" + "".join(f"<{each.lower()}>" for each in letter)

    return f"{node(sender)}->{node(receiver)}"


def hooked(folder: str) -> Any:
    """Load the weights into a HookedTransformer by its own conversion of GPT-2, nothing folded or centred."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    module = load_module(folder)
    gpt2 = module.config
    config = HookedTransformerConfig(
        n_layers=gpt2.n_layer,
        d_model=gpt2.n_embd,
        n_ctx=gpt2.n_positions,
        d_head=gpt2.n_embd // gpt2.n_head,
        n_heads=gpt2.n_head,
        d_vocab=gpt2.vocab_size,
        act_fn="gelu_new",
        eps=gpt2.layer_norm_epsilon,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        device="cpu",
    )
    model = HookedTransformer(config)
    names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(convert_gpt2_weights(module, config), **dict.fromkeys(names, False))
    return model.eval()


def load_module(folder: str) -> Any:
    """Load the saved model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def stand_in(folder: str, vocab: int) -> None:
    """Write a tokenizer whose word "w7" is token 7, for peers that take texts or open no folder without one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "w0")
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


@torch.no_grad()
def forward(model: Any, ids: Tensor) -> Tensor:
    """Run a peer's model as it is."""
    return model(ids)


@contextmanager
def counting(module: torch.nn.Module) -> Iterator[list[int]]:
    """Count how often a module runs."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handle = module.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def measured(peer: Any, ways: Ways, module: Any, clean: Tensor, repeat: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run each way once, for its result and its forwards, then all in turns; slow ways are timed in that one run."""
    runs = {"plain": partial(forward, lambda ids: module(ids, use_cache=False).logits, clean), **ways.runs}
    results, calls, first = {}, {}, {}
    for way, run in runs.items():
        with counting(peer.counted) as count:
            first[way], results[way] = timed(run)
        calls[way] = count[0]
    spent = turns({way: run for way, run in runs.items() if way not in ways.once}, repeat)
    spent |= {way: {clock: [first[way][clock]] for clock in CLOCKS} for way in ways.once}
    return results, {"spent": spent, "forwards": {way: calls[way] for way in ways.runs if way != "forward"}}


def turns(runs: dict[str, Run], repeat: int) -> dict[str, dict[str, list[float]]]:
    """Time each way once, then each again, `repeat` times; give seconds by way and clock."""
    spent: dict[str, dict[str, list[float]]] = {way: {clock: [] for clock in CLOCKS} for way in runs}
    for _ in range(repeat):
        for way, run in runs.items():
            for clock, seconds in timed(run)[0].items():
                spent[way][clock].append(seconds)
    return spent


def timed(run: Run) -> tuple[dict[str, float], Any]:
    """Return a call's seconds by each clock, and its result."""
    began = {clock: read() for clock, read in CLOCKS.items()}
    result = run()
    return {clock: read() - began[clock] for clock, read in CLOCKS.items()}, result


def write(path: Path, ways: Ways, results: dict[str, Any], plain: Tensor) -> None:
    """Write scores with the names of their edges, and the last position's logits: plain and masked."""
    scores = ways.scores(results["eap"])
    arrays = {"edges": np.array(list(scores)), "scores": np.array(list(scores.values())), "plain": plain.numpy()}
    arrays |= {way: ways.logits(results[way]).numpy() for way in ("masked", "masked again") if way in results}
    np.savez(path, **arrays)


def main(request_path: str, answer_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    folder, kind = request["folder"], PEERS[request["peer"]]
    loading, peer = timed(lambda: kind(folder))
    module, told = load_module(folder), []
    edges = Edges(module.config.n_layer, module.config.n_head)
    for number, case in enumerate(map(Case.of, request["cases"])):
        setting, ways = timed(partial(peer.ways, case))
        results, found = measured(peer, ways, module, case.clean, request["repeat"])
        file = f"{request['peer']}-{number}.npz"
        write(Path(answer_path).with_name(file), ways, results, results["forward"][:, -1])
        recovered = ways.recovered(results["faithfulness"])
        told.append({"file": file, "recovered": recovered, "setting": setting["wall"], **found})
    versions = {name: version(name) for name in dict.fromkeys((kind.package, "transformer-lens", "transformers"))}
    answer = {"versions": versions, "loading": loading["wall"], "edges": int(edges.allowed.sum()), "cases": told}
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
