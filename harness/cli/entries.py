"""``aftershock entry``, ``submit`` and ``verify``: results that others can check and put on a board."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import AftershockError, UsageError, printable

if TYPE_CHECKING:
    from ...reports.entries.schema import Entry
    from ...reports.entries.verify import Disagreement, Verified

RunFolder = Annotated[Path, typer.Argument(help="A finished run directory.")]
By = Annotated[str, typer.Option("--by", help="Your name, as a board shows it.")]
Only = Annotated[str, typer.Option("--detector", help="Only this detector, and the row without one.")]
Replace = Annotated[bool, typer.Option("--replace", help="Write over an entry that says something else.")]


def entry(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The folder.")] = Path("entries"),
    by: By = "",
    detector: Only = "",
    replace: Replace = False,
) -> None:
    """Write one small file per data set, model and detector, with the scores that anybody can check it by."""
    from ...reports.entries.folder import write_entry
    from ...reports.entries.from_run import entries_of
    from ...reports.read.run_directory import read_run

    for written in entries_of(read_run(run), by, detector):
        path = write_entry(written, out, replace)
        size = len(written.entry.encode()) + len(written.table.content if written.table else b"")
        missing = written.entry.images_missing
        typer.echo(f"{path} ({size / 1000:.0f} kB{f'; listed, not ranked: {missing}' if missing else ''})")


def submit(
    run: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="The entries folder of a checkout of a board.")],
    by: Annotated[str, typer.Option("--by", help="Your name, as the board shows it.")],
    detector: Only = "",
    replace: Replace = False,
) -> None:
    """Write entries where a board keeps them, checked as the board will check them."""
    from ...reports.entries.folder import place_in, write_entry
    from ...reports.entries.from_run import entries_of
    from ...reports.entries.verify import verify
    from ...reports.read.run_directory import read_run

    if not to.is_dir():
        raise UsageError(f"There is no folder {to}: name the entries folder of a checkout of the board.")
    if not by.strip():
        raise UsageError("Say who stands for the numbers: --by NAME.")
    for written in entries_of(read_run(run), by, detector):
        path = write_entry(written, place_in(to, written), replace, to)
        problems = verify(path, to).disagreements
        if problems:
            raise AftershockError(f"{path} does not agree with itself: {problems[0]}.")
        typer.echo(str(path))
    typer.echo("Commit these files and the tables beside them, and propose the change to the keeper of the board.")


def challenge(
    run: RunFolder,
    images: Annotated[
        Path, typer.Option("--images", help="An .npz: index (positions in the test split) and images in [0, 1].")
    ],
    detector: Annotated[str, typer.Option("--detector", help="The detector's label in the run.")],
    by: Annotated[str, typer.Option("--by", help="Who found them, as a board shows it.")],
    model: Annotated[str | None, typer.Option(help="The model's label, where the run has several.")] = None,
    entry: Annotated[Path | None, typer.Option(help="An entry that earlier challenges lowered.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the new entry.")] = Path("entries"),
    data: Annotated[Path | None, typer.Option("--data", help="Root of the data sets [env: AFTERSHOCK_DATA].")] = None,
    weights: Annotated[Path | None, typer.Option(help="The model's weights, where the run does not hold them.")] = None,
) -> None:
    """Check images that others found against a detector; those that count lower its entry, with the credit."""
    from ...reports.entries.folder import write_entry
    from ..run.challenge import challenge as check

    if not by.strip():
        raise UsageError("Say who found the images: --by NAME.")
    found = check(run, detector, images, by, model, data, weights, entry)
    for reason, count in sorted(found.refused.items()):
        typer.echo(f"{count} image{'s' if count != 1 else ''} {reason}")
    if found.written is None:
        typer.echo(f"Nothing is lower: {detector} keeps {found.before:.1%}.")
        raise typer.Exit(1)
    typer.echo(
        f"{found.lowered} with a lower score than the run found: robust accuracy of {detector} was {found.before:.1%}, "
        f"is {found.after:.1%}."
    )
    typer.echo(str(write_entry(found.written, out, replace=True)))


def verify(
    entry: Annotated[list[Path], typer.Argument(help="Entries, or folders of them.")],
    rerun: Annotated[bool, typer.Option("--rerun", help="Compute again, with the parts of --suite.")] = False,
    suite: Annotated[
        Path | None, typer.Option(help="Your suite for --rerun: nothing that an entry names is imported or opened.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory of --rerun.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Root of the data sets [env: AFTERSHOCK_DATA].")] = None,
    by: Annotated[str, typer.Option("--by", help="Your name: what agrees is marked as recomputed by you.")] = "",
    marks: Annotated[Path, typer.Option(help="The list of a board's keeper, for --by.")] = Path("recomputed.json"),
) -> None:
    """Compute every metric of entries again from their tables, and name what does not agree."""
    from ...reports.entries.folder import read_folders

    if (suite is not None) != rerun:
        raise UsageError("--rerun and --suite go together: the suite names the parts that are computed with.")
    if by and not rerun:
        raise UsageError("Only what was computed again is marked: --by goes with --rerun.")
    found = read_folders(entry)
    for one in found.entries:
        said = "agrees with its table" if one.table else "has no table to agree with"
        typer.echo(printable(f"{one.path}: {said}"))
    for refused in found.refused:
        typer.echo(str(refused))
    failed = len(found.refused)
    if suite is not None:
        again = _computed_again(suite, out or Path("runs") / f"verify-{suite.stem}", data)
        for one in found.entries:
            problems = _differences(one.entry, again)
            failed += bool(problems)
            for problem in problems:
                typer.echo(printable(f"{one.path}: computed again: {problem}"))
            if not problems:
                typer.echo(printable(f"{one.path}: computed again, and agrees"))
                if by:
                    _mark(one, by, again, marks)
    if failed:
        raise typer.Exit(1)


def _computed_again(suite: Path, out: Path, data: Path | None) -> list[Entry]:
    from ...reports.entries.from_run import entries_of
    from ...reports.read.run_directory import read_run
    from ..run.api import run

    run(suite, out=out, data=data)
    return [written.entry for written in entries_of(read_run(out))]


def _differences(entry: Entry, again: list[Entry]) -> list[Disagreement]:
    from ...reports.entries.recomputed import differences
    from ...reports.entries.verify import Disagreement

    same = [e for e in again if (e.dataset, e.model, e.detector) == (entry.dataset, entry.model, entry.detector)]
    same = [e for e in same if e.threat == entry.threat]
    if not same:
        name = f"{entry.dataset} / {entry.model} / {entry.detector}"
        return [Disagreement("entry", name, "the suite has no such row")]
    return differences(entry, same[0])


def _mark(one: Verified, by: str, again: list[Entry], marks: Path) -> None:
    from ...reports.entries.recomputed import Recomputed, read_marks

    entry = one.entry
    own = next(e for e in again if (e.dataset, e.model, e.detector) == (entry.dataset, entry.model, entry.detector))
    date = datetime.now(UTC).date().isoformat()
    mark = Recomputed(by=by, date=date, robust_accuracy_at_fpr_5=own.metrics.robust_accuracy_at_fpr_5)
    read_marks(marks).with_mark(one.digest, mark).write(marks)


def board(
    entries: Annotated[
        list[Path], typer.Argument(metavar="ENTRIES... | init", help="Folders of entries; or init, to start a board.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder of the site [default: site]; of init [default: .].")
    ] = None,
    marks: Annotated[
        Path | None, typer.Option(help="Who computed which entry again [default: recomputed.json beside the entries].")
    ] = None,
    name: Annotated[str, typer.Option(help="The board's name.")] = "Leaderboard",
    hub: Annotated[
        str | None, typer.Option(help="OWNER/NAME on the Hugging Face Hub: write .eval_results files for it as well.")
    ] = None,
    source: Annotated[str, typer.Option(help="Where the board stands, https://..., for these files.")] = "",
) -> None:
    """Build the site of a board from entries; those that do not agree with themselves are refused by name.

    `aftershock board init --out FOLDER` writes what a repository of entries needs: a README and a workflow that checks
    proposed entries and publishes the board.
    """
    if entries == [Path("init")] and not Path("init").exists():
        from ...reports.entries.keeping import write_keeping

        for path in write_keeping(out or Path(), name):
            typer.echo(str(path))
        return
    from ...reports.entries.board import build_board
    from ...reports.entries.folder import read_folders
    from ...reports.entries.recomputed import read_marks

    found = read_folders(entries)
    beside = entries[0].parent / "recomputed.json" if entries[0].is_dir() else Path("recomputed.json")
    out, listed = out or Path("site"), read_marks(marks or beside)
    page = build_board(found, out, listed, name, entries)
    if hub is not None:
        from ...reports.entries.board import place_entries
        from ...reports.entries.hub import hub_files
        from ..core.files import write_atomic

        folder = out / "eval_results"
        folder.mkdir(exist_ok=True)
        for file, content in hub_files(place_entries(found, listed), hub, source).items():
            write_atomic(folder / file, content)
        typer.echo(f"For the .eval_results folder of model repositories: {folder}")
    for refused in found.refused:
        typer.echo(f"Refused: {refused}")
    count = len(found.entries)
    typer.echo(f"{count} entr{'ies' if count != 1 else 'y'}, {len(found.refused)} refused. Board: {page}")


COMMANDS: Sequence[tuple[Callable[..., None], str]] = (
    (entry, "Write results as small files that others can check."),
    (submit, "Write entries where a board keeps them."),
    (verify, "Compute the metrics of entries again."),
    (board, "Build the site of a board from entries."),
    (challenge, "Check images of outsiders against a detector."),
)
