"""Run a question to its run folder: plan, progress, interruption, saving, and the check of the clean prompts."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import typer

from crosspatch.cli.beside import Beside, keep_attention, name_metrics
from crosspatch.cli.crew import helper_rank
from crosspatch.cli.folder import JOURNAL, PAGE, Place, done_share, found_share, is_complete, writable, write_summary
from crosspatch.cli.question import Question, with_setting
from crosspatch.cli.say import CHECK_FAILED, INTERRUPTED, Voice, error
from crosspatch.cli.show import effects_text, ending
from crosspatch.core.progress import Progress
from crosspatch.report.summary import summary_of, title

if TYPE_CHECKING:
    from crosspatch.engine import Options
    from crosspatch.engine.effects import Effects


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its effects, its page (None: not written), its JSON document and its exit code."""

    effects: "Effects"
    page: Path | None
    summary: dict[str, Any]
    code: int


@dataclass(frozen=True)
class Keeping:
    """How a question is run and kept: sites listed, a page or none, the accuracy required, and how the sweep runs."""

    top: int = 10
    report: bool = True
    required: float = 0.5
    options: "Options | None" = None


class SavingProgress:
    """Passes progress on, and notes how many plain forwards the finished patches have saved."""

    def __init__(self, listener: Progress, saved: float) -> None:
        self._listener, self._saved = listener, saved
        self._total = self._done = 0

    def start(self, total: int, unit: str) -> None:
        """Begin a job of `total` units."""
        self._total, self._done = total, 0
        self._listener.start(total, unit)

    def advance(self, done: int, note: str = "") -> None:
        """Report `done` further units."""
        self._done += done
        share = self._done / self._total if self._total else 1.0
        self._listener.advance(done, note or f"{short(self._saved * share)} saved")

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
    question: Question, place: Place, voice: Voice, *, options: "Options | None" = None
) -> "list[Effects]":
    """Say the plan and run it, or what is left of it; one result a metric. Ctrl-C ends it early, not complete.

    A journal in the options keeps finished patches.
    """
    from crosspatch.engine import Options

    options = options or Options()
    plan = question.plan(options)
    metrics = ", ".join(one.metric for one in question.each)
    voice.say(f"{how_words(question)}, {metrics}: {len(question.sites):,} sites; {plan}")
    if options.journal is not None and options.journal.is_dir():
        voice.say(f"{place.folder} holds finished work of a run that was stopped: {found_share(options.journal)}")
    progress = SavingProgress(voice.progress(), plan.forwards_saved)
    return question.run(replace(options, progress=progress))


def complete_already(places: Sequence[Place], voice: Voice) -> "list[Effects]":
    """Give what is resumed and was complete already, by each metric: it is not run again; nothing if any is not."""
    found = [place.earlier for place in places if place.resume and place.complete and place.earlier is not None]
    if len(found) < len(places):
        return []
    for place in places:
        voice.say(f"{place.folder} is complete already: nothing is left to run.")
    return found


def how_words(question: Question) -> str:
    """Say in a word or two how activations are put in: `denoise`, `mean ablation`, `noise, paths to logits`."""
    ask = question.ask
    if ask.guess:
        return f"{ask.direction}, estimated by {ask.guess.estimator().title}"
    if ask.ablation:
        return f"{ask.ablation} ablation"
    return f"{ask.direction}, paths to {ask.to}" if ask.to else ask.direction


def run_and_keep(question: Question, places: Sequence[Place], voice: Voice, *, how: "Keeping") -> list["Outcome"]:
    """Run a question in its folders and keep what comes of it, one outcome a metric; a helping rank exits instead.

    Raises BadInput as `keep` does.
    """
    from crosspatch.engine import Options

    options = replace(how.options or Options(), journal=places[0].folder / JOURNAL)
    helper = helper_rank(options.crew)
    if helper and places[0].complete:
        voice.say(f"rank {helper[0]} of {helper[1]}: {places[0].folder} is complete already.")
        raise typer.Exit
    with ExitStack() as open_folders:
        for place in places:
            open_folders.enter_context(writable(place.folder))
        found = complete_already(places, voice) or run_question(question, places[0], voice, options=options)
        if helper:
            if question.model.together:  # rank 0 runs the model once more, and cannot alone
                for one, effects in zip(question.each, found, strict=True):
                    clean_accuracy(one, effects)
            voice.say(f"rank {helper[0]} of {helper[1]}: its share is done; rank 0 keeps the results.")
            raise typer.Exit
        found = name_metrics(found, places)
        beside = Beside(question, places[0], voice, found)
        each = zip(question.each, found, places, strict=True)
        return [keep(one, effects, place, how=how, beside=beside) for one, effects, place in each]


def tell(outcomes: Sequence["Outcome"], places: Sequence[Place], voice: Voice, *, top: int) -> int:
    """Show what came of a question: maps by its first metric, tables by the others, one finding each; give the code."""
    summaries = [outcome.summary for outcome in outcomes]
    voice.document(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    if outcomes[0].code == INTERRUPTED:
        for outcome, place in zip(outcomes, places, strict=True):
            tell_interrupted(outcome, place)
        return INTERRUPTED
    first, *others = (outcome.effects for outcome in outcomes)
    voice.show(*effects_text(first, first.top(top)))
    for effects in others:
        voice.show(title(effects), effects.top(top).__rich__())
    for outcome in outcomes[:1]:
        tell_failed(outcome)
    for outcome, place in zip(outcomes, places, strict=True):
        voice.show(*ending(outcome.effects, place.folder, outcome.page))
    return max(outcome.code for outcome in outcomes)


def keep(question: Question, effects: "Effects", place: Place, *, how: Keeping, beside: Beside) -> Outcome:
    """Save effects, what stands beside them, page and summary in the run folder, and check the clean prompts.

    An interrupted run never replaces a complete one. Raises BadInput if something cannot be written.
    """
    if not is_complete(effects):
        return _keep_part(question, effects, place, top=how.top)
    with writable(place.folder):
        effects.save(place.folder)  # first of all: what follows may run the model, and be interrupted
    accuracy = clean_accuracy(question, effects)
    others, attention = beside.others(effects), beside.attention
    effects = with_setting(effects, "clean_accuracy", accuracy)
    check = accuracy_check(accuracy, how.required)
    page = place.folder / PAGE if how.report else None
    with writable(place.folder):
        effects.save(place.folder)
        keep_attention(place.folder, attention)
        if page is not None:
            effects.report(page, attention=attention, others=others)
        more = {"accuracy": accuracy, "checks": [check], "folder": place.folder, "report": page}
        summary = summary_of(effects, top=how.top, more=more)
        write_summary(place.folder, summary)
    rmtree(place.folder / JOURNAL, ignore_errors=True)
    return Outcome(effects, page, summary, 0 if check["ok"] else CHECK_FAILED)


def _keep_part(question: Question, effects: "Effects", place: Place, *, top: int) -> Outcome:
    kept = not place.complete
    more = {
        "done": done_share(effects),
        "resume": resume_command(sys.argv[1:]),
        "folder": place.folder if kept else None,
        "report": None,
    }
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
