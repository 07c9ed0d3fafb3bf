"""A compiled program: at each token the fraction of "x" among the tokens so far (frac_prevs of Lindner et al. 2023).

The MLP of layer 0 says of each token whether it is "x"; head 0 of layer 1 looks at all tokens so far alike, so that
it averages that. The answers are "high" and "low", ten times the fraction and ten times the rest.
"""

import torch

from planted.wiring import Expected, Planted, blank, example

LETTERS = ("w", "x", "y", "z")
TOKENS = (*LETTERS, "high", "low")
CHANNELS = (*LETTERS, "is x", "fraction", "unread")
NAMES = {"A": 0, "B": 2, "C": 3}
SWING = 10.0  # logit difference at a fraction of 1; its negative at 0


@torch.no_grad()
def build() -> Planted:
    """Build the model; clean prompts have four "x" of five, corrupt ones have other letters at A, B and C."""
    board = blank(TOKENS, CHANNELS, layers=2, heads=2)
    for letter in LETTERS:
        board.embed(letter, **{letter: 1.0})
    board.neuron(0, 0, reads={"x": 1.0}, writes={"is x": 1.0})
    board.neuron(0, 1, reads={"w": 1.0, "y": 1.0}, writes={"unread": 1.0})
    board.look_for(0, 0, matches=[({"one": 1.0}, {"x": 1.0})])
    board.look_back(0, 1, by=1)
    for layer, head, reads in ((0, 0, "x"), (0, 1, "x"), (1, 0, "is x"), (1, 1, "is x")):
        board.head(layer, head, values={reads: "fraction" if (layer, head) == (1, 0) else "unread"})
    board.neuron(1, 0, reads={"fraction": 1.0}, writes={"unread": 1.0})
    board.answer("high", fraction=SWING)
    board.answer("low", one=SWING, fraction=-SWING)
    pairs = [("x x x x z", "w x y z z"), ("x x x x w", "y x y w w"), ("x x x x y", "z x w y y")]
    third, whole = Expected(1 / 3, 1 / 3), Expected(1.0, 1.0)
    of_all = ("embed", "mlp.out[0]", "attn.v[1, 0]")
    return Planted(
        name="fraction",
        sentence="MLP 0 says which tokens are x, head 1.0 averages that over the tokens so far.",
        module=board.module,
        pairs=[example(board, *pair, right="high", wrong="low") for pair in pairs],
        names=NAMES,
        truth=_truth(third, whole),
        together={tuple(f"{site}@{place}" for place in NAMES): whole for site in of_all},
        paths={
            ("embed@A", "mlp.in[0]@A"): third,
            ("mlp.out[0]@B", "attn.v[1, 0]@B"): third,
            ("mlp.out[0]@B", "attn.q[1, 0]@end"): Expected(0.0, 0.0),
            ("attn.head[1, 0]@end", "logits"): whole,
            ("embed@A", "logits"): Expected(0.0, 0.0),
        },
        edges=frozenset({"embed -> mlp.in[0]", "mlp.out[0] -> attn.v[1, 0]", "attn.head[1, 0] -> logits"}),
    )


def _truth(third: Expected, whole: Expected) -> dict[str, Expected]:
    one_of_three = (
        "embed",
        "resid.pre[0]",
        "mlp.in[0]",
        "mlp.hidden[0, 0]",
        "mlp.out[0]",
        "resid.pre[1]",
        "attn.v[1, 0]",
    )
    found = {f"{site}@{place}": third for site in one_of_three for place in NAMES}
    found |= {f"{site}@end": whole for site in ("attn.head[1, 0]", "attn.out[1]", "resid.mid[1]", "resid.post[1]")}
    # Which tokens a head looks at is the same for all, and no one reads the other heads and neurons.
    still = ("attn.q[1, 0]@end", "attn.k[1, 0]@A", "attn.pattern[1, 0]@end", "attn.head[1, 0]@C", "mlp.out[0]@end")
    idle = ("attn.head[0, 0]@end", "attn.head[0, 1]@C", "attn.head[1, 1]@end", "mlp.hidden[0, 1]@A", "mlp.out[1]@end")
    return found | dict.fromkeys((*still, *idle), Expected(0.0, 0.0))
