"""The rules of a data set: where it lies, what it holds, and whether content keys see what decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.content_keys import FileDigests, canonical
from ..core.errors import UsageError
from ..core.parameters import bind
from ..core.registry import DATASETS
from ..data.duplicates import duplicate_notes
from ..data.types import Dataset, DataSource, ImageSplit, channel_statistics
from ..run.roots import data_root
from .kit import Broken, Check, Kit, by_name, name_of, unchanged_process

# Images of each split that are read.
IMAGES = 5000
CHUNK = 500
# Calibrate images below which no threshold at FPR 5 % stands.
CALIBRATE = 200
# Tolerance between normalisation constants and the statistics of the train split.
CONSTANTS = 0.05


@dataclass(eq=False)
class DatasetContext:
    """A data set that is examined.

    Attributes:
        find: gives its source.
    """

    find: Callable[[], DataSource]

    @cached_property
    def source(self) -> DataSource:
        """The source, found once."""
        return self.find()

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, loaded once."""
        return self.source.load()

    @property
    def splits(self) -> Mapping[str, ImageSplit]:
        """Both splits, by name."""
        return {"train": self.dataset.train, "test": self.dataset.test}


def _found(context: DatasetContext) -> str:
    source = context.source
    if not isinstance(source, DataSource):
        raise Broken(f"it gave {type(source).__name__}")
    missing = [file for file in source.files if not Path(file).is_file()]
    if missing:
        raise Broken(f"its file {missing[0]} does not exist", "Name files that exist, or raise UsageError.")
    return f"{len(source.files)} files"


def _fingerprint(context: DatasetContext) -> None:
    source = context.source
    try:
        canonical(dict(source.fingerprint))
    except (TypeError, ValueError) as error:
        raise Broken(f"its fingerprint is not JSON: {error}") from error
    if not source.files and not source.fingerprint:
        raise Broken("it names neither files nor a fingerprint: other data would count as the same")
    again = context.find()
    if (again.files, canonical(dict(again.fingerprint))) != (source.files, canonical(dict(source.fingerprint))):
        raise Broken("finding it twice gave other files or another fingerprint")


def _loads(context: DatasetContext) -> str:
    dataset = context.dataset
    if not isinstance(dataset, Dataset):
        raise Broken(f"load() gave {type(dataset).__name__}")
    for name, split in context.splits.items():
        if not isinstance(split, ImageSplit):
            raise Broken(f"its {name} split is {type(split).__name__} instead of an ImageSplit")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in context.splits.items())
    return f"{sizes} images of {' x '.join(map(str, dataset.shape))}, {len(dataset.classes)} classes"


def _images(context: DatasetContext) -> None:
    for name, split in context.splits.items():
        for _, images in _read(split):
            if tuple(images.shape[1:]) != tuple(context.dataset.shape):
                raise Broken(
                    f"{name} images have the shape {tuple(images.shape[1:])}, and `shape` is {context.dataset.shape}"
                )
            # Written so that NaN fails too.
            if not bool(((images >= 0) & (images <= 1)).all()):
                raise Broken(f"{name} images go from {float(images.min()):.4g} to {float(images.max()):.4g}")


def _labels(context: DatasetContext) -> None:
    for name, split in context.splits.items():
        labels = split.labels()
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise Broken(f"{name} labels are {labels.dtype} of the shape {tuple(labels.shape)}")
        if int(labels.min()) < 0 or int(labels.max()) >= len(context.dataset.classes):
            raise Broken(
                f"{name} labels go from {int(labels.min())} to {int(labels.max())}, and `classes` names "
                f"{len(context.dataset.classes)}"
            )


def _rows(context: DatasetContext) -> None:
    for name, split in context.splits.items():
        last = min(len(split), 20)
        whole = split.images(slice(0, last))
        order = list(reversed(range(last)))
        picked = split.images(order)
        if not torch.equal(whole.flip(0), picked) or not torch.equal(split.images([0]), whole[:1]):
            raise Broken(f"{name} images are others when they are read one by one or in another order")


def _again(context: DatasetContext) -> None:
    other = context.find().load()
    for name, split in context.splits.items():
        again = other.train if name == "train" else other.test
        if len(again) != len(split) or not torch.equal(again.labels(), split.labels()):
            raise Broken(f"loading it twice gave other {name} labels")
        rows = slice(0, min(len(split), CHUNK))
        if not torch.equal(again.images(rows), split.images(rows)):
            raise Broken(f"loading it twice gave other {name} images")


def _constants(context: DatasetContext) -> None:
    dataset = context.dataset
    if len(dataset.mean) != dataset.shape[0] or len(dataset.std) != dataset.shape[0]:
        raise Broken(
            f"it has {len(dataset.mean)} means and {len(dataset.std)} standard deviations for {dataset.shape[0]} "
            "channels"
        )
    if not all(value > 0 for value in dataset.std):
        raise Broken(f"std = {dataset.std}")


