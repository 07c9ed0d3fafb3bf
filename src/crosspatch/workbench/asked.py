"""What the browser may ask, as it comes over the wire: checked field by field, nothing unknown let through."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_LETTERS = 20_000  # of a prompt; a workbench is for prompts that a person reads
MOST_SELECTED = 1 << 19  # letters of a selection: every cell of a map by its name
Text = Annotated[str, Field(max_length=MOST_LETTERS)]
Answer = Annotated[str, Field(min_length=1, max_length=400)]
Name = Annotated[str, Field(min_length=1, max_length=80)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AskedPair(_Asked):
    """Two prompts, and the answers to them exactly as they follow (" Mary"); for a side without one, the run's own.

    `answers` says what is done with several tokens, as in `tasks.from_texts`.
    """

    clean: Text
    corrupt: Text
    right: list[Answer] = Field(default_factory=list, max_length=64)
    wrong: list[Answer] = Field(default_factory=list, max_length=64)
    answers: Literal["one token", "first token", "all tokens"] = "one token"


class AskedPatch(_Asked):
    """A selection of sites in one pair: each by itself (a sweep), or all of them together."""

    pair: AskedPair
    sites: Annotated[str, Field(min_length=1, max_length=MOST_SELECTED)]
    direction: Literal["denoise", "noise"] = "denoise"
    metric: Name | None = None


class AskedHead(_Asked):
    """One head's attention in both runs of a pair."""

    pair: AskedPair
    layer: int = Field(ge=0)
    head: int = Field(ge=0)


class AskedLens(_Asked):
    """What every layer decodes to at one position of a pair, in both runs."""

    pair: AskedPair
    position: int = Field(ge=0)


class AskedFinding(_Asked):
    """A finished map or joint patch to keep, by the id that it was answered with."""

    result: Name
    note: Annotated[str, Field(max_length=2_000)] = ""
