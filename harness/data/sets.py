"""The built-in data sets.

A factory is ``name(root, **params) -> DataSource``: it finds the files (and downloads them where they are missing and
the network allows) without loading them, so that planning stays fast. Rows keep the order of the source: row ``i`` of
a split is image ``i`` of the published files, or file ``i`` of a folder in the order of torchvision's ``ImageFolder``.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from .image_files import image_folder, image_folder_task
from .types import Dataset, DataSource, ImageSplit, TaskShape, channel_statistics, common_shape
from .user_data import npz, npz_task

__all__ = ["cifar10", "cifar100", "digits", "fashion_mnist", "image_folder", "mnist", "npz", "svhn"]

DIGITS = tuple(str(digit) for digit in range(10))
DIGITS_TEST = 800
CONNECT_SECONDS = 10.0
# Train and test images, and shapes and classes, as published: a suite can be checked where the files are not.
SIZES = {
    "digits": (997, DIGITS_TEST),
    "mnist": (60_000, 10_000),
    "fashion-mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
}
TASKS = {
    "digits": TaskShape((1, 8, 8), 10),
    "mnist": TaskShape((1, 28, 28), 10),
    "fashion-mnist": TaskShape((1, 28, 28), 10),
    "cifar10": TaskShape((3, 32, 32), 10),
    "cifar100": TaskShape((3, 32, 32), 100),
    "svhn": TaskShape((3, 32, 32), 10),
}


def task_shape(name: str, params: Mapping[str, Any]) -> TaskShape | None:
    """Return the shape of a data set's task where it is known without loading the images, else ``None``.

    Args:
        name: registry name of the data set.
        params: checked parameters of its factory.
    """
    try:
        if name == "npz":
            return npz_task(params["path"], params.get("classes"))
        if name == "image-folder":
            return image_folder_task(params["path"], params["size"], params.get("grey", False))
    except Exception:
        # What is wrong with the files, whatever reading them raises, is said where they are loaded.
        return None
    return TASKS.get(name)


def digits(root: Path) -> DataSource:
    """scikit-learn's handwritten digits: 1797 grey images of 8 x 8; 997 train, 800 test; needs no download.

    The split is fixed, stratified by class, and independent of any seed: images are ordered by the sha256 of
    ``digits:<row>``, and each class gives its share of the test split from the front.
    """
    package = find_spec("sklearn")
    where = package.submodule_search_locations if package else None
    file = Path(next(iter(where)), "datasets", "data", "digits.csv.gz") if where else None
    if file is None or not file.is_file():
        raise UsageError("The data set digits comes with scikit-learn, which is not complete here: reinstall it.")
    return DataSource("digits", (file,), _load_digits, {"test": DIGITS_TEST, "order": "sha256"})


def _load_digits() -> Dataset:
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    train_rows, test_rows = _digits_rows(labels.tolist())
    pixels = torch.from_numpy(images).float().div_(16).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    train = ImageSplit(pixels[train_rows], targets[train_rows])
    mean, std = channel_statistics(train)
    test = ImageSplit(pixels[test_rows], targets[test_rows])
    return Dataset("digits", DIGITS, (1, 8, 8), train, test, mean, std)


def _digits_rows(labels: list[int]) -> tuple[list[int], list[int]]:
    ordered = sorted(range(len(labels)), key=lambda row: hashlib.sha256(f"digits:{row}".encode()).digest())
    counts = [labels.count(c) for c in range(10)]
    shares = [count * DIGITS_TEST / len(labels) for count in counts]
    quota = [int(share) for share in shares]
    by_remainder = sorted(range(10), key=lambda c: (quota[c] - shares[c], c))
    for c in by_remainder[: DIGITS_TEST - sum(quota)]:
        quota[c] += 1
    train, test = [], []
    for row in ordered:
        if quota[labels[row]]:
            quota[labels[row]] -= 1
            test.append(row)
        else:
            train.append(row)
    return train, test


def mnist(root: Path, download: bool = True) -> DataSource:
    """MNIST (LeCun et al. 1998): 60,000 train and 10,000 test grey images of 28 x 28."""
    return _idx(root, "mnist", "MNIST", download, (0.1307,), (0.3081,))


def fashion_mnist(root: Path, download: bool = True) -> DataSource:
    """Fashion-MNIST (Xiao et al. 2017): as MNIST in size and shape, ten kinds of clothing."""
    return _idx(root, "fashion-mnist", "FashionMNIST", download, (0.2860,), (0.3530,))


def _idx(
    root: Path, name: str, kind: str, download: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> DataSource:
    folder = root / kind / "raw"
    files = tuple(folder / f"{split}-{what}-ubyte" for split in ("train", "t10k") for what in IDX_FILES)

    def fetch() -> None:
        from torchvision import datasets

        getattr(datasets, kind)(str(root), download=True)

    def load() -> Dataset:
        from torchvision import datasets

        train, test = _idx_split(name, files[0], files[1]), _idx_split(name, files[2], files[3])
        shape = common_shape(name, train, test)
        classes = DIGITS if kind == "MNIST" else tuple(getattr(datasets, kind).classes)
        return Dataset(name, classes, shape, train, test, mean, std)

    _find(name, root, files, fetch, download)
    return DataSource(name, files, load)


IDX_FILES = ("images-idx3", "labels-idx1")


def _idx_split(name: str, images: Path, labels: Path) -> ImageSplit:
    # The readers instead of torchvision's class: the class prefers a legacy `processed` folder, whose bytes no
    # content key would see.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    with _reading(name, images):
        pixels = read_image_file(str(images)).unsqueeze(1)
    with _reading(name, labels):
        targets = read_label_file(str(labels))
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < 10:
        raise UsageError(f"The file {labels} of the data set {name} has a label outside 0 to 9: get it again.")
    return ImageSplit(pixels, targets)


def cifar10(root: Path, download: bool = True) -> DataSource:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test colour images of 32 x 32 in ten classes."""
    names = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    return _cifar(root, "cifar10", "CIFAR10", "cifar-10-batches-py", names, download, mean, std)


