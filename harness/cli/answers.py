"""``aftershock show``, ``compare`` and ``export``: answers about finished runs and about parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..core.errors import UsageError
from ..core.registry import plugin_host
from .arguments import whole

if TYPE_CHECKING:
    from ...reports.answers.comparison import Comparison
    from ..run.result import Run

AnswerFormat = Literal["table", "json", "csv"]
ExportFormat = Literal["latex", "markdown", "bibtex", "npz", "png"]
Outcome = Literal["success", "failed", "all"]

Plugins = Annotated[list[Path], typer.Option("--plugin", help="A local file with registered parts; may be repeated.")]
Data = Annotated[Path | None, typer.Option("--data", help="Root of the data sets [env: AFTERSHOCK_DATA].")]
How = Annotated[AnswerFormat, typer.Option("--format", help="A table for people, or data.")]
Model = Annotated[str | None, typer.Option(help="A model's label.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", parser=whole("--seed"), metavar="N", help="A seed [default: the first]."),
]
Perturbation = Annotated[str | None, typer.Option(help="Its label; pgd is the one at the budget of the threat model.")]
Class = Annotated[str | None, typer.Option("--class", help="A true class, by name or number.")]
MissedBy = Annotated[str | None, typer.Option("--missed-by", help="Images that this detector does not flag.")]
OutcomeOption = Annotated[Outcome, typer.Option(help="Images that fool the model, that do not, or all.")]

_LISTED = 20
_PICTURES = 32


def show(
    what: Annotated[
        list[str],
        typer.Argument(metavar="RUN | KIND NAME", help="A run directory; or the kind of a part, and its name."),
    ],
    detector: Annotated[str | None, typer.Option(help="A detector's label.")] = None,
    perturbation: Perturbation = None,
    cls: Class = None,
    missed_by: MissedBy = None,
    model: Model = None,
    seed: Seed = None,
    outcome: OutcomeOption = "success",
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            parser=whole("--limit"),
            metavar="N",
            help=f"Maximum number of images [default: {_LISTED} listed, {_PICTURES} written].",
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="A new folder for the images: PNGs, an index and arrays.")] = None,
    how: How = "table",
    data: Data = None,
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Show what a run found, which images an attack fools and a detector misses; or what a part is and takes."""
    for path in plugin:
        plugin_host().open_file(path)
    if len(what) > 1:
        if any(v is not None for v in (detector, perturbation, cls, missed_by, model, seed, limit, images)):
            raise UsageError("Options other than --format and --plugin are about a run: show RUN --detector NAME ...")
        from .part_page import show_part

        show_part(what, how)
        return
    from ...reports.answers.names import chosen, detector_of, model_of, perturbation_of
    from ...reports.answers.selection import select
    from ...reports.answers.summaries import about_images, about_parts, overview
    from ..run.result import load
    from .answer_text import print_answer

    run = load(what[0], data=data)
    tables = run.tables
    detector = None if detector is None else detector_of(tables, detector)
    missed_by = None if missed_by is None else detector_of(tables, missed_by)
    model = None if model is None else model_of(tables, model)
    if perturbation is not None:
        perturbation = perturbation_of(tables, perturbation, missed_by or detector)
    wants_images = missed_by is not None or cls is not None or images is not None or seed is not None
    if not wants_images and not (detector and perturbation):
        parts = detector is not None or perturbation is not None
        print_answer(about_parts(tables, detector, perturbation, model) if parts else overview(tables, model), how)
        return
    if perturbation is None:
        labels = dict.fromkeys(tables.perturbations["perturbation"])
        perturbation = chosen(tables, "perturbation", None, labels)
    asked = {"missed_by": missed_by, "cls": cls, "model": model, "seed": seed, "outcome": outcome}
    found = select(tables, perturbation, **asked)  # type: ignore[arg-type]  # by their names
    listed = _LISTED if limit is None and how == "table" else limit
    print_answer(about_images(tables, found, missed_by or detector, listed), how)
    if images is not None:
        _write_images(run, perturbation, asked, _PICTURES if limit is None else limit, images, how == "table")


