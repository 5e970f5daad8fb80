"""What ``verify`` catches: an entry and its table have to agree in everything that can be computed again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.formats import seal
from aftershock.harness.core.protocol_content import ProtocolContent
from aftershock.reports.entries.images import digest_of, read_images
from aftershock.reports.entries.schema import parse_entry
from aftershock.reports.entries.verify import table_path, verify
from support.entries import EPS, EVALUATED, PRICED, RANKED, content, put, table, with_seed, written

Change = Callable[[dict[str, Any]], object]


def fields(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def rewritten(path: Path, change: Change) -> None:
    """Change an entry and seal it again, as somebody does who knows the format."""
    value = fields(path)
    del value["checksum"]
    change(value)
    path.write_bytes(seal(value))


def found(path: Path) -> list[str]:
    return [d.field for d in verify(path).disagreements]


@pytest.mark.parametrize("detector", ["msp", "none"])
def test_an_honest_entry_agrees(tmp_path: Path, detector: str) -> None:
    [path] = put(tmp_path, written(detector))
    verified = verify(path)
    assert verified.disagreements == []
    # Two seeds' models get other images right.
    assert PRICED < (verified.entry.metrics.n_price or 0) < 2 * PRICED
    if detector == "msp":
        assert verified.entry.metrics.price == pytest.approx(1.3, abs=1e-5)
        assert 0.3 < (verified.entry.metrics.robust_accuracy_at_fpr_5 or 0) < 0.95


def test_a_table_reads_back_bit_for_bit(tmp_path: Path) -> None:
    held = table()
    path = tmp_path / "t.csv.gz"
    path.write_bytes(held.content)
    back, digest = read_images(path, reach=held.reach)
    assert digest == digest_of(path.read_bytes())
    for one, other in zip(held.seeds, back.seeds, strict=True):
        for name in ("calibrate", "clean", "lowest", "right", "index", "calibrate_index"):
            np.testing.assert_array_equal(getattr(one.scores, name), getattr(other.scores, name))
        np.testing.assert_array_equal(one.r0, other.r0)
        np.testing.assert_array_equal(one.rd, other.rd)
    assert back.content == held.content


def _set(*path: str, to: object) -> Change:
    def change(value: dict[str, Any]) -> None:
        *inner, last = path
        for step in inner:
            value = value[step]
        value[last] = to(value[last]) if callable(to) else to

    return change


# What a person writes into the entry alone.
STATED: dict[str, tuple[Change, str]] = {
    "accuracy": (_set("metrics", "robust_accuracy_at_fpr_5", to=0.99), "metrics.robust_accuracy_at_fpr_5"),
    "accuracy by one image": (
        _set("metrics", "robust_accuracy_at_fpr_5", to=lambda v: v + 1 / 140), "metrics.robust_accuracy_at_fpr_5"),
    "lower end": (_set("metrics", "robust_accuracy_low", to=lambda v: v + 0.01), "metrics.robust_accuracy_low"),
    "upper end": (_set("metrics", "robust_accuracy_high", to=lambda v: v - 0.01), "metrics.robust_accuracy_high"),
    "undetected": (_set("metrics", "adaptive_undetected_at_fpr_5", to=0.0), "metrics.adaptive_undetected_at_fpr_5"),
    "undetected left out": (
        _set("metrics", "adaptive_undetected_at_fpr_5", to=None), "metrics.adaptive_undetected_at_fpr_5"),
    "realised rate": (_set("metrics", "fpr_realised_5", to=0.01), "metrics.fpr_realised_5"),
    "spread": (_set("metrics", "seed_sd", to=0.0), "metrics.seed_sd"),
    "price": (_set("metrics", "price", to=1.4), "metrics.price"),
    "price's ends": (_set("metrics", "price_low", to=1.29), "metrics.price_low"),
    "open end": (_set("metrics", "price_high", to=None), "metrics.price_high"),
    "r0": (_set("metrics", "r0_median", to=0.01), "metrics.r0_median"),
    "rd": (_set("metrics", "rd_median", to=0.4), "metrics.rd_median"),
    "censored": (_set("metrics", "n_rd_censored", to=40), "metrics.n_rd_censored"),
    "fewer images": (_set("metrics", "n_images", to=60), "metrics.robust_accuracy_at_fpr_5"),
    "more images than there are": (_set("metrics", "n_images", to=900), "metrics.n_images"),
    "budget": (_set("threat", "eps", to=0.3), "threat"),
    "norm": (_set("threat", "norm", to="l2"), "threat"),
    "budget and protocol": (
        lambda v: (_set("threat", "eps", to=0.3)(v), _set("protocol", "content", "threat", "eps", to=0.3)(v)),
        "protocol.digest"),
    "digest": (_set("protocol", "digest", to="0" * 16), "protocol.digest"),
    "series": (_set("protocol", "series", to="0" * 16), "protocol.series"),
    "version": (_set("protocol", "version", to=3), "protocol.digest"),
    "attacks": (_set("protocol", "content", "perturbations", to=lambda v: v[:1]), "protocol.digest"),
    "fewer seeds": (_set("protocol", "seeds", to=[0]), "protocol.digest"),
    "floor": (_set("protocol", "floor", "steps", to=5), "protocol.floor"),
    "data": (_set("data_digest", to="d" * 64), "data_digest"),
    "weights": (_set("weights_digest", to="d" * 64), "weights_digest"),
    "reach": (_set("images", "reach", to=0.05), "rd"),
    "rows": (_set("images", "rows", to=10), "images.rows"),
    "another table": (_set("images", "sha256", to="e" * 64), "images.sha256"),
    "flags that take the rank": (_set("claims", "flags", to="adaptive-incomplete"), "claims.not_ranked_reason"),
    "an upper bound": (
        _set("claims", "robust_accuracy_is_upper_bound", to=1), "claims.robust_accuracy_is_upper_bound"),
    "no table and no reason": (_set("images", to=None), "images"),
    "another detector's name": (_set("detector", to="mahalanobis"), "name of the file"),
    "another contributor": (_set("contributor", to="John"), "name of the file"),
    "digested twice": (_set("protocol", "content", "protocol", to=4), "protocol.content"),
    "more unseen attacks than there are": (_set("claims", "n_unseen", to=9), "claims.n_unseen"),
    "an attack of another protocol": (
        _set("claims", "worst_perturbation", to="apgd@msp"), "claims.worst_perturbation"),
    "a challenge that raised the number": (
        _set("challenges", to=[{"by": "Eve", "date": "2026-11-27", "images": 3, "before": 0.01}]), "challenges"),
    "numbers left out": (
        lambda v: v["metrics"].update(robust_accuracy_at_fpr_5=None), "metrics.robust_accuracy_at_fpr_5"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "field"), STATED.values(), ids=STATED)
def test_what_an_entry_says_must_follow_from_its_table(tmp_path: Path, change: Change, field: str) -> None:
    [path] = put(tmp_path, written())
    rewritten(path, change)
    assert field in found(path)


def _swapped(name: str) -> Callable[[], Any]:
    """A table in which something cannot be; its entry is made from it, digests and metrics included."""
    held = table(seeds=(0,))
    scores, r0, rd = held.seeds[0].scores, held.seeds[0].r0.copy(), held.seeds[0].rd.copy()
    finite = np.flatnonzero(np.isfinite(rd))

    def made(**changed: Any) -> Callable[[], Any]:
        return lambda: written(images=with_seed(held, 0, **changed), seeds=(0,))

    if name == "without the images that fall":
        kept = ~(scores.lowest < 1.5)
        return made(index=scores.index[kept], right=scores.right[kept], clean=scores.clean[kept],
                    lowest=scores.lowest[kept], r0=r0[kept], rd=rd[kept])  # fmt: skip
    if name == "images in another order":
        return made(index=scores.index[::-1].copy())
    if name == "other calibrate images":
        return made(calibrate_index=scores.calibrate_index + 1)
    if name == "fewer calibrate images":
        return made(calibrate_index=scores.calibrate_index[:210], calibrate=scores.calibrate[:210])
    if name == "an image twice":
        index = scores.index.copy()
        index[1] = index[0]
        return made(index=index)
    if name == "passed nearer than fooled":
        rd[finite] = r0[finite] / 2
        return made(rd=rd)
    if name == "beyond the reach":
        rd[finite[0]] = 0.9
        return made(rd=rd)
    if name == "nothing fools and something passes":
        r0[finite[0]] = np.inf
        return made(r0=r0)
    if name == "the price of chosen images":
        r0[finite[:5]] = rd[finite[:5]] = np.nan
        return made(r0=r0, rd=rd)
    raise AssertionError(name)


IMPOSSIBLE = {
    "without the images that fall": "index", "images in another order": "index", "other calibrate images": "index",
    "fewer calibrate images": "index", "an image twice": "index", "passed nearer than fooled": "rd",
    "beyond the reach": "rd", "the price of chosen images": "censored",
}  # fmt: skip


@pytest.mark.parametrize(("name", "field"), IMPOSSIBLE.items())
def test_a_table_that_cannot_be_is_named(tmp_path: Path, name: str, field: str) -> None:
    [path] = put(tmp_path, _swapped(name)())
    assert field in found(path)


def test_distances_that_do_not_agree_with_their_censoring_cannot_be_read(tmp_path: Path) -> None:
    [path] = put(tmp_path, _swapped("nothing fools and something passes")())
    [disagreement] = verify(path).disagreements
    assert "column rd does not agree with column censored" in str(disagreement)


def test_a_jump_with_the_budget_and_tied_scores_have_to_be_flagged(tmp_path: Path) -> None:
    wall = table()
    for number, seed in enumerate(wall.seeds):
        priced = ~np.isnan(seed.r0)
        # Everything is fooled well within the threat, evenly, and passes at once a little beyond it.
        r0 = np.where(priced, np.linspace(0.02, 0.09, len(EVALUATED)), np.nan)
        wall = with_seed(wall, number, r0=r0, rd=np.where(priced, EPS * 1.1, np.nan))
    [path] = put(tmp_path / "jump", written(images=wall))
    assert found(path) == ["claims.flags"]
    said = {"flags": "discontinuous", "not_ranked_reason": "discontinuous", "robust_accuracy_is_upper_bound": 1}
    [path] = put(tmp_path / "said", written(images=wall, claims=said))
    assert found(path) == []
    tied = with_seed(table(), 0, calibrate=np.repeat([0.0, 2.0], [200, 20]))
    [path] = put(tmp_path / "tied", written(images=tied))
    assert "claims.flags" in found(path)


def test_an_entry_without_a_table_needs_a_reason_and_is_not_refused_for_one(tmp_path: Path) -> None:
    [path] = put(tmp_path, written())
    rewritten(path, lambda v: v.update(images=None, images_missing="its run published no scores"))
    assert found(path) == []


def test_a_table_that_was_changed_or_is_gone_is_named(tmp_path: Path) -> None:
    [path] = put(tmp_path, written())
    beside = table_path(path)
    lines = gzip.decompress(beside.read_bytes()).decode().splitlines()
    row = next(i for i, line in enumerate(lines) if "evaluate" in line and line.split(",")[5])
    cells = lines[row].split(",")
    cells[5] = "9"
    beside.write_bytes(gzip.compress("\n".join([*lines[:row], ",".join(cells), *lines[row + 1 :], ""]).encode()))
    assert "images.sha256" in found(path)
    beside.unlink()
    assert found(path) == ["images"]


def test_the_digest_of_a_protocol_survives_its_way_through_a_file(tmp_path: Path) -> None:
    [path] = put(tmp_path, written())
    entry = parse_entry(path.read_bytes(), path)
    assert entry.protocol.whole().digest == entry.protocol.digest
    assert dict(entry.protocol.content) == content()


def test_the_row_without_a_detector_has_no_part(tmp_path: Path) -> None:
    [path] = put(tmp_path, written("none"))
    rewritten(path, lambda v: v.update(part={"name": "msp", "params": {}, "fit_on": [], "fit_negatives": []}))
    assert found(path) == ["part"]


# Parameters of the attack that knows the detectors, and what they leave to be said; the digests are made again.
ATTACKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "as the floor asks": ({"steps": 50, "restarts": 2, "queries": 100, "images": RANKED}, []),
    "all images": ({"images": None}, []),
    "few steps": ({"steps": 5}, ["claims.flags"]),
    "one start": ({"restarts": 1}, ["claims.flags"]),
    "few queries": ({"queries": 9}, ["claims.flags"]),
    "a smaller budget": ({"eps": EPS / 4}, ["claims.flags"]),
    "another norm": ({"norm": "l2"}, ["claims.flags"]),
    "fewer images": ({"images": RANKED - 10}, ["metrics.n_images"]),
}


@pytest.mark.parametrize(("changed", "fields_named"), ATTACKS.values(), ids=ATTACKS)
def test_a_row_that_may_be_ranked_says_what_its_attack_lacks(
    tmp_path: Path, changed: dict[str, Any], fields_named: list[str]
) -> None:
    [path] = put(tmp_path, written())

    def change(value: dict[str, Any]) -> None:
        said = value["protocol"]
        said["content"]["perturbations"][1][2][0].update(changed)
        whole = ProtocolContent(said["content"], tuple(said["seeds"]), said["version"])
        said.update(digest=whole.digest, series=whole.series)

    rewritten(path, change)
    renamed = tmp_path / f"{parse_entry(path.read_bytes(), path).stem}.json"
    table_path(path).rename(table_path(renamed))
    path.rename(renamed)
    assert found(renamed) == fields_named


@pytest.mark.parametrize("left", [(0,), (1,), (0, 1)])
def test_a_ranked_row_cannot_leave_its_distances_out(tmp_path: Path, left: tuple[int, ...]) -> None:
    held = table()
    for number in left:
        gone = np.full(len(EVALUATED), np.nan)
        held = with_seed(held, number, r0=gone, rd=gone)
    [path] = put(tmp_path / "ranked", written(images=held))
    assert "r0" in found(path)
    failed = {"flags": "ladder-unchecked: it has no gradient", "robust_accuracy_is_upper_bound": 0}
    [path] = put(tmp_path / "failed", written(images=held, claims=failed | {"not_ranked_reason": failed["flags"]}))
    assert found(path) == []


def test_what_the_budget_fools_does_not_lie_beyond_it(tmp_path: Path) -> None:
    held = table()
    scores, r0 = held.seeds[0].scores, held.seeds[0].r0.copy()
    fooled = np.flatnonzero(np.isfinite(r0) & np.isfinite(scores.lowest))
    for count, named in ((2, []), (20, ["r0"])):
        moved, rd = r0.copy(), held.seeds[0].rd.copy()
        moved[fooled[:count]] = rd[fooled[:count]] = np.inf
        [path] = put(tmp_path / str(count), written(images=with_seed(held, 0, r0=moved, rd=rd)))
        assert found(path) == named


@pytest.mark.parametrize(
    "change",
    [
        _set("created", to="recomputed"),
        _set("challenges", to=[{"by": "Eve", "date": "today", "images": 1, "before": 1.0}]),
        _set("challenges", to=[{"by": "Eve", "date": "2026-11-27", "images": 0, "before": 1.0}]),
        # No multiple of it is larger.
        _set("threat", "eps", to=5e-324),
    ],
)
def test_dates_credits_and_budgets_that_are_none_cannot_be_read(tmp_path: Path, change: Change) -> None:
    [path] = put(tmp_path, written())
    rewritten(path, change)
    with pytest.raises(UsageError):
        verify(path)
