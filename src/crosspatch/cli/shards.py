"""`runs verify` and `runs merge`: is what a folder holds whole, and one run out of the shards of several machines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.circuit_folder import load_circuit_of, load_score_of
from crosspatch.cli.folder import JOURNAL, META, what_in
from crosspatch.cli.say import CHECK_FAILED, Voice
from crosspatch.cli.work import journal_in, opener_of
from crosspatch.core.errors import BadInput, CrosspatchError

if TYPE_CHECKING:
    from crosspatch.core.journal import Columns, Journal

Again = Annotated[
    int, typer.Option("--again", min=0, metavar="N", help="Run N finished units again and compare every bit.")
]
Shards = Annotated[list[Path], typer.Argument(metavar="DIR…", help="Unfinished runs of one question.")]
Merged = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the joined run goes.", show_default=False)]
Check = dict[str, Any]


def verify(
    folder: given.RunFolder,
    *,
    again: Again = 0,
    device: given.Device = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Check a run's files: checksums, formats, what is missing; exit 3 if something is wrong."""
    voice = Voice(json, quiet)
    checks = [*_results(folder), *_attention(folder), *_journal(folder, again, device)]
    if not checks:
        raise BadInput(f"{folder} holds no run: neither {META} nor a journal.")
    voice.document({"folder": folder, "checks": checks})
    voice.show(*(f"{'ok    ' if check['ok'] else 'FAILED'} {check['name']}: {check['detail']}" for check in checks))
    if not all(check["ok"] for check in checks):
        raise typer.Exit(CHECK_FAILED)


def _results(folder: Path) -> Iterator[Check]:
    """Check the saved effects of a run, if there are any."""
    from crosspatch import load

    if not (folder / META).exists():
        return
    try:
        if what_in(folder) == "circuit":
            circuit, score = load_circuit_of(folder), load_score_of(folder)
            scored = "not scored" if score is None else f"scored on {len(score.values)} pairs"
            yield _check("circuit", ok=True, detail=f"checksum right; {circuit.size:,} edges, {scored}")
            return
        effects = load(folder)
    except CrosspatchError as problem:
        yield _check("results", ok=False, detail=str(problem))
        return
    import numpy as np

    missing = int(np.isnan(effects.raw).sum())
    yield _check("results", ok=True, detail=f"checksum right; {effects.raw.size:,} cells, {missing:,} without a number")


def _attention(folder: Path) -> Iterator[Check]:
    """Check the attention that is kept beside a run, if there is any."""
    from crosspatch.lenses import HeadPatterns

    try:
        found = HeadPatterns.found(folder)
    except CrosspatchError as problem:
        yield _check("attention", ok=False, detail=str(problem))
        return
    if found is not None:
        detail = f"checksum right; {len(found.chosen)} heads on {len(found.patterns)} of {found.pairs} pairs"
        yield _check("attention", ok=True, detail=detail)


def _journal(folder: Path, again: int, device: str | None) -> Iterator[Check]:
    """Check the journal of a run, if there is one."""
    from crosspatch.core.journal import ABOUT, Journal

    where = journal_in(folder)
    if not (where / ABOUT).exists():
        return
    try:
        journal = Journal.found(where)
        rows, done = journal.read(), journal.done()
    except CrosspatchError as problem:
        yield _check("journal", ok=False, detail=str(problem))
        return
    size = len(next(iter(rows.values()))) if rows else 0
    detail = f"checksums right; {len(done)} of {journal.plan.get('units', '?')} units finished, {size:,} rows"
    yield _check("journal", ok=True, detail=detail)
    if again:
        yield _repeated(journal, sorted(done), again, device)


def _repeated(journal: "Journal", done: Sequence[int], again: int, device: str | None) -> Check:
    """Run some finished units again and compare them to the bit."""
    from crosspatch.core.journal import by_unit
    from crosspatch.executors import Setup

    chosen = set(Random(0).sample(done, min(again, len(done))))
    job = Setup(opener_of(journal.plan, journal.folder), journal.folder).open(device)
    try:
        differing = [
            unit for unit, rows in by_unit(journal.read()) if unit in chosen and not _same(job.run(unit), rows)
        ]
    finally:
        job.close()
    told = f"; units {', '.join(map(str, differing))} differ" if differing else ", the same to the bit"
    return _check("repeated", ok=not differing, detail=f"{len(chosen)} units run again{told}")


def _same(one: "Columns", other: "Columns") -> bool:
    import numpy as np

    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _check(name: str, *, ok: bool, detail: str) -> Check:
    return {"name": name, "ok": ok, "detail": detail}


def merge(shards: Shards, *, out: Merged, json: given.Json = False, quiet: given.Quiet = False) -> None:
    """Join unfinished runs of one question, made on machines that share no folder, into one."""
    from crosspatch.core.journal import Journal

    voice = Voice(json, quiet)
    found = [Journal.found(journal_in(folder)) for folder in shards]
    with Journal.open(out / JOURNAL, found[0].fingerprint, plan=found[0].plan) as joined:
        new = sum(joined.merge(each) for each in found)
        done, units = len(joined.done()), joined.plan.get("units")
    voice.document({"folder": out, "new": new, "done": done, "units": units})
    voice.show(
        f"{new} units taken over; {done} of {units} are there",
        f"to finish: the command that began the run, with --out {out} --resume",
    )
