"""Scores asked for again: planted differences raise their flag, honest ones and a few rounded rows none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aftershock.attacks.base.kinds import Effort
from aftershock.harness.evaluation.consistency import EVALUATIONS, consistency_flags, majority_scores, moved
from aftershock.harness.evaluation.leaderboard import Protocol
from aftershock.harness.evaluation.results import (
    DetectorResult,
    PerturbationResult,
    Rescored,
    SeedResult,
    Sources,
    Threat,
)
from aftershock.harness.evaluation.tables import leaderboard_rows, score_rows

N, M = 100, 200
ROWS = np.arange(64)
CLEAN = np.linspace(0, 1, N)
Flags = tuple[str, ...]


def rescored(scores: dict[str, np.ndarray] | None = None, rows: np.ndarray = ROWS, **reasons: str) -> Rescored:
    """Each context with one evaluation, unless more are given."""
    found = {context: np.atleast_2d(values) for context, values in (scores or {}).items()}
    return Rescored(rows, found, reasons)


def detector(again: dict[str, Rescored] | None = None, **more: Any) -> DetectorResult:
    calibrate = np.linspace(0, 1, M)
    return DetectorResult("d", calibrate=calibrate, clean=CLEAN, rescored=again or {}, **more)


def flags(rows: np.ndarray = ROWS, **contexts: np.ndarray) -> Flags:
    """The flags of a detector whose clean images were scored again in some contexts."""
    return consistency_flags(detector({"clean": rescored(contexts, rows)}), [])


def adaptive(told: np.ndarray, success: np.ndarray | None = None) -> PerturbationResult:
    success = np.ones(N, np.bool_) if success is None else success
    return PerturbationResult(
        "a@d", "adaptive", "x", "l", "linf", 0.1, "d", index=np.arange(N), prediction=success * 1, success=success,
        norms={"linf": np.full(N, 0.1)}, told=told, effort=Effort(50, 2, 100),
    )  # fmt: skip


def test_the_same_scores_everywhere_are_no_flag() -> None:
    same = CLEAN[ROWS]
    contexts = ("same", "order", "batch", "gradients", "attack", "process")
    assert flags(**dict.fromkeys(contexts, same)) == ()
    # float32 rounding, and a hundredth of the spread of clean scores.
    assert flags(**dict.fromkeys(contexts, same * (1 + 1e-6) + 0.004)) == ()


@pytest.mark.parametrize(
    ("context", "flag"),
    [
        ("order", "score-depends-on-order"),
        ("batch", "score-depends-on-batch"),
        ("gradients", "score-depends-on-caller"),
        ("attack", "score-depends-on-caller"),
        ("process", "score-depends-on-process"),
    ],
)
def test_a_context_in_which_scores_differ_is_named(context: str, flag: str) -> None:
    same = CLEAN[ROWS]
    assert flags(same=np.stack([same, same]), **{context: same + 0.1}) == (flag,)
    # Without a repeated evaluation the stored scores are what it has to agree with.
    if context in ("attack", "process"):
        assert flags(**{context: same + 0.1}) == (flag,)


def test_batches_are_the_stored_ones_against_one_whole() -> None:
    """What is stored was scored batch by batch; one batch of all rows must give the same."""
    whole = np.stack([CLEAN[ROWS] + 0.1] * 2)
    assert flags(same=whole) == ("score-depends-on-batch",)


def test_two_answers_to_one_question_are_randomised_and_nothing_else() -> None:
    draws = np.random.default_rng(0)
    drawn = CLEAN[ROWS] + draws.normal(0, 0.2, (2, 64))
    assert flags(same=drawn, order=drawn[:1] + 1, attack=drawn[:1] + 1) == ("randomised",)


def test_a_few_rows_may_differ() -> None:
    """A bit whose activation lies on its boundary may change from batch to batch."""
    for count, flag in ((2, ()), (3, ("score-depends-on-process",))):
        moved = CLEAN[ROWS] + np.where(count > ROWS, 0.3, 0.0)
        assert flags(process=moved) == flag
    # Two percent of large sets: here 4 of 200.
    for count, flag in ((4, ()), (5, ("score-depends-on-process",))):
        moved = np.linspace(0, 1, M) + np.where(np.arange(M) < count, 0.3, 0.0)
        again = {"calibrate": rescored({"process": moved}, np.arange(M))}
        assert consistency_flags(detector(again), []) == flag


def test_nothing_is_flagged_from_fewer_than_30_images() -> None:
    assert flags(ROWS[:29], process=CLEAN[:29] + 1) == ()
    assert flags(ROWS[:30], process=CLEAN[:30] + 1) == ("score-depends-on-process",)
    # Rows of several sets count together.
    sets = {name: rescored({"process": CLEAN[:15] + 1}, ROWS[:15]) for name in ("clean", "calibrate")}
    assert consistency_flags(detector(sets), []) == ("score-depends-on-process",)


def test_a_detector_without_a_threshold_has_no_flag() -> None:
    again = {"clean": rescored({"process": CLEAN[ROWS] + 1})}
    assert consistency_flags(DetectorResult("d", calibrate=CLEAN, clean=CLEAN, rescored=again), []) == ()
    assert consistency_flags(DetectorResult("d", reason="the fit failed", rescored=again), []) == ()


def test_an_attack_must_be_told_the_scores_that_count() -> None:
    scores = np.linspace(0, 2, N)
    one = detector(perturbed={"a@d": scores})

    def told(*rows: np.ndarray, success: np.ndarray | None = None) -> Flags:
        return consistency_flags(one, [adaptive(np.stack(rows), success)])

    assert told(scores, scores) == ()
    # Either time: in its loop, or of its final images.
    assert told(scores, scores + 1) == told(scores + 1, scores) == ("score-depends-on-caller",)
    # Nothing is known of images that it did not fool, or of which it was told nothing.
    fooled = np.arange(N) < 50
    assert told(np.where(fooled, scores, 9.0), success=fooled) == ()
    assert told(np.where(fooled, scores, np.nan)) == ()
    assert told(np.where(fooled, scores + 1, np.nan)) == ("score-depends-on-caller",)
    assert told(np.full(N, np.nan)) == consistency_flags(one, [adaptive(np.zeros((0, 0)))]) == ()
    # Infinity is an answer, and it is not the stored one; a score that is not a number differs, too.
    assert told(np.full(N, np.inf)) == told(np.full(N, -np.inf)) == ("score-depends-on-caller",)
    assert flags(process=np.full(64, np.nan)) == ("score-depends-on-process",)
    # What an attack on another detector was told says nothing about this one.
    other = DetectorResult("other", calibrate=np.linspace(0, 1, M), clean=CLEAN, perturbed={"a@d": scores + 1})
    assert consistency_flags(other, [adaptive(scores[None])]) == ()


def test_a_context_without_scores_is_a_flag_with_its_reason() -> None:
    again = {"clean": rescored(process="the process that scored it ended (status 1)", attack="ValueError: no")}
    assert consistency_flags(detector(again), []) == (
        "score-depends-on-process: the process that scored it ended (status 1)",
        "score-depends-on-caller: ValueError: no",
    )


# Detectors that declare that their scores are drawn


def drawn(chance: np.ndarray, evaluations: int = EVALUATIONS, seed: int = 0) -> np.ndarray:
    """Evaluations (k, n) that pass (0) with each image's chance, and are flagged (2) otherwise."""
    return np.where(np.random.default_rng(seed).random((evaluations, len(chance))) < chance, 0.0, 2.0)


