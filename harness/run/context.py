"""What computing cells elsewhere needs to be told: a value that opens a workbench in any process that sees the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.registry import DATASETS
from ..plan import Sets
from ..store.stored_traces import StoredCells
from ..suite.resolved import ModelPart, Suite
from .tasks.workbench import Workbench


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


def open_bench(context: Context, say: Callable[[str], None]) -> Workbench:
    """Open what the cells of a run need, reading finished ones from its directory."""
    suite = context.suite
    dataset = DATASETS.get(suite.data.name)(context.root, **suite.data.params).load()
    reader, device = StoredCells(context.folder), torch.device(context.device)
    return Workbench(suite, dataset, context.sets, reader, device, context.parts, context.weights, say, context)
