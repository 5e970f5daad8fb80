"""What ``aftershock validate`` says of a suite.

A suite that names built-in parts alone is checked in a process of its own in which torch is mocked: its mistakes are
known in half a second. What needs torch itself, and what needs code of others, is checked here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.registry import REGISTRIES, Origin, host_plugins
from ..suite.glance import glance
from .mocked_imports import Mocks, mock_imports

DECIDES_NO_NUMBER = True

# Without the working directory on the search path: a folder's `statistics.py` is not the one that is meant.
_COMMAND = (sys.executable, "-P", "-c", "from aftershock.harness.cli.validation import main; main()")
_MOCKED = ("torch", "torchvision", "safetensors")


def validated(suite: str, plugins: Sequence[Path], data: Path | None, no_models: bool) -> Iterator[str]:
    """Yield what there is to say of a suite that is valid.

    Args:
        suite: a suite file, or the name of a built-in one.
        plugins: local files with registered parts.
        data: root of the data sets.
        no_models: no model is built or probed.

    Raises:
        SuiteError: for its mistakes; those of models come after sentences about them.
        UsageError: for no suite at all.
    """
    if "torch" not in sys.modules and not plugins and _names_no_code(glance(suite)[0]):
        found = _without_torch(suite)
        if "mistakes" in found:
            raise UsageError(found["mistakes"])
        if no_models and "sentences" in found:
            yield from found["sentences"]
            return
    yield from _checked(suite, plugins, data, no_models)


def _names_no_code(raw: Mapping[str, Any] | None) -> bool:
    """Return whether a suite as written names no file with code of its own."""
    models = (raw or {}).get("models", ())
    factories = [m for m in models if isinstance(m, Mapping) and "factory" in m] if isinstance(models, list) else []
    return not (raw or {}).get("plugins") and not factories


def _without_torch(suite: str) -> Mapping[str, Any]:
    """Return ``sentences`` or ``mistakes`` of a suite, and nothing where they cannot be known without torch."""
    done = subprocess.run(  # noqa: S603 (our own interpreter and module)
        [*_COMMAND, suite], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    try:
        found: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {}
    return found


def main() -> None:
    """Check the suite that the command line names, torch mocked; the answer is one line of JSON."""
    mocks = mock_imports(*_MOCKED)
    host_plugins(_NoPlugins(mocks))
    found: Mapping[str, Any] = {}
    installed = entry_points()
    if not any(installed.select(group=registry.group) for registry in REGISTRIES.values()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = {"sentences": list(_checked(sys.argv[1], (), None, True))}
            except UsageError as error:
                found = {"mistakes": str(error)}
    sys.stdout.write(json.dumps({} if mocks.needed or caught else found))


class _NoPlugins:
    """Opens no plugin: their code needs torch."""

    def __init__(self, mocks: Mocks) -> None:
        self._mocks = mocks

    def open_file(self, path: Path) -> Origin:
        """Refuse a file."""
        raise self._mocks.need()

    def open_distribution(self, origin: Origin, kind: str, name: str) -> None:
        """Refuse a distribution."""
        raise self._mocks.need()

    def allow(self, limits: Any) -> None:
        """Take note of nothing."""


def _checked(suite: str, plugins: Sequence[Path], data: Path | None, no_models: bool) -> Iterator[str]:
    from ..data.sets import task_shape
    from ..evaluation.rankability import unranked_suite
    from ..plan.applicability import applicability, make_perturbations
    from ..plan.facts import perturbation_facts
    from ..suite.problems import SuiteError
    from ..suite.resolve import load_suite

    found = load_suite(suite, tuple(plugins))
    sentences: tuple[str, ...] = ()
    if not no_models:
        from ..run.model_check import check_models
        from ..run.roots import data_root

        checked = check_models(found, data_root(data))
        if checked.problems:
            yield from checked.sentences
            raise SuiteError(str(found.source), checked.problems)
        sentences = checked.sentences
    parts = (
        (len(found.models), "model"),
        (len(found.perturbations), "perturbation"),
        (len(found.detectors), "detector"),
    )
    counts = ", ".join(f"{n} {what}{'s' if n != 1 else ''}" for n, what in parts)
    yield f"{found.name} is valid: {found.data.name}, {counts}, seeds {' '.join(map(str, found.seeds))}."
    attacks = make_perturbations(found)
    applies = applicability(found, attacks, task_shape(found.data.name, found.data.params))
    facts = {p: perturbation_facts(made) for p, made in attacks.items() if p not in applies.inapplicable}
    unranked = unranked_suite(found, facts, found.data.calibrate, found.data.evaluate)
    if unranked and found.detectors:
        yield f"No detector will have a rank: {unranked}."
    yield from (*found.notes, *applies.sentences, *sentences)
