"""A pair of prompts with answers and named positions, and a task: many pairs with a metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from crosspatch.core.errors import BadInput, UnalignedPair
from crosspatch.draw import Display, Displayed, shown
from crosspatch.sites.site import TOGETHER, split_name

Answer = tuple[int, ...]
TOKENS = "replace"
EMBEDDINGS = ("gaussian", "zero", "mean")
RESAMPLE = "resample"
PAIR_HEADERS = ("clean prompt", "corrupt prompt", "positions", "right (ids)", "wrong (ids)")
SHOWN = 5  # pairs of a task in a notebook


@dataclass(frozen=True)
class Pair(Displayed):
    """Hold a clean and a corrupt prompt as token ids, aligned position by position, BOS included if there is one.

    `right` and `wrong` list alternative answers, each a sequence of token ids. `names` maps a named position to its
    index from the first token. Raises UnalignedPair for unequal lengths, BadInput for an empty prompt, no right answer
    or a name that is outside the prompt or that no site can spell.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    right: tuple[Answer, ...]
    wrong: tuple[Answer, ...]
    names: Mapping[str, int]
    clean_text: str = ""
    corrupt_text: str = ""

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt):
            raise UnalignedPair(
                f"the clean prompt has {len(self.clean)} tokens and the corrupt one {len(self.corrupt)}: "
                "patching needs prompts of equal length, aligned position by position."
            )
        if not self.clean:
            raise BadInput("a pair needs prompts of at least one token.")
        if not self.right or not all(self.right) or not all(self.wrong):
            raise BadInput("a pair needs at least one right answer, and every answer at least one token.")
        for name, index in self.names.items():
            _check_name(name, index, len(self.clean))

    def cells(self) -> tuple[str, ...]:
        """Write the pair as texts: both prompts (token ids without texts), its named positions, its answers' ids."""
        texts = ((self.clean_text, self.clean), (self.corrupt_text, self.corrupt))
        prompts = (shown(text) if text else " ".join(map(str, ids)) for text, ids in texts)
        names = ", ".join(f"{name} {index}" for name, index in self.names.items())
        answers = (" or ".join("+".join(map(str, ids)) for ids in given) for given in (self.right, self.wrong))
        return (*prompts, names, *answers)

    def display(self) -> Display:
        """Show both prompts, the named positions and the answers."""
        return Display(f"Pair of {len(self.clean)} tokens", PAIR_HEADERS, [self.cells()])


@dataclass(frozen=True)
class Corruption:
    """Say how the corrupt run is made.

    `by` is "replace" (the pair's own corrupt prompt: symmetric token replacement), "resample" (the key tokens of
    another example), the name of a task's alternative such as "ABC", or, on the clean prompt's embeddings at the key
    positions: "gaussian" (noise of `sigma` standard deviations of the token embeddings, effects averaged over `draws`),
    "zero", or "mean" (over the task's clean prompts of the same layout, at each position). Key positions are the names
    in `at`, or those where the pair's prompts differ.
    """

    by: str = TOKENS
    at: tuple[str, ...] = ()
    sigma: float = 3.0
    draws: int = 1
    seed: int = 0

    @property
    def of_embeddings(self) -> bool:
        """Whether the corrupt run has the clean tokens with other embeddings."""
        return self.by in EMBEDDINGS

    def settings(self) -> dict[str, str | int | float]:
        """Return what a result stores of it."""
        own: dict[str, str | int | float] = {"by": self.by, "at": ",".join(self.at) or "where the prompts differ"}
        if self.by in ("gaussian", RESAMPLE):
            own |= {"seed": self.seed}
        return own | ({"sigma": self.sigma, "draws": self.draws} if self.by == "gaussian" else {})


@dataclass(frozen=True, repr=False)
class Task(Displayed):
    """Hold pairs, the metric to score them by, and the settings that made them.

    `tokens` are the display strings of each clean prompt's tokens, one tuple a pair. `alternatives` names other corrupt
    prompts for the same clean ones, such as "ABC" of IOI, one token-id tuple a pair; `corruption` says how the corrupt
    runs are made (see `corrupt`). Raises BadInput without pairs or
    if `tokens` or `alternatives` do not match them.
    """

    name: str
    pairs: tuple[Pair, ...]
    metric: str = "logit_diff"
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    tokens: tuple[tuple[str, ...], ...] = ()
    alternatives: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    corruption: Corruption = field(default_factory=Corruption)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise BadInput(f"task {self.name!r} has no pairs: give at least one example.")
        if self.tokens and [len(row) for row in self.tokens] != [len(pair.clean) for pair in self.pairs]:
            raise BadInput(f"task {self.name!r}: tokens must hold one string for each token of each clean prompt.")
        for name, prompts in self.alternatives.items():
            if [len(prompt) for prompt in prompts] != [len(pair.clean) for pair in self.pairs]:
                raise BadInput(
                    f"task {self.name!r}: alternative {name!r} must hold a prompt as long as each clean one."
                )

    def __len__(self) -> int:
        return len(self.pairs)

    def display(self) -> Display:
        """Show the first pairs: where they differ, their named positions, their answers."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        rows = [pair.cells() for pair in self.pairs[:SHOWN]]
        left = len(self.pairs) - len(rows)
        notes = [*([f"… and {left:,} more pairs"] if left else []), *([settings] if settings else [])]
        return Display(repr(self), PAIR_HEADERS, rows, notes)

    def __repr__(self) -> str:
        lengths = sorted({len(pair.clean) for pair in self.pairs})
        span = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        return f"Task({self.name!r}, {len(self.pairs)} pairs of {span} tokens, metric {self.metric!r})"


def take(task: Task, indices: Sequence[int], **settings: str | int | float) -> Task:
    """Keep the pairs at `indices`, with all that belongs to them; `settings` are added to the task's own."""
    return replace(
        task,
        pairs=tuple(task.pairs[i] for i in indices),
        settings={**task.settings, "n": len(indices), **settings},
        tokens=tuple(task.tokens[i] for i in indices) if task.tokens else (),
        alternatives={name: tuple(prompts[i] for i in indices) for name, prompts in task.alternatives.items()},
    )


def _check_name(name: str, index: int, length: int) -> None:
    if split_name(name) is None or name == TOGETHER:
        raise BadInput(
            f"{name!r} cannot name a position: use letters, digits and underscores, with an offset at most, "
            f"such as 'subject' or 'S1+1'; {TOGETHER!r} is taken."
        )
    if not 0 <= index < length:
        raise BadInput(f"position {name!r} is {index}, but the prompt has {length} tokens, 0 to {length - 1}.")
