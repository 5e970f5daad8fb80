"""One run from suite to report: the place where all rooms meet. The command line is a thin layer over :func:`run`."""

from __future__ import annotations

import json
import os
import platform
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ..core.content_keys import PROTOCOL_VERSION, FileDigests, content_key, versions
from ..core.errors import UsageError, described
from ..core.files import is_file, write_atomic
from ..core.formats import KEYS, RUN_SCHEMA, seal
from ..core.interrupts import Interrupt, PartEndedError, contained, listening
from .up_to_date import fingerprint, is_finished, published

if TYPE_CHECKING:
    import pandas
    import torch

    from ..data.types import Dataset
    from ..evaluation.problems import Problems
    from ..plan import Plan
    from ..plan.summary import Summary
    from ..store.run_directory import Store
    from ..suite.resolved import Suite
    from .runner import Event

_DATA = "harness.data.types"
TABLES = (
    "leaderboard.csv",
    "metrics.csv",
    "scores.csv.gz",
    "propagation.csv",
    "perturbations.csv",
    "attacks.csv",
    "timings.csv",
)
PACKAGES = (
    "aftershock", "torch", "torchvision", "torchattacks", "foolbox", "pytorch-ood", "numpy", "scipy", "scikit-learn",
    "pandas", "safetensors", "plotly",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run directory.
        failed: reasons of cells, tables and pages that failed, by name.
        skipped: reasons of cells that cannot work here, by name.
        computed: how many cells this call computed; 0 where no cell was missing.
        renewed: whether this call wrote tables and pages; ``False`` where nothing at all was missing.
    """

    folder: Path
    failed: Mapping[str, str]
    skipped: Mapping[str, str]
    computed: int
    renewed: bool = False

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "site" / "index.html"

    def _table(self, name: str) -> pandas.DataFrame:
        import pandas

        return pandas.read_csv(self.folder / "tables" / name)

    @cached_property
    def leaderboard(self) -> pandas.DataFrame:
        """One row per data set, model and detector, best first."""
        return self._table("leaderboard.csv")

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row per detector, perturbation and outcome."""
        return self._table("metrics.csv")

    @cached_property
    def scores(self) -> pandas.DataFrame:
        """One row per detector and image."""
        return self._table("scores.csv.gz")

    @cached_property
    def propagation(self) -> pandas.DataFrame:
        """One row per perturbation, population, tap and measure."""
        return self._table("propagation.csv")

    @cached_property
    def perturbations(self) -> pandas.DataFrame:
        """One row per perturbation."""
        return self._table("perturbations.csv")


def data_root(data: Path | str | None = None) -> Path:
    """Where data sets lie: given, else ``AFTERSHOCK_DATA``, else the user's data directory."""
    place = data or os.environ.get("AFTERSHOCK_DATA") or platformdirs.user_data_dir("aftershock")
    return Path(place).expanduser().absolute()


def cache_root(cache: Path | str | None = None) -> Path:
    """Where finished cells are shared: given, else ``AFTERSHOCK_CACHE``, else the user's cache directory."""
    place = cache or os.environ.get("AFTERSHOCK_CACHE") or platformdirs.user_cache_dir("aftershock")
    return Path(place).expanduser().absolute()


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
    tell: Callable[[Event], None] = lambda event: None,
    say: Callable[[str], None] = lambda text: None,
    debug: bool = False,
) -> Run:
    """Run a suite; what is already there is kept, so the same call again continues or does nothing.

    Args:
        suite: a path, the name of a built-in suite, a mapping, or a loaded suite.
        out: the run directory; by default ``runs/<suite name>``.
        data: the root of the data sets; by default ``AFTERSHOCK_DATA`` or the user's data directory.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        plugins: local files with registered parts.
        limit: at most so many images in each set.
        only: compute only cells whose name matches this pattern, and what they need.
        fresh: compute everything again.
        cache: the shared cache; by default ``AFTERSHOCK_CACHE`` or the user's cache directory.
        engine: where cells are computed.
        tell: called with every progress event.
        say: told sentences that a person should see.
        debug: raise the first error of a cell instead of noting it.

    Raises:
        UsageError: for a mistake in the suite or the options, or a part that tries to end the program before any work.
        AftershockError: if the run directory cannot be written.
        KeyboardInterrupt: for Ctrl-C.
    """
    with listening() as interrupt, contained():
        return _run(
            suite, out, data, device, plugins, limit, only, fresh, cache, engine, tell, say, debug, interrupt
        )  # fmt: skip