def test_declared_randomness_is_compared_by_pass_rates() -> None:
    chance = np.linspace(0.2, 0.9, N)
    rows = np.arange(N)

    def found(**contexts: np.ndarray) -> Flags:
        one = detector({"clean": rescored({"same": drawn(chance), **contexts}, rows)}, randomised=True)
        # What is stored is one draw.
        return consistency_flags(DetectorResult(**{**vars(one), "clean": drawn(chance, 1, 9)[0]}), [])

    assert found(process=drawn(chance, seed=1), attack=drawn(chance, seed=2)) == ()
    assert found(process=drawn(chance, seed=1), attack=drawn(chance - 0.15, seed=2)) == ("score-depends-on-caller",)
    assert found(process=drawn(chance * 0, seed=1)) == ("score-depends-on-process",)
    assert found(order=drawn(chance * 0, seed=1), batch=drawn(chance, seed=3)) == ("score-depends-on-order",)


def test_honest_randomness_is_rarely_flagged() -> None:
    """Three comparisons of each of 60 detectors, at a level of .001 for each detector."""
    flagged = 0
    for seed in range(60):
        chance = np.random.default_rng(1000 + seed).random(N)
        contexts = {name: drawn(chance, seed=5 * seed + i) for i, name in enumerate(("same", "attack", "process"))}
        one = DetectorResult(
            "d", calibrate=np.linspace(0, 1, M), clean=drawn(chance, 1, 5 * seed + 4)[0],
            rescored={"clean": rescored(contexts, np.arange(N))}, randomised=True,
        )  # fmt: skip
        flagged += bool(consistency_flags(one, []))
    assert flagged <= 1


