"""What takes a row's rank away and what marks its number, each with planted results that show it and one without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aftershock.attacks.adaptive.surrogate import SurrogateAttack
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.kinds import Effort
from aftershock.harness.evaluation.leaderboard import Protocol, place
from aftershock.harness.evaluation.rankability import (
    FLOOR,
    FLOOR_IMAGES,
    attack_flags,
    floor_text,
    is_upper_bound,
    reaches_floor,
    reasons,
    unranked_suite,
)
from aftershock.harness.evaluation.results import (
    DetectorResult,
    PerturbationResult,
    RoundedResult,
    SeedResult,
    Sources,
    Threat,
)
from aftershock.harness.evaluation.tables import leaderboard_rows
from aftershock.harness.models.flags import (
    BATCH_DEPENDENT,
    LOG_PROBABILITIES,
    NEAR_CHANCE,
    NO_WEIGHTS,
    PROBABILITIES,
    RANDOMISED_MODEL,
)
from aftershock.harness.plan.applicability import make_perturbations
from aftershock.harness.plan.facts import perturbation_facts
from aftershock.harness.suite.resolve import load_suite

EPS = 0.1
THREAT = Threat("linf", EPS)
E, WRONG, M = 120, 20, 200
RIGHT = np.arange(E - WRONG)
Row = dict[str, Any]


def sources(seed: int = 0, e: int = E, wrong: int = WRONG, gradient: bool = True) -> Sources:
    """The model gets the last ``wrong`` evaluate images wrong."""
    label = np.zeros(e, np.int64)
    m = np.arange(M)
    return Sources("d", "m", seed, m, m * 0, m * 0, np.arange(e), label, (np.arange(e) >= e - wrong) * 1, gradient)


def attack(label: str, fooled: int = len(RIGHT), index: np.ndarray = RIGHT, eps: float = EPS, **more: Any) -> Any:
    """An attack with the norm ``eps`` that fools the first ``fooled`` of its images; adaptive where it names one."""
    against = label.partition("@")[2] or None
    success = np.arange(len(index)) < fooled
    given: dict[str, Any] = {
        "kind": "adaptive" if against else "attack", "family": "x", "library": "l", "norm": "linf", "against": against,
        "effort": FLOOR if against else None, **more,
    }  # fmt: skip
    norms = {"linf": np.full(len(index), eps), "l2": np.full(len(index), 9.0)}
    return PerturbationResult(
        label, eps=eps, index=index, prediction=success * 1, success=success, norms=norms, **given
    )


def detector(
    attacks: Sequence[PerturbationResult],
    label: str = "d",
    scores: float | np.ndarray | dict[str, Any] = 2.0,
    **more: Any,
) -> DetectorResult:
    """Clean scores in [0, 1) and perturbed ones as given: 2 is flagged, 0 passes."""
    of = {p.label: scores.get(p.label, 2.0) if isinstance(scores, dict) else scores for p in attacks if not p.reason}
    perturbed = {p.label: np.broadcast_to(of[p.label], p.index.shape) for p in attacks if not p.reason}
    given: dict[str, Any] = {
        "calibrate": np.arange(M) / M, "clean": np.zeros(E), "perturbed": perturbed,
        "rounded": {(p.label, r.how): np.zeros(len(r.success)) for p in attacks for r in p.rounded}, **more,
    }  # fmt: skip
    return DetectorResult(label, **given)


def board(attacks: Sequence[PerturbationResult], *detectors: DetectorResult, s: Sources | None = None) -> list[Row]:
    one = SeedResult(s or sources(), attacks, detectors or (detector(attacks),))
    return leaderboard_rows([one], THREAT, Protocol("digest", "series"))


def row_of(rows: list[Row], label: str = "d") -> Row:
    (found,) = [row for row in rows if row["detector"] == label]
    return found


def row(attacks: Sequence[PerturbationResult], label: str = "d", **more: Any) -> Row:
    """The row of a planted detector that flags every perturbed image."""
    return row_of(board(attacks, detector(attacks, **more)), label)


# What takes the rank


def test_a_row_is_ranked_by_an_adaptive_attack_that_meets_the_floor() -> None:
    found = row([attack("pgd"), attack("a@d")])
    assert (found["rank"], found["not_ranked_reason"], found["flags"]) == (1, "", "")
    assert found["robust_accuracy_at_fpr_5"] == pytest.approx(100 / E)
    assert (found["n_images"], found["robust_accuracy_is_upper_bound"]) == (E, 0)
    # Several attacks reach it together: one has the steps, another the queries.
    parts = [attack("a@d", effort=Effort(50, 2)), attack("b@d", effort=Effort(queries=100))]
    assert row(parts)["rank"] == 1


def test_an_attack_that_leaves_the_canary_invests_nothing() -> None:
    idle, working = attack("a@d", canary=1.0), attack("b@d", effort=Effort(50, 2), canary=0.0)
    alone = row([attack("pgd"), idle])
    assert (alone["rank"], alone["not_ranked_reason"]) == (None, "canary-stands")
    assert alone["robust_accuracy_is_upper_bound"] == 1
    # What it says of its queries does not count beside one that works.
    assert row([attack("pgd"), idle, working])["not_ranked_reason"] == "below-floor"
    assert row([attack("pgd"), attack("a@d", canary=0.0), attack("b@d", effort=None, canary=1.0)])["rank"] == 1
    # A search that misses an image of the canary works, and nothing is known where the canary has no answer.
    assert row([attack("pgd"), attack("a@d", canary=0.0625)])["rank"] == 1
    assert row([attack("pgd"), attack("a@d", canary=None)])["rank"] == 1


@pytest.mark.parametrize(
    ("effort", "images"),
    [
        (replace(FLOOR, steps=FLOOR.steps - 1), 100),
        (replace(FLOOR, restarts=FLOOR.restarts - 1), 100),
        (replace(FLOOR, queries=FLOOR.queries - 1), 100),
        (None, 100),
        # One image that the model gets right is not covered.
        (FLOOR, 99),
    ],
)
def test_below_the_floor(effort: Effort | None, images: int) -> None:
    found = row([attack("pgd"), attack("a@d", index=RIGHT[:images], fooled=100, effort=effort)])
    assert found["rank"] is None and found["not_ranked_reason"] == "below-floor"
    assert found["robust_accuracy_at_fpr_5"] > 0.8 and found["robust_accuracy_is_upper_bound"] == 1


def test_the_floor_is_about_all_ranked_images_and_enough_of_them() -> None:
    attacks = [attack("pgd"), attack("a@d", index=RIGHT[:60])]
    seed = SeedResult(sources(), attacks, [detector(attacks)])

    def first(count: int) -> Row:
        return row_of(leaderboard_rows([seed], THREAT, Protocol("digest"), ranked=count))

    # The ranking is about the first images, and the attack covers those.
    assert (first(60)["rank"], first(60)["n_images"]) == (1, 60)
    assert first(61)["not_ranked_reason"] == "below-floor"
    assert first(FLOOR_IMAGES - 1)["not_ranked_reason"] == "below-floor"
    assert "attacked 60 of 61 images" in str(first(61)["flags"])
    assert all(str(n) in floor_text() for n in (FLOOR.steps, FLOOR.restarts, FLOOR.queries, FLOOR_IMAGES))


@pytest.mark.parametrize(
    ("adaptive", "reason"),
    [
        ([], "no-adaptive-attack"),
        # Of another detector, of a larger budget, in another norm: none of them is under this threat.
        ([attack("a@other")], "no-adaptive-attack"),
        ([attack("a@d", eps=2 * EPS)], "no-adaptive-attack"),
        ([attack("a@d", norm="l2")], "no-adaptive-attack"),
        ([attack("a@d", eps=EPS / 2)], "adaptive-below-threat"),
        ([attack("a@d", flags=("zero-gradient",))], "zero-gradient"),
        ([attack("a@d", flags=("non-finite-gradient",))], "non-finite-gradient"),
    ],
)
def test_what_takes_the_rank_of_a_row_is_its_reason(adaptive: list[PerturbationResult], reason: str) -> None:
    rows = board([attack("pgd"), *adaptive])
    found = row_of(rows)
    assert found["rank"] is None and found["not_ranked_reason"] == reason
    assert found["robust_accuracy_at_fpr_5"] > 0.8 and found["robust_accuracy_is_upper_bound"] == 1
    assert row_of(rows, "none")["rank"] == 1


@pytest.mark.parametrize("flag", ["adaptive-incomplete", "adaptive-unchecked"])
def test_a_check_at_the_large_budget_that_failed_or_lacks_takes_the_rank(flag: str) -> None:
    attacks = [attack("pgd"), attack("a@d")]
    found = row(attacks, flags=(flag, "at the large budget: 3 of 40"))
    assert found["rank"] is None and found["not_ranked_reason"] == flag
    assert found["flags"] == f"{flag}; at the large budget: 3 of 40"


def test_an_adaptive_attack_that_failed_leaves_no_number() -> None:
    dead = PerturbationResult("a@d", "adaptive", "x", "l", "linf", EPS, "d", reason="it fell over")
    found = row([attack("pgd"), dead])
    assert found["rank"] is found["robust_accuracy_at_fpr_5"] is found["robust_accuracy_is_upper_bound"] is None
    assert found["not_ranked_reason"] == "a@d is missing: it fell over"
    # A second one that ran does not say what the first would have found.
    found = row([attack("pgd"), dead, attack("b@d")])
    assert found["robust_accuracy_at_fpr_5"] is None and found["not_ranked_reason"] == "a@d is missing: it fell over"


def test_a_seed_that_is_missing_takes_the_rank_of_all_rows() -> None:
    attacks = [attack("pgd"), attack("a@d")]
    one = SeedResult(sources(), attacks, [detector(attacks)])
    rows = leaderboard_rows([one], THREAT, Protocol("digest"), missing={3: "out; of memory"})
    for found in rows:
        assert found["rank"] is None and found["not_ranked_reason"] == "seed 3 is missing: out, of memory"
        assert found["robust_accuracy_at_fpr_5"] is not None and found["seeds"] == "0"


def test_a_model_without_gradients_has_black_box_rows_only() -> None:
    white = PerturbationResult("pgd", "attack", "x", "l", "linf", EPS, reason="no gradient", inapplicable=True)
    attacks = [white, attack("square", fooled=70), attack("a@d", fooled=90)]
    rows = board(attacks, detector(attacks, scores=0.0), s=sources(gradient=False))
    for found in rows:
        assert found["rank"] is None and str(found["not_ranked_reason"]).startswith("black-box-only")
        assert found["robust_accuracy_is_upper_bound"] == 1
        # What does not apply is not missing.
        assert "pgd" not in str(found["flags"])
    assert row_of(rows)["robust_accuracy_at_fpr_5"] == pytest.approx(10 / E)


def test_randomness_of_the_model_is_said_in_all_rows_and_takes_no_rank() -> None:
    attacks = [attack("noise", kind="noise", flags=("randomised-model",)), attack("pgd"), attack("a@d")]
    for found in board(attacks):
        assert found["rank"] is not None and found["flags"] == "randomised-model"


@pytest.mark.parametrize("flag", [NEAR_CHANCE, NO_WEIGHTS])
def test_a_model_near_chance_has_no_ranked_row_and_says_why(flag: str) -> None:
    attacks = [attack("pgd"), attack("a@d")]
    for found in board(attacks, s=replace(sources(), flags=(flag,))):
        assert (found["rank"], found["not_ranked_reason"], found["flags"]) == (None, flag, flag)
        assert found["robust_accuracy_at_fpr_5"] is not None


@pytest.mark.parametrize("flag", [PROBABILITIES, LOG_PROBABILITIES, BATCH_DEPENDENT, RANDOMISED_MODEL])
def test_what_is_doubtful_about_a_model_stands_once_in_all_its_rows_and_takes_no_rank(flag: str) -> None:
    attacks = [attack("pgd", flags=(flag,)), attack("a@d")]
    for found in board(attacks, s=replace(sources(), flags=(flag,))):
        assert found["rank"] is not None and found["flags"] == flag


# The row without a detector


def test_none_has_a_number_only_where_an_attack_counts() -> None:
    adaptive = [attack("noise", kind="noise"), attack("a@d")]
    rows = board(adaptive)
    none = row_of(rows, "none")
    assert none["rank"] is none["robust_accuracy_at_fpr_5"] is None
    assert none["not_ranked_reason"] == "no-attack"
    assert row_of(rows)["rank"] == 1
    unapplied = PerturbationResult("cw", "attack", "x", "l", "l2", None, reason="two classes", inapplicable=True)
    assert row_of(board([unapplied, *adaptive]), "none")["not_ranked_reason"] == "no-attack"


def test_none_is_not_ranked_where_an_adaptive_attack_fools_more() -> None:
    rows = board([attack("pgd", fooled=40), attack("a@d")])
    none = row_of(rows, "none")
    assert none["not_ranked_reason"] == "weaker-than-adaptive:a@d" and none["robust_accuracy_is_upper_bound"] == 1
    # A few images more are chance, and more of them beyond the threat prove nothing.
    for adaptive in (attack("a@d", fooled=42), attack("a@d", eps=2 * EPS)):
        assert row_of(board([attack("pgd", fooled=40), adaptive]), "none")["rank"] is not None
    # All oblivious attacks count together.
    halves = [attack("one", index=RIGHT[:50]), attack("two", index=RIGHT[50:]), attack("a@d")]
    assert "weaker" not in str(row_of(board(halves), "none")["not_ranked_reason"])


# Marks of the number


@pytest.mark.parametrize("flag", ["unconverged", "limit"])
def test_an_attack_that_was_not_at_its_end_gives_an_upper_bound_where_an_image_stands(flag: str) -> None:
    attacks = [attack("pgd"), attack("a@d", flags=(flag,))]
    standing, fallen = row(attacks), row(attacks, scores=0.0)
    # It keeps its rank: this is about how low the number may still fall.
    assert standing["rank"] == fallen["rank"] == 1
    assert standing["flags"] == fallen["flags"] == flag
    assert (standing["robust_accuracy_is_upper_bound"], fallen["robust_accuracy_is_upper_bound"]) == (1, 0)
    # The row without a detector: only where no other attack fools the rest.
    late = attack("slow", fooled=60, flags=(flag,))
    alone, both = (row_of(board([*more, late, attack("a@d", fooled=60)]), "none") for more in ([], [attack("pgd")]))
    assert (alone["flags"], alone["robust_accuracy_is_upper_bound"], alone["rank"]) == (flag, 1, 2)
    assert (both["flags"], both["robust_accuracy_is_upper_bound"]) == ("", 0)


def test_flags_of_an_adaptive_attack_stand_in_the_row_of_its_detector_only() -> None:
    attacks = [
        attack("pgd", flags=("weaker-than-black-box:square",)),
        attack("a@d", flags=("unconverged", "weaker-than-smaller-budget:b@d")),
        attack("a@other"),
    ]
    rows = board(attacks, detector(attacks), detector(attacks, "other"))
    assert row_of(rows)["flags"] == "unconverged; weaker-than-smaller-budget:b@d"
    assert row_of(rows, "other")["flags"] == row_of(rows, "none")["flags"] == ""
    # Nor do those of an attack beyond the threat.
    assert row([attack("pgd"), attack("a@d"), attack("b@d", eps=2 * EPS, flags=("unconverged",))])["flags"] == ""


def test_ties_at_the_threshold() -> None:
    attacks = [attack("pgd"), attack("a@d")]

    def tied(count: int) -> str:
        calibrate = np.sort(np.arange(M) / M)
        t = int(np.ceil(0.95 * (M + 1))) - 1
        calibrate[t - count + 1 : t + 1] = calibrate[t]
        return str(row(attacks, calibrate=calibrate)["flags"])

    assert tied(2) == "" and tied(3) == "ties-at-threshold"
    constant = row(attacks, calibrate=np.zeros(M), scores=0.0)
    assert constant["flags"] == "ties-at-threshold" and constant["rank"] == 1
    # The row without a detector has one score by construction.
    assert row_of(board(attacks), "none")["flags"] == ""


def test_harmless_images_that_are_flagged_are_counted_by_their_lower_bound() -> None:
    def flagged(share: float, images: int, kind: str) -> str:
        index = RIGHT[:images]
        scores = np.where(np.arange(images) < share * images, 2.0, 0.0)
        if kind == "control":
            attacks = [attack("pgd", index=index, control_index=index), attack("a@d")]
            return str(row(attacks, control={"pgd": scores})["flags"])
        attacks = [attack("pgd"), attack("a@d"), attack("blur", index=index, fooled=0, kind=kind)]
        return str(row(attacks, scores={"blur": scores})["flags"])

    # 55 of 100: the lower bound of the share is below one half; 65 of 100: above.
    for kind, name in (("control", "control-flagged"), ("corruption", "benign-flagged"), ("noise", "benign-flagged")):
        assert name not in flagged(0.55, 100, kind) and name in flagged(0.65, 100, kind)
        assert name in flagged(1.0, 30, kind) and name not in flagged(1.0, 29, kind)


def test_tpr_at_fpr_1_is_that_of_the_worst_attack() -> None:
    attacks = [attack("pgd"), attack("a@d"), attack("few", fooled=29), attack("a@other")]
    half = np.where(RIGHT < 50, 3.0, 0.5)
    scores = {"pgd": half, "a@d": 3.0, "few": 0.0, "a@other": 0.0}
    calibrate = np.arange(1000) / 1000
    s = replace(
        sources(), calibrate_index=np.arange(1000), calibrate_label=np.zeros(1000, np.int64),
        calibrate_prediction=np.zeros(1000, np.int64),
    )  # fmt: skip
    found = row_of(board(attacks, detector(attacks, scores=scores, calibrate=calibrate), s=s))
    # Neither an attack on another detector nor one with fewer than 30 successes counts.
    assert found["tpr_at_fpr_1"] == pytest.approx(0.5)
    # A threshold at FPR 1 % needs 1000 calibrate images.
    assert row(attacks, scores=scores)["tpr_at_fpr_1"] is None


# Rounding


def test_rounded_images_count_in_the_worst_case() -> None:
    """A detector that flags what is not on the 8-bit grid is fooled by images that were saved."""
    plain = [attack("pgd"), attack("a@d")]
    rounded = RoundedResult("8-bit", RIGHT * 0 + 1, RIGHT < 90, {"linf": np.full(100, EPS)})
    saved = [attack("pgd"), attack("a@d", rounded=[rounded])]
    assert row(plain)["robust_accuracy_at_fpr_5"] == pytest.approx(100 / E)
    # The scores of rounded images are 0: they pass.
    assert row(saved)["robust_accuracy_at_fpr_5"] == pytest.approx(10 / E)
    far = replace(rounded, norms={"linf": np.where(RIGHT < 50, EPS, EPS + 0.01)})
    assert row([attack("pgd"), attack("a@d", rounded=[far])])["robust_accuracy_at_fpr_5"] == pytest.approx(50 / E)
    # The model itself, too: an image that is fooled only when it is saved does not stand.
    missed = [attack("pgd", fooled=0, rounded=[rounded]), attack("a@d", fooled=0)]
    assert row_of(board(missed), "none")["robust_accuracy_at_fpr_5"] == pytest.approx(10 / E)
    failed = [attack("pgd"), attack("a@d", rounded=[RoundedResult("8-bit", reason="it failed")])]
    found = row_of(board(failed, detector(failed, rounded={})))
    assert found["robust_accuracy_at_fpr_5"] is None


# Order and ranks


def test_rows_are_ranked_ones_then_those_with_a_number_then_the_others() -> None:
    names = ("low", "high", "unranked", "failed")
    attacks = [attack("pgd"), *(attack(f"a@{name}") for name in names if name != "unranked")]
    passing = np.where(RIGHT < 70, 0.0, 2.0)
    rows = board(
        attacks, detector(attacks, "low", passing), detector(attacks, "high"), detector(attacks, "unranked"),
        DetectorResult("failed", reason="no memory"),
    )  # fmt: skip
    assert [(r["detector"], r["rank"]) for r in rows] == [
        ("high", 1), ("low", 2), ("none", 3), ("unranked", None), ("failed", None),
    ]  # fmt: skip
    assert rows == sorted(rows, key=place)
    assert rows[-1]["not_ranked_reason"] == "no memory"


def test_ranks_do_not_fall_down_the_list_and_numbers_do_not_depend_on_other_rows() -> None:
    draws = np.random.default_rng(0)
    names = [f"d{i}" for i in range(8)]
    attacks = [attack("pgd"), *(attack(f"a@{name}") for name in names)]
    detectors = [
        detector(attacks, name, {f"a@{name}": np.where(draws.random(100) < i / 10, 0.0, 2.0)})
        for i, name in enumerate(names)
    ]
    rows = board(attacks, *detectors)
    ranks = [r["rank"] for r in rows]
    assert ranks[0] == 1 and ranks == sorted(ranks) and len(set(ranks)) > 2
    accuracies = [r["robust_accuracy_at_fpr_5"] for r in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    for one in detectors:
        alone = row_of(board(attacks, one), one.label)
        places = {"rank": 0, "accuracy_rank": 0}
        assert {**alone, **places} == {**row_of(rows, one.label), **places}
    # A rank says how many rows are better, so it may move: alone, a row has none above it.
    assert row_of(rows, "d7")["rank"] > 1 == row_of(board(attacks, detectors[7]), "d7")["rank"]


def test_flags_of_one_seed_are_those_of_its_attacks() -> None:
    attacks = [attack("pgd"), attack("a@d", index=RIGHT[:70], fooled=70)]
    seed = SeedResult(sources(), attacks, [detector(attacks)])
    assert attack_flags(seed, seed.detectors[0], 60, THREAT) == []
    assert attack_flags(seed, seed.detectors[0], E, THREAT) == ["below-floor", "a@d attacked 70 of 100 images"]
    assert reasons(["ties-at-threshold", "below-floor", "a is missing: x", "below-floor"], ["y"]) == [
        "below-floor", "a is missing: x", "y",
    ]  # fmt: skip
    # A name is compared whole: neither the model's randomness nor an attack's label is the detector's flag.
    assert reasons(["randomised-model", "below-floor-attack attacked 3 of 4 images"], []) == []
    assert reasons(["randomised", "score-depends-on-process: it ended"], []) == [
        "randomised", "score-depends-on-process: it ended",
    ]  # fmt: skip
    assert is_upper_bound(["limit"], 0.5) and not is_upper_bound(["limited attacked 3 of 4 images"], 0.5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"eps": 0.1}, "linf at 0.1"),
        ({"norm": "l2"}, "l2 at 0.3"),
        ({"steps": 49}, "steps = 49"),
        ({"restarts": 1}, "restarts = 1"),
        ({"queries": 99}, "queries = 99"),
        ({"images": 49}, "images = 49"),
        ({"name": "pgd"}, "no attack knows"),
    ],
)
def test_what_keeps_all_rows_of_a_suite_from_a_rank_is_said_before_it_runs(change: dict[str, object], why: str) -> None:
    attack = {"name": "adaptive", "eps": 0.3, "steps": 50, "restarts": 2, "queries": 100, "images": 50} | change
    if attack["name"] == "pgd":
        attack = {"name": "pgd", "eps": 0.3}
    suite = load_suite(
        {
            "name": "a",
            "data": {"name": "digits", "fit": 100, "calibrate": 200, "evaluate": 100},
            "threat": {"norm": "linf", "eps": 0.3},
            "models": [{"name": "mlp"}],
            "perturbations": [attack],
            "detectors": [{"name": "msp"}],
        }
    )
    facts = {label: perturbation_facts(made) for label, made in make_perturbations(suite).items()}
    found = unranked_suite(suite, facts, 200, 100)
    assert why in found if why else not found
    assert "200 calibrate images" in unranked_suite(suite, facts, 199, 100)


def test_the_floor_asks_steps_and_restarts_of_one_attack() -> None:
    assert reaches_floor([Effort(50, 2, 0), Effort(0, 0, 100)])
    assert not reaches_floor([Effort(50, 1, 100), Effort(1, 2, 0)])
    # Steps that cannot cross the budget are none.
    assert SurrogateAttack(0.2, steps=50, restarts=2).effort == Effort(50, 2)
    assert SurrogateAttack(0.2, steps=50, restarts=2, step_size=1e-6).effort == Effort()
    assert WorstCase(0.2).is_checked and not WorstCase(0.2, large_eps=0.3).is_checked
