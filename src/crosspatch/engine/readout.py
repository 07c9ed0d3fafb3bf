"""From the final stream to a metric: only the positions and vocabulary rows that the metric reads, in float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crosspatch.core.errors import ManyTokenAnswer, NotFinite
from crosspatch.metrics import Metric, Readout
from crosspatch.metrics.readout import Needs
from crosspatch.models.blocks import final_stream, logits_by_forward, logits_of, readout_parts
from crosspatch.models.model import Model
from crosspatch.models.weights import Parts
from crosspatch.tasks import Pair


@dataclass(frozen=True)
class Targets:
    """The answer tokens of each pair at each position read; columns beyond a pair's answers are masked."""

    right: Int[Tensor, "pair read right"]
    wrong: Int[Tensor, "pair read wrong"]
    right_mask: Bool[Tensor, "pair read right"]
    wrong_mask: Bool[Tensor, "pair read wrong"]

    @property
    def reads(self) -> int:
        """Number of positions read in each pair."""
        return self.right.shape[1]


def targets_of(pairs: Sequence[Pair], device: torch.device) -> Targets:
    """Lay out the answers: alternatives at one position, or the tokens of one long answer at several.

    Wrong answers of several tokens are left out: `tasks.check_metric` has refused every metric that reads them.

    Raises:
        ManyTokenAnswer: a long right answer has alternatives, which cannot all be forced at once.
    """
    reads = max(len(answer) for pair in pairs for answer in pair.right)
    if reads > 1:
        for number, pair in enumerate(pairs):
            if len(pair.right) != 1:
                raise ManyTokenAnswer(
                    f"example {number} has {len(pair.right)} right answers, and answers here have several tokens. "
                    "Give one right answer, which is then forced token by token."
                )
        right = [[[token] for token in pair.right[0]] + [[]] * (reads - len(pair.right[0])) for pair in pairs]
    else:
        right = [[[answer[0] for answer in pair.right]] for pair in pairs]
    short = [[answer[0] for answer in pair.wrong if len(answer) == 1] for pair in pairs]
    wrong = [[answers] * reads for answers in short]
    (right_ids, right_mask), (wrong_ids, wrong_mask) = _padded(right, device), _padded(wrong, device)
    return Targets(right_ids, wrong_ids, right_mask, wrong_mask)


