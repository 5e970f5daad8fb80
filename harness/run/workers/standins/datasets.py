"""The stand-in for a plugin's data set: read from its process, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.errors import UsageError
from ....data.types import Dataset, DataSource, ImageSplit
from .part import LONG, Instance, PluginPart


def plugin_source(part: PluginPart, root: Path, **params: Any) -> DataSource:
    """Return a data set of a plugin, found but not loaded."""
    instance = Instance(part, "datasets", params, {"root": str(root)})
    facts = instance.facts
    files = tuple(Path(file) for file in facts["files"])
    return DataSource(str(facts["name"]), files, lambda: _load(instance), facts["fingerprint"])


def _load(instance: Instance) -> Dataset:
    found = instance.ask("load dataset", cpu=LONG)
    about = found.values["dataset"]
    if len(about["shape"]) != 3:
        raise UsageError(f"The data set {about['name']} has the shape {about['shape']}, not (channels, height, width).")
    channels, height, width = about["shape"]
    # Another process, if this one ends, has to load it again.
    instance.restore_by(lambda: instance.ask("load dataset", cpu=LONG))
    train, test = (
        ImageSplit(_Reader(instance, name, len(found.tensor(name))), found.tensor(name)) for name in ("train", "test")
    )
    return Dataset(
        str(about["name"]), tuple(str(c) for c in about["classes"]), (channels, height, width), train, test,
        tuple(about["mean"]), tuple(about["std"]), calibrate_from=about["calibrate_from"],
    )  # fmt: skip


class _Reader:
    """Images of one split, float32 in [0, 1]."""

    def __init__(self, instance: Instance, split: str, count: int) -> None:
        self._instance, self._split, self._count = instance, split, count

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Sequence[int]) -> Tensor:
        given = {"rows": torch.tensor(list(rows), dtype=torch.int64)}
        return self._instance.ask("images", {"split": self._split}, given, cpu=LONG).tensor("images")
