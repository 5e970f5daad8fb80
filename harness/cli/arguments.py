"""Values of the command line, read in our own words."""

from __future__ import annotations

from typing import Any

import typer

from ..core.errors import UsageError
from ..core.registry import REGISTRIES, did_you_mean

DECIDES_NO_NUMBER = True

# What can be listed: kinds of parts, and suites.
KINDS = (*REGISTRIES, "suites")
_SINGULAR = {registry.word: kind for kind, registry in REGISTRIES.items()} | {"suite": "suites"}


def kind_of(text: str) -> str:
    """Return a kind of parts in the plural, however it is given: ``detector`` or ``detectors``.

    Raises:
        UsageError: for no kind.
    """
    kind = _SINGULAR.get(text, text)
    if kind not in KINDS:
        near = did_you_mean(text, [*KINDS, *_SINGULAR])
        raise UsageError(f"There is no kind {text!r}{near}; the kinds are {', '.join(KINDS)}.")
    return kind


def whole(option: str) -> Any:
    """Return how a whole number is read; what is none is one sentence that names the option."""

    def read(text: str | int) -> int:
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{option} {text!r}: give a whole number.") from None

    return read


def suite_names(incomplete: str) -> list[str]:
    """Complete the name of a built-in suite."""
    from ..suite.builtin import builtin_suites

    return [name for name in builtin_suites() if name.startswith(incomplete)]


def kind_names(incomplete: str) -> list[str]:
    """Complete a kind of parts."""
    return [name for name in (*KINDS, *_SINGULAR) if name.startswith(incomplete)]


Workers = typer.Option(
    "--workers", parser=whole("--workers"), metavar="N",
    help="Processes that compute [default: one for each GPU, else one; with Ray, what it has room for].",
)  # fmt: skip
Limit = typer.Option(
    "--limit", parser=whole("--limit"), metavar="N",
    help="Maximum number of images in each set; a ranking needs 200 to calibrate.",
)  # fmt: skip
Seed = typer.Option("--seed", parser=whole("--seed"), metavar="N", help="The seed, where the run has several.")
SuiteName = typer.Argument(
    help="A suite file, or the name of a built-in one.", autocompletion=suite_names, metavar="SUITE"
)
KindName = typer.Argument(
    parser=kind_of,
    help=f"What to list: {', '.join(KINDS)}, or one of them in the singular.", autocompletion=kind_names,
    metavar="KIND",
)  # fmt: skip
