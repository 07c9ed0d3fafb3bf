"""Named positions found by reading the token strings, one by one."""

from collections.abc import Sequence


def naive_ioi_names(tokens: Sequence[str], io: str, s: str) -> dict[str, int]:
    """IO stands once; S stands twice, first S1, then S2; +1 is the next token; end is the last."""
    words = [token.strip() for token in tokens]
    (first_io,) = (i for i, word in enumerate(words) if word == io)
    s1, s2 = (i for i, word in enumerate(words) if word == s)
    return {"IO": first_io, "S1": s1, "S1+1": s1 + 1, "S2": s2, "S2+1": s2 + 1, "end": len(words) - 1}