def _padded(rows: list[list[list[int]]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max((len(cell) for row in rows for cell in row), default=0)
    ids = torch.tensor([[cell + [0] * (width - len(cell)) for cell in row] for row in rows], dtype=torch.long)
    mask = torch.tensor([[[True] * len(cell) + [False] * (width - len(cell)) for cell in row] for row in rows])
    shape = (len(rows), len(rows[0]), width)
    return ids.reshape(shape).to(device), mask.reshape(shape).bool().to(device)


def read_positions(pair: Pair, reads: int) -> tuple[int, ...]:
    """Return the positions whose next token is scored: the last of the prompt, then those of the forced answer."""
    last = len(pair.clean) - 1
    return tuple(min(last + i, last + len(pair.right[0]) - 1) for i in range(reads))


def forced(prompt: Sequence[int], pair: Pair, reads: int) -> tuple[int, ...]:
    """Return the prompt followed by all but the last token of a long answer, which a forced reading needs."""
    return (*prompt, *pair.right[0][:-1]) if reads > 1 else tuple(prompt)


@dataclass(frozen=True)
class Scorer:
    """Turns final streams into values of several metrics, which share one readout.

    `reference` holds the clean run's log-probabilities, `base` those of the base run, if some metric asks for them.
    """

    model: Model
    metrics: Sequence[Metric]
    targets: Targets
    reference: Float[Tensor, "pair vocab"] | None = None
    base: Float[Tensor, "pair vocab"] | None = None
    rows_at_once: int = 256
    bytes_at_once: int = 1 << 26  # of the logits of the whole vocabulary

    def __call__(
        self, stream: Float[Tensor, "row read d_model"], pairs: Int[Tensor, " row"]
    ) -> Float[Tensor, "metric row"]:
        """Score rows; `pairs[r]` says whose answers row r is scored against."""
        stream = stream.to(pairs.device)  # with layers on several devices it comes from the last of them
        whole = self.bytes_at_once // (4 * self.model.vocab_size)
        size = self.rows_at_once if self.needs == "answers" else max(1, min(self.rows_at_once, whole))
        parts = zip(stream.split(size), pairs.split(size), strict=True)
        return torch.cat([self._score(rows, owners) for rows, owners in parts], dim=1)

    def _score(self, stream: Tensor, pairs: Tensor) -> Tensor:
        total = torch.zeros(len(self.metrics), len(pairs), device=stream.device)
        for read in range(self.targets.reads):
            live = self._live(pairs, read)
            readout = self._readout(stream[live, read], pairs[live], read)
            for number, metric in enumerate(self.metrics):
                total[number, live] += metric.score(readout).float()
        return total

    @property
    def needs(self) -> Needs:
        """Whether the answers' logits are enough for all metrics."""
        return "vocab" if any(metric.needs == "vocab" for metric in self.metrics) else "answers"

    def _live(self, pairs: Tensor, read: int) -> Bool[Tensor, " row"]:
        """Whether a row's answer has a token at this read; one that is read once always has."""
        if self.targets.reads == 1:
            return torch.ones_like(pairs, dtype=torch.bool)
        return self.targets.right_mask[pairs, read].any(-1)

    def _readout(self, stream: Float[Tensor, "row d_model"], pairs: Tensor, read: int) -> Readout:
        right, wrong = self.targets.right[pairs, read], self.targets.wrong[pairs, read]
        logits, answers = self.logits(stream, torch.cat([right, wrong], 1))
        return Readout(
            right=answers[:, : right.shape[1]],
            wrong=answers[:, right.shape[1] :],
            right_mask=self.targets.right_mask[pairs, read],
            wrong_mask=self.targets.wrong_mask[pairs, read],
            right_ids=right,
            logits=logits,
            reference=None if self.reference is None else self.reference[pairs],
            wrong_ids=wrong,
            base=None if self.base is None else self.base[pairs],
        )

    @cached_property
    def _parts(self) -> nn.Module | Parts:
        """Norms and unembedding with real weights; offloaded or split ones are fetched once, not at each call."""
        ids = torch.cat([self.targets.right.flatten(), self.targets.wrong.flatten()])
        return readout_parts(self.model.module, self.model.anatomy.readout, ids if self.needs == "answers" else None)

    def logits(self, stream: Tensor, ids: Int[Tensor, "row answer"]) -> tuple[Tensor | None, Tensor]:
        """Return logits of the vocabulary, if the metric or the model needs them all, and those of the given tokens."""
        module, readout = self.model.module, self.model.anatomy.readout
        if not readout.direct:
            logits = logits_by_forward(module, self.model.anatomy, stream).to(ids.device)
            return logits, logits.gather(1, ids)
        final = final_stream(self._parts, readout, stream)
        if self.needs == "answers":
            return None, logits_of(self._parts, readout, final, ids).to(ids.device)
        logits = logits_of(self._parts, readout, final).to(ids.device)
        return logits, logits.gather(1, ids)


def require_finite(values: Float[Tensor, " pair"], run: str, *, metric: Metric, numbers: Sequence[int]) -> None:
    """Raise if a run's metric is not a number; `numbers` are the examples that the values belong to.

    Raises:
        NotFinite: names the first example.
    """
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise NotFinite(
            f"{metric.name} of the {run} run is {float(values[bad[0]])} on example {numbers[bad[0]]} ({len(bad)} of "
            f"{len(values)} examples). The model's output is not finite there: try dtype float32, or look at the "
            "prompt."
        )
