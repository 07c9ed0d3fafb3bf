"""Named positions found by reading the token strings, one by one."""

import re
from collections.abc import Sequence


def naive_ioi_names(tokens: Sequence[str], io: str, s: str) -> dict[str, int]:
    """IO stands once; S stands twice, first S1, then S2; +1 is the next token; end is the last."""
    words = [token.strip() for token in tokens]
    (first_io,) = (i for i, word in enumerate(words) if word == io)
    s1, s2 = (i for i, word in enumerate(words) if word == s)
    return {"IO": first_io, "S1": s1, "S1+1": s1 + 1, "S2": s2, "S2+1": s2 + 1, "end": len(words) - 1}


def naive_position(tokens: Sequence[str], text: str, stop: int, special: Sequence[str] = ()) -> int:
    """Count characters that are no white space: the token in which the one before `stop` lies."""
    wanted = len("".join(text[:stop].split()))
    seen = 0
    for index, token in enumerate(tokens):
        seen += 0 if token in special else len("".join(token.split()))
        if seen >= wanted:
            return index
    raise AssertionError(f"{tokens} do not spell {text!r}")


def solve_greater_than(text: str) -> set[str]:
    """Tens digits that are above that of the first year."""
    tens = int(re.search(r"year \d\d(\d)\d to", text)[1])
    return {str(digit) for digit in range(tens + 1, 10)}


def solve_docstring(text: str) -> set[str]:
    """The argument that follows the last documented one in the definition, if it is there."""
    defined = re.search(r"\((.*)\)", text)[1].split(", ")
    last = re.findall(r":param (\w+):", text)[-1]
    return {defined[defined.index(last) + 1]} if last in defined else set()


def solve_induction(text: str) -> set[str]:
    """What followed the last word where it stood before."""
    words = text.split()
    return {words[i + 1] for i, word in enumerate(words[:-1]) if word == words[-1]}


def solve_sva(text: str) -> set[str]:
    """The verbs of the first noun's number."""
    return {"are", "were", "have"} if text.split()[1].endswith("s") else {"is", "was", "has"}


def solve_colours(text: str) -> set[str]:
    """The letter of the line that holds the colour said first."""
    said = re.match(r"The \w+ is (\w+)\.", text)[1]
    return {letter for letter, colour in re.findall(r"^(\w)\. (\w+)$", text, re.MULTILINE) if colour == said}


def solve_arithmetic(text: str) -> set[str]:
    """The sum of the last line."""
    a, b = text.rsplit("\n", maxsplit=1)[-1].rstrip("=").split("+")
    return {str(int(a) + int(b))}


def solve_boxes(text: str) -> set[str]:
    """What the box of the last sentence was said to contain."""
    told, asked = text.split(". ")
    contents = dict(re.findall(r"Box (\w) contains the (\w+)", told))
    return {contents[asked.split()[1]]}
