"""Suites that run in a second or two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


def toml(value: object) -> str:
    """A TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


def table(header: str, entry: Mapping[str, Any]) -> str:
    """A TOML table with its header."""
    return "\n".join([header, *(f"{key} = {toml(value)}" for key, value in entry.items()), ""])


GAUSSIAN = {"name": "gaussian", "std": 0.5}
FGSM = {"name": "fgsm", "eps": 0.3}
PERTURBATIONS = (GAUSSIAN, FGSM)
DETECTORS = ({"name": "msp"}, {"name": "energy"})


def write_suite(
    path: Path,
    perturbations: Sequence[Mapping[str, Any]] = PERTURBATIONS,
    detectors: Sequence[Mapping[str, Any]] = DETECTORS,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    **top: Any,
) -> Path:
    """Write a suite of a second or two: a hardly trained MLP on scikit-learn's digits, no price unless asked for."""
    top = {"name": "tiny", "seeds": [0], "price_images": 0, **top}
    parts = [table("", top)]
    parts.append(table("[data]", {"name": "digits", "fit": 120, "calibrate": 200, "evaluate": 60, **(data or {})}))
    parts.append(table("[threat]", {"norm": "linf", "eps": 0.3}))
    parts.append(table("[[models]]", {"name": "mlp", "epochs": 3, "width": 32, **(model or {})}))
    parts += [table("[[perturbations]]", entry) for entry in perturbations]
    parts += [table("[[detectors]]", entry) for entry in detectors]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


class Tiny(Protocol):
    """The type of ``write_suite``."""

    def __call__(
        self,
        path: Path,
        perturbations: Sequence[Mapping[str, Any]] = ...,
        detectors: Sequence[Mapping[str, Any]] = ...,
        data: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        **top: Any,
    ) -> Path: ...
