"""A user's own images: a folder of files, or arrays in an ``.npz`` file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .data import Dataset, DataSource, ImageSplit, TaskShape, channel_statistics, common_shape
from .errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
# What torchvision's pretrained classifiers were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(root: Path, path: Path, size: int, resize: int | None = None, grey: bool = False) -> DataSource:
    """Images under ``path`` as ``train/<class>/*`` and ``test/<class>/*``, decoded when they are read.

    The shorter side becomes ``resize`` pixels (default ``size``), then the centre of ``size`` x ``size`` is kept;
    colour images are normalised with the constants of ImageNet, grey ones with those of the train split.

    Raises:
        UsageError: for a missing folder, a class without images, classes that differ between the splits, or
            (when it is read) a file that is no image.
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
        mean, std = channel_statistics(train_split) if grey else (IMAGENET_MEAN, IMAGENET_STD)
        shape = (1 if grey else 3, size, size)
        return Dataset("image-folder", train_names, shape, train_split, test_split, mean, std)

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
    names = [f for f in (path.expanduser() / "train").iterdir() if f.is_dir() and not f.name.startswith(".")]
    return TaskShape((1 if grey else 3, size, size), len(names))


def _folder_files(path: Path, part: str) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    folder = path / part
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: image-folder needs {part}/<class>/<image> under its path.")
    names = tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")))
    if len(names) < 2:
        raise UsageError(f"The folder {folder} needs at least two folders, one for each class.")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        inside = folder / name
        files = sorted(
            (f for f in inside.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()),
            key=lambda f: f.relative_to(inside).as_posix(),
        )
        if not files:
            raise UsageError(f"The folder {inside} holds no image: add some, or remove the class.")
        found += [(file, label) for file in files]
    return names, found


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
                image = opened.convert(self.mode)
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


def npz(root: Path, path: Path, classes: tuple[str, ...] | None = None) -> DataSource:
    """Arrays from an ``.npz`` file: ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    Images are (n, channels, height, width) or (n, height, width), uint8 or floating point in [0, 1]; labels are
    integers from 0; ``classes`` names them.

    Raises:
        UsageError: if the file is missing, or (when it is loaded) for anything that is not so.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UsageError(
            f"There is no file {path}: the data set npz needs an .npz file with x_train, y_train, x_test, y_test."
        )
    return DataSource("npz", (path,), lambda: _load_npz(path, classes), {"classes": list(classes or ())})


def npz_task(path: Path, classes: tuple[str, ...] | None) -> TaskShape:
    """Return the task of an ``npz`` data set; of the file, only the labels and the header of the images are read.

    Raises:
        KeyError, OSError, ValueError, zipfile.BadZipFile: for a file that is not as :func:`npz` describes it.
    """
    import numpy as np

    with zipfile.ZipFile(path.expanduser()) as archive:
        with archive.open("x_train.npy") as stream:
            header = np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(stream) != (1, 0):
                header = np.lib.format.read_array_header_2_0
            shape = header(stream)[0]
        with archive.open("y_train.npy") as stream:
            labels = np.lib.format.read_array(stream, allow_pickle=False)
    *channels, height, width = shape[1:]
    return TaskShape((channels[0] if channels else 1, height, width), len(classes or ()) or int(labels.max()) + 1)


def _load_npz(path: Path, classes: tuple[str, ...] | None) -> Dataset:
    import numpy as np

    arrays = {}
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            for key in ("x_train", "y_train", "x_test", "y_test"):
                if key not in loaded:
                    raise ValueError(f"it has no {key}, only {', '.join(loaded) or 'nothing'}")
                arrays[key] = loaded[key]
    except Exception as error:  # zip, header and pickle errors all mean the same to the user
        raise UsageError(
            f"{path} is not an .npz file with plain arrays x_train, y_train, x_test, y_test: {error}."
        ) from error
    known = len(classes) if classes else None
    train = _npz_split(path, "train", arrays["x_train"], arrays["y_train"], known)
    known = known or int(arrays["y_train"].max()) + 1
    test = _npz_split(path, "test", arrays["x_test"], arrays["y_test"], known)
    if known < 2:
        raise UsageError(f"{path} has only one class: a classifier needs at least two.")
    shape = common_shape("npz", train, test)
    mean, std = channel_statistics(train)
    return Dataset("npz", classes or tuple(str(c) for c in range(known)), shape, train, test, mean, std)


def _npz_split(path: Path, part: str, images: np.ndarray, labels: np.ndarray, classes: int | None) -> ImageSplit:
    import numpy as np
    import torch

    x, y = f"x_{part} of {path}", f"y_{part} of {path}"
    if images.ndim not in (3, 4):
        raise UsageError(f"{x} has the shape {images.shape}: give (n, channels, height, width) or (n, height, width).")
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise UsageError(
            f"{x} has the shape {images.shape}, with channels last: transpose it to (n, channels, height, width)."
        )
    if 0 in images.shape:
        raise UsageError(f"{x} has the shape {images.shape}: it holds no image.")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise UsageError(f"{x} has the type {images.dtype}: give uint8, or floating point in [0, 1].")
        if not np.isfinite(images).all():
            raise UsageError(f"{x} holds NaN or infinity: mend or remove those images.")
        if images.min() < 0 or images.max() > 1:
            raise UsageError(
                f"{x} goes from {images.min():.4g} to {images.max():.4g}: rescale it to [0, 1], or give uint8."
            )
        images = images.astype(np.float32)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{y} is {labels.dtype} of shape {labels.shape}: give one integer for each of the {len(images)} images."
        )
    top = classes if classes is not None else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= top:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise UsageError(f"{y} has the label {wrong}: labels go from 0 to {top - 1} here.")
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return ImageSplit(pixels if images.ndim == 4 else pixels.unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))
