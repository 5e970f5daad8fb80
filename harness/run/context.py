"""What computing cells elsewhere needs: a value, for any process that sees the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..plan import Sets
from ..suite.resolved import ModelPart, Suite


@dataclass(frozen=True, eq=False)
class Context:
    """The surroundings of the cells of one run.

    Attributes:
        suite: as resolved.
        root: of the data sets.
        folder: the run directory, whose cells are inputs.
        sets: which images belong to which set.
        device: where models run.
        parts: the suite's entry of each model, by the key of its cell.
        weights: file of each model label, ``None`` where it is trained.
    """

    suite: Suite
    root: Path
    folder: Path
    sets: Sets
    device: str
    parts: Mapping[str, ModelPart]
    weights: Mapping[str, Path | None]
