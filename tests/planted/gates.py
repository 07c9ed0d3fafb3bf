"""Gates of two inputs: head 0 reads A, head 1 reads B, and the MLP at the last token computes the gate.

The table is that of Heimersheim & Nanda 2024: clean A = B = 1, corrupt A = B = 0.

| gate | denoise one input | denoise both | noise one input | noise both |
|---|---|---|---|---|
| AND | 0: alone not enough | 1 | 1: needed | 1 |
| OR | 1: enough | 1 | 0: not needed | 1 |
| ADDER | ½ | 1 | ½ | 1 |
"""

from collections.abc import Callable

import torch

from planted.wiring import Board, Edges, Expected, Planted, blank, example

TOKENS = ("<s>", "A=0", "A=1", "B=0", "B=1", "=", "yes", "no", "x", "y", "z")
CHANNELS = ("is A", "is B", "A", "B", "seen A", "seen B", "gate", "unread")
NAMES = {"A": 2, "B": 3}
INPUT = tuple(frozenset({f"embed -> attn.v[0, {head}]", f"attn.head[0, {head}] -> mlp.in[0]"}) for head in (0, 1))
OUTPUT = frozenset({"mlp.out[0] -> logits"})
WHOLE = OUTPUT.union(*INPUT)
SWING = 12.0  # logit difference between a gate that is on and one that is off


def build_and() -> Planted:
    """Build relu(A + B − 1)."""
    reads = {"seen A": 1.0, "seen B": 1.0, "one": -1.0}
    edges = {"edges": WHOLE, "edges_denoise": OUTPUT}
    return _build("AND", reads, 1.0, offset=0.0, alone=Expected(denoise=0.0, noise=1.0), edges=edges)


def build_or() -> Planted:
    """Build 1 − relu(1 − A − B); a search that cuts edges in turn cuts one input, and then needs the other."""
    reads = {"seen A": -1.0, "seen B": -1.0, "one": 1.0}
    edges = {"edges": OUTPUT, "edges_denoise": WHOLE, "acdc_keeps": [OUTPUT | each for each in INPUT]}
    return _build("OR", reads, -1.0, offset=1.0, alone=Expected(denoise=1.0, noise=0.0), edges=edges)


def build_adder() -> Planted:
    """Build (A + B) / 2."""
    reads, half = {"seen A": 1.0, "seen B": 1.0}, Expected(denoise=0.5, noise=0.5)
    return _build("ADDER", reads, 0.5, offset=0.0, alone=half, edges={"edges": WHOLE})


BUILDERS: tuple[Callable[[], Planted], ...] = (build_and, build_or, build_adder)


def words(a: int, b: int, filler: str = "x") -> str:
    """Return the prompt with these inputs."""
    return f"<s> {filler} A={a} B={b} ="


def prompt(a: int, b: int, filler: str = "x") -> tuple[int, ...]:
    """Return the token ids of the prompt with these inputs."""
    return tuple(TOKENS.index(word) for word in words(a, b, filler).split())


@torch.no_grad()
def _build(
    name: str,
    reads: dict[str, float],
    writes: float,
    *,
    offset: float,
    alone: Expected,
    edges: dict[str, Edges | list[Edges]],
) -> Planted:
    board = blank(TOKENS, CHANNELS, layers=1, heads=3)
    _wire_inputs(board)
    board.neuron(0, 0, reads=reads, writes={"gate": writes})
    board.neuron(0, 1, reads={"A": 1.0, "one": 1.0}, writes={"unread": 1.0})
    for token, sign in (("yes", 0.5), ("no", -0.5)):
        board.answer(token, gate=sign * SWING, one=sign * SWING * (offset - 0.5))
    pairs = [example(board, words(1, 1, x), words(0, 0, x)) for x in "xyz"]
    both, nothing = Expected(1.0, 1.0), Expected(0.0, 0.0)
    inputs = ("attn.head[0, 0]@end", "attn.head[0, 1]@end")
    return Planted(
        name=name,
        sentence=f"The answer is {name}(A, B): head 0 reads A, head 1 reads B, neuron 0 at the last token decides.",
        module=board.module,
        pairs=pairs,
        names=NAMES,
        truth=_truth(alone, both, nothing),
        together={inputs: both, ("resid.pre[0]@A", "resid.pre[0]@B"): both, ("embed@A", inputs[1]): both},
        paths={
            **{(head, "logits"): alone for head in inputs},
            **{(head, "mlp.in[0]@end"): alone for head in inputs},
            **{(head, "attn.q[0, 2]@end"): nothing for head in inputs},
            ("attn.head[0, 2]@end", "logits"): nothing,
        },
        **edges,
    )


def _wire_inputs(board: Board) -> None:
    for which, head in (("A", 0), ("B", 1), ("A", 2)):
        for value in (0, 1):
            board.embed(f"{which}={value}", **{f"is {which}": 1.0, which: float(value)})
        board.look_for(0, head, matches=[({"one": 1.0}, {f"is {which}": 1.0})])
        board.head(0, head, values={which: "unread" if head == 2 else f"seen {which}"})


def _truth(alone: Expected, both: Expected, nothing: Expected) -> dict[str, Expected]:
    one_input = ("embed@{}", "resid.pre[0]@{}", "attn.in[0]@{}", "attn.v[0, {}]@{}")
    found = {
        site.format(*((place,) if "v" not in site else (head, place))): alone
        for head, place in enumerate("AB")
        for site in one_input
    }
    found |= {f"attn.head[0, {head}]@end": alone for head in (0, 1)}
    whole = ("attn.head[0, all]", "attn.out[0]", "resid.mid[0]", "mlp.in[0]", "mlp.hidden[0, 0]", "mlp.out[0]")
    found |= {f"{site}@end": both for site in (*whole, "resid.post[0]")}
    # Which token a head looks at does not depend on the inputs, and no one reads the third head and the second neuron.
    still = ("attn.q[0, 0]@end", "attn.k[0, 0]@A", "attn.pattern[0, 0]@end", "attn.v[0, 0]@B", "resid.post[0]@A")
    idle = ("attn.head[0, 2]@end", "attn.v[0, 2]@A", "mlp.hidden[0, 1]@A", "mlp.out[0]@A", "attn.head[0, 0]@A")
    return found | dict.fromkeys([*still, *idle], nothing)
