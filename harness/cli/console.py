"""What a person sees in the terminal: progress with the time left, and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from ..conformance import Finding
    from ..run.events import Event
    from ..run.sharding import ShardRun


class Countdown:
    """Seconds left as a person is told them: they pass between two events, and a new estimate comes in gradually.

    Args:
        clock: seconds of a steady clock.
    """

    # Two thirds of a new estimate are taken over in this share of it, within these seconds.
    _PACE, _FASTEST, _SLOWEST = 0.1, 0.5, 5.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When all is expected to be done, and when that was last estimated.
        self._end: float | None = None
        self._told = 0.0

    def tell(self, seconds: float) -> None:
        """Take a new estimate of the seconds left."""
        now = self._clock()
        if self._end is None or seconds <= 0:
            self._end = now + seconds
        else:
            pace = min(max(self._PACE * seconds, self._FASTEST), self._SLOWEST)
            share = 1 - math.exp(-(now - self._told) / pace)
            self._end += share * (now + seconds - self._end)
        self._told = now

    def text(self) -> str:
        """``about 2 min left``; empty where nothing is known, or hardly anything left."""
        left = 0.0 if self._end is None else self._end - self._clock()
        return f"about {rounded(left)} left" if left > 1 else ""


class _LeftColumn(ProgressColumn):
    """The seconds left, which pass between events."""

    max_refresh = 0.5

    def __init__(self, left: Countdown) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        """As every column."""
        return Text(self._left.text())


class Console:
    """A progress bar on a terminal; plain lines, a few seconds apart, where there is none.

    The bar shows the share of the expected work, for cells differ: a few of a thousand take most of the time.

    Args:
        stream: where it is shown.
        quiet: show nothing.
    """

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = RichConsole(file=stream)
        self._left = Countdown()
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=12), TaskProgressColumn(), TextColumn("{task.fields[cells]}"), TimeElapsedColumn(),
            _LeftColumn(self._left), console=self._console, transient=True, expand=True,
        )  # fmt: skip
        self._bar = self._progress.add_task("Reading", total=None, cells="")
        self._live = self._console.is_terminal and not quiet
        self._last_line = 0.0
        self._over = 0.0
        self._failures: set[str] = set()

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def on_message(self, text: str) -> None:
        """A sentence that stays on the screen."""
        if self._quiet:
            return
        # A file is searched for sentences: only a terminal breaks them into lines.
        self._console.print(escape(text), highlight=False, soft_wrap=not self._live)

    def on_progress(self, event: Event) -> None:
        """Progress of a run."""
        if event.kind == "failed" and event.reason not in self._failures:
            # One detector that cannot be fitted fails with every set that it was to score.
            self._failures.add(event.reason)
            self.on_message(f"Failed: {event.cell.name}: {event.reason}")
        if event.kind == "kept":
            return
        self._left.tell(event.seconds_left)
        # A bar that goes back says nothing.
        self._over = max(self._over, event.over)
        if self._live:
            self._progress.update(
                self._bar, total=1.0, completed=self._over, description=escape(_what(event)),
                cells=f"{event.finished}/{event.total}",
            )  # fmt: skip
        elif event.kind in ("start", "share", "waiting", "done"):
            now = time.monotonic()
            if now - self._last_line > (60 if event.kind == "waiting" else 5) or event.finished == event.total:
                self._last_line = now
                done = f"{event.finished}/{event.total} cells"
                self.on_message(f"{self._over:4.0%}  {done}  {_what(event)}  {self._left.text()}".rstrip())


def _what(event: Event) -> str:
    """``cnn: perturb pgd``; of a long cell the share that is done."""
    name = event.cell.name
    if event.finished == event.total:
        return "writing tables and pages"
    if event.kind == "waiting":
        return f"waiting for another run, which computes {name}"
    done = f" {event.share:.0%}" if event.kind == "share" else ""
    return f"{name.model}: {name.kind} {name.part}".rstrip() + done


def rounded(seconds: float, halves: bool = False) -> str:
    """``45 s``, ``12 min`` or ``3.5 h``, no finer than an estimate can be.

    Args:
        seconds: how many.
        halves: show half minutes below ten.
    """
    if seconds < 20:
        return f"{max(1.0, seconds):.0f} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    if halves and seconds < 600:
        return f"{round(seconds / 30) / 2:g} min"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_shard(shard: str, run: ShardRun) -> None:
    """The end of a shard: what it computed, what failed, and how to go on."""
    console = _console()
    show_reasons(lambda text: console.print(escape(text), highlight=False), run.failed, run.skipped)
    cells = f"{run.computed} cell{'s' if run.computed != 1 else ''}"
    console.print(
        f"Shard {shard} computed {cells}; nothing is left to compute. The same command without --shard makes the "
        "tables and the report.", highlight=False,
    )  # fmt: skip


def show_reasons(
    print_line: Callable[[str], None], failed: Mapping[str, str], skipped: Mapping[str, str], debug: bool = True
) -> None:
    """Show why cells failed or were skipped, each reason once.

    Args:
        print_line: takes a line of text.
        failed: reasons by cell.
        skipped: reasons by cell.
        debug: whether to point at ``--debug``.
    """
    for what, found in (("failed", failed), ("skipped", skipped)):
        same: dict[str, list[str]] = {}
        for name, reason in found.items():
            same.setdefault(reason, []).append(name)
        if found:
            print_line(f"{len(found)} cell{'s' if len(found) > 1 else ''} {what}:")
        for reason, names in list(same.items())[:10]:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            print_line(f"  {names[0]}{more}: {reason}")
        if len(same) > 10:
            print_line(f"  and {len(same) - 10} more reasons: see the report")
        if what == "failed" and found and debug:
            print_line("  --debug stops at the first error and shows where it was raised.")


def _console() -> RichConsole:
    """Return the terminal; piped, a table needs a width of its own, or long texts take a word per line."""
    console = RichConsole()
    return console if console.is_terminal else RichConsole(width=160)


def show_catalogue(kind: str, found: Sequence[dict[str, Any]]) -> None:
    """A list of parts as a table."""
    table = Table(title=kind, title_justify="left", box=None, pad_edge=False)
    details = ("norm", "box", "stochastic", "cost") if kind == "perturbations" else ()
    for column in ("name", *details, "summary", "origin", "available"):
        table.add_column(column, overflow="fold", no_wrap=column in ("name", *details))
    for item in found:
        available = "yes" if item["available"] else f"no: {item['reason']}"
        known = [_detail(item.get(name, "")) for name in details]
        table.add_row(*(escape(str(v)) for v in (item["name"], *known, item["summary"], item["origin"], available)))
    _console().print(table)


def _detail(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@contextmanager
def examining(part: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal which check runs now; the block is given a function that takes its name."""
    with RichConsole(stderr=True).status(f"{escape(part)}: making a small model") as status:
        yield lambda check: status.update(f"{escape(part)}: {escape(check)}")


