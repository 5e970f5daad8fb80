"""Identical images in the splits of a data set: the protocol's sets are disjoint in rows, and should be in images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .types import Dataset, ImageSplit

if TYPE_CHECKING:
    from torch import Tensor


def duplicate_notes(dataset: Dataset, digests_of: Callable[[Sequence[Path]], Sequence[str]]) -> tuple[str, ...]:
    """Return what to say about images that occur more than once, in sentences.

    Images in memory are compared pixel by pixel; of images that are read from files, the files are, so that the same
    image in another format is another one. Nothing is said about images that are read in any other way. Copies within
    the train split do no harm to the protocol and are not counted.

    Args:
        dataset: loaded.
        digests_of: digests of the contents of files, in order.
    """
    train, test = _identities(dataset.train, dataset.test, digests_of)
    seen, counts = set(train), Counter(test)
    shared = sum(identity in seen for identity in test)
    again = sum(count - 1 for count in counts.values())
    notes = []
    if shared:
        notes.append(
            f"{_images(shared, len(test), dataset)} also in the train split: models and detectors may have learned "
            "from what they are measured on."
        )
    if again:
        notes.append(
            f"{_images(again, len(test), dataset)} a copy of another one: the calibrate and the evaluate set may "
            "share images."
        )
    return tuple(notes)


def _images(count: int, of: int, dataset: Dataset) -> str:
    return f"{count} of the {of} test images of {dataset.name} {'are' if count > 1 else 'is'}"


def _identities(
    train: ImageSplit, test: ImageSplit, digests_of: Callable[[Sequence[Path]], Sequence[str]]
) -> tuple[Sequence[object], Sequence[object]]:
    """What tells the images of the splits apart, in order; nothing where that is not known."""
    if train.files is not None and test.files is not None:
        return digests_of(train.files), digests_of(test.files)
    if train.stored is None or test.stored is None:
        return (), ()
    same = train.stored.dtype == test.stored.dtype
    return list(_pixels(train, same)), list(_pixels(test, same))


def _pixels(split: ImageSplit, as_stored: bool) -> Iterable[bytes]:
    for rows in split.chunks(1000):
        images: Tensor = split.stored[rows] if as_stored and split.stored is not None else split.images(rows)
        for image in images.contiguous().numpy():
            yield hashlib.blake2b(image.data, digest_size=16).digest()
