"""Perturbed images of a finished run, as arrays: clean, perturbed, the difference and the control of equal norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...reports.answers.selection import Selection
from ..core.errors import AftershockError, UsageError, described
from ..core.interrupts import contained
from ..core.parameters import parameters
from ..core.registry import DATASETS
from .load import RunFolder

if TYPE_CHECKING:
    from ..data.types import ImageSplit
    from ..store.ledger import Record

Images = NDArray[np.float32]
Integers = NDArray[np.int64]

_ABSENT = "The clean images are not at hand"
# A clean image whose distance to the perturbed one is another one than was measured is not the run's.
_CLOSE = 1e-4


@dataclass(frozen=True, eq=False)
class PerturbedImages:
    """Images of one perturbation, model and seed. Arrays of images are float32 (n, channels, height, width) in [0, 1].

    Attributes:
        dataset: the data set's name.
        model: the model's label.
        seed: of the run.
        perturbation: its label.
        classes: names of the classes, in the order of their numbers; empty where the run does not say.
        index: int64 (n,), positions in the test split.
        label: int64 (n,), true classes.
        clean_prediction: int64 (n,), the model's classes of the clean images.
        prediction: int64 (n,), the model's classes of the perturbed images.
        success: bool (n,), whether the perturbed image fools the model.
        norms: by ``l0``, ``l1``, ``l2``, ``linf``: float64 (n,), measured.
        perturbed: images x'.
        control: noise of the same norm that keeps the prediction; NaN for an image without one.
        has_control: bool (n,), which images have one.
        clean: images x; ``None`` where they are not at hand.
        note: why they are not, in a sentence; else empty.
        scores: by detector: float64 (n,) of the perturbed images.
        flagged: by detector: bool (n,), whether the score is above the threshold at FPR 5 %.
        thresholds: by detector.
    """

    dataset: str
    model: str
    seed: int
    perturbation: str
    classes: tuple[str, ...] = field(repr=False)
    index: Integers = field(repr=False)
    label: Integers = field(repr=False)
    clean_prediction: Integers = field(repr=False)
    prediction: Integers = field(repr=False)
    success: NDArray[np.bool_] = field(repr=False)
    norms: Mapping[str, NDArray[np.float64]] = field(repr=False)
    perturbed: Images = field(repr=False)
    control: Images = field(repr=False)
    has_control: NDArray[np.bool_] = field(repr=False)
    clean: Images | None = field(repr=False)
    note: str
    scores: Mapping[str, NDArray[np.float64]] = field(repr=False)
    flagged: Mapping[str, NDArray[np.bool_]] = field(repr=False)
    thresholds: Mapping[str, float] = field(repr=False)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def difference(self) -> Images | None:
        """x' − x, in [−1, 1]; ``None`` where the clean images are not at hand."""
        return None if self.clean is None else self.perturbed - self.clean

    def name_of(self, label: int) -> str:
        """Return the name of a class, its number where the run does not name it."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)


def test_images(run: RunFolder, root: Path) -> ImageSplit:
    """Return the test images of a run's data set; nothing is fetched for it.

    Raises:
        UsageError: if they are not at hand, in a sentence.
    """
    params: dict[str, Any] = dict(run.data.params)
    try:
        with contained():
            factory = DATASETS.get(run.data.name)
            if "download" in parameters(factory):
                params["download"] = False
            split: ImageSplit = factory(root, **params).load().test
            return split
    except AftershockError as error:
        raise UsageError(f"{_ABSENT}: {described(error).rstrip('.')}.") from error
    except Exception as error:
        raise UsageError(f"{_ABSENT}: the data set {run.data.name!r} cannot be read ({described(error)}).") from error


class ImageReader:
    """Reads perturbed images of a run directory; nothing in it is executed.

    Args:
        folder: the run directory.
        root: of the data sets, where the clean images are.
        test: the test images of its data set, where they are at hand already.
    """

    def __init__(self, folder: Path, root: Path, test: ImageSplit | None = None) -> None:
        self._folder, self._root, self._test = folder, root, test

    @cached_property
    def _run(self) -> RunFolder:
        return RunFolder(self._folder)

    def read(self, selection: Selection, classes: tuple[str, ...]) -> PerturbedImages:
        """Return the images of a selection.

        Args:
            selection: which images.
            classes: names of the classes.

        Raises:
            UsageError: if the run does not hold the images, or what holds them is damaged or contradicts its tables.
        """
        folder, label = self._folder, selection.perturbation
        cells = self._run.perturbed(label, selection.model, selection.seed)
        columns = ("index", "label", "clean_prediction", "prediction")
        index, true, before, after = (selection.images[name].to_numpy(np.int64) for name in columns)
        held = _Held(self._run, cells.images)
        places = held.places(index)
        if (places < 0).any() or (held.column("prediction")[places] != after).any():
            raise UsageError(f"The images of {label} in {folder} are not those of its tables: run its suite again.")
        perturbed = held.images(places)
        controls = _Held(self._run, cells.controls)
        at = controls.places(index)
        control = np.full(perturbed.shape, np.nan, np.float32)
        if (at >= 0).any():
            found = controls.images(at[at >= 0])
            if found.shape[1:] != perturbed.shape[1:]:
                raise UsageError(f"In {folder}, images and controls of {label} differ in shape: run it again.")
            control[at >= 0] = found
        norms = {name: selection.images[name].to_numpy(np.float64) for name in ("l0", "l1", "l2", "linf")}
        clean, note = self._clean(index, true, perturbed, norms["linf"])
        return PerturbedImages(
            selection.dataset, selection.model, selection.seed, label, classes, index, true, before, after,
            selection.images["success"].to_numpy(np.float64) == 1, norms, perturbed, control, at >= 0, clean, note,
            selection.scores, selection.flagged, selection.thresholds,
        )  # fmt: skip

    @cached_property
    def _source(self) -> ImageSplit | str:
        """The test images of the run's data set, or why they are not at hand."""
        if self._test is not None:
            return self._test
        try:
            return test_images(self._run, self._root)
        except UsageError as error:
            return str(error)

    def _clean(
        self, index: Integers, label: Integers, perturbed: Images, linf: NDArray[np.float64]
    ) -> tuple[Images | None, str]:
        """Return the clean images, or ``None`` and why they are not at hand."""
        test = self._source
        if isinstance(test, str):
            return None, test
        others = f"{_ABSENT}: the images of {self._run.data.name} under {self._root} are not the run's."
        if len(index) and index.max() >= len(test):
            return None, others
        try:
            clean = test.images(index.tolist()).numpy()
        except Exception as error:
            return None, f"{_ABSENT}: {described(error).rstrip('.')}."
        same = clean.shape == perturbed.shape and bool((test.labels(index.tolist()).numpy() == label).all())
        if same and len(index):
            measured = np.abs(perturbed - clean).reshape(len(index), -1).max(1)
            same = bool(np.allclose(measured, linf, atol=_CLOSE))
        return (clean.astype(np.float32, copy=False), "") if same else (None, others)