def _write_images(run: Run, perturbation: str, asked: dict[str, Any], limit: int, folder: Path, is_told: bool) -> None:
    from ..run.gallery import ARRAYS, new_folder, write_arrays, write_pictures

    found = run.images(perturbation, limit=limit, **asked)
    place = new_folder(folder, run.folder)
    names = write_pictures(found, place)
    write_arrays(found, place / ARRAYS)
    typer.echo(
        f"{len(names)} images in {place}: open index.html; {ARRAYS} has the arrays."
        + (f" {found.note}" if found.note else ""),
        err=not is_told,
    )


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]", help="One run directory, or two.")],
    detectors: Annotated[
        tuple[str, str] | None, typer.Option("--detectors", metavar="A B", help="Two detectors of one run.")
    ] = None,
    model: Model = None,
    everything: Annotated[bool, typer.Option("--all", help="List every figure, not only what differs.")] = False,
    how: How = "table",
) -> None:
    """Compare two runs, or two detectors of one run: what changed, and is it beyond chance?"""
    from ...reports.answers.detectors import compare_detectors
    from ...reports.answers.runs import compare_runs
    from ...reports.read.frames import RunTables

    if (len(runs), detectors is None) not in ((1, False), (2, True)):
        raise UsageError("Name two runs, or one run and --detectors A B.")
    tables = [RunTables.read(run) for run in runs]
    if detectors is not None:
        found = compare_detectors(tables[0], *detectors, model)
        everything = True
    else:
        found = compare_runs(*tables)
    _print_comparison(found, how, everything)


def _print_comparison(found: Comparison, how: AnswerFormat, everything: bool) -> None:
    from .answer_text import as_csv, comparison_text, plain_values

    if how == "csv":
        typer.echo(as_csv(found.frame), nl=False)
    elif how == "json":
        value = {
            "first": found.first, "second": found.second, "sentences": found.sentences,
            "changes": [dict(zip(("what", "first", "second"), change, strict=True)) for change in found.changes],
            "figures": plain_values(found.frame),
        }  # fmt: skip
        typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo("\n".join(comparison_text(found, everything)))


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[ExportFormat, typer.Option("--to", help="What to write.")],
    out: Annotated[
        Path | None, typer.Option(help="The file, or for npz and png a new folder [default: standard output].")
    ] = None,
    table: Annotated[
        str, typer.Option(help="Of latex and markdown: leaderboard (columns as printed), attacks, metrics, ...")
    ] = "leaderboard",
    perturbation: Perturbation = None,
    missed_by: MissedBy = None,
    cls: Class = None,
    model: Model = None,
    seed: Seed = None,
    outcome: Annotated[
        Outcome, typer.Option(help="Of npz and png: images that fool the model, do not, or all.")
    ] = "success",
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", parser=whole("--limit"), metavar="N", help="Maximum number of images of each perturbation."
        ),
    ] = None,
    data: Data = None,
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Write a run's tables, the references of its parts, or its perturbed images, for use elsewhere."""
    for path in plugin:
        plugin_host().open_file(path)
    from ..run.result import load

    found = load(run, data=data)
    if to == "npz" or to == "png":
        if out is None:
            raise UsageError(f"{to} is written to a folder: --out FOLDER.")
        asked = {"missed_by": missed_by, "cls": cls, "model": model, "seed": seed, "outcome": outcome, "limit": limit}
        from .export_images import export_images

        typer.echo(export_images(found, to, out, perturbation, asked))
        return
    if any(v is not None for v in (perturbation, missed_by, cls, seed, limit)):
        raise UsageError(f"--to {to} takes no choice of images; --to npz and --to png do.")
    from .export_text import exported_text

    text = exported_text(found, to, table, model)
    if out is None:
        typer.echo(text, nl=False)
        return
    from ..core.files import refuse_links_on_the_way, write_atomic, write_problem

    refuse_links_on_the_way(out, [found.folder])
    try:
        write_atomic(out, text.encode())
    except OSError as error:
        raise write_problem(out, error, "choose another place, --out") from error
    typer.echo(f"{to}: {out}")


# The commands of this module, and what a list of commands says of each.
COMMANDS: Sequence[tuple[Callable[..., None], str]] = (
    (show, "Show what a run found, or what a part takes."),
    (compare, "Compare two runs, or two detectors of one."),
    (export, "Write a run's tables, references or images."),
)