def _process(context: DatasetContext) -> None:
    with unchanged_process():
        context.find().load().train.images(slice(0, 1))


def _measured(context: DatasetContext) -> None:
    dataset = context.dataset
    rows = _some(dataset.train)
    mean, std = channel_statistics(ImageSplit(dataset.train.images(rows), dataset.train.labels(rows)))
    apart = max(abs(a - b) for a, b in zip((*mean, *std), (*dataset.mean, *dataset.std), strict=True))
    if apart > CONSTANTS:
        raise Broken(f"mean and std are {dataset.mean} and {dataset.std}; those of its train images {mean} and {std}")


def _every_class(context: DatasetContext) -> None:
    for name, split in context.splits.items():
        absent = len(context.dataset.classes) - len(split.labels().unique())
        if absent:
            raise Broken(f"{absent} of {len(context.dataset.classes)} classes have no {name} image")


def _duplicates(context: DatasetContext) -> None:
    notes = duplicate_notes(context.dataset, FileDigests(None).each)
    if notes:
        raise Broken(" ".join(notes).rstrip("."))


def _enough(context: DatasetContext) -> None:
    count = len(context.dataset.test)
    if count < 2 * CALIBRATE:
        raise Broken(f"its test split has {count} images")


def _some(split: ImageSplit) -> list[int]:
    """Evenly spaced rows, since a split may be sorted by class."""
    count = min(len(split), IMAGES)
    return [place * len(split) // count for place in range(count)]


def _read(split: ImageSplit) -> Iterator[tuple[list[int], Tensor]]:
    rows = _some(split)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        yield part, split.images(part)


CHECKS = by_name(
    (
        Check("found", "The factory takes `root`, and gives a DataSource whose files exist.",
              "Return `DataSource(name, files, load)`; a missing file is a UsageError that says what to do.", _found,
              gate=True),
        Check("loads", "load() gives a Dataset with two splits.",
              "Return `Dataset(name, classes, shape, ImageSplit(...), ImageSplit(...), mean, std)`.", _loads,
              gate=True),
        Check("images", "Images are (channels, height, width) as `shape` says, uint8 or floats in [0, 1].",
              "Divide by the largest value, transpose to channels first, and remove NaN.", _images),
        Check("labels", "Labels are int64 from 0, one for each image, and `classes` names each.",
              "Number the classes from 0, in the order of `classes`.", _labels),
        Check("constants", "mean and std have one number per channel, and std is above 0.",
              "Use `aftershock.channel_statistics(train)`.", _constants),
        Check("rows", "An image is the same whichever rows are read with it.",
              "Read by row; draw nothing and augment nothing.", _rows),
        Check("repeatable", "Loading it twice gives the same images and labels.",
              "Sort file names; split by a fixed rule, not by a random draw.", _again),
        Check("fingerprint", "Files and fingerprint name all that decides the data, as JSON.",
              "Put parameters, and digests of what is in no file, into `fingerprint`.", _fingerprint),
        Check("global-state", "Loading it leaves generators, default dtype and threads as they are.",
              "Use a generator of your own: torch.Generator().manual_seed(0).", _process),
        Check("normalisation", "mean and std are near those of its train images.",
              "Use `aftershock.channel_statistics(train)`: models normalise with them unless a suite says otherwise.",
              _measured, level="recommendation"),
        Check("classes", "Every class occurs in both splits.", "Drop the names of classes without images.",
              _every_class, level="recommendation"),
        Check("duplicates", "No test image is also a train image, or a copy of another.",
              "Remove copies: the protocol's sets are disjoint in images only if the splits are.", _duplicates,
              level="recommendation"),
        Check("enough", f"The test split has images for calibration and evaluation: at least {2 * CALIBRATE}.",
              f"A rank needs {CALIBRATE} calibrate images beside the evaluate images.", _enough,
              level="recommendation"),
    )
)  # fmt: skip


def _context(part: Any, params: Mapping[str, Any]) -> DatasetContext:
    if isinstance(part, DataSource):
        return DatasetContext(lambda: part)
    factory = DATASETS.get(part) if isinstance(part, str) else part
    if not callable(factory):
        raise UsageError(f"{name_of(part)} is not a data set: give a function that returns an aftershock.DataSource.")
    bound, problems = bind(factory, params, ("root",))
    if problems:
        raise UsageError(f"The data set {name_of(part)} is wrong: {'; '.join(problems.values())}.")
    return DatasetContext(lambda: factory(data_root(), **bound))


KIT = Kit("dataset", CHECKS, _context)
