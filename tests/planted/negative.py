"""A negative component: head 0 raises the right answer's logit by 12, head 1 lowers it by 4.

The corrupt run gives the right answer about one and a half per cent, so no patch can lower its probability by more than
that; the logit difference shows half of the gap, with its sign (Zhang & Nanda 2023, §5).
"""

import torch

from planted.wiring import Expected, Planted, blank, example

TOKENS = ("<s>", "A=0", "A=1", "=", "yes", "no", "x", "y", "z")
CHANNELS = ("is A", "A", "raise", "lower", "unread")
NAMES = {"A": 2}
UP, DOWN, OTHER = 12.0, 4.0, 4.0  # the wrong answer's logit is always 4

RAISES, LOWERS = (frozenset({f"embed -> attn.v[0, {h}]", f"attn.head[0, {h}] -> logits"}) for h in (0, 1))


@torch.no_grad()
def build() -> Planted:
    """Build the model; A is 1 in clean prompts and 0 in corrupt ones: logit differences of 4 and −4."""
    board = blank(TOKENS, CHANNELS, layers=1, heads=3)
    for value in (0, 1):
        board.embed(f"A={value}", **{"is A": 1.0, "A": float(value)})
    for head, to in enumerate(("raise", "lower", "unread")):
        board.look_for(0, head, matches=[({"one": 1.0}, {"is A": 1.0})])
        board.head(0, head, values={"A": to})
    board.answer("yes", **{"raise": UP, "lower": -DOWN})
    board.answer("no", one=OTHER)
    pairs = [example(board, f"<s> {x} A=1 =", f"<s> {x} A=0 =") for x in "xyz"]
    gap, nothing = UP - DOWN, Expected(0.0, 0.0)
    up, down, both = Expected(UP / gap, UP / gap), Expected(-DOWN / gap, -DOWN / gap), Expected(1.0, 1.0)
    heads = ("attn.head[0, 0]@end", "attn.head[0, 1]@end")
    return Planted(
        name="negative",
        sentence="Head 0 raises the right answer's logit by 12, head 1 lowers it by 4, both from A alone.",
        module=board.module,
        pairs=pairs,
        names=NAMES,
        truth={
            **dict.fromkeys(("attn.head[0, 0]@end", "attn.v[0, 0]@A"), up),
            **dict.fromkeys(("attn.head[0, 1]@end", "attn.v[0, 1]@A"), down),
            **dict.fromkeys(("embed@A", "resid.pre[0]@A", "attn.out[0]@end", "attn.v[0, all]@A"), both),
            **dict.fromkeys(("attn.head[0, 2]@end", "attn.q[0, 1]@end", "mlp.out[0]@end", "resid.post[0]@A"), nothing),
        },
        together={heads: both},
        paths={(heads[0], "logits"): up, (heads[1], "logits"): down, ("attn.head[0, 2]@end", "logits"): nothing},
        edges=RAISES | LOWERS,
        acdc_keeps=[RAISES],  # without the head that lowers it the logit difference rises
        acdc_keeps_absolute=[RAISES | LOWERS],
    )
