"""Answers about data sets: where they lie, what they hold, and their images by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...core.content_keys import canonical
from ...core.errors import AftershockError
from ...core.registry import DATASETS
from ...data.types import Dataset, DataSource
from ...suite.resolved import Part
from ..workers.channel import Message
from .router import Answers, Kind


def facts(source: DataSource) -> dict[str, Any]:
    """Return what the plan needs of a data set that is found but not loaded."""
    if not isinstance(source, DataSource):
        raise AftershockError(f"it gave {type(source).__name__} instead of a DataSource")
    return {
        "name": source.name, "files": [str(file) for file in source.files],
        "fingerprint": json.loads(canonical(dict(source.fingerprint))),
    }  # fmt: skip


def _load(answers: Answers, asked: Message) -> Message:
    number = asked.values["values"]["id"]
    dataset = answers.made[number].load()
    if not isinstance(dataset, Dataset):
        raise AftershockError(f"load() gave {type(dataset).__name__} instead of a Dataset")
    answers.made[number] = dataset
    about = {
        "name": dataset.name, "classes": list(dataset.classes), "shape": list(dataset.shape),
        "mean": list(dataset.mean), "std": list(dataset.std),
        "calibrate_from": None if dataset.calibrate_from is None else int(dataset.calibrate_from),
    }  # fmt: skip
    return Message({"dataset": about}, {"train": dataset.train.labels(), "test": dataset.test.labels()})


def _images(answers: Answers, asked: Message) -> Message:
    dataset: Dataset = answers.part(asked)
    split = dataset.train if asked.values["values"]["split"] == "train" else dataset.test
    images = split.images(asked.tensor("rows").tolist())
    return Message({}, {"images": images.to(torch.float32)})


def _find(part: Part, about: Mapping[str, Any]) -> DataSource:
    source: DataSource = DATASETS.get(part.name)(root=Path(about["root"]), **part.params)
    return source


KIND = Kind(_find, facts, {"load dataset": _load, "images": _images}, given=("root",))
