"""A user's own images as arrays in an ``.npz`` file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UsageError
from .types import Dataset, DataSource, ImageSplit, TaskShape, channel_statistics, common_shape

if TYPE_CHECKING:
    import numpy as np

# More classes than this, and than ten for each that occurs, and labels are identifiers rather than numbers of classes.
_MANY_CLASSES, _CLASSES_PER_LABEL = 100, 10
# Numbers of channels of grey and colour images, with alpha or without.
_CHANNELS = (1, 2, 3, 4)
# Brightest pixels below this, in [0, 1], look like images that were scaled twice, or of 0 and 1 kept as bytes.
_DARK = 1 / 64


def npz(root: Path, path: Path, classes: tuple[str, ...] | None = None) -> DataSource:
    """Arrays from an ``.npz`` file: ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    Images are (n, channels, height, width) or (n, height, width), uint8 or floating point in [0, 1]; labels are
    integers from 0; ``classes`` names them. Labels that no image has count as classes, and the run says so.

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
    if labels.dtype.kind not in "iu":
        raise ValueError("labels are integers")
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
    train = array_split(
        arrays["x_train"], arrays["y_train"], known, f"x_train of {path}", f"y_train of {path}"
    )  # fmt: skip
    known = known or int(arrays["y_train"].max()) + 1
    test = array_split(arrays["x_test"], arrays["y_test"], known, f"x_test of {path}", f"y_test of {path}")
    if known < 2:
        raise UsageError(f"{path} has only one class: a classifier needs at least two.")
    shape = common_shape("npz", train, test)
    mean, std = channel_statistics(train)
    names = classes or tuple(str(c) for c in range(known))
    notes = (
        *_gaps(path, arrays["y_train"], arrays["y_test"], known),
        *_dark(path, {f"x_{part}": arrays[f"x_{part}"] for part in ("train", "test")}),
    )
    return Dataset("npz", names, shape, train, test, mean, std, notes)


def _gaps(path: Path, train: np.ndarray, test: np.ndarray, classes: int) -> tuple[str, ...]:
    """What to say about labels that no image has."""
    import numpy as np

    absent = sorted(set(range(classes)) - set(np.unique(train).tolist()))
    notes = []
    if absent:
        few = ", ".join(map(str, absent[:5])) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        hint = (
            "subtract 1 if labels start at 1, or number the classes anew" if 0 in absent else "number the classes anew"
        )
        notes.append(
            f"No train image of {path} has the label {few} (labels go from 0 to {classes - 1}), and yet each counts "
            f"as a class: {hint}, unless the models have these classes."
        )
    untested = sorted(set(np.unique(train).tolist()) - set(np.unique(test).tolist()))
    if untested:
        few = ", ".join(map(str, untested[:5])) + (f" and {len(untested) - 5} more" if len(untested) > 5 else "")
        notes.append(f"No test image of {path} has the label {few}: nothing is measured on those classes.")
    return tuple(notes)


def _dark(path: Path, images: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What to say about images that are nearly black, which scaling once too often makes of them."""
    notes = []
    for key, values in images.items():
        most = float(values.max()) / (255 if values.dtype.kind == "u" else 1)
        if most < _DARK:
            notes.append(
                f"The brightest pixel of {key} in {path} is {most:.2g} of 1: floating-point images lie in [0, 1], "
                "bytes from 0 to 255. Check that the images were not divided by 255 twice."
            )
    return tuple(notes)


def array_split(images: Any, labels: Any, classes: int | None, x: str, y: str) -> ImageSplit:
    """Return a split of arrays or tensors, checked.

    Args:
        images: (n, channels, height, width) or (n, height, width), uint8 or floating point in [0, 1].
        labels: integers from 0, (n,).
        classes: how many there are; ``None`` for as many as labels name.
        x: what messages call the images, and
        y: the labels.

    Raises:
        UsageError: for anything that is not so.
    """
    import numpy as np
    import torch

    images, labels = (
        a.detach().cpu().numpy() if isinstance(a, torch.Tensor) else np.asarray(a) for a in (images, labels)
    )
    if images.ndim not in (3, 4):
        raise UsageError(f"{x} has the shape {images.shape}: give (n, channels, height, width) or (n, height, width).")
    if images.ndim == 4 and images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS:
        alpha = " and leave out alpha, if it is the last" if images.shape[3] in (2, 4) else ""
        raise UsageError(
            f"{x} has the shape {images.shape}, with channels last: transpose it to (n, channels, height, width)"
            f"{alpha}."
        )
    if 0 in images.shape:
        raise UsageError(f"{x} has the shape {images.shape}: it holds no image.")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise UsageError(f"{x} has the type {images.dtype}: give uint8, or floating point in [0, 1].")
        if not np.isfinite(images).all():
            raise UsageError(f"{x} holds NaN or infinity: correct or remove those images.")
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
    different = len(np.unique(labels))
    if classes is None and top > max(_MANY_CLASSES, _CLASSES_PER_LABEL * different):
        raise UsageError(
            f"{y} has the label {top - 1}, but only {different} different ones: number the classes from 0 to "
            f"{different - 1}, or name all {top} with `classes`."
        )
    if labels.min() < 0 or labels.max() >= top:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise UsageError(f"{y} has the label {wrong}: labels go from 0 to {top - 1} here.")
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return ImageSplit(pixels if images.ndim == 4 else pixels.unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))
