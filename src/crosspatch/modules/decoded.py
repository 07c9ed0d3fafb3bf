"""What an encoder–decoder wrote while it was patched, site by site, beside what it writes when left alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from crosspatch.draw import Display, Displayed
from crosspatch.sites import Address

NOTHING = -1  # stands where a row has ended before


@dataclass(frozen=True, repr=False, eq=False)
class Decoded(Displayed):
    """New tokens of every site and example, and those of the unpatched base and source runs.

    A row's tokens hold the end token that it came to, one of `ends`; behind it stands −1. `prompt` is what was
    continued.
    """

    sites: tuple[Address, ...]
    tokens: Int[np.ndarray, "site example step"]
    base: Int[np.ndarray, "example step"]
    source: Int[np.ndarray, "example step"]
    prompt: Int[np.ndarray, "example token"]
    ends: frozenset[int]
    direction: str
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> Bool[np.ndarray, "site example"]:
        """Whether a patched row came to an end token."""
        return np.any(np.isin(self.tokens, sorted(self.ends)), axis=-1)

    @property
    def changed(self) -> Bool[np.ndarray, "site example"]:
        """Whether a patched row says something else than the base run."""
        return np.any(self.tokens != self.base, axis=-1)

    def texts(self, tokenizer: Any, tokens: Int[np.ndarray, "..."] | None = None) -> Any:
        """Return the patched texts, `[site][example]`, without special tokens; or those of `tokens`, such as `base`.

        `tokenizer` may be a processor that holds one.
        """
        rows = self.tokens if tokens is None else tokens
        if rows.ndim > 1:
            return tuple(self.texts(tokenizer, row) for row in rows)
        ids = [int(token) for token in rows if token != NOTHING]
        decode = getattr(tokenizer, "tokenizer", tokenizer).decode
        return decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def display(self) -> Display:
        """Say how many rows changed in all, and list the sites where most did."""
        many, examples, steps = self.tokens.shape
        said = f"{int(self.changed.sum()):,} of {many * examples:,} rows differ from the base run"
        head = f"Decoded: {many:,} sites × {examples:,} examples, {self.direction}, up to {steps} tokens; {said}"
        count = self.changed.sum(axis=1)
        order = [int(i) for i in np.argsort(-count, kind="stable") if count[i]]
        rows = [(str(self.sites[i]), f"{int(count[i])} of {examples}") for i in order]
        return Display(head, ("site", "changed rows") if rows else (), rows, self.warnings)
