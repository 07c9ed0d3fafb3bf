"""Induction: "… A B … A" is followed by B. A head looks one token back, another looks for what stood before.

Head 0 of layer 0 writes at each token which token came before it. Head 0 of layer 1 looks for a token with the present
token before it, and copies that token to the answer; where there is none it looks at the first token, which says
nothing (Olsson et al. 2022, composition through keys).
"""

import torch

from planted.wiring import Board, Expected, Planted, blank, example

WORDS = tuple("abcdefghijklmno")
TOKENS = ("<s>", *WORDS)
CHANNELS = (*TOKENS, *(f"after {t}" for t in TOKENS), *(f"next {w}" for w in WORDS), *(f"unread {t}" for t in TOKENS))
NAMES = {"A1": 2, "B": 3, "A2": 5}


@torch.no_grad()
def build() -> Planted:
    """Build the model; corrupt prompts have another token in place of the first A, so no earlier copy is there."""
    board = blank(TOKENS, CHANNELS, layers=2, heads=2)
    for token in TOKENS:
        board.embed(token, **{token: 1.0})
    _wire_heads(board)
    for word in WORDS:
        board.answer(word, **{f"next {word}": 10.0})
    pairs = [
        example(board, "<s> d a b e a", "<s> d c b e a", right="b", wrong="o"),
        example(board, "<s> f g h i g", "<s> f j h i g", right="h", wrong="o"),
        example(board, "<s> b n k m n", "<s> b l k m n", right="k", wrong="o"),
    ]
    through, nothing = Expected(1.0, 1.0), Expected(0.0, 0.0)
    previous, looking = "attn.head[0, 0]@B", "attn.head[1, 0]@end"
    return Planted(
        name="induction",
        sentence="Head 0.0 tells B that A came before it; head 1.0 finds B by its key and copies it to the answer.",
        module=board.module,
        pairs=pairs,
        names=NAMES,
        truth=_truth(through, nothing),
        together={(previous, looking): through, (previous, "attn.q[1, 0]@end"): through},
        paths={
            (previous, "attn.k[1, 0]@B"): through,
            (previous, "attn.q[1, 0]@end"): nothing,
            (previous, "attn.v[1, 0]@B"): nothing,
            (previous, "attn.k[1, 1]@B"): nothing,
            (previous, "logits"): nothing,  # all that it does goes through another head
            (looking, "logits"): through,
            ("embed@A1", "attn.v[0, 0]@A1"): through,
            ("embed@A1", "attn.k[1, 0]@B"): nothing,  # the head between them is held
        },
        edges=frozenset({"embed -> attn.v[0, 0]", "attn.head[0, 0] -> attn.k[1, 0]", "attn.head[1, 0] -> logits"}),
    )


def _wire_heads(board: Board) -> None:
    board.look_back(0, 0, by=1)
    board.head(0, 0, values={token: f"after {token}" for token in TOKENS})
    # The present token against the token before; half as much for the first token, should nothing match.
    copies = [({word: 1.0}, {f"after {word}": 1.0}) for word in WORDS]
    board.look_for(1, 0, matches=[*copies, ({"one": 0.5}, {"<s>": 1.0})])
    board.head(1, 0, values={word: f"next {word}" for word in WORDS})
    for layer, distance in ((0, 0), (1, 2)):
        board.look_back(layer, 1, by=distance)
        board.head(layer, 1, values={token: f"unread {token}" for token in TOKENS})


def _truth(through: Expected, nothing: Expected) -> dict[str, Expected]:
    early = ("embed@A1", "resid.pre[0]@A1", "attn.v[0, 0]@A1", "attn.v[0, all]@A1", "attn.head[0, 0]@B")
    middle = ("attn.out[0]@B", "resid.mid[0]@B", "resid.post[0]@B", "resid.pre[1]@B", "attn.k[1, 0]@B")
    late = ("attn.pattern[1, 0]@end", "attn.head[1, 0]@end", "attn.out[1]@end", "resid.post[1]@end")
    # After layer 0 nothing hangs on the first A itself; B's value, and the query, are the same in both prompts.
    elsewhere = ("resid.pre[1]@A1", "attn.head[0, 0]@A1", "attn.v[1, 0]@B", "attn.q[1, 0]@end", "resid.pre[1]@A2")
    idle = ("attn.head[0, 1]@A1", "attn.head[0, 1]@B", "attn.head[1, 1]@end", "attn.v[1, 1]@B", "mlp.out[0]@B")
    found: dict[str, Expected] = dict.fromkeys([*early, *middle, *late], through)
    return found | dict.fromkeys([*elsewhere, *idle], nothing)
