"""The rules of an analysis: it is run as in a suite, on a small network and digits, and what it left is read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...analyses.base import Analysis
from ..core.errors import UsageError
from ..core.parameters import bind
from ..core.registry import ANALYSES
from ..evaluation.csv_files import table_file
from ..run.api import run
from ..run.result import Run
from ..suite import builtin as suites
from ..suite.instances import checked_analysis, is_standing
from .kit import Broken, Check, Kit, by_name, name_of, say_what_is_missing

_LABEL = "examined"
_FINDINGS = "findings.json"


@dataclass(eq=False)
class AnalysisContext:
    """An analysis that is examined.

    Attributes:
        factory: its class.
        params: of the constructor, checked.
        name: under which it is registered; empty for a class that is not.
    """

    factory: Any
    params: Mapping[str, Any]
    name: str
    _kept: ExitStack = field(default_factory=ExitStack, init=False)

    @cached_property
    def instance(self) -> Analysis[Any]:
        """One instance, which only says what it is."""
        return checked_analysis(self.factory(**self.params))

    @cached_property
    def first(self) -> Run:
        """A run with it."""
        return self.run()

    def run(self) -> Run:
        """Run it, with a cache of its own, so that nothing is taken over from another run."""
        folder = Path(self._kept.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        with ExitStack() as ending:
            name = self.name or _LABEL
            if not self.name:
                ending.enter_context(ANALYSES.lending(name, self.factory))
            weights = Path(str(suites.__path__[0])) / "weights" / "digits-cnn.safetensors"
            suite = {
                "name": "kit",
                "data": {"name": "digits", "fit": 120, "calibrate": 40, "evaluate": 80},
                "threat": {"norm": "linf", "eps": 0.3},
                "models": [{"name": "cnn", "weights": str(weights)}],
                "perturbations": [{"name": "fgsm", "eps": 0.3}],
                "detectors": [{"name": "energy"}],
                # No suite names one that is part of every run.
                "analyses": [] if is_standing(self.factory) else [{"name": name, "label": _LABEL, **self.params}],
            }
            return run(suite, folder / "run", cache=folder / "cache", device="cpu")

    def files(self, of: Run) -> dict[str, bytes]:
        """Return what it left in a run, by name."""
        table = of.folder / "tables" / table_file(self.name)
        own = [table] if is_standing(self.factory) else sorted((of.folder / "analyses").glob("*/*"))
        return {file.name: file.read_bytes() for file in own}


def _info(context: AnalysisContext) -> None:
    _ = context.instance


def _described(context: AnalysisContext) -> None:
    say_what_is_missing(context.instance.info)


def _runs(context: AnalysisContext) -> str:
    done = context.first
    wrong = {**done.failed, **done.skipped}
    if wrong:
        raise Broken("; ".join(f"{cell}: {reason}" for cell, reason in wrong.items()))
    if not context.files(done):
        raise Broken("it left no findings")
    return f"{len(context.files(done))} files"


def _says(context: AnalysisContext) -> str:
    names = [name for name in context.files(context.first) if name != _FINDINGS]
    if not names:
        raise Broken("it has no table, no figure and no array")
    return ", ".join(names)


def _again(context: AnalysisContext) -> None:
    first, again = context.files(context.first), context.files(context.run())
    changed = sorted(name for name in {*first, *again} if first.get(name) != again.get(name))
    if changed:
        raise Broken(f"the same run gave other {', '.join(changed)}")


def _process(context: AnalysisContext) -> None:
    facts = json.loads((context.first.folder / "run.json").read_text(encoding="utf-8"))
    changed = [note for note in facts["notes"] if note.startswith(f"{_LABEL} changed the process")]
    if changed:
        raise Broken(f"it {changed[0].removeprefix(_LABEL).strip().partition(':')[0]}")


CHECKS = by_name(
    (
        Check("info", "Its info has the right types: title, needs, reads_perturbed.",
              "Write `info = AnalysisInfo(title=...)`; the title is enough.", _info, gate=True),
        Check("runs", "A run with it ends, and its findings can be written and read again.",
              "Raise UsageError where the question makes no sense for a model; return what the contract says.", _runs,
              gate=True),
        Check("repeatable", "The same run gives the same findings, byte by byte.",
              "Draw from the seeded draws that it is given.", _again),
        Check("global-state", "It leaves generators, default dtype, threads and the rest as they are.",
              "Use the seeded draws that it is given; set nothing of torch's own.", _process),
        Check("described", "It says where it comes from and, in a sentence, what it does.",
              "Add `paper=...` and `summary=...` to its AnalysisInfo.", _described, level="recommendation"),
        Check("tables", "Its findings hold a table, a figure or an array, not sentences alone.",
              "Put every number that a sentence quotes into a table.", _says, level="recommendation"),
    )
)  # fmt: skip


def _context(part: Any, params: Mapping[str, Any]) -> AnalysisContext:
    factory = ANALYSES.get(part) if isinstance(part, str) else part
    if not isinstance(factory, type) or not issubclass(factory, Analysis):
        raise UsageError(
            f"{name_of(part)} is not an analysis: give a class derived from aftershock.Analysis, or its name."
        )
    bound, problems = bind(factory, params)
    if problems:
        raise UsageError(f"The analysis {name_of(part)} is wrong: {'; '.join(problems.values())}.")
    return AnalysisContext(factory, bound, ANALYSES.name_of(factory) or "")


KIT = Kit("analysis", CHECKS, _context)
