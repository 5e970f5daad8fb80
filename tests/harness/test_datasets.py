"""The data sets: what is read, in which order and range, and what a user hears about broken files."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.data import sets as datasets
from aftershock.harness.data.types import DataSource, ImageSplit, channel_statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

REAL = os.environ.get("AFTERSHOCK_DATA")
needs_real = [pytest.mark.realdata, pytest.mark.skipif(not REAL, reason="AFTERSHOCK_DATA names no data")]


def sentence(error: pytest.ExceptionInfo[UsageError]) -> str:
    text = str(error.value)
    assert text[0].isupper() or text.startswith(("/", "x_", "y_")), text
    assert text.endswith("."), text
    assert "\n" not in text, text
    return text


# --- splits -----------------------------------------------------------------------------------------------------


def test_uint8_images_become_floats_in_the_unit_range() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    split = ImageSplit(pixels, torch.zeros(64, dtype=torch.int64))
    images = split.images()
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images.numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12))
def test_rows_are_read_in_the_order_asked_for(rows: list[int]) -> None:
    pixels = torch.arange(10, dtype=torch.float32).div(10).reshape(10, 1, 1, 1)
    split = ImageSplit(pixels, torch.arange(10))
    assert split.labels(rows).tolist() == rows
    assert split.images(rows).shape == (len(rows), 1, 1, 1)
    assert torch.equal(split.images(rows).flatten(), torch.tensor(rows, dtype=torch.float32).div(10))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_changing_what_was_read_changes_no_data(dtype: torch.dtype) -> None:
    split = ImageSplit(torch.ones((4, 1, 2, 2), dtype=dtype), torch.zeros(4, dtype=torch.int64))
    before = split.images().clone()
    split.images(slice(0, 4)).zero_()
    split.labels(slice(0, 4)).fill_(7)
    assert torch.equal(split.images(), before)
    assert split.labels().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("images", "labels"), [(3, 2), (0, 0)])
def test_a_split_needs_images_and_one_label_each(images: int, labels: int) -> None:
    with pytest.raises(UsageError) as error:
        ImageSplit(torch.zeros(images, 1, 2, 2), torch.zeros(labels, dtype=torch.int64))
    sentence(error)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_channel_statistics_are_numpys_whatever_the_chunk(chunk: int) -> None:
    images = torch.rand(23, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0.25
    mean, std = channel_statistics(ImageSplit(images, torch.zeros(23, dtype=torch.int64)), chunk)
    np.testing.assert_allclose(mean, images.double().numpy().mean((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(std[::2], images.double().numpy().std((0, 2, 3))[::2], rtol=1e-8)
    assert std[1] == 1, "a constant channel must not be divided by nothing"


# --- digits -----------------------------------------------------------------------------------------------------


def test_digits_are_split_once_stratified_and_completely() -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = datasets.digits(Path("/nowhere")).load()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = datasets.digits(Path("/elsewhere")).load()
    assert torch.equal(first.test.images(), again.test.images())
    assert torch.equal(first.train.labels(), again.train.labels())

    images, labels = load_digits(return_X_y=True)
    assert (len(first.train), len(first.test), first.shape) == (997, 800, (1, 8, 8))
    both = torch.cat([first.train.images(), first.test.images()]).flatten(1).mul(16).numpy()
    classes = torch.cat([first.train.labels(), first.test.labels()]).numpy()
    published = np.column_stack([images, labels])
    read = np.column_stack([both, classes])
    np.testing.assert_array_equal(read[np.lexsort(read.T)], published[np.lexsort(published.T)])
    shares = np.bincount(labels) * 800 / 1797
    assert (np.abs(np.bincount(first.test.labels().numpy()) - shares) < 1).all()
    assert (first.test.labels()[:200].bincount(minlength=10) > 8).all(), "the order within a split is mixed"


def test_the_digits_file_holds_what_scikit_learn_gives() -> None:
    from sklearn.datasets import load_digits

    (file,) = datasets.digits(Path("/nowhere")).files
    with gzip.open(file, "rt") as stream:
        rows = np.loadtxt(stream, delimiter=",")
    np.testing.assert_array_equal(rows, np.column_stack(load_digits(return_X_y=True)))


def test_finding_a_data_set_loads_neither_torch_nor_sklearn(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aftershock.harness.data import sets as datasets\n"
        "assert datasets.digits(Path('.')).files\n"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


# --- MNIST and Fashion-MNIST ------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fake_mnist(root: Path, kind: str = "MNIST") -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 30), ("t10k", 12)):
        arrays[f"{part}-images-idx3"] = draws.integers(0, 256, (count, 28, 28))
        arrays[f"{part}-labels-idx1"] = np.arange(count) % 10
        for what in ("images-idx3", "labels-idx1"):
            write_idx(root / kind / "raw" / f"{part}-{what}-ubyte", arrays[f"{part}-{what}"])
    return arrays


@pytest.mark.parametrize(("factory", "kind"), [(datasets.mnist, "MNIST"), (datasets.fashion_mnist, "FashionMNIST")])
def test_idx_files_are_read_as_published(tmp_path: Path, factory: Callable[..., DataSource], kind: str) -> None:
    arrays = fake_mnist(tmp_path, kind)
    # A legacy folder that torchvision's own class would prefer: its bytes are in no content key.
    processed = tmp_path / kind / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2)), processed / name)
    source = factory(tmp_path, download=False)
    assert {f.name for f in source.files} == {f"{name}-ubyte" for name in arrays}
    data = source.load()
    assert data.shape == (1, 28, 28)
    assert len(data.classes) == 10
    expected = torch.from_numpy(arrays["t10k-images-idx3"]).float().div(255).unsqueeze(1)
    torch.testing.assert_close(data.test.images(), expected, rtol=0, atol=1e-7)
    assert data.train.labels().tolist() == arrays["train-labels-idx1"].tolist()
    assert data.train.labels().dtype == torch.int64


@pytest.mark.parametrize("harm", ["truncated", "label", "count", "shape", "garbage"])
def test_a_broken_idx_file_is_one_sentence(tmp_path: Path, harm: str) -> None:
    arrays = fake_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    if harm == "truncated":
        file = raw / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "label":
        write_idx(raw / "t10k-labels-idx1-ubyte", np.full(12, 10))
    elif harm == "count":
        write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(11))
    elif harm == "shape":
        write_idx(raw / "t10k-images-idx3-ubyte", arrays["t10k-images-idx3"][:, :20])
    else:
        (raw / "train-labels-idx1-ubyte").write_bytes(b"not an idx file")
    with pytest.raises(UsageError) as error:
        datasets.mnist(tmp_path, download=False).load()
    sentence(error)


@pytest.mark.parametrize(
    "factory", [datasets.mnist, datasets.fashion_mnist, datasets.cifar10, datasets.cifar100, datasets.svhn]
)
def test_missing_files_say_what_to_do(tmp_path: Path, factory: Callable[..., DataSource]) -> None:
    with pytest.raises(UsageError) as error:
        factory(tmp_path, download=False)
    text = sentence(error)
    assert "AFTERSHOCK_DATA" in text
    assert "--data" in text


def test_a_failed_download_gives_its_reason_and_restores_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    during: list[float | None] = []

    def refuse(self: object) -> None:
        during.append(socket.getdefaulttimeout())
        raise URLError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    before = socket.getdefaulttimeout()
    with pytest.raises(UsageError) as error:
        datasets.mnist(tmp_path)
    assert "no route to host" in sentence(error)
    assert len(during) == 1
    assert during[0] is not None
    assert 0 < during[0] <= 30
    assert socket.getdefaulttimeout() == before


def test_missing_files_are_downloaded_where_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: fake_mnist(tmp_path))
    assert len(datasets.mnist(tmp_path).load().train) == 30


# --- CIFAR and SVHN: tiny files whose checksums torchvision is told -------------------------------------------------


def write_pickle(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return hashlib.md5(path.read_bytes()).hexdigest()


def fake_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, folder: str, labels: str) -> None:
    import torchvision

    loader = getattr(torchvision.datasets, kind)
    draws = np.random.default_rng(0)
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for which, made in lists.items():
        for name, _ in getattr(loader, which):
            data = draws.integers(0, 256, (4, 3072)).astype(np.uint8)
            data[0] = 0
            data[0, 1024 + 2 * 32 + 5] = 255  # first image: green, row 2, column 5
            made.append([name, write_pickle(root / folder / name, {"data": data, labels: [3, 1, 4, 1]})])
        monkeypatch.setattr(loader, which, made)
    meta = dict(loader.meta)
    names = [f"class {n}" for n in range(10 if kind == "CIFAR10" else 100)]
    meta["md5"] = write_pickle(root / folder / meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(loader, "meta", meta)


@pytest.mark.parametrize(
    ("factory", "kind", "folder", "labels", "train"),
    [
        (datasets.cifar10, "CIFAR10", "cifar-10-batches-py", "labels", 20),
        (datasets.cifar100, "CIFAR100", "cifar-100-python", "fine_labels", 4),
    ],
)
def test_cifar_keeps_pixels_channels_and_labels_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: Callable[..., DataSource], kind: str, folder: str,
    labels: str, train: int,
) -> None:  # fmt: skip
    fake_cifar(tmp_path, monkeypatch, kind, folder, labels)
    source = factory(tmp_path, download=False)
    assert {f.name for f in source.files} == {f.name for f in (tmp_path / folder).iterdir()}
    data = source.load()
    assert (len(data.train), len(data.test), data.shape) == (train, 4, (3, 32, 32))
    assert len(data.classes) == (10 if kind == "CIFAR10" else 100)
    first = data.test.images(slice(1))[0]
    assert first.nonzero().tolist() == [[1, 2, 5]]
    assert first[1, 2, 5] == 1
    assert data.test.labels().tolist() == [3, 1, 4, 1]


def test_a_changed_cifar_file_is_refused_before_it_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cifar(tmp_path, monkeypatch, "CIFAR10", "cifar-10-batches-py", "labels")
    write_pickle(tmp_path / "cifar-10-batches-py" / "data_batch_3", Bomb(tmp_path / "bang"))
    with pytest.raises(UsageError) as error:
        datasets.cifar10(tmp_path, download=False).load()
    sentence(error)
    assert not (tmp_path / "bang").exists()


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_svhn_keeps_pixels_in_place_and_calls_ten_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision
    from scipy.io import savemat

    split_list = {}
    for part, count in (("train", 6), ("test", 3)):
        pixels = np.zeros((32, 32, 3, count), dtype=np.uint8)
        pixels[4, 9, 2, 1] = 51  # second image: row 4, column 9, blue
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": pixels, "y": np.array([[10], [1], [9]] * (count // 3), dtype=np.uint8)})
        split_list[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    data = datasets.svhn(tmp_path, download=False).load()
    assert data.test.labels().tolist() == [0, 1, 9]
    assert data.test.images().nonzero().tolist() == [[1, 2, 4, 9]]
    assert data.test.images()[1, 2, 4, 9].item() == pytest.approx(0.2)
    assert len(data.train) == 6


# --- image folders ----------------------------------------------------------------------------------------------


COLOURS = {"ant": (255, 0, 0), "bee": (0, 0, 255), "Cat": (0, 255, 0)}


def make_folder(root: Path, sizes: tuple[tuple[int, int], ...] = ((20, 12), (9, 30))) -> Path:
    for part in ("train", "test"):
        for name, colour in COLOURS.items():
            for number, size in enumerate(sizes):
                file = root / part / name / f"deep/{number}.png" if number else root / part / name / f"{number}.PNG"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, colour).save(file)
            (root / part / name / "notes.txt").write_text("not an image")
    return root


def test_an_image_folder_is_read_in_the_order_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    path = make_folder(tmp_path)
    source = datasets.image_folder(Path("/nowhere"), path, size=8)
    data = source.load()
    reference = ImageFolder(path / "train")
    assert data.classes == tuple(reference.classes)
    assert [str(f) for f in source.files[: len(reference)]] == [file for file, _ in reference.samples]
    assert data.train.labels().tolist() == reference.targets
    assert data.shape == (3, 8, 8)
    images = data.train.images([0, 5])
    expected = [COLOURS[data.classes[0]], COLOURS[data.classes[2]]]
    for image, colour in zip(images, expected, strict=True):
        assert torch.equal(image, torch.tensor(colour).div(255).view(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize(("width", "height"), [(40, 60), (60, 40), (33, 33)])
@pytest.mark.parametrize(("size", "resize"), [(16, 16), (16, 20)])
def test_resizing_and_cropping_are_torchvisions(
    tmp_path: Path, width: int, height: int, size: int, resize: int
) -> None:
    from torchvision import transforms

    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 7), 4.0 * x], axis=-1).clip(0, 255)
    path = make_folder(tmp_path)
    picture = Image.fromarray(smooth.astype(np.uint8))
    picture.save(path / "test" / "bee" / "0.PNG")
    data = datasets.image_folder(Path("/nowhere"), path, size=size, resize=resize).load()
    row = data.test.labels().tolist().index(data.classes.index("bee"))
    chain = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor()])
    # Cropping after resizing rounds to whole pixels; cropping with it does not: half a pixel of a smooth picture.
    error = (data.test.images([row])[0] - chain(picture)).abs()
    assert error.mean() < 0.02
    assert error.max() < 0.1


def test_grey_folders_have_one_channel_and_their_own_statistics(tmp_path: Path) -> None:
    data = datasets.image_folder(Path("/nowhere"), make_folder(tmp_path), size=4, grey=True).load()
    assert data.shape == (1, 4, 4)
    assert data.train.images(slice(2)).shape == (2, 1, 4, 4)
    assert data.mean == pytest.approx((data.train.images().mean().item(),), abs=1e-6)


def test_the_fingerprint_of_a_folder_sees_names_and_parameters(tmp_path: Path) -> None:
    path = make_folder(tmp_path)

    def made(size: int = 8, **params: Any) -> object:
        return datasets.image_folder(Path("/nowhere"), path, size=size, **params).fingerprint

    assert made() == made()
    assert made() != made(size=9)
    assert made() != made(resize=12)
    assert made() != made(grey=True)
    before = made()
    (path / "test" / "ant" / "0.PNG").rename(path / "test" / "bee" / "a.png")
    assert made() != before, "an image in another class is other data, though the bytes are the same"


@pytest.mark.parametrize(
    "harm", ["no folder", "no test", "empty class", "one class", "class in train only", "size", "crop"]
)
def test_a_wrong_folder_is_one_sentence(tmp_path: Path, harm: str) -> None:
    path, size, resize = make_folder(tmp_path / "images"), 8, None
    if harm == "no folder":
        path = tmp_path / "missing"
    elif harm == "no test":
        (path / "test").rename(path / "validation")
    elif harm == "empty class":
        (path / "train" / "dog").mkdir()
    elif harm == "one class":
        for name in ("bee", "Cat"):
            (path / "train" / name).rename(tmp_path / name)
    elif harm == "class in train only":
        (path / "test" / "bee").rename(tmp_path / "bee")
    elif harm == "size":
        size = 0
    else:
        resize = 4
    with pytest.raises(UsageError) as error:
        datasets.image_folder(Path("/nowhere"), path, size=size, resize=resize)
    sentence(error)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named_when_it_is_read(tmp_path: Path, content: bytes) -> None:
    path = make_folder(tmp_path)
    broken = path / "train" / "bee" / "0.PNG"
    broken.write_bytes(content)
    data = datasets.image_folder(Path("/nowhere"), path, size=8).load()
    row = data.train.labels().tolist().index(data.classes.index("bee"))
    with pytest.raises(UsageError, match=r"bee/0\.PNG"):
        data.train.images([row])
    assert len(data.train.images([row - 1])) == 1


def test_a_very_long_image_costs_little_memory(tmp_path: Path) -> None:
    # Resized before the crop it would be 8 million pixels wide.
    path = make_folder(tmp_path, sizes=((30000, 1),))
    data = datasets.image_folder(Path("/nowhere"), path, size=256).load()
    assert data.train.images([0]).shape == (1, 3, 256, 256)


# --- arrays -----------------------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    good = {
        "x_train": draws.random((12, 3, 6, 5)).astype(np.float32),
        "y_train": np.arange(12) % 4,
        "x_test": draws.random((8, 3, 6, 5)).astype(np.float32),
        "y_test": np.arange(8) % 4,
    }
    return {k: v for k, v in {**good, **changes}.items() if v is not None}


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dims", [3, 4])
def test_arrays_come_back_as_they_are(tmp_path: Path, dtype: type, dims: int) -> None:
    draws = np.random.default_rng(0)
    shape = (9, 6, 5) if dims == 3 else (9, 2, 6, 5)
    given_x: np.ndarray = (draws.random(shape) * (255 if dtype is np.uint8 else 1)).astype(dtype)
    np.savez(
        tmp_path / "a.npz", **arrays(x_train=given_x, y_train=np.arange(9) % 3, x_test=given_x[:5], y_test=[0] * 5)
    )
    source = datasets.npz(Path("/nowhere"), tmp_path / "a.npz")
    data = source.load()
    assert source.files == (tmp_path / "a.npz",)
    assert data.shape == (1 if dims == 3 else 2, 6, 5)
    assert data.classes == ("0", "1", "2")
    expected = given_x.astype(np.float64) / (255 if dtype is np.uint8 else 1)
    np.testing.assert_allclose(data.train.images().numpy().reshape(shape), expected, atol=1e-7)
    assert data.test.labels().dtype == torch.int64


def test_class_names_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    names = ("a", "b", "c", "d", "never seen")
    assert datasets.npz(Path("/nowhere"), tmp_path / "a.npz", names).load().classes == names
    with pytest.raises(UsageError, match="label 3"):
        datasets.npz(Path("/nowhere"), tmp_path / "a.npz", names[:3]).load()


def _with(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[3] = value
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {"y_test": None},
        {"x_train": arrays()["x_train"] * 255},
        {"x_train": arrays()["x_train"] - 0.5},
        {"x_test": _with(arrays()["x_test"], np.nan)},
        {"x_test": _with(arrays()["x_test"], np.inf)},
        {"x_train": arrays()["x_train"].transpose(0, 2, 3, 1)},
        {"x_train": arrays()["x_train"].reshape(12, -1)},
        {"x_train": (arrays()["x_train"] * 255).astype(np.int32)},
        {"x_train": arrays()["x_train"][:, :, :4]},
        {"x_train": arrays()["x_train"][:0], "y_train": np.arange(0)},
        {"y_train": np.arange(11)},
        {"y_train": arrays()["y_train"].astype(float)},
        {"y_train": arrays()["y_train"][:, None]},
        {"y_train": _with(arrays()["y_train"], -1)},
        {"y_test": _with(arrays()["y_test"], 4)},
        {"y_train": np.zeros(12, int), "y_test": np.zeros(8, int)},
    ],
    ids=[
        "no labels", "to 255", "negative", "nan", "infinity", "channels last", "flat", "int32", "other shape", "empty",
        "too few labels", "float labels", "column of labels", "negative label", "unknown label", "one class",
    ],
)  # fmt: skip
def test_wrong_arrays_are_one_sentence(tmp_path: Path, changes: dict[str, np.ndarray | None]) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(UsageError) as error:
        datasets.npz(Path("/nowhere"), tmp_path / "a.npz").load()
    sentence(error)


@pytest.mark.parametrize("kind", ["missing", "text", "npy", "truncated", "pickle", "object"])
def test_a_file_that_is_no_npz_is_one_sentence_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.npz"
    if kind == "text":
        file.write_text("x_train")
    elif kind == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "truncated":
        np.savez(file, **arrays())
        file.write_bytes(file.read_bytes()[:500])
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Bomb(tmp_path / "bang")))
    elif kind == "object":
        np.savez(file, **arrays(x_train=np.array([Bomb(tmp_path / "bang")] * 12, dtype=object)))
    with pytest.raises(UsageError) as error:
        datasets.npz(Path("/nowhere"), file).load()
    sentence(error)
    assert not (tmp_path / "bang").exists()


# --- the real ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "lengths"),
    [
        pytest.param(datasets.mnist, (60000, 10000), marks=needs_real, id="mnist"),
        pytest.param(datasets.cifar10, (50000, 10000), marks=needs_real, id="cifar10"),
    ],
)
def test_published_sets_have_the_published_sizes_and_statistics(
    factory: Callable[..., DataSource], lengths: tuple[int, int]
) -> None:
    data = factory(Path(REAL or ""), download=False).load()
    assert (len(data.train), len(data.test)) == lengths
    assert data.test.labels().bincount(minlength=10).min() > 800
    mean, std = channel_statistics(data.train)
    # The constants in common use are rounded, and CIFAR's are quoted to within 0.001.
    np.testing.assert_allclose(data.mean, mean, atol=1e-3)
    np.testing.assert_allclose(data.std, std, atol=1e-3)
