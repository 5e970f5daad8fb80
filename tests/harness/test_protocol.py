"""The protocol on planted detectors: what each must get, by construction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from aftershock.attacks.base.kinds import Effort
from aftershock.harness.evaluation.csv_files import COLUMNS
from aftershock.harness.evaluation.leaderboard import Protocol
from aftershock.harness.evaluation.results import RoundedResult
from aftershock.harness.evaluation.tables import (
    Cell,
    DetectorResult,
    PerturbationResult,
    SeedResult,
    Sources,
    Threat,
    leaderboard_rows,
    metrics_rows,
    perturbation_rows,
    score_rows,
)
from aftershock.harness.statistics.detection import auroc, threshold
from sklearn.metrics import average_precision_score, roc_auc_score

EPS = 0.03
THREAT = Threat("linf", EPS)
DIGESTS = Protocol("digest", "series")
# What the protocol asks of an adaptive attack at least.
FLOOR = Effort(steps=50, restarts=2, queries=100)
Row = dict[str, Any]


def sources(m: int = 400, e: int = 300, wrong: int = 30, seed: int = 0) -> Sources:
    """The last ``wrong`` evaluate images, and some calibrate images, are classified wrongly."""
    label = np.arange(e) % 10
    prediction = np.where(np.arange(e) < e - wrong, label, (label + 1) % 10)
    calibrate = np.arange(m) % 10
    turned = np.where(np.arange(m) % 11 == 0, (calibrate + 3) % 10, calibrate)
    return Sources("digits", "cnn", seed, np.arange(m), calibrate, turned, np.arange(e) + 1000, label, prediction)


def perturbation(
    s: Sources,
    label: str = "pgd",
    kind: str = "attack",
    *,
    failed: int = 0,
    size: float | np.ndarray = EPS,
    controls: int | None = None,
    **more: Any,
) -> PerturbationResult:
    """Attacks every image that the model gets right; the first ``failed`` of them stay as they were classified."""
    index = np.flatnonzero(s.evaluate_correct)
    success = np.arange(len(index)) >= failed
    label_of = s.evaluate_label[index]
    norm = np.broadcast_to(np.asarray(size, dtype=float), index.shape)
    kept = index[success] if kind in ("attack", "adaptive") else index[:0]
    return PerturbationResult(
        label=label,
        kind=kind,
        family=more.pop("family", label),
        library="aftershock",
        norm="linf",
        eps=EPS,
        against=label.partition("@")[2] or None,
        index=index,
        prediction=np.where(success, (label_of + 1) % 10, label_of),
        success=success,
        norms={"linf": norm, "l2": norm * 10, "l1": norm * 100, "l0": np.full(len(index), 7.0)},
        control_index=kept[:controls],
        forwards=11.0,
        backwards=10.0,
        **{"effort": FLOOR if kind == "adaptive" else None, **more},
    )


Score = Callable[[np.ndarray], np.ndarray]


def detector(
    s: Sources,
    perturbations: list[PerturbationResult],
    label: str = "planted",
    *,
    clean: Score,
    perturbed: Mapping[str, Score] | Score,
    control: Score | None = None,
    **more: Any,
) -> DetectorResult:
    """A detector whose scores are functions of the image's position."""

    def of(p: PerturbationResult) -> Score:
        return perturbed if callable(perturbed) else perturbed[p.label]

    return DetectorResult(
        label=label,
        calibrate=clean(np.arange(len(s.calibrate_index))),
        clean=clean(np.arange(len(s.evaluate_index))),
        perturbed={p.label: of(p)(p.index) for p in perturbations},
        control={p.label: (control or clean)(p.control_index) for p in perturbations},
        **more,
    )


def spread(position: np.ndarray) -> np.ndarray:
    """Distinct clean scores in [0, 1), in the same shuffled order for every set."""
    return (position * 0.6180339887498949) % 1.0


def high(position: np.ndarray) -> np.ndarray:
    return 5.0 + spread(position)


def hidden(position: np.ndarray) -> np.ndarray:
    return -5.0 - spread(position)


def only(rows: list[Row], **wanted: Cell) -> Row:
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def board(s: Sources, p: list[PerturbationResult], d: list[DetectorResult], threat: Threat = THREAT) -> list[Row]:
    return leaderboard_rows([SeedResult(s, p, d)], threat, DIGESTS)


# metrics.csv


def test_rows_have_the_columns_of_their_tables() -> None:
    s = sources()
    p = [perturbation(s), perturbation(s, "blur", "corruption")]
    d = detector(s, p, clean=spread, perturbed=high)
    assert {tuple(row) for row in metrics_rows(s, p, [d], THREAT)} == {COLUMNS["metrics"]}
    assert {tuple(sorted(row)) for row in board(s, p, [d])} == {tuple(sorted(COLUMNS["leaderboard"]))}
    assert {tuple(row) for row in perturbation_rows(s, p)} == {COLUMNS["perturbations"]}
    assert {len(row) for row in score_rows(s, p, d)} == {len(COLUMNS["scores"])}


