"""The command line: a thin layer over :func:`aftershock.run`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import typer
from typer.core import TyperGroup

from .. import run as _run  # noqa: F401 (opens plugins when a part is looked up)
from ..core.errors import AftershockError, UsageError
from ..core.interrupts import contained, listening
from ..core.memory import return_large_blocks
from ..core.registry import PartKind, plugin_host
from .answers import COMMANDS as ANSWERS
from .arguments import KindName, Limit, Seed, SuiteName, Workers
from .cache_commands import app as cache_app
from .entries import COMMANDS as ENTRIES
from .streams import checked_output, lenient_errors


class _Commands(TyperGroup):
    """A command ends by returning; what else ends the program is code of others."""

    def invoke(self, ctx: Any) -> Any:
        with contained():
            return super().invoke(ctx)


app = typer.Typer(
    name="aftershock",
    cls=_Commands,
    help="What happens inside a network when its input is perturbed, layer by layer, and which detector notices?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# The exit status after Ctrl-C, by convention 128 + SIGINT.
INTERRUPTED = 130

guard_app = typer.Typer(help="A fitted detector around its model, for live use.", no_args_is_help=True)
app.add_typer(guard_app, name="guard")
app.add_typer(cache_app, name="cache")

Plugins = Annotated[list[Path], typer.Option("--plugin", help="A local file with registered parts; may be repeated.")]
Data = Annotated[Path | None, typer.Option("--data", help="Root of the data sets [env: AFTERSHOCK_DATA].")]
NewKind = Literal["detector", "perturbation", "analysis", "model", "dataset", "suite"]
Format = Literal["table", "json", "csv", "markdown", "latex"]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"aftershock {version('aftershock')}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = debug


@app.command()
def run(
    context: typer.Context,
    suite: Annotated[str, SuiteName] = "quick",
    out: Annotated[Path | None, typer.Option(help="The run directory [default: runs/<suite name>].")] = None,
    data: Data = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
    limit: Annotated[int | None, Limit] = None,
    only: Annotated[str | None, typer.Option(help="Compute only matching cells and what they need.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again.")] = False,
    cache: Annotated[Path | None, typer.Option(help="The shared cache [env: AFTERSHOCK_CACHE].")] = None,
    engine: Annotated[str, typer.Option(help="Where cells are computed: local or ray.")] = "local",
    workers: Annotated[int | None, Workers] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray cluster, or auto [default: RAY_ADDRESS, else a new one here]."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: compute beside n - 1 others that share the cache; run without it at the end."),
    ] = None,
    how: Annotated[
        Format, typer.Option("--format", help="What is printed at the end: a table for people, or data.")
    ] = "table",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes: the table alone.")] = False,
    fail_under: Annotated[
        list[str],
        typer.Option("--fail-under", metavar="COLUMN=NUMBER", help="Exit with 1 where a row has less; repeatable."),
    ] = [],  # noqa: B006 (typer reads the default)
    junit: Annotated[Path | None, typer.Option(help="Write what --fail-under checked as a JUnit report.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Stop at the first error and show its traceback.")] = False,
) -> None:
    """Run a suite. The same command again continues where it stopped."""
    debug = debug or bool(context.obj)
    context.obj = debug
    return_large_blocks()
    if shard is not None:
        if out is not None or fresh or engine != "local" or ray_address is not None or fail_under or how != "table":
            raise UsageError(
                "--shard goes without --out, --fresh, --engine, --format and --fail-under: shards only fill the cache."
            )
        from ..run.sharding import run_shard
        from .console import Console, show_shard

        with Console(sys.stderr, quiet) as console:
            filled = run_shard(
                suite, shard, data=data, device=device, plugins=plugin, limit=limit, only=only, cache=cache,
                workers=workers, on_progress=console.on_progress, on_message=console.on_message, debug=debug,
            )  # fmt: skip
        show_shard(shard, filled)
        if filled.failed:
            raise typer.Exit(1)
        return
    from ..run.api import run as run_suite
    from .console import Console
    from .gates import has_failed, parse_gates

    gates = parse_gates(fail_under, junit)
    with Console(sys.stderr, quiet) as console:
        found = run_suite(
            suite, out, data=data, device=device, plugins=plugin, limit=limit, only=only, fresh=fresh, cache=cache,
            engine=engine, workers=workers, ray_address=ray_address, on_progress=console.on_progress,
            on_message=console.on_message, debug=debug,
        )  # fmt: skip
    from .results import show_run

    show_run(found, how, quiet)
    if has_failed(found, gates, junit) or found.failed:
        raise typer.Exit(1)


@app.command()
def plan(
    suite: Annotated[str, SuiteName] = "quick",
    out: Annotated[Path | None, typer.Option(help="The run directory [default: runs/<suite name>].")] = None,
    data: Data = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
    limit: Annotated[int | None, Limit] = None,
    only: Annotated[str | None, typer.Option(help="Matching cells and what they need alone.")] = None,
    cache: Annotated[Path | None, typer.Option(help="The shared cache [env: AFTERSHOCK_CACHE].")] = None,
    workers: Annotated[int | None, Workers] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, with each cell by name.")] = False,
) -> None:
    """Say what a run would take: cells, time, memory, disk."""
    from ..run.preview import preview
    from .plan_command import as_json as plan_json
    from .plan_command import as_text

    found = preview(
        suite, out, data=data, device=device, plugins=plugin, limit=limit, only=only, cache=cache, workers=workers
    )  # fmt: skip
    if as_json:
        typer.echo(plan_json(found))
        return
    for line in as_text(found):
        typer.echo(line)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option(help="The folder of the report.")],
) -> None:
    """Write the HTML report of one or more runs."""
    from ...reports.site.build import build_site

    typer.echo(f"Report: {build_site(runs, out)}")


for _command, _help in (*ANSWERS, *ENTRIES):
    app.command(short_help=_help)(_command)


@app.command(name="list", short_help="List what can be named in a suite.")
def list_parts(
    kind: Annotated[str, KindName],
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
) -> None:
    """List what can be named in a suite, installed plugins included."""
    from .catalogue import describe

    for path in plugin:
        plugin_host().open_file(path)
    found = describe(kind)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from .console import show_catalogue

    show_catalogue(kind, found)


@app.command(short_help="Report every mistake of a suite, with file and line.")
def validate(
    suite: Annotated[str | None, SuiteName] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of suite files.")] = False,
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
    data: Data = None,
    no_models: Annotated[
        bool, typer.Option("--no-models", help="Check the file alone: no model is built or probed.")
    ] = False,
) -> None:
    """Report every mistake of a suite, with file and line, then probe its models with one batch."""
    if schema:
        from ..suite.schema import SuiteFile

        typer.echo(json.dumps(SuiteFile.model_json_schema(), indent=1))
        return
    if suite is None:
        raise UsageError("Name a suite to validate, or ask for --schema.")
    from .validation import validated

    for text in validated(suite, plugin, data, no_models):
        typer.echo(text)


@app.command(short_help="Check a part against the contract of its kind.")
def check(
    context: typer.Context,
    part: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] NAME",
            help="detector (unless it is given), perturbation, analysis, model or dataset; its name.",
        ),
    ],
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
    param: Annotated[list[str], typer.Option(help="NAME=VALUE as in a suite; may be repeated.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
) -> None:
    """Check a part against the contract of its kind, rule by rule, and say how to fix what is broken."""
    from ..core.plugin_files import load_plugin_file
    from ..core.registry import MODELS, REGISTRIES, load_plugins_here

    kind, name = _kind_and_name(part)
    # Its author examines it: the code itself, not a stand-in in another process.
    load_plugins_here()
    for path in plugin:
        load_plugin_file(path)
    registry = next(r for r in REGISTRIES.values() if r.word == kind)
    if registry is not MODELS:
        registry.entry(name)  # a wrong name is reported before anything heavy is made
    from dataclasses import asdict

    from ..conformance import check_part
    from .console import examining, show_findings

    with examining(name) as on_check:
        findings = check_part(kind, name, _parameters(param), on_check=on_check, debug=bool(context.obj))
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        show_findings(name, findings)
    if any(f.status == "failed" for f in findings):
        raise typer.Exit(1)


@app.command(short_help="Write a package with a part that works, or a suite.")
def new(
    kind: Annotated[NewKind, typer.Argument(help="What to make.")],
    name: Annotated[str, typer.Argument(help="Its name: lower-case letters, digits, hyphens.")],
    out: Annotated[Path | None, typer.Option(help="The folder [default: ./NAME, of a suite ./NAME.toml].")] = None,
    model: Annotated[str | None, typer.Option(help="Of a suite: FILE.py:FUNCTION, which gives the network.")] = None,
    images: Annotated[Path | None, typer.Option(help="Of a suite: a folder of images, or an .npz file.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Of a suite: the network's weights, if it has a file.")] = None,
) -> None:
    """Write a small package with a part that works at once, or a suite for your model and images."""
    if kind == "suite":
        if model is None or images is None:
            raise UsageError("A suite needs --model FILE.py:FUNCTION and --images FOLDER.")
        from .new_suite import new_suite

        path = new_suite(name, model, images, weights, out)
        typer.echo(f"{path} is a suite that is valid. Next:\n  aftershock validate {path}\n  aftershock run {path}")
        return
    if model or images or weights:
        raise UsageError("--model, --images and --weights are for `aftershock new suite`.")
    from .scaffold import new_package

    folder, entry = new_package(kind, name, out)
    which = "" if kind == "detector" else f"{kind} "
    typer.echo(
        f"{folder} holds {'an' if kind == 'analysis' else 'a'} {kind} that works. Next:\n"
        f"  pip install -e '{folder}[test]'\n  aftershock check {which}{name}\n  python -m pytest {folder}\n"
        f"In a suite: {entry}."
    )


@guard_app.command("export")
def guard_export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    detector: Annotated[str, typer.Option(help="The detector's label in the run.")],
    model: Annotated[str | None, typer.Option(help="The model's label, where the run has several.")] = None,
    seed: Annotated[int | None, Seed] = None,
    out: Annotated[Path | None, typer.Option(help="The file [default: DETECTOR.safetensors].")] = None,
    plugin: Plugins = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Write a fitted detector with its threshold as one file, for aftershock.Guard."""
    from ..core.plugin_files import load_plugin_file

    for path in plugin:
        load_plugin_file(path)
    from ..run.guard import export_guard

    typer.echo(f"Guard: {export_guard(run, detector, out or Path(f'{detector}.safetensors'), model, seed)}")