class _Held:
    """The images of several cells, found by their position in the test split."""

    def __init__(self, run: RunFolder, records: Sequence[Record]) -> None:
        self._run = run
        # A cell in which no image was perturbed may hold no images.
        self._records = [r for r in records if r.values.get("rows")]
        rows = [self._column(r, "row") for r in self._records]
        self._lengths = [len(r) for r in rows]
        found = np.concatenate([np.zeros(0, np.int64), *rows])
        if len(found) and not 0 <= found.min() <= found.max() < len(run.evaluate):
            raise UsageError(
                f"Cells of {run.folder} name images that are not in its evaluate set: run its suite again."
            )
        positions = np.asarray(run.evaluate, np.int64)[found]
        self._place = dict(zip(positions.tolist(), range(len(positions)), strict=True))

    def _column(self, record: Record, name: str) -> Integers:
        return np.asarray(self._run.tensor(record, name).numpy(), np.int64).ravel()

    def column(self, name: str) -> Integers:
        """Return a column of whole numbers, all cells end to end."""
        return np.concatenate([np.zeros(0, np.int64), *(self._column(r, name) for r in self._records)])

    def places(self, index: Integers) -> Integers:
        """Return where images are, −1 for those that are not held."""
        return np.array([self._place.get(i, -1) for i in index.tolist()], np.int64)

    def images(self, places: Integers) -> Images:
        """Return images, (n, channels, height, width)."""
        found: list[tuple[Integers, Images]] = []
        start = 0
        for record, length in zip(self._records, self._lengths, strict=True):
            mine = np.flatnonzero((places >= start) & (places < start + length))
            if len(mine) or not found:
                # Only the rows that are wanted: large cells are memory-mapped.
                tensor = self._run.tensor(record, "images")
                if tensor.ndim != 4 or len(tensor) != length:
                    raise UsageError(f"A cell of {self._run.folder} holds no images where it should: run it again.")
                found.append((mine, tensor[places[mine] - start].float().numpy()))
            start += length
        if not found:
            return np.zeros((len(places), 0, 0, 0), np.float32)
        whole = np.zeros((len(places), *found[0][1].shape[1:]), np.float32)
        for mine, images in found:
            whole[mine] = images
        return whole
