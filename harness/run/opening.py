"""Opening a run: its data, its weights and its plan, before any cell is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..core.code_digests import code_digest, part_digest
from ..core.content_keys import FileDigests, content_key
from ..core.errors import UsageError, described
from ..core.files import file_digest
from ..core.interrupts import PartEndedError, contained
from ..core.registry import DATASETS
from ..data.duplicates import duplicate_notes
from ..data.types import Dataset
from ..evaluation.rankability import unranked_suite
from ..plan import Plan, make_plan
from ..plan.cells import Cell
from ..plan.models import find_weights
from ..store.secrets import new_secret
from ..suite.resolved import Suite
from .options import Options
from .runner import choose

_DATA = "harness.data.types"


@dataclass(frozen=True, eq=False)
class Opened:
    """A run that is planned.

    Attributes:
        suite: as resolved.
        root: of the data sets.
        dataset: loaded.
        device: where models run.
        weights: file of each model label, ``None`` where it is trained.
        data_digest: digest of the data's bytes and of the code that reads them.
        weights_digests: sha256 of the weights files, by model label.
        secret: what decides the shadow images of the run.
        make_plan: plans the suite; it may be told which perturbations were lost, or another secret.
        plan: the suite's plan.
        cells: those that this call computes, with what they need.
        warnings: about the data.
        notes: about the plan.
    """

    suite: Suite
    root: Path
    dataset: Dataset
    device: torch.device
    weights: Mapping[str, Path | None]
    data_digest: str
    weights_digests: Mapping[str, str]
    secret: str
    make_plan: Callable[..., Plan]
    plan: Plan
    cells: Mapping[str, Cell]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def open_run(
    suite: Suite, root: Path, digests: FileDigests, options: Options,
    find_secret: Callable[[str], str] = lambda name: new_secret(),
) -> Opened:  # fmt: skip
    """Load the data of a suite, find its weights and plan its cells; what a person should know is said.

    Args:
        suite: resolved and checked.
        root: of the data sets.
        digests: remembers the digests of large files.
        options: of the run.
        find_secret: gives the secret of the run, by a digest of what it computes.

    Raises:
        UsageError: if the data, the weights or the device cannot be had, the suite cannot be planned, or ``only``
            matches no cell.
    """
    device = _device(options.device, options.engine.name == "local")
    with _blamed(f"The data set {suite.data.name!r} could not be loaded", options.debug):
        source = DATASETS.get(suite.data.name)(root, **suite.data.params)
        dataset = source.load()
    weights = find_weights(suite, root)
    # The data digest below hashes the same files: what it remembers costs nothing.
    warnings = (*dataset.notes, *duplicate_notes(dataset, digests.each))
    for text in warnings:
        options.on_message(f"Warning: {text}")
    data_digest = content_key(
        "data", fingerprint=source.fingerprint, files=digests.of(source.files),
        code=code_digest(_DATA), part=part_digest(DATASETS.entry(suite.data.name), _DATA),
    )  # fmt: skip
    weights_digests = {label: file_digest(path) for label, path in weights.items() if path is not None}
    secret = find_secret(content_key("secret", suite=suite.resolved(), data=data_digest, limit=options.limit))
    planned = partial(make_plan, suite, dataset, data_digest, device.type, weights, options.limit, secret=secret)
    with _blamed("The suite could not be planned", options.debug):
        plan = planned()
    notes = tuple(_notes(suite, plan))
    for text in notes:
        options.on_message(text)
    return Opened(
        suite, root, dataset, device, weights, data_digest, weights_digests, secret, planned, plan,
        choose(plan.cells, options.only), warnings, notes,
    )  # fmt: skip


def _notes(suite: Suite, plan: Plan) -> Sequence[str]:
    attacks = {k: p for k, p in plan.facts.perturbations.items() if k not in plan.applicability.inapplicable}
    unranked = unranked_suite(suite, attacks, len(plan.sets.calibrate), len(plan.sets.evaluate))
    rank = [f"No detector will have a rank: {unranked}."] if unranked and suite.detectors else []
    return [*rank, *plan.applicability.sentences, *suite.notes]


@contextmanager
def _blamed(what: str, debug: bool) -> Iterator[None]:
    """Say what code of a part raises before any cell is computed, where there is none that it could cost."""
    try:
        with contained():
            yield
    except PartEndedError as error:
        raise UsageError(f"{what}: {error}.") from error
    except UsageError:
        raise
    except Exception as error:
        if debug:
            raise
        raise UsageError(f"{what}: {described(error)} (--debug shows where).") from error


def _device(name: str, here: bool) -> torch.device:
    """Return a device by name; another machine than this one may have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if here:
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
