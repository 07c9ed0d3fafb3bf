"""A compiled program: the letters backwards (reverse of Lindner et al. 2023), asked for behind them.

"<s> a0 c1 b2 ?0 ?1 ?2" is answered "b c a" at the last three tokens: at "?i" the letter at place length − 1 − i. As
with embeddings of tokens and of positions, a letter's token says its place, a question's its index; "." is no letter.

| layer | what computes | what it writes |
|---|---|---|
| 0 | head 0 attends to "<s>" and all letters alike | share = 1 / (length + 1) |
| 0 | the MLP, linear between the shares of lengths 0 to 5 | length |
| 1 | the MLP | target = length − 1 − index |
| 2 | head 0 attends to the letter whose place is nearest to the target, by 2·target·place − place² | the letter |

Which edges matter hangs on how the prompts differ: `build` changes letters only, as the permuted data of Conmy et al.
2023; `build_by_length` changes the length and the index.
"""

import torch

from planted.wiring import Board, Example, Expected, Planted, blank, example

LETTERS, PLACES = ("a", "b", "c"), range(5)
TOKENS = ("<s>", ".", *(f"{letter}{i}" for letter in LETTERS for i in PLACES), *(f"?{i}" for i in PLACES), *LETTERS)
CHANNELS = (
    *(*LETTERS, *(f"out {letter}" for letter in LETTERS)),
    *("first", "letter or first", "no letter", "place", "place²"),  # written by the embedding
    *("share", "index", "length", "target", "unread"),
)
LOGIT = 10.0
END = frozenset({"embed -> attn.v[2, 0]", "attn.head[2, 0] -> logits"})
CHAIN = frozenset(
    {
        *("embed -> attn.k[0, 0]", "attn.head[0, 0] -> mlp.in[0]", "mlp.out[0] -> mlp.in[1]", "embed -> mlp.in[1]"),
        *("mlp.out[1] -> attn.q[2, 0]", "attn.head[2, 0] -> logits"),
    }
)


@torch.no_grad()
def build() -> Planted:
    """Build the model; corrupt prompts have other letters, the one that is asked for and more."""
    board = _wired()
    pairs = [("a b c a", "a c b b"), ("c c a b", "c a b a"), ("b a b c", "b b c b")]
    once, nothing = Expected(1.0, 1.0), Expected(0.0, 0.0)
    early = ("embed@asked", "resid.pre[0]@asked", "resid.pre[2]@asked", "attn.v[2, 0]@asked")
    late = ("attn.head[2, 0]@end", "attn.out[2]@end", "resid.mid[2]@end", "resid.post[2]@end")
    # Length, index and places are the same in both prompts.
    still = ("attn.head[0, 0]@end", "mlp.out[0]@end", "mlp.out[1]@end", "attn.q[2, 0]@end", "attn.pattern[2, 0]@end")
    other = ("embed@other", "attn.k[2, 0]@asked", "resid.pre[2]@end", "attn.v[2, 0]@other")
    return Planted(
        name="reverse",
        sentence="Head 2.0 attends to place length − 1 − index, whatever the letters are, and copies the letter there.",
        module=board.module,
        pairs=[_asked(board, (clean, 1), (corrupt, 1)) for clean, corrupt in pairs],
        names={"asked": 3, "other": 2},
        truth=dict.fromkeys((*early, *late), once) | dict.fromkeys((*still, *other, *IDLE), nothing),
        together={("embed@asked", "attn.q[2, 0]@end"): once},
        paths={
            ("embed@asked", "attn.v[2, 0]@asked"): once,
            ("embed@asked", "attn.k[2, 0]@asked"): nothing,
            ("attn.head[2, 0]@end", "logits"): once,
        },
        edges=END,
    )


@torch.no_grad()
def build_by_length() -> Planted:
    """Build the model; corrupt prompts end one letter earlier and have the next index, so the answer is two before.

    One of the two alone asks for the letter between, half of the way; so does a target at a place without a letter.
    """
    board = _wired()
    pairs = [("a b c a", "a b c ."), ("c a b c", "c a b ."), ("c c a b", "c c a .")]
    return Planted(
        name="reverse by length",
        sentence="Head 0.0 and MLP 0 find the length, MLP 1 the place to look at, head 2.0 copies the letter there.",
        module=board.module,
        pairs=[_asked(board, (clean, 0), (corrupt, 1)) for clean, corrupt in pairs],
        names={"last": 4},
        truth=_truth_by_length(),
        together={
            ("embed@last", "embed@end"): Expected(1.0, 1.0),
            ("attn.q[2, 0]@end", "attn.v[2, 0]@last"): Expected(denoise=0.5, noise=1.0),
            ("attn.q[2, 0]@end", "attn.k[2, 0]@last", "attn.v[2, 0]@last"): Expected(1.0, 1.0),
        },
        paths={
            ("embed@end", "mlp.in[1]@end"): Expected(0.5, 0.5),
            ("attn.head[0, 0]@end", "mlp.in[0]@end"): Expected(0.5, 0.5),
            ("mlp.out[0]@end", "mlp.in[1]@end"): Expected(0.5, 0.5),
            ("mlp.out[1]@end", "attn.q[2, 0]@end"): Expected(denoise=0.5, noise=1.0),
            ("attn.head[0, 0]@end", "logits"): Expected(0.0, 0.0),
        },
        edges=CHAIN | END | {"embed -> attn.k[2, 0]"},
        edges_denoise=CHAIN,  # what stands at the last place is not looked at in the corrupt run
    )


