"""A backup: head 0 of layer 0 reads the answer; head 0 of layer 1 reads three quarters of it, if the first did not.

The second head looks at A where the stream says that nothing has been read, and else at the first token, which says
nothing. In the clean run it is silent, so noise on the first head is mostly made good (McGrath et al. 2023, the Hydra
effect), and putting the second head's clean output anywhere changes nothing.
"""

import torch

from planted.wiring import Expected, Planted, blank, example

TOKENS = ("<s>", "A=0", "A=1", "=", "yes", "no", "x", "y", "z")
CHANNELS = ("first", "is A", "A", "read", "backup", "unread")
NAMES = {"A": 2}
SWING, SHARE = 8.0, 0.75
FIRST = frozenset({"embed -> attn.v[0, 0]", "attn.head[0, 0] -> logits"})


@torch.no_grad()
def build() -> Planted:
    """Build the model; A is 1 in clean prompts and 0 in corrupt ones."""
    board = blank(TOKENS, CHANNELS, layers=2, heads=2)
    board.embed("<s>", first=1)
    for value in (0, 1):
        board.embed(f"A={value}", **{"is A": 1.0, "A": float(value)})
    for layer, head, to in ((0, 0, "read"), (0, 1, "unread"), (1, 0, "backup"), (1, 1, "unread")):
        matches = [({"one": 1.0}, {"is A": 1.0})]
        silence = [({"read": 2.0}, {"first": 1.0})] if to == "backup" else []
        board.look_for(layer, head, matches=[*matches, *silence])
        board.head(layer, head, values={"A": to})
    for token, sign in (("yes", 0.5), ("no", -0.5)):
        board.answer(token, read=sign * SWING, backup=sign * SWING * SHARE, one=-sign * SWING / 2)
    pairs = [example(board, f"<s> {x} A=1 {y} =", f"<s> {x} A=0 {y} =") for x, y in ("xy", "yz", "zx")]
    first, backup = "attn.head[0, 0]@end", "attn.head[1, 0]@end"
    broken, made_good = Expected(1.0, 1.0), Expected(denoise=1.0, noise=1 - SHARE)
    return Planted(
        name="backup",
        sentence="Head 0.0 reads A; head 1.0 reads it too, at three quarters, only where head 0.0 has written nothing.",
        module=board.module,
        pairs=pairs,
        names=NAMES,
        truth=_truth(broken, made_good),
        together={
            (first, backup): broken,
            (first, "attn.v[1, 0]@A"): broken,
            (first, "attn.q[1, 0]@end"): made_good,  # the query tells what it would see anyway
        },
        paths={
            (first, "logits"): broken,  # with the backup held the whole effect is there
            (first, "attn.q[1, 0]@end"): Expected(denoise=0.0, noise=-SHARE),
            (first, "attn.k[1, 0]@end"): Expected(0.0, 0.0),
            (backup, "logits"): Expected(0.0, 0.0),
        },
        # The first head tells the backup to be silent; what the backup writes is nothing in both runs. A search cuts
        # that first, and then no one hears what the backup is told.
        edges=FIRST | {"attn.head[0, 0] -> attn.q[1, 0]"},
        edges_denoise=FIRST | {"embed -> attn.v[1, 0]"},
        acdc_keeps=[FIRST],
    )


def _truth(broken: Expected, made_good: Expected) -> dict[str, Expected]:
    nothing = Expected(0.0, 0.0)
    # In the corrupt run the backup is awake, and reads what is at A; in the clean run it looks elsewhere.
    awake = Expected(denoise=SHARE, noise=0.0)
    # Told in the clean run that nothing was read, the backup adds to what is there: more than the clean run has.
    doubled = Expected(denoise=0.0, noise=-SHARE)
    return {
        **dict.fromkeys(("embed@A", "resid.pre[0]@A", "resid.post[1]@end"), broken),
        **dict.fromkeys(("attn.v[0, 0]@A", "attn.head[0, 0]@end", "attn.out[0]@end", "resid.pre[1]@end"), made_good),
        **dict.fromkeys(("attn.v[1, 0]@A", "resid.pre[1]@A"), awake),
        **dict.fromkeys(("attn.q[1, 0]@end", "attn.pattern[1, 0]@end"), doubled),
        **dict.fromkeys(("attn.head[1, 0]@end", "attn.k[1, 0]@A", "attn.k[1, 0]@end", "attn.q[0, 0]@end"), nothing),
        **dict.fromkeys(("attn.head[0, 1]@end", "attn.head[1, 1]@end", "attn.v[1, 1]@A", "mlp.out[1]@end"), nothing),
    }