def test_columns_are_only_added_at_the_end() -> None:
    """Programs that read columns of version 1 by position still find them."""
    leaderboard, scores = COLUMNS["leaderboard"], COLUMNS["scores"]
    assert leaderboard[:7] == ("rank", "dataset", "model", "detector", "norm", "eps", "robust_accuracy_at_fpr_5")
    assert leaderboard[22:] == (
        "protocol_digest", "n_images", "not_ranked_reason", "robust_accuracy_is_upper_bound", "tpr_at_fpr_1",
        "series_digest", "reencoded_flagged_at_fpr_5", "shadow_flagged_at_fpr_5", "shadow_robust",
        "shadow_source_robust", "n_shadow", "false_alarm_at_quarter_eps", "price", "price_low", "price_high",
        "r0_median", "rd_median", "n_price", "n_rd_censored", "n_r0_censored", "passes_once",
        "passes_majority", "accuracy_rank",
    )  # fmt: skip
    assert scores[9:] == ("set", "score", "flagged_at_fpr_5", "success", "l0", "l1", "l2", "linf")


def test_one_row_per_outcome_and_negatives() -> None:
    s = sources()
    p = [perturbation(s), perturbation(s, "blur", "corruption")]
    rows = metrics_rows(s, p, [detector(s, p, clean=spread, perturbed=high)])
    kinds = [(row["perturbation"], row["outcome"], row["negatives"]) for row in rows]
    assert kinds == [
        ("pgd", "success", "clean"),
        ("pgd", "success", "control"),
        ("pgd", "failed", "clean"),
        ("pgd", "all", "clean"),
        ("blur", "success", "clean"),
        ("blur", "failed", "clean"),
        ("blur", "all", "clean"),
    ]