IDLE = ("attn.head[0, 1]@end", "attn.head[1, 0]@end", "attn.head[1, 1]@end", "attn.head[2, 1]@end", "mlp.out[2]@end")


def words(letters: str, *indices: int) -> str:
    """Return the prompt that asks for these indices of "a b . c" from behind."""
    named = [letter if letter == "." else f"{letter}{place}" for place, letter in enumerate(letters.split())]
    return " ".join(["<s>", *named, *(f"?{index}" for index in indices)])


def _asked(board: Board, clean: tuple[str, int], corrupt: tuple[str, int]) -> Example:
    right, wrong = (text.replace(".", "").split()[::-1][index] for text, index in (clean, corrupt))
    return example(board, words(*clean), words(*corrupt), right=right, wrong=wrong)


def _wired() -> Board:
    board = blank(TOKENS, CHANNELS, layers=3, heads=2)
    _embed(board)
    board.look_for(0, 0, matches=[({"one": 1.0}, {"letter or first": 1.0})])
    board.head(0, 0, values={"first": "share", "place": "unread"})
    # length = 5 at a share of 1/6, and falls by one from each share to the next
    board.neuron(0, 0, reads={"one": 1.0}, writes={"length": 5.0})
    for index, turn in enumerate((-30.0, 10.0, 8.0, 6.0, 4.0)):
        board.neuron(0, index + 1, reads={"share": 1.0, "one": -1 / (6 - index)}, writes={"length": turn})
    board.neuron(1, 0, reads={"length": 1.0, "one": -1.0, "index": -1.0}, writes={"target": 1.0})
    nearest = [({"target": 2.0}, {"place": 1.0}), ({"one": -1.0}, {"place²": 1.0}), ({"one": -1.0}, {"no letter": 1.0})]
    board.look_for(2, 0, matches=nearest)
    board.head(2, 0, values={letter: f"out {letter}" for letter in LETTERS})
    for letter in LETTERS:
        board.answer(letter, **{f"out {letter}": LOGIT})
    _idle(board, nearest)
    return board


def _embed(board: Board) -> None:
    for letter in LETTERS:
        for i in PLACES:
            places = {"place": float(i), "place²": float(i * i)}
            board.embed(f"{letter}{i}", **{letter: 1.0, "letter or first": 1.0, **places})
    for token in ("<s>", ".", *(f"?{i}" for i in PLACES)):
        board.embed(token, **{"no letter": 1.0})
    board.embed("<s>", **{"first": 1.0, "letter or first": 1.0})
    for i in PLACES:
        board.embed(f"?{i}", index=float(i))


def _idle(board: Board, nearest: list) -> None:
    """Wire heads and a neuron that read as the others do, and write what no one reads."""
    board.look_back(0, 1, by=1)
    board.look_for(2, 1, matches=nearest)
    for layer, head, channel in ((0, 1, "place"), (1, 0, "length"), (1, 1, "a"), (2, 1, "a")):
        board.head(layer, head, values={channel: "unread"})
    board.neuron(2, 0, reads={"out a": 1.0, "target": 1.0}, writes={"unread": 1.0})


def _truth_by_length() -> dict[str, Expected]:
    half = ("embed@last", "embed@end", "resid.pre[0]@end", "attn.k[0, 0]@last", "attn.pattern[0, 0]@end")
    half += ("attn.head[0, 0]@end", "mlp.in[0]@end", "mlp.hidden[0, all]@end", "mlp.out[0]@end")
    # Length and index together: all of the change, but the corrupt prompt has no letter where the clean one asks.
    asked = ("resid.mid[0]@end", "resid.post[0]@end", "mlp.in[1]@end", "mlp.out[1]@end", "attn.q[2, 0]@end")
    asked += ("attn.pattern[2, 0]@end",)
    there = ("attn.k[2, 0]@last", "attn.v[2, 0]@last", "resid.pre[1]@last", "resid.pre[2]@last")
    whole = ("attn.head[2, 0]@end", "attn.out[2]@end", "resid.post[2]@end")
    still = ("attn.q[0, 0]@end", "attn.v[0, 0]@last", "attn.head[0, 0]@last", "mlp.out[0]@last", "mlp.out[1]@last")
    return {
        **dict.fromkeys(half, Expected(0.5, 0.5)),
        **dict.fromkeys(asked, Expected(denoise=0.5, noise=1.0)),
        **dict.fromkeys(there, Expected(denoise=0.0, noise=0.5)),
        **dict.fromkeys(whole, Expected(1.0, 1.0)),
        **dict.fromkeys((*still, *IDLE), Expected(0.0, 0.0)),
    }