def _kind_and_name(part: list[str]) -> tuple[PartKind, str]:
    """Return what ``check`` is about: a kind and a name, or the name of a detector alone."""
    if len(part) == 1:
        return "detector", part[0]
    kinds = get_args(PartKind)
    if len(part) > 2 or part[0] not in kinds:
        raise UsageError(f"Name a kind and a part, not {' '.join(part)!r}: the kinds are {', '.join(kinds)}.")
    return cast("PartKind", part[0]), part[1]


def _parameters(given: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs; a value is TOML, and a bare word is a string."""
    import tomllib

    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--param {pair!r}: write NAME=VALUE.")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found


def _plain_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    typer.echo(f"Warning: {message}", err=True)


def main(arguments: list[str] | None = None) -> None:
    """The console script: exit status 0 done, 1 some cells failed, 2 wrong usage or suite."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _plain_warning
    try:
        with lenient_errors():
            _answer(arguments, debug)
    finally:
        pool = sys.modules.get("aftershock.harness.run.workers.pool")
        if pool is not None:
            # However the command ended: nothing that it started keeps running.
            pool.POOL.close()


def _answer(arguments: list[str] | None, debug: bool) -> None:
    try:
        with checked_output(), listening():
            app(arguments)
    except SystemExit as end:
        # What typer makes of Ctrl-C, without a word.
        if end.code == INTERRUPTED:
            typer.echo("Interrupted. The same command continues where it stopped.", err=True)
        raise
    except UsageError as error:
        if debug:
            raise
        typer.echo(str(error), err=True)
        sys.exit(2)
    except AftershockError as error:
        if debug:
            raise
        typer.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
