"""Data sets as the harness sees them: two splits of images in [0, 1] with labels, read by rows.

Nothing here imports torch at the top: planning a run needs :class:`DataSource`, never an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Rows = slice | Sequence[int]

# Images from which the levels of a data set are read off.
LEVEL_IMAGES = 64
# float32 values times 255.
_LEVEL_ROUNDING = 1e-4


class ImageReader(Protocol):
    """Images that are decoded only when they are read, such as a folder of files.

    One that reads a file for each image may name them, in order, as ``files``: identical files are identical images.
    """

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at ``rows``, uint8 or float32 in [0, 1], (n, channels, height, width)."""


class ImageSplit:
    """One split of a data set.

    uint8 images stay uint8 in memory (a quarter of float32) and are converted per read.

    Args:
        images: uint8, or floating point in [0, 1], (n, channels, height, width); or a reader of such images.
        labels: classes from 0, int64, (n,).

    Raises:
        UsageError: if there is no image, or not one label per image.
    """

    def __init__(self, images: Tensor | ImageReader, labels: Tensor) -> None:
        if len(images) != len(labels):
            raise UsageError(f"The data set has {len(images)} images but {len(labels)} labels.")
        if not len(labels):
            raise UsageError("The data set has a split without images.")
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def images(self, rows: Rows = slice(None)) -> Tensor:
        """Images in [0, 1], float32, (n, channels, height, width); a copy, so that changing it changes no data."""
        import torch

        if isinstance(self._images, torch.Tensor):
            taken = self._images[self._index(rows)]
        else:
            taken = self._images.read(range(len(self))[rows] if isinstance(rows, slice) else [int(r) for r in rows])
        if taken.dtype == torch.uint8:
            return taken.to(torch.float32).div_(255)
        return taken.to(torch.float32, copy=True)

    @property
    def files(self) -> Sequence[Path] | None:
        """The file of each image, where images are read from files; else ``None``."""
        return getattr(self._images, "files", None)

    @property
    def stored(self) -> Tensor | None:
        """The images as they are held, uint8 or floating point; ``None`` where they are read when needed."""
        import torch

        return self._images if isinstance(self._images, torch.Tensor) else None

    def labels(self, rows: Rows = slice(None)) -> Tensor:
        """The true classes, int64, (n,); a copy."""
        return self._labels[self._index(rows)].clone()

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of at most ``size`` rows that cover the split in order."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def _index(self, rows: Rows) -> Tensor | slice:
        import torch

        return rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.int64)


class TaskShape(NamedTuple):
    """What decides which perturbations are defined for a task.

    Attributes:
        image: (channels, height, width) of every image.
        classes: number of classes.
    """

    image: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, or ready to be read.

    Attributes:
        name: its name in the registry.
        classes: the names of the classes; a label is a position in it.
        shape: (channels, height, width) of every image.
        train: the split that models and detectors learn from.
        test: the split that thresholds and results come from.
        mean: per channel, of images in [0, 1]; what models normalise with unless a suite says otherwise.
        std: likewise.
        notes: what a person should know about the data, in sentences: the run says them and keeps them.
        calibrate_from: position in the test split from which on images are for calibration, and before which they get
            perturbed; ``None`` where both sets are drawn from the whole split.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: ImageSplit
    test: ImageSplit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    calibrate_from: int | None = None

    @property
    def task(self) -> TaskShape:
        """Shape of the images and number of classes."""
        return TaskShape(self.shape, len(self.classes))


@dataclass(frozen=True, eq=False)
class DataSource:
    """A data set that is found but not loaded: what content keys need.

    Attributes:
        name: its name in the registry.
        files: the files whose bytes are the data, in a fixed order.
        load: loads it.
        fingerprint: whatever beside those bytes decides what ``load`` returns (JSON values).
    """

    name: str
    files: tuple[Path, ...]
    load: Callable[[], Dataset]
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


def channel_statistics(split: ImageSplit, chunk: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (over n) of each channel, read in chunks.

    A channel without any variation gets the deviation 1, so that normalising by it changes nothing but the mean.
    """
    import torch

    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for rows in split.chunks(chunk):
        values = split.images(rows).double().transpose(0, 1).flatten(1)
        count += values.shape[1]
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # Below this the "variation" is the rounding of the two sums.
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(mean.tolist()), tuple(std.tolist())


def common_shape(name: str, train: ImageSplit, test: ImageSplit) -> tuple[int, int, int]:
    """(channels, height, width) of both splits.

    Raises:
        UsageError: if they differ.
    """
    first, other = (tuple(split.images(slice(1)).shape[1:]) for split in (train, test))
    if first != other:
        raise UsageError(f"The data set {name} has train images of {first} but test images of {other}.")
    channels, height, width = first
    return channels, height, width


def data_levels(images: Tensor) -> int | None:
    """Return how many equally spaced levels from 0 to 1 images in [0, 1] have: the smallest number up to 256.

    Digits have 17 and 8-bit files 256; ``None`` where the values are not on any such grid.
    """
    import torch

    values = torch.unique(images)
    for steps in range(1, 256):
        scaled = values * steps
        if bool(((scaled - scaled.round()).abs() <= _LEVEL_ROUNDING).all()):
            return steps + 1
    return None