def test_a_declared_detector_is_not_called_randomised_and_must_tell_attacks_the_same() -> None:
    chance = np.full(N, 0.5)
    again = {"a@d": rescored({"same": drawn(chance)}, np.arange(N))}
    one = detector(again, perturbed={"a@d": drawn(chance, 1, 5)[0]}, randomised=True)
    assert consistency_flags(one, [adaptive(drawn(chance, seed=7))]) == ()
    assert consistency_flags(one, [adaptive(drawn(chance + 0.3, seed=7))]) == ("score-depends-on-caller",)


def test_an_image_passes_if_a_majority_of_its_evaluations_does() -> None:
    evaluations = np.full((EVALUATIONS, 3), 2.0)
    evaluations[: EVALUATIONS // 2, 0] = 0.0
    evaluations[: EVALUATIONS // 2 + 1, 1] = 0.0
    again = {"a@d": rescored({"same": evaluations}, np.array([4, 6, 8]))}
    stored = np.full(10, 1.0)
    decided = majority_scores(detector(again, randomised=True), "a@d", stored)
    # Ten of twenty are no majority; images that were not evaluated again keep their score.
    assert decided.tolist() == [1, 1, 1, 1, 2, 1, 0, 1, 2, 1]
    assert stored.tolist() == [1] * 10
    for one, source in ((detector(again), "a@d"), (detector(again, randomised=True), "pgd")):
        assert majority_scores(one, source, stored) is stored


# What follows for the row


def board(one: DetectorResult, attacks: list[PerturbationResult]) -> list[dict[str, Any]]:
    m = np.arange(M)
    s = Sources("d", "m", 0, m, m * 0, m * 0, np.arange(N), np.zeros(N, np.int64), np.zeros(N, np.int64))
    return leaderboard_rows([SeedResult(s, attacks, [one])], Threat("linf", 0.1), Protocol("digest"))


def planted(again: dict[str, Rescored], scores: np.ndarray, **more: Any) -> DetectorResult:
    one = detector(again, perturbed={"a@d": scores, "pgd": np.full(N, 2.0)}, **more)
    return DetectorResult(**{**vars(one), "clean": np.zeros(N)})


PGD = PerturbationResult(
    "pgd", "attack", "x", "l", "linf", 0.1, index=np.arange(N), prediction=np.ones(N, np.int64),
    success=np.ones(N, np.bool_), norms={"linf": np.full(N, 0.1)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("again", "ranked", "flag"),
    [
        ({"clean": rescored({"process": np.zeros(64)})}, True, ""),
        ({"clean": rescored({"process": np.ones(64)})}, False, "score-depends-on-process"),
        ({"clean": rescored({"same": np.random.default_rng(0).random((2, 64))})}, False, "randomised"),
        ({"clean": rescored(process="it ended")}, False, "score-depends-on-process: it ended"),
        # Registered in a session: no other process has it, so nothing is known of it there.
        ({"clean": rescored(process="")}, False, "unchecked-in-another-process"),
    ],
)
def test_a_row_whose_scores_disagree_keeps_its_number_and_has_no_rank(
    again: dict[str, Rescored], ranked: bool, flag: str
) -> None:
    attacks = [PGD, adaptive(np.zeros((0, 0)))]
    (found,) = [r for r in board(planted(again, np.full(N, 2.0)), attacks) if r["detector"] == "d"]
    assert found["flags"] == flag and found["robust_accuracy_at_fpr_5"] == 1.0
    assert (found["rank"], found["not_ranked_reason"]) == ((1, "") if ranked else (None, flag))


def test_majority_decides_the_worst_case_and_what_the_scores_say() -> None:
    """Stored is a draw that flags everything; most evaluations of the first 40 images pass."""
    evaluations = np.full((EVALUATIONS, N), 2.0)
    evaluations[:11, :40] = 0.5
    same = {"same": evaluations}
    one = planted({"a@d": rescored(same, np.arange(N))}, np.full(N, 2.0), randomised=True)
    attacks = [PGD, adaptive(evaluations)]
    (found,) = [r for r in board(one, attacks) if r["detector"] == "d"]
    assert found["robust_accuracy_at_fpr_5"] == pytest.approx(0.6)
    m = np.arange(M)
    s = Sources("d", "m", 0, m, m * 0, m * 0, np.arange(N), np.zeros(N, np.int64), np.zeros(N, np.int64))
    rows = [r for r in score_rows(s, attacks, one) if r[3] == "a@d"]
    assert [r[10] for r in rows] == [0.5] * 40 + [2.0] * 60


@pytest.mark.parametrize(
    "transform",
    [lambda s: s + 1e8, lambda s: s * 1e-8, lambda s: np.where(s < 0.7, s - 1e6, s), lambda s: s**3],
    ids=["offset", "tiny", "stretched", "cubed"],
)
def test_no_increasing_transform_of_a_score_hides_a_difference(transform: Callable[[np.ndarray], np.ndarray]) -> None:
    """A detector may shape its score as it likes: what is compared is its place among the clean scores."""
    honest, lies = transform(CLEAN[ROWS]), transform(np.where(ROWS % 2, CLEAN[ROWS], 0.99))
    planted = replace(detector(), calibrate=transform(np.linspace(0, 1, M)), clean=transform(CLEAN))
    for scores, expected in ((honest, ()), (lies, ("score-depends-on-process",))):
        again = {"clean": rescored({"process": scores})}
        assert consistency_flags(replace(planted, rescored=again), []) == expected


def test_a_score_within_a_tie_has_one_place() -> None:
    """Saturated scores differ in their last digit from batch to batch, which moves them past none of the others."""
    reference = np.concatenate([np.zeros(50), np.full(100, 1.0), np.linspace(2, 3, 50)])
    for jitter in (0.0, 1e-9, -1e-9):
        assert moved(reference, np.array([1.0]), np.array([1.0 + jitter])).tolist() == [0.0]
    assert moved(reference, np.array([0.0]), np.array([2.5])).item() == pytest.approx(0.5, abs=0.15)
    assert moved(reference, np.array([0.0, 1.0]), np.array([np.inf, np.nan])).tolist() == [1.0, 1.0]


def test_opposite_answers_of_a_randomised_detector_do_not_cancel() -> None:
    """Half of the images pass where the other half does not: the sums agree, the images do not."""
    one = np.where(np.arange(64) % 2, 0.0, 2.0)[None].repeat(EVALUATIONS, 0)
    draws = np.random.default_rng(0).random(one.shape) < 0.1
    same, other = np.where(draws, 2.0 - one, one), np.where(draws, one, 2.0 - one)
    honest = np.where(np.random.default_rng(1).random(one.shape) < 0.1, 2.0 - one, one)
    for process, expected in ((honest, ()), (other, ("score-depends-on-process",))):
        again = {"clean": rescored({"same": same, "process": process})}
        planted = replace(detector(again, randomised=True), clean=np.where(np.arange(N) % 2, 0.0, 2.0))
        assert consistency_flags(planted, []) == expected


def test_questions_that_were_answered_otherwise_elsewhere_are_a_flag() -> None:
    attack = adaptive(np.zeros((0, 0)))
    told, scored = np.full(N, 2.0), np.where(np.arange(N) < 50, 0.1, 2.0)
    agreed, lied = (replace(attack, questions=np.stack([told, s])) for s in (told, scored))
    planted = detector(perturbed={"a@d": np.full(N, 2.0)})
    assert consistency_flags(planted, [agreed]) == ()
    assert consistency_flags(planted, [lied]) == ("score-depends-on-caller",)
    raised = replace(attack, questions_reason="ValueError: no")
    assert consistency_flags(planted, [raised]) == ("score-depends-on-process: ValueError: no",)