def _run(
    suite: str | Path | Mapping[str, Any] | Suite, out: Path | str | None, data: Path | str | None, device: str,
    plugins: Sequence[Path | str], limit: int | None, only: str | None, fresh: bool, cache: Path | str | None,
    engine: str, tell: Callable[[Event], None], say: Callable[[str], None], debug: bool, interrupt: Interrupt,
) -> Run:  # fmt: skip
    from ..suite.resolved import Suite

    root, store_cache = data_root(data), cache_root(cache)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: give at least 1 image.")
    # Absolute before any code of others runs, which may change the working directory.
    start = Path.cwd()
    files = tuple(Path(p).expanduser().absolute() for p in plugins)
    digests = FileDigests(store_cache / "digests.json")
    options = {"device": device, "limit": limit, "only": only}
    raw, folder, name = _glance(suite)
    stamp = None
    if raw is not None and name and not fresh:
        stamp = fingerprint(raw, folder, files, options, root, digests)
        place = start / (out or Path("runs") / name)
        if stamp is not None and is_finished(place, stamp):
            return _as_stored(place, say)
    from ..core.process_state import guarded
    from ..suite.resolve import load_suite

    with guarded():
        loaded = suite if isinstance(suite, Suite) else load_suite(suite, files)
        place = start / (out or Path("runs") / loaded.name)
        if stamp is None:
            stamp = fingerprint(loaded.raw, loaded.folder, files, options, root, digests)
        return _Session(
            loaded, place, root, store_cache, digests, device, limit, only, fresh, engine, tell, say, debug, interrupt
        ).run(stamp)


def _glance(suite: Any) -> tuple[Mapping[str, Any] | None, Path, str]:
    """The suite as written, its folder and name, without checking anything."""
    from ..suite import builtin as suites

    if isinstance(suite, Mapping):
        return suite, Path.cwd(), str(suite.get("name", ""))
    if not isinstance(suite, str | Path):
        return None, Path.cwd(), ""
    path = Path(suite)
    if not is_file(path):
        path = Path(str(suites.__path__[0])) / f"{suite}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None, Path.cwd(), ""
    return raw, path.resolve().parent, str(raw.get("name", ""))


def _as_stored(place: Path, say: Callable[[str], None]) -> Run:
    facts = json.loads((place / "run.json").read_text(encoding="utf-8"))
    for text in facts.get("notes", ()):
        say(text)
    failures = {f["cell"]: f["reason"] for f in facts["failures"]}
    return Run(place, {}, failures, 0)


