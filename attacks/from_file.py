"""A perturbation read from a file: images made by another tool, measured like any other."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..harness.core.errors import UsageError
from ..harness.core.seeds import Draws
from .base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo

_TOLERANCE = 1e-6


class FromFile(Perturbation):
    """Perturbed images from an ``.npz`` file.

    The file holds ``x_adv``, floats in [0, 1] of shape (k, channels, height, width), and ``index`` (or ``indices``),
    k different positions in the test split (the column ``index`` of ``scores.csv.gz``). An image that the file lacks
    comes back unchanged.

    Args:
        path: the file.
        family: the family that it counts as (``pgd`` if PGD made it).
        norm: the norm that the attack limited or minimised, if any.

    Raises:
        UsageError: for a file that is missing or not as described; the text names the file and the fault.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="from a file",
        kind="attack",
        family="file",
        gradients=False,
        summary="Perturbed images from an .npz file with x_adv and index.",
    )

    def __init__(self, path: str, family: str = "file", norm: Norm | None = None) -> None:
        if not family:
            raise UsageError("family = '': give the attack's family a name, or leave it out.")
        self.path = Path(path).expanduser()
        self._family = family
        self._norm: Norm | None = norm
        self._images, index = _read(self.path)
        self._rows = {int(position): row for row, position in enumerate(index)}

    @property
    def family(self) -> str:
        """The family named by the parameter."""
        return self._family

    def covers(self, positions: Sequence[int]) -> list[bool]:
        """Return the images that the file holds."""
        return [position in self._rows for position in positions]

    @property
    def learnable(self) -> bool:
        """Never: the file knows positions in the test split only."""
        return False

    @property
    def norm(self) -> Norm | None:
        """The norm named by the parameter."""
        return self._norm

    def source_files(self) -> tuple[Path, ...]:
        """Return the files that the result depends on; the harness keys them by their content."""
        return (self.path,)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        shape, expected = tuple(self._images.shape[1:]), tuple(images.shape[1:])
        # A wrong file, not a task that the perturbation is not defined for.
        if len(self._images) and shape != expected:
            raise UsageError(
                f"{self.path} holds images of shape {shape}, but the data's are {expected}: name another file."
            )
        result = images.clone()
        held = [(i, self._rows[position]) for i, position in enumerate(draws.indices) if position in self._rows]
        if held:
            mine, rows = (list(column) for column in zip(*held, strict=True))
            result[mine] = self._images[rows].to(images)
        return result


def _read(path: Path) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """The images, float32, and their positions; raises :class:`UsageError` for anything that is not as it should be."""
    if not path.is_file():
        raise UsageError(f"The perturbation file {path} does not exist.")
    arrays = _arrays(path)
    present = [key for key in ("index", "indices") if key in arrays]
    if "x_adv" not in arrays or not present:
        raise UsageError(f"{path} has {', '.join(arrays) or 'neither'}: it needs x_adv and index (or indices).")
    if len(present) == 2:
        raise UsageError(f"{path} has both index and indices: keep one of them.")
    images, index = arrays["x_adv"], arrays[present[0]]
    if images.ndim != 4:
        raise UsageError(f"x_adv in {path} has shape {images.shape}: it must be (k, channels, height, width).")
    if images.dtype.kind != "f":
        raise UsageError(f"x_adv in {path} is {images.dtype}: it must be floats in [0, 1] (bytes: divide by 255).")
    if index.dtype.kind not in "iu" or index.shape != (len(images),):
        raise UsageError(
            f"{present[0]} in {path} is {index.dtype} of shape {index.shape}: it must be whole numbers of shape "
            f"({len(images)},), one per image of x_adv."
        )
    if not np.isfinite(images).all():
        raise UsageError(f"x_adv in {path} holds NaN or infinity: remove those images from the file.")
    if images.size and (images.min() < -_TOLERANCE or images.max() > 1 + _TOLERANCE):
        raise UsageError(
            f"x_adv in {path} goes from {images.min():.4g} to {images.max():.4g}: images must lie in [0, 1]."
        )
    if index.size and index.min() < 0:
        raise UsageError(f"{present[0]} in {path} holds {index.min()}: positions start at 0.")
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise UsageError(f"{present[0]} in {path} holds {values[counts > 1][0]} more than once: give each image once.")
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).clamp_(0, 1), index.astype(np.int64)


def _arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not an .npz file: write one with numpy.savez(path, x_adv=..., index=...).")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files if key in ("x_adv", "index", "indices")}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read as an .npz file: {error}.") from error
