"""Images of outsiders against a detector of a real run: what counts lowers its entry, what does not is named."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aftershock
import numpy as np
import pytest
from aftershock.harness.cli.main import app
from aftershock.harness.core.errors import UsageError
from aftershock.harness.run import challenge as module
from aftershock.harness.run.challenge import FAR, OTHER, OUTSIDE, RIGHT, WRONG, challenge
from aftershock.reports.entries.folder import write_entry
from aftershock.reports.entries.images import ImageTable
from aftershock.reports.entries.verify import verify
from numpy.typing import NDArray
from typer.testing import CliRunner

DETECTOR = "bits-hamming"
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def found(quick_run: Path) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Images that fool the model within the threat, their sources, and their positions."""
    made = aftershock.load(quick_run).images("pgd[eps=0.2]")
    assert made.clean is not None
    got = made.success & (made.norms["linf"] <= 0.2 + 1e-6)
    assert got.sum() > 20
    return made.index[got], made.perturbed[got], made.clean[got]


def saved(path: Path, index: NDArray[np.int64], images: Floats) -> Path:
    np.savez(path, index=index, images=images)
    return path


def test_images_of_the_run_itself_change_nothing(
    quick_run: Path, tmp_path: Path, found: tuple[NDArray[np.int64], Floats, Floats]
) -> None:
    index, images, _ = found
    result = challenge(quick_run, DETECTOR, saved(tmp_path / "a.npz", index, images), "Eve")
    assert result.written is None
    assert result.lowered == 0 and result.before == result.after
    assert sum(result.refused.values()) == len(index)


def test_each_reason_why_an_image_does_not_count_is_named(
    quick_run: Path, tmp_path: Path, found: tuple[NDArray[np.int64], Floats, Floats]
) -> None:
    index, images, clean = found
    scores = aftershock.load(quick_run).scores
    one = images[:1]
    cases = {
        OUTSIDE: (index[:1], one + 2),
        FAR: (index[:1], np.clip(clean[:1] + 0.5, 0, 1)),
        RIGHT: (index[:1], clean[:1]),
    }
    held = {int(i) for i in scores[scores["set"] == "clean"]["index"]}
    # Neither an image of another set nor one that the split does not have.
    others = [(OTHER, (np.array([i]), one)) for i in (next(i for i in range(700) if i not in held), 10**9)]
    for number, (why, (at, made)) in enumerate([*cases.items(), *others]):
        result = challenge(quick_run, DETECTOR, saved(tmp_path / f"{number}.npz", at, made.astype(np.float32)), "Eve")
        assert result.written is None
        assert result.refused == {why: 1}


def test_an_image_that_the_model_gets_wrong_anyway_does_not_count(
    quick_run: Path, found: tuple[NDArray[np.int64], Floats, Floats]
) -> None:
    index, images, clean = found
    own = module._entry(quick_run, DETECTOR, None, None)
    assert own.table is not None
    seed = own.table.seeds[0]
    right = seed.scores.right & (seed.scores.index != index[0])
    wrong = replace(seed, scores=replace(seed.scores, right=right))

    def unasked(images: object) -> Any:
        raise AssertionError("nothing is left to ask")

    _, lowered, refused = module._against(cast("Any", unasked), wrong, own, index[:1], images[:1], clean[:1], index[:1])
    assert (lowered, refused) == (0, {WRONG: 1})


def test_a_lower_number_is_written_with_the_credit_and_agrees_with_itself(
    quick_run: Path, tmp_path: Path, found: tuple[NDArray[np.int64], Floats, Floats]
) -> None:
    index, images, _ = found
    stated = challenge(quick_run, DETECTOR, saved(tmp_path / "a.npz", index, images), "Eve")
    # An entry as the run would have made it with weaker attacks: nothing fools.
    own = module._entry(quick_run, DETECTOR, None, None)
    assert own.table is not None
    seed = own.table.seeds[0]
    untouched = replace(seed, scores=replace(seed.scores, lowest=np.full(len(seed.scores.lowest), np.inf)))
    weak = module._lowered(own, ImageTable([untouched], own.table.reach), "nobody", 1, stated.before)
    weak = replace(weak, entry=weak.entry.model_copy(update={"challenges": []}))
    path = write_entry(weak, tmp_path / "entries")
    before = weak.entry.metrics.robust_accuracy_at_fpr_5
    assert before is not None and before > 0.8

    call = ["challenge", str(quick_run), "--images", str(tmp_path / "a.npz"), "--detector", DETECTOR, "--by", "Eve",
            "--entry", str(path), "--out", str(tmp_path / "entries")]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    lowered = verify(path)
    assert lowered.disagreements == []
    after = lowered.entry.metrics.robust_accuracy_at_fpr_5
    assert after is not None and after < before
    [credit] = lowered.entry.challenges
    assert (credit.by, credit.before) == ("Eve", before) and credit.images > 0
    # The same images again lower nothing.
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 1
    assert verify(path).entry == lowered.entry


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04rubbish", b"\x93NUMPY\x01\x00"],
    ids=["empty", "half an archive", "a bare array"],
)
def test_a_file_that_is_none_is_one_sentence(quick_run: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.npz is no \.npz file"):
        challenge(quick_run, DETECTOR, path, "Eve")


def test_arrays_that_do_not_fit_are_one_sentence(
    quick_run: Path, tmp_path: Path, found: tuple[NDArray[np.int64], Floats, Floats]
) -> None:
    index, images, _ = found
    objects = tmp_path / "o.npz"
    np.savez(objects, index=np.array([{}], dtype=object), images=images)
    for path, said in (
        (objects, "no .npz file"),
        (saved(tmp_path / "1.npz", index[:3], images), "needs 'index'"),
        (saved(tmp_path / "2.npz", index, images[:, :, :4]), "the data's are"),
        (saved(tmp_path / "4.npz", -index - 1, images), "no position"),
        (tmp_path / "gone.npz", "There is no file"),
    ):
        with pytest.raises(UsageError, match=said):
            challenge(quick_run, DETECTOR, path, "Eve")
    with pytest.raises(UsageError, match="has no detector 'hamming'"):
        challenge(quick_run, "hamming", objects, "Eve")


def _array(value: object) -> bytes:
    held = io.BytesIO()
    np.save(held, np.asarray(value))
    return held.getvalue()


def _archive(path: Path, index: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", method) as held:
        held.writestr("index.npy", index)
        held.writestr("images.npy", _array(np.zeros((2, 1, 8, 8), np.float32)))
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("damage", ["encrypted", "unknown method", "deflate", "lzma", "no array"])
def test_an_archive_that_cannot_be_unpacked_is_a_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "theirs.npz"
    method = zipfile.ZIP_LZMA if damage == "lzma" else zipfile.ZIP_DEFLATED
    content = _archive(path, b"hello" if damage == "no array" else _array([1, 2]), method)
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(start), bytes(content)):
            if damage == "encrypted":
                content[found.start() + flags] |= 1
            if damage == "unknown method":
                content[found.start() + flags + 2] = 99
    if damage in ("deflate", "lzma"):
        content[48:64] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"theirs\.npz"):
        module._read(path)