_STYLES = {"passed": "green", "failed": "bold red", "warning": "bold yellow", "skipped": "yellow"}


def show_findings(part: str, findings: Sequence[Finding]) -> None:
    """Show what an examination found: a line for each check, then what is broken and what to do."""
    console = _console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("check", "status", "rule"):
        table.add_column(column, no_wrap=column != "rule", overflow="fold")
    for f in findings:
        more = f" ({f.detail})" if f.status == "skipped" else ""
        table.add_row(f.name, f"[{_STYLES[f.status]}]{f.status}[/]", escape(f.rule + more))
    console.print(table)
    broken = [f for f in findings if f.status == "failed"]
    ignored = [f for f in findings if f.status == "warning"]
    for f in (*broken, *ignored):
        console.print(
            f"\n[{_STYLES[f.status]}]{f.name}[/]: {escape(f.detail.rstrip('.'))}.\n  {escape(f.fix)}", highlight=False
        )
    rules = [f for f in findings if f.level == "rule"]
    kept = sum(f.status == "passed" for f in rules)
    end = f"{len(broken)} of {len(rules)} rules are broken" if broken else f"all {kept} rules that apply are kept"
    if ignored:
        end += f"; {len(ignored)} recommendation{'s are' if len(ignored) > 1 else ' is'} not followed"
    console.print(f"\n{escape(part)}: {end}.", highlight=False)
