"""``aftershock cache``: how large the shared cache is, and removing what is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UsageError

if TYPE_CHECKING:
    from ..store.cache import Removed

app = typer.Typer(help="The shared cache: its size, and removing what is not needed.", no_args_is_help=True)

Cache = Annotated[Path | None, typer.Option("--cache", help="The shared cache [env: AFTERSHOCK_CACHE].")]


@app.command()
def size(cache: Cache = None) -> None:
    """Show how many cells the cache holds, and how large it is."""
    from ..run.roots import cache_root
    from ..store.cache import entries, size_text

    root = cache_root(cache)
    found = entries(root)
    total, shared = sum(e.size for e in found), sum(e.shared for e in found)
    typer.echo(f"{root}: {_count(len(found))}, {size_text(total)}{_shared(shared)}.")


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Remove cells that no run has used for this long: 30d, 12h, 2w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Remove the least recently used cells down to this size: 10GB.")
    ] = None,
    cache: Cache = None,
) -> None:
    """Remove cells that were not used for some time, or until the cache is small enough."""
    from ..run.roots import cache_root
    from ..store.cache import parse_age, parse_size
    from ..store.cache import prune as remove

    if older_than is None and max_size is None:
        raise UsageError("Say what to remove: --older-than 30d, --max-size 10GB, or both.")
    age = None if older_than is None else parse_age(older_than)
    most = None if max_size is None else parse_size(max_size)
    root = cache_root(cache)
    _tell(root, remove(root, age, most))


@app.command()
def clear(
    cache: Cache = None, yes: Annotated[bool, typer.Option("--yes", help="Remove them without asking.")] = False
) -> None:
    """Remove all cells of the cache; run directories stay whole."""
    from ..run.roots import cache_root
    from ..store.cache import clear as remove
    from ..store.cache import entries, size_text

    root = cache_root(cache)
    found = entries(root)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(f"All cells of {root} would be removed: confirm it with --yes.")
        total = size_text(sum(e.size for e in found))
        if not typer.confirm(f"Remove {_count(len(found))} ({total}) from {root}?"):
            typer.echo("Nothing was removed.")
            return
    _tell(root, remove(root))


def _tell(root: Path, removed: Removed) -> None:
    from ..store.cache import size_text

    typer.echo(f"Removed {_count(removed.entries)}, {size_text(removed.size)}{_shared(removed.shared)}, from {root}.")


def _count(number: int) -> str:
    return f"{number:,} cell{'s' if number != 1 else ''}"


def _shared(count: int) -> str:
    """Return what removing does not free, in words."""
    from ..store.cache import size_text

    return f" (run directories hold {size_text(count)} of it)" if count else ""
