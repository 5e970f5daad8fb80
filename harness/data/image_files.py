"""A user's own images as files: one folder per split, one folder per class in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UsageError
from .image_notes import image_notes
from .types import Dataset, DataSource, ImageSplit, TaskShape, channel_statistics

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PillowImage
    from torch import Tensor

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
# What torchvision's pretrained classifiers were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What systems and archives leave in folders, besides names that start with a point.
_SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"))
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
# Pillow reads these formats' samples of more than 8 bits as 0 to 65535, whatever their file's own maximum.
_SIXTEEN_BITS = frozenset(("PNG", "PPM"))
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def image_folder(root: Path, path: Path, size: int, resize: int | None = None, grey: bool = False) -> DataSource:
    """Images under ``path`` as ``train/<class>/*`` and ``test/<class>/*``, decoded when they are read.

    The shorter side becomes ``resize`` pixels (default ``size``), then the centre of ``size`` x ``size`` is kept;
    colour images are normalised with the constants of ImageNet, grey ones with those of the train split. Samples of 16
    bits are divided by 65535 (TIFF: by the largest number of its bits), floating-point ones lie in [0, 1]; both become
    8 bits. Files and folders that are hidden (a name that starts with a point) or left by a system are passed over.

    Raises:
        UsageError: for a missing folder, a class without images, classes that differ between the splits, or
            (when it is read) a file that is not an image, or whose samples have no known range.
    """
    if size < 1:
        raise UsageError(f"The data set image-folder needs a size of at least 1 pixel, not {size}.")
    if resize is not None and resize < size:
        raise UsageError(f"The data set image-folder cannot cut {size} pixels out of images resized to {resize}.")
    path = path.expanduser()
    train_names, train = _folder_files(path, "train")
    test_names, test = _folder_files(path, "test")
    if train_names != test_names:
        odd = sorted(set(train_names) ^ set(test_names))[0]
        raise UsageError(f"The class {odd!r} is in only one of {path / 'train'} and {path / 'test'}: both need it.")

    def load() -> Dataset:
        import torch

        train_split, test_split = (
            ImageSplit(
                _Folder([file for file, _ in part], size, resize or size, grey), torch.tensor([c for _, c in part])
            )
            for part in (train, test)
        )
        notes = (*_other_files(path), *image_notes(path, [file for file, _ in train + test]))
        mean, std = channel_statistics(train_split) if grey else (IMAGENET_MEAN, IMAGENET_STD)
        shape = (1 if grey else 3, size, size)
        return Dataset("image-folder", train_names, shape, train_split, test_split, mean, std, notes)

    names = "\n".join(file.relative_to(path).as_posix() for file, _ in train + test)
    fingerprint = {
        "files": hashlib.sha256(names.encode()).hexdigest(),
        "size": size,
        "resize": resize or size,
        "grey": grey,
        "pillow": version("pillow"),
    }
    return DataSource("image-folder", tuple(file for file, _ in train + test), load, fingerprint)


def image_folder_task(path: Path, size: int, grey: bool) -> TaskShape:
    """Return the task of an ``image-folder``; only the names of the classes are read."""
    return TaskShape((1 if grey else 3, size, size), len(_class_names(path.expanduser() / "train")))


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and _is_own(f, folder)))


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a file or folder below ``folder`` is the user's: not hidden, and not left there by a system."""
    parts = path.relative_to(folder).parts
    return not any(p.startswith(".") or p in _SYSTEM_FOLDERS or p.lower() in _SYSTEM_FILES for p in parts)


def _files_below(folder: Path) -> Iterator[Path]:
    return (f for f in folder.rglob("*") if _is_own(f, folder) and f.is_file())


def _folder_files(path: Path, part: str) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    folder = path / part
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: image-folder needs {part}/<class>/<image> under its path.")
    names = _class_names(folder)
    if len(names) < 2:
        raise UsageError(f"The folder {folder} needs at least two folders, one for each class.")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        inside = folder / name
        files = sorted(
            (f for f in _files_below(inside) if f.suffix.lower() in IMAGE_SUFFIXES),
            key=lambda f: f.relative_to(inside).as_posix(),
        )
        if not files:
            raise UsageError(f"The folder {inside} holds no image: add some, or remove the class.")
        found += [(file, label) for file in files]
    return names, found


def _other_files(path: Path) -> tuple[str, ...]:
    """What to say about files that are not read: of another type, or outside of every class."""
    folders = (path / "train", path / "test")
    others = [
        file
        for folder in folders
        for file in _files_below(folder)
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.parent == folder
    ]
    if not others:
        return ()
    first = min(others, key=lambda f: f.as_posix())
    count = f"{len(others)} files" if len(others) > 1 else "1 file"
    return (
        f"Of {path}, {count} will not be read, such as {first.relative_to(path)}: images lie in "
        "train/<class>/ and test/<class>/ and end in "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}.",
    )


class _Folder:
    """Reads image files by row: uint8, (n, channels, size, size)."""

    def __init__(self, files: Sequence[Path], size: int, resize: int, grey: bool) -> None:
        self.files, self.size, self.resize, self.mode = files, size, resize, "L" if grey else "RGB"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Sequence[int]) -> Tensor:
        import torch

        pixels = torch.empty((len(rows), len(self.mode), self.size, self.size), dtype=torch.uint8)
        for place, row in enumerate(rows):
            pixels[place] = torch.from_numpy(self._decode(self.files[row]))
        return pixels

    def _decode(self, file: Path) -> np.ndarray:
        import numpy as np
        from PIL import Image

        try:
            with Image.open(file) as opened:
                image = _eight_bits(opened, file).convert(self.mode)
        except UsageError:
            raise
        # Pillow raises SyntaxError and ValueError, besides OSError, for some broken files.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(f"The image {file} cannot be read ({error}): replace or remove it.") from error
        # Resizing and the centre crop in one step, which keeps memory small for very long images.
        width, height = image.size
        side = min(width, height) * self.size / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        array = np.array(image)
        return array.reshape(self.size, self.size, -1).transpose(2, 0, 1).copy()


def _eight_bits(image: PillowImage, file: Path) -> PillowImage:
    """An image whose conversion to grey or colour scales: Pillow's own cuts samples of more than 8 bits off at 255.

    Raises:
        UsageError: for samples whose range is not known.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    samples = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not np.isfinite(samples).all() or samples.min() < 0 or samples.max() > 1:
            raise UsageError(
                f"The image {file} has floating-point samples (mode F) from {samples.min():.4g} to {samples.max():.4g}:"
                " rescale them to [0, 1], or save 8 or 16 bits."
            )
        most = 1.0
    elif image.mode.startswith("I;16"):
        most = 2.0 ** int(tags.get(_TIFF_BITS, (16,))[0]) - 1
    elif image.format in _SIXTEEN_BITS:
        most = 65535.0
    else:
        raise UsageError(
            f"The image {file} has integer samples of 32 bits or with a sign (mode {image.mode}), whose range is not "
            "known: save 8 or 16 bits without a sign."
        )
    samples /= most
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        # White is zero, which Pillow inverts for 8 bits only.
        samples = 1 - samples
    return Image.fromarray(np.rint(samples * 255).astype(np.uint8))
