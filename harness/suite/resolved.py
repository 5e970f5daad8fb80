"""A suite as it is resolved: the frozen values that the rest of the harness reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.content_keys import canonical

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class Part:
    """Something named in a suite, ready to be made: registry name, label, and checked parameters."""

    name: str
    label: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class DataPart(Part):
    """The data set with the sizes of its three sets."""

    fit: int
    calibrate: int
    evaluate: int

    def excess(self, train: int, test: int) -> dict[str, str]:
        """Return what is wrong, by the size to lower, with splits of these sizes; nothing if the sets fit."""
        found = {}
        if self.fit > train:
            found["fit"] = f"fit = {self.fit}, but the train split of {self.name} has {train} images"
        if self.calibrate + self.evaluate > test:
            both = self.calibrate + self.evaluate
            found["evaluate"] = (
                f"calibrate + evaluate = {both}, but the test split of {self.name} has {test} images; the two sets "
                "must not overlap"
            )
        return found


@dataclass(frozen=True)
class ModelPart(Part):
    """A model; ``name`` is empty where ``factory`` is given. ``weights`` as written; resolved when planned."""

    factory: str | None
    weights: str | None
    train_if_missing: bool
    tap_modules: tuple[str, ...]
    bits_per_tap: int | None


@dataclass(frozen=True)
class PerturbationPart(Part):
    """A perturbation at one budget.

    Attributes:
        group: the label before budgets and detectors were expanded.
        against: the label of the detector that an adaptive attack is made against; empty for every other kind.
    """

    group: str
    against: str = ""


@dataclass(frozen=True)
class DetectorPart(Part):
    """A detector; ``fit_on`` and ``fit_negatives`` hold expanded perturbation labels."""

    fit_on: tuple[str, ...]
    fit_negatives: tuple[str, ...]


@dataclass(frozen=True)
class Threat:
    """The threat model of the ranking."""

    norm: str
    eps: float


@dataclass(frozen=True)
class LimitsPart:
    """What attacks and detectors may spend.

    Only ``forwards`` and ``backwards`` are part of a content key: what an attack found by then is kept. The others
    decide whether there is a result.

    Attributes:
        forwards: images that an attack sends through the model, per image.
        backwards: gradients that it takes, per image.
        seconds: seconds of an attack per image, and
        score_seconds: of a detector's score per image, and
        fit_seconds: of its fit, and
        analysis_seconds: of a plugin's analysis: CPU seconds, see :attr:`~..core.clock.Stopwatch.seconds`.
        idle_seconds: seconds in which a plugin's part may compute nothing before it is taken to hang.
        memory: GiB that the process of a plugin's parts may hold.
    """

    forwards: float
    backwards: float
    seconds: float
    score_seconds: float
    fit_seconds: float
    analysis_seconds: float
    idle_seconds: float
    memory: float


@dataclass(frozen=True)
class Suite:
    """A suite as resolved: every name known, every parameter checked.

    Attributes:
        source: the file, or ``None`` for a suite made in Python.
        folder: where relative paths of the suite start, absolute: beside the file, or the working directory in which
            the suite was made.
        price_images: evaluate images by which the price of detectors is measured; 0 for none.
        raw: the mapping as written, for the run's record.
        notes: what is odd in it, and what its parts did to the process when they were imported and made.
    """

    name: str
    seeds: tuple[int, ...]
    plugins: tuple[Path, ...]
    data: DataPart
    threat: Threat
    limits: LimitsPart
    price_images: int
    models: tuple[ModelPart, ...]
    perturbations: tuple[PerturbationPart, ...]
    detectors: tuple[DetectorPart, ...]
    analyses: tuple[Part, ...]
    source: Path | None
    folder: Path
    raw: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def resolved(self) -> dict[str, Any]:
        """Return the suite with every label, budget and list expanded, as JSON values."""
        names = ("name", "seeds", "data", "threat", "models", "perturbations", "detectors", "analyses")
        found: dict[str, Any] = json.loads(canonical({name: getattr(self, name) for name in names}))
        return found