@dataclass
class _Session:
    """The state of one call of :func:`run`."""

    suite: Suite
    out: Path
    root: Path
    cache: Path
    digests: FileDigests
    device: str
    limit: int | None
    only: str | None
    fresh: bool
    engine: str
    tell: Callable[[Event], None]
    say: Callable[[str], None]
    debug: bool
    interrupt: Interrupt
    data_digest: str = ""
    weights_digests: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_notes: tuple[str, ...] = ()

    def run(self, stamp: str | None) -> Run:
        from ...reports.findings.files import remove_others
        from ...reports.site.build import write_site
        from ..core.code_digests import code_digest, part_digest
        from ..core.registry import DATASETS, file_digest
        from ..data.duplicates import duplicate_notes
        from ..evaluation.collect import Tables
        from ..evaluation.costs import detector_costs
        from ..evaluation.problems import Problems
        from ..evaluation.rankability import unranked_suite
        from ..plan import lost_perturbations, make_plan
        from ..plan.applicability import make_perturbations
        from ..plan.models import find_weights
        from ..store.run_directory import Store, unwritable
        from .changed_state import changed_state
        from .engines import engine_of
        from .findings import write_all_findings
        from .runner import Runner, choose
        from .tasks import Workbench, compute
        from .tasks.context import Context
        from .workers.pool import POOL
        from .workers.process import Allowance

        started, clock = datetime.now(UTC), time.perf_counter()
        make_engine = engine_of(self.engine)
        POOL.allow(Allowance.of(self.suite.limits, output=self.debug))
        device = _device(self.device)
        with self._sentence(f"The data set {self.suite.data.name!r} could not be loaded"):
            source = DATASETS.get(self.suite.data.name)(self.root, **self.suite.data.params)
            dataset = source.load()
        weights = find_weights(self.suite, self.root)
        # The data digest below hashes the same files: what it remembers costs nothing.
        self.data_notes = (*dataset.notes, *duplicate_notes(dataset, self.digests.each))
        for text in self.data_notes:
            self.say(f"Warning: {text}")
        data_digest = self.data_digest = content_key(
            "data", fingerprint=source.fingerprint, files=self.digests.of(source.files),
            code=code_digest(_DATA), part=part_digest(DATASETS.entry(self.suite.data.name), _DATA),
        )  # fmt: skip
        self.weights_digests = {label: file_digest(path) for label, path in weights.items() if path is not None}
        with self._sentence("The suite could not be planned"):
            planned = partial(make_plan, self.suite, dataset, data_digest, device.type, weights, self.limit)
            plan = planned()
        attacks = {k: p for k, p in make_perturbations(self.suite).items() if k not in plan.applicability.inapplicable}
        unranked = unranked_suite(self.suite, attacks, len(plan.sets.calibrate), len(plan.sets.evaluate))
        if unranked and self.suite.detectors:
            self.notes.append(f"No detector will have a rank: {unranked}.")
        self.notes += [*plan.applicability.sentences, *self.suite.notes]
        for text in self.notes:
            self.say(text)
        cells = choose(plan.cells, self.only)
        with Store(self.out, self.cache, self.fresh) as store, ExitStack() as ending:
            parts = {subject.key: subject.part for subject in plan.subjects}
            context = Context(
                self.suite, self.root.resolve(), self.out.resolve(), plan.sets, str(device), parts, weights
            )
            bench = Workbench(self.suite, dataset, plan.sets, store, device, parts, weights, self.say, context)
            # Tables ask the processes of plugins, too.
            ending.callback(bench.close)
            engine = make_engine(partial(compute, bench))
            summary = Runner(cells, store, engine, self.tell, self.debug, self.interrupt).run()
            lost = lost_perturbations(plan, summary.done, summary.ended)
            if lost:
                plan = planned(lost=lost)
                cells, first = choose(plan.cells, self.only), cells
                left = {key: cell for key, cell in cells.items() if key not in first}
                later = Runner(left, store, engine, self.tell, self.debug, self.interrupt).run()
                summary = summary.then(later, plan.cells)
            # What --only left out but an earlier call in this directory finished belongs to the tables.
            held = {record.key for record in store.records() if record.status == "done"}
            left_out = (key for key in plan.cells if key not in cells and key in held)
            summary.done.update(key for key in left_out if store.find(key) is not None)
            for text in changed_state(plan, store, summary):
                self.notes.append(text)
                self.say(text)
            problems = Problems(self.debug)
            try:
                # First: what was computed is known whatever happens to tables and pages.
                facts = self._facts(plan, store, summary, dataset, device, started, time.perf_counter() - clock)
                facts["costs"] = detector_costs(plan, store, summary)
                _write_json(self.out / "run.json", facts)
                Tables(plan, store, summary, dataset, problems).write(self.out / "tables")
                findings = write_all_findings(self.suite, plan, store, summary, lost, problems, self.out)
                # Those of an earlier suite in this directory go.
                if not self.only:
                    remove_others(self.out, findings)
                _write_json(self.out / "run.json", _with_problems(facts, problems))
                pages: list[Path] = []
                with problems.of("site"):
                    pages = write_site([self.out], self.out / "site")
                keys = sorted({*cells, *summary.done})
                write_atomic(self.out / KEYS, "".join(f"{key}\n" for key in keys).encode())
                facts["files"] = published(self.out, TABLES, pages, findings)
                facts["fingerprint"] = stamp
                _write_json(self.out / "run.json", _with_problems(facts, problems))
            except OSError as error:
                raise unwritable(self.out, error) from error
        return Run(
            self.out,
            {plan.cells[k].name: reason for k, reason in summary.failed.items()} | problems.found,
            {plan.cells[k].name: reason for k, reason in summary.skipped.items()},
            len(summary.computed),
            renewed=True,
        )

    @contextmanager
    def _sentence(self, what: str) -> Iterator[None]:
        """Say what code of a part raises before any cell is computed, where there is none that it could cost."""
        try:
            with contained():
                yield
        except PartEndedError as error:
            raise UsageError(f"{what}: {error}.") from error
        except UsageError:
            raise
        except Exception as error:
            if self.debug:
                raise
            raise UsageError(f"{what}: {described(error)} (--debug shows where).") from error

    def _facts(
        self, plan: Plan, store: Store, summary: Summary, dataset: Dataset, device: torch.device, started: datetime,
        seconds: float,
    ) -> dict[str, Any]:  # fmt: skip
        """What ``run.json`` records."""
        from ..evaluation.rankability import FLOOR, FLOOR_IMAGES

        models, texts = [], {"notes": dict[str, None](), "warnings": dict[str, None]()}
        for subject in plan.subjects:
            if subject.key in summary.done:
                values = store.values(subject.key)
                for kind, found in texts.items():
                    found.update(dict.fromkeys(f"{subject.part.label}: {text}" for text in values.get(kind, ())))
                models.append(
                    {
                        "dataset": self.suite.data.name,
                        "model": subject.part.label,
                        "seed": subject.seed,
                        "clean_accuracy": values["clean_accuracy"],
                        "n_test": values["test_images"],
                        "source": values["source"],
                    }
                )
        return {
            "schema": RUN_SCHEMA,
            "name": self.suite.name,
            "suite": dict(self.suite.raw),
            "resolved": self.suite.resolved(),
            "limit": self.limit,
            "only": self.only,
            "protocol": PROTOCOL_VERSION,
            "floor": {**asdict(FLOOR), "images": FLOOR_IMAGES},
            "protocol_digest": " ".join(dict.fromkeys(plan.protocol_digests.values())),
            "digests": {"data": self.data_digest, "weights": self.weights_digests},
            "seeds": list(self.suite.seeds),
            "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
            "hardware": _hardware(device),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "status": "failed" if summary.failed else ("incomplete" if self.only else "done"),
            "cells": {"done": len(summary.done), "failed": len(summary.failed), "skipped": len(summary.skipped)},
            "failures": [
                {"cell": plan.cells[key].name, "status": status, "reason": reason}
                for status, found in (("failed", summary.failed), ("skipped", summary.skipped))
                for key, reason in sorted(found.items(), key=lambda item: plan.cells[item[0]].name)
            ],
            "models": models,
            "warnings": [*self.data_notes, *texts["warnings"]],
            "notes": [*self.notes, *texts["notes"]],
            "classes": list(dataset.classes),
        }


def _with_problems(facts: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """The facts with the tables and pages that could not be made among the failures."""
    if not problems.found:
        return facts
    more = [{"cell": name, "status": "failed", "reason": reason} for name, reason in problems.found.items()]
    return {**facts, "status": "failed", "failures": [*facts["failures"], *more]}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, seal(value, default=str))


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _hardware(device: torch.device) -> dict[str, Any]:
    import torch

    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": None if memory is None else round(memory, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "platform": platform.platform(),
    }


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