def test_figures_agree_with_scikit_learn_on_the_right_images() -> None:
    s = sources()
    p = perturbation(s, failed=100)
    draws = np.random.default_rng(4)
    clean, moved = draws.normal(size=300).round(1), draws.normal(1, 1, 270).round(1)
    d = DetectorResult(
        "x", calibrate=draws.normal(size=400), clean=clean, perturbed={"pgd": moved}, control={"pgd": np.zeros(170)}
    )
    row = only(metrics_rows(s, [p], [d]), outcome="success", negatives="clean")
    truth = np.r_[np.ones(170), np.zeros(270)]
    scores = np.r_[moved[100:], clean[:270]]  # the last 30 clean images are classified wrongly
    assert (row["n_positive"], row["n_negative"]) == (170, 270)
    assert row["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert row["average_precision"] == pytest.approx(average_precision_score(truth, scores))
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    t5 = threshold(d.calibrate, 0.05)
    assert row["tpr_at_fpr_5"] == pytest.approx((moved[100:] > t5).mean())
    assert row["tpr_at_fpr_10"] == pytest.approx((moved[100:] > threshold(d.calibrate, 0.10)).mean())
    assert row["undetected_success_at_fpr_5"] == pytest.approx((moved[100:] <= t5).sum() / 270)
    failed = only(metrics_rows(s, [p], [d]), outcome="failed")
    assert failed["auroc"] == pytest.approx(
        roc_auc_score(np.r_[np.ones(100), np.zeros(270)], np.r_[moved[:100], clean[:270]])
    )
    assert failed["undetected_success_at_fpr_5"] is None
    whole = only(metrics_rows(s, [p], [d]), outcome="all")
    assert (whole["n_positive"], whole["undetected_success_at_fpr_5"]) == (270, row["undetected_success_at_fpr_5"])


def test_oracle_constant_and_random_detectors() -> None:
    s = sources()
    p = [perturbation(s)]
    draws = np.random.default_rng(0)
    rows = metrics_rows(
        s,
        p,
        [
            detector(s, p, "oracle", clean=spread, perturbed=high),
            detector(s, p, "constant", clean=np.zeros_like, perturbed=np.zeros_like),
            detector(
                s, p, "random", clean=lambda i: draws.normal(size=len(i)), perturbed=lambda i: draws.normal(size=len(i))
            ),
        ],
    )
    oracle, constant, chance = (
        only(rows, detector=name, outcome="success", negatives="clean") for name in ("oracle", "constant", "random")
    )
    assert (oracle["auroc"], oracle["tpr_at_fpr_5"], oracle["undetected_success_at_fpr_5"]) == (1.0, 1.0, 0.0)
    assert 0.95 < oracle["auroc_low"] < 1.0 == oracle["auroc_high"]
    assert (constant["auroc"], constant["tpr_at_fpr_5"], constant["undetected_success_at_fpr_5"]) == (0.5, 0.0, 1.0)
    assert chance["auroc_low"] < 0.5 < chance["auroc_high"]


def test_scores_in_the_hundreds_keep_their_auroc() -> None:
    s = sources()
    p = [perturbation(s)]
    draws = np.random.default_rng(5)
    near, far = draws.normal(size=400), draws.normal(1, 1, 400)
    rows = metrics_rows(
        s,
        p,
        [
            detector(s, p, "small", clean=lambda i: near[i], perturbed=lambda i: far[i]),
            detector(s, p, "large", clean=lambda i: 700 + 60 * near[i], perturbed=lambda i: 700 + 60 * far[i]),
        ],
    )
    small, large = (only(rows, detector=n, outcome="success", negatives="clean") for n in ("small", "large"))
    for name in ("auroc", "average_precision", "tpr_at_fpr_5"):
        assert large[name] == pytest.approx(small[name], abs=1e-12)
    assert 0.6 < small["auroc"] < 0.9


def test_a_noise_detector_is_exposed_by_the_control() -> None:
    s = sources()
    p = [perturbation(s)]
    d = detector(s, p, clean=spread, perturbed=high, control=high)
    rows = metrics_rows(s, p, [d])
    against_clean, against_control = (only(rows, outcome="success", negatives=n) for n in ("clean", "control"))
    assert against_clean["auroc"] == 1.0
    assert against_control["auroc"] == 0.5
    assert against_clean["control_flagged_at_fpr_5"] == against_control["control_flagged_at_fpr_5"] == 1.0
    assert only(board(s, p, [d]), detector="planted")["control_flagged_at_fpr_5"] == 1.0


def test_seen_is_exact_family_or_no() -> None:
    s = sources()
    p = [perturbation(s, "pgd"), perturbation(s, "other.PGD", family="pgd"), perturbation(s, "cw")]
    d = detector(
        s,
        p,
        clean=spread,
        perturbed={"pgd": high, "other.PGD": high, "cw": spread},
        fit_on=("pgd",),
        fit_families=frozenset({"pgd"}),
    )
    rows = metrics_rows(s, p, [d])
    assert {row["perturbation"]: row["seen"] for row in rows} == {"pgd": "exact", "other.PGD": "family", "cw": "no"}
    assert {row["fit_on"] for row in rows} == {"pgd"}
    row = only(board(s, p, [d]), detector="planted")
    assert row["mean_auroc_seen"] == 1.0
    assert row["mean_auroc_unseen"] == pytest.approx(0.5, abs=0.01)
    assert (row["n_unseen"], row["worst_perturbation"]) == (1, "cw")


def test_too_few_positives_give_a_reason_and_no_number() -> None:
    s = sources()
    p = [perturbation(s, failed=270 - 29)]
    rows = metrics_rows(s, p, [detector(s, p, clean=spread, perturbed=high)])
    row = only(rows, outcome="success", negatives="clean")
    assert row["n_positive"] == 29
    assert "29 positives" in str(row["reason"])
    assert [row[c] for c in COLUMNS["metrics"][15:-1]] == [None] * 9
    # The share of all attacked images needs no minimum of successes.
    assert only(rows, outcome="all")["undetected_success_at_fpr_5"] == 0.0
    enough = [perturbation(s, failed=270 - 30)]
    rows = metrics_rows(s, enough, [detector(s, enough, clean=spread, perturbed=high)])
    assert only(rows, outcome="success", negatives="clean")["auroc"] == 1.0


def test_too_few_calibrate_images_empty_only_their_cell() -> None:
    s = sources(m=150)
    p = [perturbation(s)]
    d = detector(s, p, clean=spread, perturbed=high)
    row = only(metrics_rows(s, p, [d]), outcome="success", negatives="clean")
    assert (row["tpr_at_fpr_1"], row["tpr_at_fpr_5"], row["tpr_at_fpr_10"]) == (None, None, 1.0)
    assert row["undetected_success_at_fpr_5"] is row["control_flagged_at_fpr_5"] is None
    assert row["auroc"] == 1.0
    assert "1000 calibrate images" in str(row["reason"])
    assert "200 calibrate images" in str(row["reason"])
    ranked = board(s, p, [d])
    assert only(ranked, detector="planted")["rank"] is None
    assert only(ranked, detector="planted")["robust_accuracy_at_fpr_5"] is None
    assert "200 calibrate images" in str(only(ranked, detector="planted")["flags"])
    assert only(ranked, detector="none")["rank"] == 1


def test_tiny_sets_and_empty_perturbations_do_not_fail() -> None:
    s = sources(m=3, e=2, wrong=2)
    p = [perturbation(s), perturbation(s, "skipped-one")]
    p[1] = PerturbationResult("skipped-one", "attack", "x", "y", reason="no gradients")
    d = detector(s, p[:1], clean=spread, perturbed=high)
    rows = metrics_rows(s, p, [d])
    assert all(row["reason"] and row["auroc"] is None for row in rows)
    assert {row["reason"] for row in rows if row["perturbation"] == "skipped-one"} == {"no gradients"}
    assert [row["reason"] != "" for row in perturbation_rows(s, p)] == [True, True]
    # An attack that did not run proves nothing, not even for the ablation.
    assert only(board(s, p, [d]), detector="none")["robust_accuracy_at_fpr_5"] is None
    assert only(board(s, p[:1], [d]), detector="none")["robust_accuracy_at_fpr_5"] == 0.0


@pytest.mark.parametrize("where", ["fit", "calibrate", "clean", "perturbed", "missing"])
def test_what_failed_is_a_row_with_a_reason(where: str) -> None:
    s = sources()
    p = [perturbation(s), perturbation(s, "cw")]
    good = detector(s, p, clean=spread, perturbed=high)
    broken = spread(np.arange(len(good.perturbed["pgd"])))
    broken[3] = np.nan
    bad = {
        "fit": DetectorResult("planted", reason="the fit ran out of memory"),
        "calibrate": dataclasses.replace(good, calibrate=np.full(400, np.nan)),
        "clean": dataclasses.replace(good, clean=np.full(300, np.inf)),
        "perturbed": dataclasses.replace(good, perturbed={**good.perturbed, "pgd": broken}),
        "missing": dataclasses.replace(good, perturbed={"cw": good.perturbed["cw"]}, reasons={"pgd": "killed"}),
    }[where]
    expected = {"fit": "out of memory", "missing": "killed"}.get(where, "not finite")
    rows = metrics_rows(s, p, [bad])
    assert len(rows) == 8
    for row in rows:
        if row["perturbation"] == "pgd" or where in ("fit", "calibrate", "clean"):
            assert expected in str(row["reason"])
            assert row["auroc"] is None
        else:
            assert (row["auroc"] is not None) == (row["outcome"] == "success" or row["outcome"] == "all")
    known = perturbation(s, "a@good", "adaptive")
    sound = dataclasses.replace(
        good, label="good", perturbed={**good.perturbed, "a@good": good.perturbed["cw"]}, reasons={}
    )
    ranked = board(s, [*p, known], [bad, sound])
    row = only(ranked, detector="planted")
    assert ranked[-1] is row
    assert row["rank"] is row["robust_accuracy_at_fpr_5"] is None
    assert expected in str(row["flags"]) and expected in str(row["not_ranked_reason"])
    assert only(ranked, detector="good")["rank"] == 1


def test_arrays_that_do_not_fit_are_refused() -> None:
    s = sources()
    p = perturbation(s)
    d = detector(s, [p], clean=spread, perturbed=high)
    with pytest.raises(ValueError, match="clean"):
        metrics_rows(s, [p], [dataclasses.replace(d, clean=np.zeros(5))])
    with pytest.raises(ValueError, match="pgd"):
        metrics_rows(s, [p], [dataclasses.replace(d, perturbed={"pgd": np.zeros(5)})])
    with pytest.raises(ValueError, match="gets wrong"):
        SeedResult(s, [dataclasses.replace(p, index=p.index + 30, control_index=p.index[:0])], [])
    with pytest.raises(ValueError, match="twice"):
        dataclasses.replace(p, index=np.zeros_like(p.index), control_index=p.index[:0])
    with pytest.raises(ValueError, match="did not succeed"):
        dataclasses.replace(p, success=np.zeros_like(p.success))
    with pytest.raises(ValueError, match="against a detector"):
        dataclasses.replace(p, kind="adaptive")
    with pytest.raises(ValueError, match="has the shape"):
        dataclasses.replace(p, prediction=p.prediction[:4])
    with pytest.raises(ValueError, match="norm lpips"):
        board(s, [p], [], Threat("lpips", 1.0))


# leaderboard.csv


def test_the_oracle_is_first_and_its_robust_accuracy_known() -> None:
    s = sources()
    p = [perturbation(s), perturbation(s, "a@constant", "adaptive"), perturbation(s, "a@oracle", "adaptive")]
    rows = board(
        s,
        p,
        [
            detector(s, p, "constant", clean=np.zeros_like, perturbed=np.zeros_like),
            detector(s, p, "oracle", clean=spread, perturbed=high),
        ],
    )
    assert [(row["rank"], row["detector"]) for row in rows] == [(1, "oracle"), (2, "constant"), (2, "none")]
    oracle = rows[0]
    t5 = threshold(spread(np.arange(400)), 0.05)
    passed = spread(np.arange(300)) <= t5
    assert oracle["robust_accuracy_at_fpr_5"] == pytest.approx(passed[:270].sum() / 300)
    assert oracle["robust_accuracy_low"] < oracle["robust_accuracy_at_fpr_5"] < oracle["robust_accuracy_high"]
    assert oracle["fpr_realised_5"] == pytest.approx(1 - passed.mean())
    assert (oracle["worst_auroc"], oracle["worst_perturbation"]) == (1.0, "a@oracle")
    assert oracle["flags"] == oracle["not_ranked_reason"] == ""
    assert (oracle["seeds"], oracle["seed_sd"], oracle["n_images"]) == ("0", None, 300)
    assert (oracle["protocol_digest"], oracle["series_digest"]) == ("digest", "series")
    assert (rows[1]["robust_accuracy_at_fpr_5"], rows[1]["robust_accuracy_low"]) == (0.0, 0.0)
    assert 0 < rows[1]["robust_accuracy_high"] < 0.02  # none of 300 does not mean never


def test_none_is_the_undefended_model() -> None:
    s = sources()
    p = [perturbation(s, failed=90), perturbation(s, "blur", "corruption"), perturbation(s, "a@planted", "adaptive")]
    row = only(board(s, p, [detector(s, p, clean=spread, perturbed=high)]), detector="none")
    assert row["robust_accuracy_at_fpr_5"] == pytest.approx(90 / 300)  # not the attack on another detector
    assert row["worst_auroc"] is row["mean_auroc_seen"] is row["mean_auroc_unseen"] is row["n_unseen"] is None
    assert (row["fpr_realised_5"], row["control_flagged_at_fpr_5"]) == (0.0, 0.0)
    assert row["adaptive_undetected_at_fpr_5"] is None
    # That attack had to pass a detector besides, and fooled more images: the oblivious one could have been stronger.
    assert row["flags"] == row["not_ranked_reason"] == "weaker-than-adaptive:a@planted"
    assert (row["rank"], row["robust_accuracy_is_upper_bound"]) == (None, 1)


def test_worst_case_is_per_image() -> None:
    s = sources()
    # Each attack alone leaves half of the images, together they leave none.
    even, odd = ((lambda i, r=r: np.where(i % 2 == r, hidden(i), high(i))) for r in (0, 1))
    p = [perturbation(s, "even"), perturbation(s, "odd")]
    d = detector(s, p, clean=spread, perturbed={"even": even, "odd": odd})
    alone = only(board(s, p[:1], [d]), detector="planted")
    assert alone["robust_accuracy_at_fpr_5"] == pytest.approx(
        (spread(np.arange(1, 270, 2)) <= threshold(d.calibrate, 0.05)).sum() / 300
    )
    assert only(board(s, p, [d]), detector="planted")["robust_accuracy_at_fpr_5"] == 0.0


@pytest.mark.parametrize(
    ("size", "counts"), [(EPS, True), (EPS * 1.00005, True), (EPS * 1.001, False), (2 * EPS, False)]
)
def test_only_what_stays_within_the_threat_counts(size: float, counts: bool) -> None:
    s = sources()
    p = [perturbation(s, size=float(np.float32(size)))]
    row = only(board(s, p, [detector(s, p, clean=spread, perturbed=hidden)]), detector="none")
    assert row["robust_accuracy_at_fpr_5"] == pytest.approx(0.0 if counts else 0.9)


def test_the_threat_is_per_image_and_of_its_norm() -> None:
    s = sources()
    size = np.where(np.arange(270) < 60, 2 * EPS, EPS)
    p = [perturbation(s, size=size)]
    d = detector(s, p, clean=spread, perturbed=hidden)
    assert only(board(s, p, [d]), detector="none")["robust_accuracy_at_fpr_5"] == pytest.approx(60 / 300)
    assert only(board(s, p, [d], Threat("l2", 10 * EPS)), detector="none")["robust_accuracy_at_fpr_5"] == pytest.approx(
        0.2
    )
    assert only(board(s, p, [d], Threat("l2", EPS)), detector="none")["robust_accuracy_at_fpr_5"] == pytest.approx(0.9)
    assert only(board(s, p, [d], Threat("l0", 7.0)), detector="none")["robust_accuracy_at_fpr_5"] == 0.0


def test_adaptive_attacks_count_against_their_own_detector_only() -> None:
    s = sources()
    p = [perturbation(s, "pgd"), perturbation(s, "a@one", "adaptive", failed=70), perturbation(s, "a@two", "adaptive")]
    moved = {"pgd": high, "a@one": hidden, "a@two": high}
    one = detector(s, p, "one", clean=spread, perturbed=moved)
    two = detector(s, p, "two", clean=spread, perturbed=moved)
    rows = board(s, p, [one, two])
    first, second = only(rows, detector="one"), only(rows, detector="two")
    assert first["adaptive_undetected_at_fpr_5"] == pytest.approx(200 / 270)
    passed = spread(np.arange(70)) <= threshold(one.calibrate, 0.05)
    assert first["robust_accuracy_at_fpr_5"] == pytest.approx(passed.sum() / 300)
    assert (first["worst_perturbation"], first["flags"]) == ("a@one", "")
    assert second["adaptive_undetected_at_fpr_5"] == 0.0
    assert second["worst_auroc"] == 1.0
    # Transfer is shown in metrics.csv.
    transferred = only(metrics_rows(s, p, [two]), perturbation="a@one", outcome="success", negatives="clean")
    assert transferred["auroc"] == 0.0


def test_adaptive_undetected_is_the_worst_over_the_oblivious_attacks_too() -> None:
    s = sources()
    p = [perturbation(s, "pgd"), perturbation(s, "a@d", "adaptive")]
    d = detector(s, p, "d", clean=spread, perturbed={"pgd": hidden, "a@d": high})
    row = only(board(s, p, [d]), detector="d")
    assert row["adaptive_undetected_at_fpr_5"] == 1.0


def test_no_adaptive_attack_is_flagged_and_left_empty() -> None:
    s = sources()
    p = [perturbation(s)]
    row = only(board(s, p, [detector(s, p, clean=spread, perturbed=high)]), detector="planted")
    assert row["adaptive_undetected_at_fpr_5"] is None
    assert row["flags"] == row["not_ranked_reason"] == "no-adaptive-attack"
    assert row["rank"] is None
    assert row["robust_accuracy_at_fpr_5"] > 0.8 and row["robust_accuracy_is_upper_bound"] == 1


@pytest.mark.parametrize(("eps", "flag"), [(2 * EPS, "no-adaptive-attack"), (EPS / 2, "adaptive-below-threat")])
def test_an_adaptive_attack_of_another_budget_is_no_evidence_under_the_threat(eps: float, flag: str) -> None:
    s = sources()
    oblivious = perturbation(s, failed=270)
    other = dataclasses.replace(perturbation(s, "a@planted", "adaptive", size=eps), eps=eps)
    d = detector(s, [oblivious, other], clean=spread, perturbed=hidden)
    row = only(board(s, [oblivious, other], [d]), detector="planted")
    assert row["flags"] == flag
    if eps > EPS:  # what a larger budget turns says nothing about this one
        assert row["adaptive_undetected_at_fpr_5"] is None
        alone = [oblivious]
        without = board(s, alone, [detector(s, alone, clean=spread, perturbed=hidden)])
        assert row["robust_accuracy_at_fpr_5"] == only(without, detector="planted")["robust_accuracy_at_fpr_5"] > 0.8
    else:  # within the threat, so it counts, but a stronger one is missing
        assert row["adaptive_undetected_at_fpr_5"] == 1.0
        assert row["robust_accuracy_at_fpr_5"] == 0.0


def test_incomplete_adaptive_rows_stand_below_the_ranked_ones() -> None:
    s = sources()
    p = [
        perturbation(s),
        perturbation(s, "a@best", "adaptive"),
        PerturbationResult(
            "a@dead", "adaptive", "a", "aftershock", "linf", EPS, against="dead", reason="out; of\nmemory"
        ),
        perturbation(s, "a@weak", "adaptive"),
    ]
    scored = [q for q in p if not q.reason]
    d = [
        detector(s, scored, "best", clean=spread, perturbed=high, flags=("adaptive-incomplete",)),
        detector(s, scored, "dead", clean=spread, perturbed=high),
        detector(s, scored, "weak", clean=spread, perturbed=hidden),
        DetectorResult("failed", reason="no memory"),
    ]
    rows = board(s, p, d)
    assert [(row["rank"], row["detector"]) for row in rows] == [
        (1, "none"),
        (1, "weak"),
        (None, "best"),
        (None, "dead"),
        (None, "failed"),
    ]
    assert rows[3]["flags"] == "a@dead is missing: out, of memory"
    assert rows[3]["adaptive_undetected_at_fpr_5"] is None


def test_noise_and_corruptions_are_benign() -> None:
    s = sources()
    p = [
        perturbation(s),
        perturbation(s, "blur", "corruption", failed=200),
        perturbation(s, "gauss", "noise", failed=100),
    ]

    def flags_some(i: np.ndarray) -> np.ndarray:
        return np.where(i % 4 == 0, high(i), hidden(i))

    d = detector(s, p, clean=spread, perturbed={"pgd": high, "blur": flags_some, "gauss": flags_some})
    row = only(board(s, p, [d]), detector="planted")
    assert row["benign_flagged_at_fpr_5"] == pytest.approx((50 + 25) / 300)
    assert (row["worst_auroc"], row["worst_perturbation"], row["n_unseen"]) == (1.0, "pgd", 1)
    without = only(board(s, p[:1], [d]), detector="planted")
    assert without["benign_flagged_at_fpr_5"] is None
    assert row["robust_accuracy_at_fpr_5"] == without["robust_accuracy_at_fpr_5"]


def test_partial_and_missing_attacks_are_flagged() -> None:
    s = sources()
    whole = perturbation(s, "cw")
    part = dataclasses.replace(
        whole,
        index=whole.index[:50],
        prediction=whole.prediction[:50],
        success=whole.success[:50],
        norms={"linf": np.full(50, EPS)},
        control_index=whole.control_index[:50],
    )
    p = [part, PerturbationResult("pgd", "attack", "pgd", "aftershock", reason="too slow")]
    rows = board(s, p, [detector(s, p[:1], clean=spread, perturbed=high)])
    for row in rows:
        assert "cw attacked 50 of 270 images" in str(row["flags"])
        assert "pgd is missing: too slow" in str(row["flags"])


def _population(seed: int, e: int = 300, m: int = 400, count: int = 5, attacks: int = 4) -> SeedResult:
    """Random but realistic detectors: binormal scores, an adaptive attack each."""
    draws = np.random.default_rng(seed)
    s = sources(m, e, wrong=e // 10, seed=seed)
    names = [f"d{i}" for i in range(count)]
    p = [
        perturbation(s, f"attack{i}", failed=20 * i, size=draws.uniform(0, 2 * EPS, e - e // 10))
        for i in range(attacks)
    ]
    p += [perturbation(s, f"a@{name}", "adaptive") for name in names]
    d = [
        DetectorResult(
            name,
            calibrate=draws.normal(size=m),
            clean=draws.normal(size=e),
            perturbed={q.label: draws.normal(1 + i, 1, len(q.index)) for q in p},
            control={q.label: draws.normal(0.5, 1, len(q.control_index)) for q in p},
        )
        for i, name in enumerate(names)
    ]
    return SeedResult(s, p, d)


def test_rows_do_not_depend_on_other_detectors() -> None:
    whole = [_population(seed) for seed in (0, 1)]
    for name in ("d1", "d3"):
        alone = [
            SeedResult(
                one.sources,
                [q for q in one.perturbations if q.against in (None, name)],
                [d for d in one.detectors if d.label == name],
            )
            for one in whole
        ]
        for label in (name, "none"):
            mine = dict(only(leaderboard_rows(alone, THREAT, DIGESTS), detector=label), rank=None)
            theirs = dict(only(leaderboard_rows(whole, THREAT, DIGESTS), detector=label), rank=None)
            if label == "none":
                # Its flags name the adaptive attacks that did better than the oblivious ones; no number moves.
                assert set(str(mine.pop("flags")).split("; ")) <= set(str(theirs.pop("flags")).split("; "))
                mine.pop("not_ranked_reason"), theirs.pop("not_ranked_reason")
            assert mine == theirs
        shared = {q.label for q in alone[0].perturbations}
        mine_rows = metrics_rows(alone[0].sources, alone[0].perturbations, alone[0].detectors)
        theirs_rows = [
            row
            for row in metrics_rows(whole[0].sources, whole[0].perturbations, whole[0].detectors)
            if row["detector"] == name and row["perturbation"] in shared
        ]
        assert mine_rows == theirs_rows


def test_cells_are_means_over_seeds() -> None:
    seeds = [_population(seed) for seed in (0, 1, 2)]
    row = only(leaderboard_rows(seeds, THREAT, DIGESTS), detector="d2")
    single = [only(leaderboard_rows([one], THREAT, DIGESTS), detector="d2") for one in seeds]
    for name in (
        "robust_accuracy_at_fpr_5",
        "adaptive_undetected_at_fpr_5",
        "control_flagged_at_fpr_5",
        "fpr_realised_5",
    ):
        assert row[name] == pytest.approx(np.mean([one[name] for one in single]))
    assert row["seed_sd"] == pytest.approx(np.std([one["robust_accuracy_at_fpr_5"] for one in single], ddof=1))
    assert row["seeds"] == "0 1 2"
    # The worst is that of the means, not the mean of the worst.
    means = {
        label: np.mean(
            [
                auroc(
                    one.detectors[2].perturbed[label][q.success],
                    one.detectors[2].clean[one.sources.evaluate_correct],
                )
                for one in seeds
                for q in one.perturbations
                if q.label == label
            ]
        )
        for label in ("attack0", "attack1", "attack2", "attack3", "a@d2")
    }
    assert row["worst_auroc"] == pytest.approx(min(means.values()))
    assert row["worst_perturbation"] == min(means, key=means.__getitem__)
    assert row["mean_auroc_unseen"] == pytest.approx(np.mean([v for k, v in means.items() if k != "a@d2"]))


def test_equal_seeds_are_resampled_as_one() -> None:
    """The same draw for all seeds: three copies of a seed know no more about the images than one.

    The interval is a little wider all the same: three seeds that agree may do so by luck.
    """
    one = _population(0)
    copies = [
        SeedResult(dataclasses.replace(one.sources, seed=seed), one.perturbations, one.detectors) for seed in (0, 1, 2)
    ]
    single, triple = (leaderboard_rows(seeds, THREAT, DIGESTS) for seeds in ([one], copies))
    for a, b in zip(single, triple, strict=True):
        (low, high), (wider_low, wider_high) = (
            [float(str(row[f"robust_accuracy_{end}"])) for end in ("low", "high")] for row in (a, b)
        )
        assert low - 0.05 < wider_low <= low < high <= wider_high < high + 0.05
        assert b["seed_sd"] in (None, pytest.approx(0.0, abs=1e-12))


def test_a_detector_that_failed_for_one_seed_is_not_ranked() -> None:
    seeds = [_population(seed) for seed in (0, 1)]
    broken = [dataclasses.replace(d, reason="killed") if d.label == "d4" else d for d in seeds[1].detectors]
    rows = leaderboard_rows([seeds[0], dataclasses.replace(seeds[1], detectors=broken)], THREAT, DIGESTS)
    row = only(rows, detector="d4")
    assert (row["rank"], row["seeds"], row["not_ranked_reason"]) == (None, "0", "killed")
    assert "killed" in str(row["flags"])
    assert all(other["rank"] is not None for other in rows[:4])
    assert row["robust_accuracy_at_fpr_5"] is not None


def test_leaderboard_refuses_what_cannot_be_compared() -> None:
    one, other = _population(0), _population(1)
    with pytest.raises(ValueError, match="one model"):
        leaderboard_rows(
            [one, dataclasses.replace(other, sources=dataclasses.replace(other.sources, model="b"))], THREAT, DIGESTS
        )
    moved = dataclasses.replace(other.sources, evaluate_index=other.sources.evaluate_index + 1)
    with pytest.raises(ValueError, match="source images"):
        leaderboard_rows([one, dataclasses.replace(other, sources=moved)], THREAT, DIGESTS)
    named = [dataclasses.replace(one.detectors[0], label="none")]
    with pytest.raises(ValueError, match="flags nothing"):
        leaderboard_rows([SeedResult(one.sources, one.perturbations, named)], THREAT, DIGESTS)
    assert leaderboard_rows([], THREAT, DIGESTS) == []


def test_the_leaderboard_is_quick() -> None:
    seeds = [_population(seed, e=1000, m=1000, count=8, attacks=6) for seed in (0, 1, 2)]
    start = time.process_time()
    rows = leaderboard_rows(seeds, THREAT, DIGESTS)
    assert len(rows) == 9
    assert time.process_time() - start < 4.0  # about 1 s; the margin is for slow machines


# scores.csv.gz and perturbations.csv


def test_score_rows_hold_every_image_once() -> None:
    s = sources(m=250, e=60, wrong=5)
    p = [perturbation(s, failed=5, controls=40)]
    rounded = [
        RoundedResult(how, p[0].prediction, p[0].success & (p[0].index != 9), {"linf": np.full(55, EPS + 0.001)})
        for how in ("8-bit", "levels")
    ]
    p = [dataclasses.replace(p[0], rounded=rounded)]
    d = detector(s, p, clean=spread, perturbed=high, control=spread)
    d = dataclasses.replace(d, rounded={("pgd", how): hidden(p[0].index) for how in ("8-bit", "levels")})
    rows: list[Row] = [dict(zip(COLUMNS["scores"], row, strict=True)) for row in score_rows(s, p, d)]
    sets = ("calibrate", "clean", "perturbed", "rounded-8-bit", "rounded-levels", "control")
    counts = {name: sum(row["set"] == name for row in rows) for name in sets}
    assert counts == dict(zip(sets, (250, 60, 55, 55, 55, 40), strict=True)) and sum(counts.values()) == len(rows)
    for row in rows:
        attacked = row["set"] == "perturbed" or str(row["set"]).startswith("rounded")
        assert (row["success"] is not None) == (row["linf"] is not None) == attacked
    assert {(row["linf"], row["l0"]) for row in rows if row["set"] == "perturbed"} == {(EPS, 7.0)}
    after = [row for row in rows if row["set"] == "rounded-8-bit"]
    # What was not measured is empty.
    assert {(row["linf"], row["l0"]) for row in after} == {(EPS + 0.001, None)}
    assert sum(row["success"] for row in after) == 49 and {row["flagged_at_fpr_5"] for row in after} == {0}
    assert {row["perturbation"] for row in rows if row["set"] in ("calibrate", "clean")} == {"none"}
    clean = [row for row in rows if row["set"] == "clean"]
    assert [row["index"] for row in clean] == list(range(1000, 1060))
    assert sum(row["label"] != row["prediction"] for row in clean) == 5
    perturbed = [row for row in rows if row["set"] == "perturbed"]
    assert sum(row["prediction"] != row["clean_prediction"] for row in perturbed) == 50
    assert {row["flagged_at_fpr_5"] for row in perturbed} == {1}
    for row in (r for r in rows if r["set"] == "control"):
        assert row["prediction"] == row["clean_prediction"] == row["label"]
        assert row["score"] == pytest.approx(spread(np.array([row["index"] - 1000]))[0])
    # The AUROC of metrics.csv can be made from these rows alone.
    positive = [r["score"] for r in perturbed if r["prediction"] != r["label"]]
    negative = [r["score"] for r in clean if r["prediction"] == r["label"]]
    row = only(metrics_rows(s, p, [d]), outcome="success", negatives="clean")
    assert row["auroc"] == auroc(positive, negative)


def test_score_rows_without_a_threshold_or_a_score() -> None:
    s = sources(m=20, e=60)
    p = [perturbation(s)]
    d = detector(s, p, clean=spread, perturbed=high)
    flagged = COLUMNS["scores"].index("flagged_at_fpr_5")
    assert {row[flagged] for row in score_rows(s, p, d)} == {None}
    assert list(score_rows(s, p, DetectorResult("failed", reason="x"))) == []
    s = sources(m=250, e=60)
    bad = detector(s, p, clean=spread, perturbed=lambda i: np.full(len(i), np.nan))
    rows = [row for row in score_rows(s, p, bad) if row[9] == "perturbed"]
    assert {row[flagged - 1 : flagged + 1] for row in rows} == {(None, None)}


def test_perturbation_rows_measure_all_attacked_images() -> None:
    s = sources()
    size = np.where(np.arange(270) < 90, 0.0, 0.02)
    p = [
        perturbation(s, failed=90, size=size, flags=("unconverged", "weaker than one step")),
        perturbation(s, "blur", "corruption"),
    ]
    rows: list[Row] = list(perturbation_rows(s, p))
    first, second = rows
    assert (first["n"], first["success_rate"]) == (270, pytest.approx(180 / 270))
    assert first["mean_linf"] == pytest.approx(0.02 * 180 / 270)
    assert (first["max_linf"], first["mean_l0"]) == (pytest.approx(0.02), 7.0)
    assert (first["forwards_per_image"], first["backwards_per_image"]) == (11.0, 10.0)
    assert (first["flags"], first["reason"]) == ("unconverged; weaker than one step", "")
    assert second["kind"] == "corruption"