def cifar100(root: Path, download: bool = True) -> DataSource:
    """CIFAR-100 (Krizhevsky 2009): 50,000 train and 10,000 test colour images of 32 x 32 in a hundred classes."""
    mean, std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    names = ("train", "test", "meta")
    return _cifar(root, "cifar100", "CIFAR100", "cifar-100-python", names, download, mean, std)


def _cifar(
    root: Path,
    name: str,
    kind: str,
    folder: str,
    names: tuple[str, ...],
    download: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataSource:
    files = tuple(root / folder / file for file in names)

    def fetch() -> None:
        from torchvision import datasets

        getattr(datasets, kind)(str(root), download=True)

    def load() -> Dataset:
        from torchvision import datasets

        with _reading(name, root / folder):
            # torchvision compares checksums before it unpickles anything.
            train, test = (getattr(datasets, kind)(str(root), train=part) for part in (True, False))
        return Dataset(name, tuple(train.classes), (3, 32, 32), _cifar_split(train), _cifar_split(test), mean, std)

    _find(name, root, files, fetch, download)
    return DataSource(name, files, load)


def _cifar_split(loaded: Any) -> ImageSplit:
    import torch

    # The loader's (n, height, width, channels) is a view of the (n, channels, height, width) in the file.
    pixels = torch.from_numpy(loaded.data.transpose(0, 3, 1, 2)).contiguous()
    return ImageSplit(pixels, torch.tensor(loaded.targets, dtype=torch.int64))


def svhn(root: Path, download: bool = True) -> DataSource:
    """SVHN (Netzer et al. 2011), cropped digits: 73,257 train and 26,032 test colour images of 32 x 32."""
    files = tuple(root / f"{part}_32x32.mat" for part in ("train", "test"))

    def fetch() -> None:
        from torchvision import datasets

        for part in ("train", "test"):
            datasets.SVHN(str(root), split=part, download=True)

    def load() -> Dataset:
        import torch
        from torchvision import datasets

        splits = []
        for part, file in zip(("train", "test"), files, strict=True):
            with _reading("svhn", file):
                loaded = datasets.SVHN(str(root), split=part)
            # The file keeps the image number last; a copy in our order makes reading rows cheap.
            pixels = torch.from_numpy(loaded.data).contiguous()
            splits.append(ImageSplit(pixels, torch.from_numpy(loaded.labels).long()))
        mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        return Dataset("svhn", DIGITS, (3, 32, 32), splits[0], splits[1], mean, std)

    _find("svhn", root, files, fetch, download)
    return DataSource("svhn", files, load)


def _find(name: str, root: Path, files: Sequence[Path], fetch: Callable[[], None], download: bool) -> None:
    """Make sure that ``files`` exist, by ``fetch`` where they do not and ``download`` allows.

    Raises:
        UsageError: with what is missing, why it was not downloaded, and what to do.
    """
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    reason = "download is off"
    if download:
        reason = "the download left it out"
        try:
            with _connect_timeout(CONNECT_SECONDS):
                fetch()
        except Exception as error:  # whatever stops it: network, disk, rights, a broken archive
            reason = f"the download failed: {' '.join(str(error).split()) or type(error).__name__}"
        missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(
            f"The data set {name} is not under {root} ({missing[0].relative_to(root)} is missing; {reason}): name a "
            "folder that has it, in torchvision's layout, with AFTERSHOCK_DATA or --data."
        )


@contextmanager
def _connect_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _reading(name: str, where: Path) -> Iterator[None]:
    """A broken published file, whatever the library raises for it, is one sentence."""
    try:
        yield
    except Exception as error:
        raise UsageError(
            f"The data set {name} at {where} is incomplete or changed ({error}): remove it and get it again."
        ) from error
