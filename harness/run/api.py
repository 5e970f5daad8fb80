"""One run from suite to report: the place where all rooms meet. The command line is a thin layer over :func:`run`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.content_keys import FileDigests
from ..core.interrupts import contained, listening
from ..suite.glance import glance
from .events import ENDED
from .hooks import installed_hooks
from .options import EngineChoice, Options
from .result import Run
from .roots import cache_root, data_root
from .up_to_date import fingerprint, is_finished

if TYPE_CHECKING:
    from ..suite.resolved import Suite
    from .computing import Computed
    from .events import Event
    from .hooks.telling import Hooks
    from .interim import Interim
    from .opening import Opened


def run(
    suite: str | Path | Mapping[str, Any] | Suite,
    out: Path | str | None = None,
    *,
    data: Path | str | None = None,
    device: str = "auto",
    plugins: Sequence[Path | str] = (),
    limit: int | None = None,
    only: str | None = None,
    fresh: bool = False,
    cache: Path | str | None = None,
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    on_progress: Callable[[Event], None] = lambda event: None,
    on_message: Callable[[str], None] = lambda text: None,
    debug: bool = False,
) -> Run:
    """Run a suite; what is already there is kept, so the same call again continues or does nothing.

    Args:
        suite: a path, the name of a built-in suite, a mapping, or a loaded suite.
        out: the run directory; by default ``runs/<suite name>``.
        data: the root of the data sets; by default ``AFTERSHOCK_DATA`` or the user's data directory.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        plugins: local files with registered parts.
        limit: maximum number of images in each set.
        only: compute only cells whose name matches this pattern, and what they need.
        fresh: compute everything again.
        cache: the shared cache; by default ``AFTERSHOCK_CACHE`` or the user's cache directory.
        engine: where cells are computed: ``local`` (this machine) or ``ray`` (a Ray cluster).
        workers: processes that compute them; by default one for each graphics processor, else one; with Ray, as many
            as the cluster has room for.
        ray_address: of a Ray cluster; by default that of ``RAY_ADDRESS``, else a new one on this machine.
        on_progress: called with every progress event.
        on_message: called with sentences that a person should see.
        debug: raise the first error of a cell instead of noting it.

    Raises:
        UsageError: for a mistake in the suite or the options, or a part that tries to end the program before any work.
        AftershockError: if the run directory cannot be written.
        KeyboardInterrupt: for Ctrl-C.
    """
    choice = EngineChoice(engine, workers, ray_address)
    with listening() as interrupt, contained(), interrupt.told():
        options = Options(device, limit, only, fresh, choice, on_progress, on_message, debug, interrupt)
        return _run(suite, out, data, plugins, cache, options)


def _run(
    suite: str | Path | Mapping[str, Any] | Suite, out: Path | str | None, data: Path | str | None,
    plugins: Sequence[Path | str], cache: Path | str | None, options: Options,
) -> Run:  # fmt: skip
    from ..suite.resolved import Suite

    root, store_cache = data_root(data), cache_root(cache)
    # Absolute before any code of others runs, which may change the working directory.
    start = Path.cwd()
    files = tuple(Path(p).expanduser().absolute() for p in plugins)
    digests = FileDigests(store_cache / "digests.json")
    asked = {"device": options.device, "limit": options.limit, "only": options.only}
    raw, folder, name = glance(suite)
    stamp = None
    if raw is not None and name and not options.fresh:
        stamp = fingerprint(raw, folder, files, asked, root, digests)
        place = start / (out or Path("runs") / name)
        if stamp is not None and is_finished(place, stamp):
            return _as_stored(place, root, options.on_message)
    from ..core.process_state import guarded
    from ..suite.resolve import load_suite

    with guarded():
        loaded = suite if isinstance(suite, Suite) else load_suite(suite, files)
        place = start / (out or Path("runs") / loaded.name)
        if stamp is None:
            stamp = fingerprint(loaded.raw, loaded.folder, files, asked, root, digests)
        return _compute(loaded, place, root, store_cache, digests, stamp, options)


def _as_stored(place: Path, root: Path, on_message: Callable[[str], None]) -> Run:
    facts = json.loads((place / "run.json").read_text(encoding="utf-8"))
    for text in facts.get("notes", ()):
        on_message(text)
    failures = {f["cell"]: f["reason"] for f in facts["failures"]}
    return Run(place, {}, failures, 0, data=root)


def _compute(
    suite: Suite, place: Path, root: Path, cache: Path, digests: FileDigests, stamp: str | None, options: Options
) -> Run:
    """Compute what is missing of a run, and write all that it shows."""
    from ..evaluation.problems import Problems
    from .changed_state import changed_state
    from .computing import computed_run
    from .interim import Interim
    from .run_facts import RUNNING, run_facts
    from .writing import write_run

    started, clock = datetime.now(UTC), time.perf_counter()
    problems = Problems(options.debug)
    with installed_hooks(options.on_message) as hooks:
        hooks.tell("run_started", {"suite": suite.name, "folder": str(place), "seeds": list(suite.seeds)})
        heard = replace(options, on_progress=partial(_heard, options.on_progress, hooks)) if hooks else options

        def interim(opened: Opened) -> Interim:
            def write(computed: Computed) -> None:
                facts = run_facts(opened, computed, options, opened.notes, started, time.perf_counter() - clock)
                write_run(
                    place,
                    computed,
                    {**facts, "status": RUNNING},
                    None,
                    Problems(debug=False),
                    root,
                    opened.dataset.test,
                )

            return Interim(write, options.on_message)

        with computed_run(suite, place, root, cache, digests, heard, interim) as (opened, computed):
            changes = changed_state(computed.finished)
            for text in changes:
                options.on_message(text)
            seconds = time.perf_counter() - clock
            facts = run_facts(opened, computed, options, [*opened.notes, *changes], started, seconds)
            rows = write_run(place, computed, facts, stamp, problems, opened.root, opened.dataset.test)
        failed, counts = computed.failed | problems.found, computed.finished.summary
        for row in rows:
            hooks.tell("row_ready", row)
        hooks.tell(
            "run_finished",
            {
                "folder": str(place), "status": "failed" if failed else "done", "computed": len(counts.computed),
                "failed": len(failed), "skipped": len(computed.skipped), "seconds": round(seconds, 1),
            },
        )  # fmt: skip
    return Run(place, failed, computed.skipped, len(counts.computed), renewed=True, data=root)


def _heard(on_progress: Callable[[Event], None], hooks: Hooks, event: Event) -> None:
    """Pass an event on, and tell hooks of a cell that is over."""
    on_progress(event)
    if event.kind in ENDED:
        hooks.tell(
            "cell_finished",
            {
                "cell": str(event.cell.name), "status": event.kind, "reason": event.reason,
                "finished": event.finished, "total": event.total, "seconds_left": round(event.seconds_left, 1),
            },
        )  # fmt: skip
