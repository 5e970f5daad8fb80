"""A user's own images: no type of sample, stray file or odd label gives other numbers without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.harness.core.content_keys import FileDigests
from aftershock.harness.core.errors import UsageError
from aftershock.harness.data.duplicates import duplicate_notes
from aftershock.harness.data.sets import image_folder, npz, task_shape
from aftershock.harness.data.types import Dataset, ImageSplit
from PIL import Image
from support.commands import Forks
from support.suites import Tiny

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def folder(root: Path, save: Callable[[Path], object], name: str = "a.png") -> Path:
    """An image folder of two classes and one image each: ``save`` makes the first, a plain PNG is the other."""
    for part in ("train", "test"):
        for label in ("one", "two"):
            place = root / part / label
            place.mkdir(parents=True)
            Image.fromarray(RAMP).save(place / "z.png")
    for part in ("train", "test"):
        (root / part / "one" / "z.png").unlink()
        save(root / part / "one" / name)
    return root


def pixels(root: Path, grey: bool = True) -> np.ndarray:
    images = image_folder(root, root, size=8, grey=grey).load().train.images([0])
    return (images[0] * 255).numpy()


def sixteen_bit_rgb(path: Path) -> None:
    """A PNG of three times 16 bits, which Pillow cannot write."""
    import struct
    import zlib

    wide = np.stack([RAMP.astype(">u2") * 257] * 3, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in wide)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def twelve_bit_tiff(path: Path) -> None:
    """A TIFF of 12 bits, two samples in three bytes, which Pillow cannot write."""
    import struct

    samples = (RAMP.astype(np.uint32) * 4095 // 255).flatten()
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in samples.reshape(-1, 2).tolist())
    entries = [
        (256, 3, 8), (257, 3, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 8),
        (279, 4, len(packed)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + b"\0" * 4)


def white_is_zero(path: Path) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(65535 - RAMP.astype(np.uint16) * 257).save(path, tiffinfo=tags)


def big_end_first(path: Path) -> None:
    Image.frombytes("I;16B", (8, 8), WIDE.astype(">u2").tobytes()).save(path)


def sixteen_bit_pgm(path: Path) -> None:
    # Pillow 10 does not write these.
    path.write_bytes(b"P5 %d %d 65535\n" % WIDE.shape[::-1] + WIDE.astype(">u2").tobytes())


def twelve_bit_pgm(path: Path) -> None:
    path.write_bytes(b"P5 8 8 4095\n" + (RAMP * 4095.0 / 255).round().astype(">u2").tobytes())


WIDE = RAMP.astype(np.uint16) * 257
SAME: dict[str, tuple[str, Callable[[Path], object]]] = {
    "8 bits": ("a.png", lambda p: Image.fromarray(RAMP).save(p)),
    "16 bits": ("a.png", lambda p: Image.fromarray(WIDE).save(p)),
    "16 bits, TIFF": ("a.tif", lambda p: Image.fromarray(WIDE).save(p)),
    "16 bits, TIFF, big end first": ("a.tif", big_end_first),
    "16 bits, PGM": ("a.pgm", sixteen_bit_pgm),
    "16 bits, white is zero": ("a.tif", white_is_zero),
    "12 bits, PGM": ("a.pgm", twelve_bit_pgm),
    "12 bits, TIFF": ("a.tif", twelve_bit_tiff),
    "float": ("a.tif", lambda p: Image.fromarray(RAMP.astype(np.float32) / 255).save(p)),
    "16 bits, colour": ("a.png", sixteen_bit_rgb),
    "grey with alpha": ("a.png", lambda p: Image.fromarray(RAMP).convert("LA").save(p)),
    "palette": ("a.png", lambda p: Image.fromarray(RAMP).convert("P").save(p)),
    "palette with alpha": ("a.tif", lambda p: Image.fromarray(RAMP).convert("PA").convert("RGBA").save(p)),
    "colour with alpha": ("a.png", lambda p: Image.fromarray(RAMP).convert("RGBA").save(p)),
    "four inks": ("a.tif", lambda p: Image.fromarray(RAMP).convert("CMYK").save(p)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("grey", [True, False], ids=["grey", "colour"])
def test_every_type_of_sample_gives_the_same_pixels(kind: str, grey: bool, tmp_path: Path) -> None:
    name, save = SAME[kind]
    found = pixels(folder(tmp_path, save, name), grey)
    assert found.shape == ((1 if grey else 3), 8, 8)
    assert np.abs(found - RAMP.astype(float)).max() <= 1.01


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    found = pixels(folder(tmp_path, lambda p: Image.fromarray(RAMP > 127).save(p)))
    assert set(np.unique(found)) == {0, 255}


@pytest.mark.parametrize(
    "samples",
    [
        RAMP.astype(np.float32), RAMP.astype(np.float32) / 255 - 0.1, np.full((8, 8), np.nan, np.float32),
        RAMP.astype(np.int32) * 1000, RAMP.astype(np.int32),
    ],
)  # fmt: skip
def test_samples_without_a_known_range_are_refused(samples: np.ndarray, tmp_path: Path) -> None:
    root = folder(tmp_path, lambda p: Image.fromarray(samples).save(p), "a.tiff")
    with pytest.raises(UsageError, match=r"a\.tiff has .*8 or 16 bits"):
        pixels(root)


def test_what_systems_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda p: Image.fromarray(RAMP).save(p))
    plain = image_folder(root, root, size=8, grey=True)
    for part in ("train", "test"):
        for place in (
            ".ipynb_checkpoints/a.png", "one/.ipynb_checkpoints/a-checkpoint.png", "one/._a.png", "one/.DS_Store",
            "one/Thumbs.db", "__MACOSX/one/a.png", "two/__MACOSX/a.png", "two/@eaDir/a.png", "desktop.ini",
        ):  # fmt: skip
            (root / part / place).parent.mkdir(parents=True, exist_ok=True)
            (root / part / place).write_bytes(b"no image")
    again = image_folder(root, root, size=8, grey=True)
    assert again.files == plain.files
    assert again.fingerprint == plain.fingerprint
    assert again.load().notes == ()
    shape = task_shape("image-folder", {"path": root, "size": 8, "grey": True})
    assert shape is not None
    assert shape.classes == 2


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda p: Image.fromarray(RAMP).save(p))
    for place in ("train/one/b.gif", "test/two/notes.txt", "train/c.png"):
        (root / place).write_bytes(b"x")
    (note,) = image_folder(root, root, size=8).load().notes
    assert "3 files" in note
    assert "test/two/notes.txt" in note


def turned(path: Path) -> None:
    image = Image.fromarray(RAMP)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def two_frames(path: Path) -> None:
    Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(255 - RAMP)])


def transparent_palette(path: Path) -> None:
    Image.fromarray(RAMP).convert("P").save(path, transparency=0)


@pytest.mark.parametrize(
    ("name", "save", "words"),
    [
        ("a.jpg", turned, ["2 have an orientation in their EXIF"]),
        ("a.png", turned, ["2 have an orientation in their EXIF"]),
        ("a.png", lambda p: Image.fromarray(RAMP).convert("RGBA").save(p), ["2 have an alpha channel"]),
        ("a.png", transparent_palette, ["2 have an alpha channel"]),
        ("a.tif", two_frames, ["2 hold several frames"]),
        ("a.webp", two_frames, ["2 hold several frames"]),
        ("a.png", lambda p: Image.fromarray(WIDE).save(p), ["2 have 16 bits per sample, 2 have 8"]),
        ("a.png", lambda p: Image.fromarray(WIDE >> 4).save(p), ["2 have 16 bits, of which", "2 have 16 bits per"]),
        ("a.png", sixteen_bit_rgb, ["2 have 16 bits per sample, 2 have 8"]),
        ("a.png", lambda p: Image.fromarray(RAMP > 127).save(p), ["2 have 1 bits per sample, 2 have 8"]),
        ("a.png", lambda p: Image.fromarray(RAMP).save(p), []),
    ],
)
def test_what_pixels_do_not_show_is_said_with_counts(
    name: str, save: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    notes = image_folder(tmp_path, folder(tmp_path, save, name), size=8).load().notes
    assert len(notes) == len(words)
    for note, part in zip(notes, words, strict=True):
        assert part in note and note.startswith("Of 4 image files")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_last_are_refused(channels: int, tmp_path: Path) -> None:
    x = np.zeros((4, 8, 8, channels), np.uint8)
    with pytest.raises(UsageError, match="channels last"):
        npz(tmp_path, arrays(tmp_path / "a.npz", [0, 1] * 2, [0, 1], x_train=x)).load()


def arrays(path: Path, train: list[int], test: list[int], **changes: Any) -> Path:
    draws = np.random.default_rng(0)
    held: dict[str, Any] = {
        "x_train": draws.integers(0, 256, (len(train), 4, 4), dtype=np.uint8), "y_train": np.array(train),
        "x_test": draws.integers(0, 256, (len(test), 4, 4), dtype=np.uint8), "y_test": np.array(test),
    }  # fmt: skip
    np.savez(path, **{**held, **changes})
    return path


@pytest.mark.parametrize(
    ("train", "test", "classes", "said"),
    [
        ([0, 1] * 5, [0, 1], 2, []),
        ([1, 2] * 5, [1, 2], 3, ["label 0 "]),
        ([0, 2, 5] * 5, [0, 2, 5], 6, ["label 1, 3, 4 "]),
        ([0, 1, 2] * 5, [0, 1], 3, ["label 2:"]),
        ([3, 90] * 5, [3, 90], 91, ["label 0, 1, 2, 4, 5 and 84 more"]),
    ],
)
def test_labels_with_gaps_are_said(
    train: list[int], test: list[int], classes: int, said: list[str], tmp_path: Path
) -> None:
    dataset = npz(tmp_path, arrays(tmp_path / "a.npz", train, test)).load()
    assert len(dataset.classes) == classes
    assert len(dataset.notes) == len(said)
    for note, part in zip(dataset.notes, said, strict=True):
        assert part in note


@pytest.mark.parametrize("label", [2**40, 2**31, 101, 5000])
def test_labels_that_number_no_classes_are_refused(label: int, tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", [0, label] * 5, [0, label])
    with pytest.raises(UsageError, match=f"has the label {label}, but only 2 different"):
        npz(tmp_path, path).load()
    # What is known before the images are loaded is no trap either.
    task_shape("npz", {"path": path})


def test_many_classes_are_named_where_few_occur(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", [0, 150] * 5, [0, 150])
    names = tuple(f"n{i}" for i in range(200))
    assert len(npz(tmp_path, path, names).load().notes) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.ones((4, 4, 4), np.complex64)}, {"x_train": np.ones((4, 4, 4), bool)},
        {"x_train": np.ones((4, 4, 4), np.uint16)}, {"x_train": np.array([[[None]]] * 4)},
        {"x_train": np.full((4, 4, 4), "a")}, {"y_train": np.array([True, False] * 2)},
        {"y_train": np.array([0, 1j] * 2)}, {"y_train": np.array([0.0, 1.0] * 2)},
        {"y_train": np.array(["a", "b"] * 2)},
        {"y_train": np.array([0, 2**64 - 1] * 2, np.uint64)}, {"y_train": np.array([], np.int64)},
    ],
)  # fmt: skip
def test_arrays_of_another_type_are_refused(changes: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", [0, 1] * 2, [0, 1], **changes)
    task_shape("npz", {"path": path})
    with pytest.raises(UsageError, match=r"a\.npz"):
        npz(tmp_path, path).load()


@pytest.mark.parametrize("images", [np.ones((4, 4, 4), np.uint8), np.full((4, 4, 4), 1 / 255**2)])
def test_images_that_are_nearly_black_are_said(images: np.ndarray, tmp_path: Path) -> None:
    (note,) = npz(tmp_path, arrays(tmp_path / "a.npz", [0, 1] * 2, [0, 1], x_train=images)).load().notes
    assert "x_train" in note


def splits(train: torch.Tensor, test: torch.Tensor) -> Dataset:
    made = [ImageSplit(x, torch.zeros(len(x), dtype=torch.int64)) for x in (train, test)]
    return Dataset("mine", ("a", "b"), (1, 4, 4), made[0], made[1], (0.5,), (0.5,))


def test_copies_across_splits_are_counted() -> None:
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert duplicate_notes(splits(images[:20], images[20:]), FileDigests(None).each) == ()
    (shared,) = duplicate_notes(splits(images[:20], images[17:]), FileDigests(None).each)
    assert shared.startswith("3 of the 13 test images of mine are also in the train split")
    # Copies within the train split are nobody's concern, within the test split they are.
    assert duplicate_notes(splits(images[:20].repeat(2, 1, 1, 1), images[20:]), FileDigests(None).each) == ()
    (again,) = duplicate_notes(splits(images[:20], images[[20, 21, 21, 21]]), FileDigests(None).each)
    assert again.startswith("2 of the 4 test images of mine are a copy")
    # Whatever the type in which they are held.
    (mixed,) = duplicate_notes(splits(images[:20], images[17:].float() / 255), FileDigests(None).each)
    assert mixed == shared


def test_copies_of_files_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda p: Image.fromarray(RAMP.T).save(p))
    notes = duplicate_notes(image_folder(root, root, size=8).load(), FileDigests(None).each)
    assert [n[:9] for n in notes] == ["2 of the "]


def test_what_is_said_of_data_is_kept(tmp_path: Path, tiny: Tiny, forks: Forks) -> None:
    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 256, (300, 4, 4), dtype=np.uint8), np.arange(300) % 2 + 1
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = {"name": "npz", "path": "a.npz", "fit": 50, "calibrate": 50, "evaluate": 20}
    tiny(tmp_path / "suite.toml", [{"name": "gaussian", "std": 0.5}], [{"name": "msp"}], data, {"epochs": 1})
    done = forks("run", "suite.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert sum("label 0" in w for w in kept) == 1
    assert sum("300 of the 300 test images" in w for w in kept) == 1
    assert done.output.count("Warning: ") >= 2
