"""Run a question to its run folder: plan, progress, interruption, saving, and the check of the clean prompts."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspatch.cli.folder import PAGE, Place, done_share, is_complete, writable, write_summary
from crosspatch.cli.question import Question
from crosspatch.cli.say import CHECK_FAILED, INTERRUPTED, Voice, console, error
from crosspatch.cli.show import summary_of
from crosspatch.core.progress import Progress

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects
    from crosspatch.engine.sweep import Options

STEPS = 20  # packs that a sweep has at least, unless they would be too small to be fast


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its effects, its page (None: not written), its JSON document and its exit code."""

    effects: "Effects"
    page: Path | None
    summary: dict[str, Any]
    code: int


class SavingProgress:
    """Passes progress on, and notes how many plain forwards the finished patches have saved."""

    def __init__(self, listener: Progress, saved: float, *, narrow: bool = False) -> None:
        self._listener, self._saved = listener, saved
        self._unit = "saved" if narrow else "forwards saved"
        self._total = self._done = 0

    def start(self, total: int, unit: str) -> None:
        """Begin a job of `total` units."""
        self._total, self._done = total, 0
        self._listener.start(total, unit)

    def advance(self, done: int, note: str = "") -> None:
        """Report `done` further units."""
        self._done += done
        share = self._done / self._total if self._total else 1.0
        self._listener.advance(done, note or f"{short(self._saved * share)} {self._unit}")

    def close(self) -> None:
        """End the job."""
        self._listener.close()


def short(count: float | int) -> str:
    """Write a count in four signs or so: `940`, `4.9k`, `128k`, `1.2M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f}{letter}"
    return f"{count:.0f}"


def run_question(
    question: Question, place: Place, voice: Voice, *, memory: int | None = None, tokens: int | None = None
) -> "Effects":
    """Say the plan and run it, or what is left of it. Ctrl-C ends it early, with effects that are not complete.

    A run that was complete already is not run again if it is resumed.
    """
    from crosspatch.engine import Options

    if place.resume and place.complete:
        assert place.earlier is not None
        voice.say(f"{place.folder} is complete already: nothing is left to run.")
        return place.earlier
    options = smooth(question, Options(memory=memory, tokens=tokens))
    plan = question.plan(options)
    voice.say(f"{question.ask.direction}, {question.metric}: {len(question.sites):,} sites; {plan}")
    if place.resume and place.earlier is not None:
        voice.say(f"{done_share(place.earlier):.0%} of it is done in {place.folder}; the rest is run now.")
    screen = console(err=True)
    narrow = screen.is_terminal and screen.width < 100  # there the bar, the counts and the time leave no room for more
    progress = SavingProgress(voice.progress(), plan.forwards_saved, narrow=narrow)
    return question.patch(replace(options, progress=progress, resume=place.earlier if place.resume else None))


def smooth(question: Question, options: "Options") -> "Options":
    """Cut a short sweep on a processor into smaller packs, so that its progress moves and an interruption loses little.

    A pack of 512 tokens is as fast there as a wide one. Limits that the user set stay.
    """
    from crosspatch.engine.plan import TOKENS_AT_ONCE

    if options.tokens is not None or options.memory is not None or question.model.device.type != "cpu":
        return options
    packs = question.plan(options).packs
    return options if packs >= STEPS else replace(options, tokens=max(512, TOKENS_AT_ONCE["cpu"] * packs // STEPS))


def keep(question: Question, effects: "Effects", place: Place, *, top: int, report: bool, required: float) -> Outcome:
    """Save effects, page and summary in the run folder, and check the clean prompts.

    An interrupted run never replaces a complete one. Raises BadInput if something cannot be written.
    """
    if not is_complete(effects):
        return _keep_part(effects, place, top=top)
    with writable(place.folder):
        effects.save(place.folder)  # first of all: what follows may run the model, and be interrupted
    accuracy = clean_accuracy(question, effects)
    effects = _with_setting(effects, "clean_accuracy", accuracy)
    check = accuracy_check(accuracy, required)
    page = place.folder / PAGE if report else None
    with writable(place.folder):
        effects.save(place.folder)
        if page is not None:
            effects.report(page)
        more = {"accuracy": accuracy, "checks": [check], "folder": place.folder, "report": page}
        summary = summary_of(effects, top=top, more=more)
        write_summary(place.folder, summary)
    return Outcome(effects, page, summary, 0 if check["ok"] else CHECK_FAILED)


def _keep_part(effects: "Effects", place: Place, *, top: int) -> Outcome:
    kept = not place.complete
    again = resume_command(sys.argv[1:])
    more = {"done": done_share(effects), "resume": again, "folder": place.folder if kept else None, "report": None}
    summary = summary_of(effects, top=top, more=more)
    if kept:
        effects.save(place.folder)
        write_summary(place.folder, summary)
    return Outcome(effects, None, summary, INTERRUPTED)


def tell_interrupted(outcome: Outcome, place: Place) -> None:
    """Say on standard error what is kept of an interrupted run, and the command that continues it."""
    share = f"{done_share(outcome.effects):.0%} of the work was done"
    if place.complete:
        error(f"{share}. {place.folder} still holds the complete run that was there before.", label="interrupted")
        return
    error(f"{share} and is kept in {place.folder}. Continue with:", label="interrupted")
    sys.stderr.write(f"  {outcome.summary['resume']}\n")


def resume_command(arguments: Sequence[str]) -> str:
    """Write the command that continues a run, ready to paste."""
    resumes = any(word == "--resume" or word.startswith("--resume=") for word in arguments)
    return shlex.join(["crosspatch", *arguments, *([] if resumes else ["--resume"])])


def clean_accuracy(question: Question, effects: "Effects") -> float:
    """Give the share of clean prompts that the model gets right.

    A logit difference has told it already; other metrics need plain forwards of the prompts.
    """
    from crosspatch.tasks import check

    if effects.metric != "logit_diff":
        return check(question.model, question.task).accuracy
    clean = effects.source if effects.direction == "denoise" else effects.base
    return float((clean > 0).mean())


def accuracy_check(accuracy: float, required: float) -> dict[str, Any]:
    """Say whether enough clean prompts are right, as `{name, ok, detail}`."""
    detail = f"{accuracy:.0%} of the clean prompts right, {required:.0%} required"
    return {"name": "clean accuracy", "ok": accuracy >= required, "detail": detail}


def tell_failed(outcome: Outcome) -> None:
    """Say on standard error which checks failed; heard even when quiet."""
    for check in outcome.summary.get("checks", ()):
        if not check["ok"]:
            error(
                f"{check['detail']}. Effects explain a behaviour only where the model shows it: choose another task or "
                "model, or set the bar with --require-accuracy.",
                label="check failed",
            )


def _with_setting(effects: "Effects", name: str, value: object) -> "Effects":
    """Add a setting to where effects come from."""
    settings = {**effects.provenance.get("settings", {}), name: value}
    return replace(effects, provenance={**effects.provenance, "settings": settings})
