from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.attacks import CountingModel
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.from_file import FromFile
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.seeds import Draws
from support.attack_cases import LinearCase

rng = np.random.default_rng(0)
GOOD = rng.random((3, 3, 4, 4)).astype(np.float32)


def write(path: Path, **arrays: Any) -> str:
    np.savez(path / "made.npz", **arrays)
    return str(path / "made.npz")


@pytest.mark.parametrize("key", ["index", "indices"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_images_get_their_row_by_position_and_the_others_stay(
    tmp_path: Path, linear: LinearCase, key: str, dtype: type
) -> None:
    images: np.ndarray = rng.random((3, 3, 4, 4)).astype(dtype)
    attack = FromFile(write(tmp_path, x_adv=images, **{key: np.array([104, 100, 7])}))
    made = perturb_batch(attack, linear.model, linear.images[:5], linear.labels[:5], range(100, 105), 0, batch_size=2)
    assert torch.equal(made.images[4], torch.from_numpy(images[0].astype(np.float32)))
    assert torch.equal(made.images[0], torch.from_numpy(images[1].astype(np.float32)))
    assert torch.equal(made.images[1:4], linear.images[1:4])
    assert (made.forwards, made.backwards, made.flags) == (0, 0, ())


def test_a_rounding_beyond_the_range_is_clipped(tmp_path: Path, linear: LinearCase) -> None:
    images = GOOD.astype(np.float64)
    images[0, 0, 0, :2] = -3e-7, 1 + 3e-7
    attack = FromFile(write(tmp_path, x_adv=images, index=np.arange(3)))
    given = attack.perturb(CountingModel(linear.model), linear.images[:3], linear.labels[:3], Draws(0, range(3)))
    assert given[0, 0, 0, :2].tolist() == [0, 1]


def test_it_is_what_its_parameters_say(tmp_path: Path) -> None:
    path = write(tmp_path, x_adv=GOOD, index=np.arange(3))
    assert (FromFile(path).family, FromFile(path).norm, FromFile(path).eps) == ("file", None, None)
    assert (FromFile(path, "pgd", "l2").family, FromFile(path, "pgd", "l2").norm) == ("pgd", "l2")
    assert FromFile(path).source_files() == (Path(path),)
    with pytest.raises(UsageError, match="norm = 'max'"):
        FromFile(path, norm="max")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="family"):
        FromFile(path, family="")


def test_an_empty_file_of_images_leaves_all_unchanged(tmp_path: Path, linear: LinearCase) -> None:
    attack = FromFile(write(tmp_path, x_adv=GOOD[:0], index=np.arange(0)))
    made = perturb_batch(attack, linear.model, linear.images, linear.labels, linear.indices, 0)
    assert torch.equal(made.images, linear.images)


def test_images_of_another_shape_are_a_wrong_file_and_not_inapplicable(tmp_path: Path, linear: LinearCase) -> None:
    attack = FromFile(write(tmp_path, x_adv=GOOD[:, :1], index=np.arange(3)))
    assert attack.inapplicable((3, 4, 4), 2) is None
    with pytest.raises(UsageError, match=r"\(1, 4, 4\).*\(3, 4, 4\)"):
        perturb_batch(attack, linear.model, linear.images, linear.labels, linear.indices, 0)


def nan() -> np.ndarray:
    images = GOOD.copy()
    images[1, 0, 0, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_adv": GOOD}, "needs x_adv and index"),
        ({"index": np.arange(3)}, "needs x_adv and index"),
        ({"other": GOOD}, "neither"),
        ({"x_adv": GOOD, "index": np.arange(3), "indices": np.arange(3)}, "both"),
        ({"x_adv": GOOD[0], "index": np.arange(3)}, "channels, height, width"),
        ({"x_adv": GOOD, "index": np.arange(2)}, "one per image"),
        ({"x_adv": GOOD, "index": np.arange(3)[:, None]}, "one per image"),
        ({"x_adv": GOOD, "index": np.arange(3) + 0.5}, "whole numbers"),
        ({"x_adv": GOOD, "index": np.array([0, 5, 5])}, "5 more than once"),
        ({"x_adv": GOOD, "index": np.array([0, -1, 5])}, "start at 0"),
        ({"x_adv": nan(), "index": np.arange(3)}, "NaN"),
        ({"x_adv": GOOD * 255, "index": np.arange(3)}, r"must lie in \[0, 1\]"),
        ({"x_adv": GOOD - 0.5, "index": np.arange(3)}, r"must lie in \[0, 1\]"),
        ({"x_adv": (GOOD * 255).astype(np.uint8), "index": np.arange(3)}, "divide by 255"),
        ({"x_adv": np.array([{"a": 1}], dtype=object), "index": np.arange(1)}, "cannot be read"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path, **arrays)
    with pytest.raises(UsageError, match=message) as caught:
        FromFile(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(5)])
def test_a_file_that_is_no_archive_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not an \.npz file|cannot be read"):
        FromFile(str(path))


def test_other_wrong_paths_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        FromFile(str(tmp_path / "missing.npz"))
    with pytest.raises(UsageError, match="does not exist"):
        FromFile(str(tmp_path))
    np.save(tmp_path / "x.npy", GOOD)
    with pytest.raises(UsageError, match=r"not an \.npz"):
        FromFile(str(tmp_path / "x.npy"))


def test_a_truncated_archive_is_one_sentence(tmp_path: Path) -> None:
    path = Path(write(tmp_path, x_adv=GOOD, index=np.arange(3)))
    whole = bytearray(path.read_bytes())
    whole[200:260] = bytes(60)
    path.write_bytes(bytes(whole))
    with pytest.raises(UsageError, match="cannot be read"):
        FromFile(str(path))
