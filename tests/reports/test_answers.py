"""Answers from tables whose truth is planted: which images, how many, and what differs beyond chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from aftershock.harness.cli.answer_text import as_csv
from aftershock.harness.core.errors import UsageError
from aftershock.harness.evaluation.csv_files import COLUMNS, write_csv
from aftershock.reports.answers.bibliography import bibtex
from aftershock.reports.answers.comparison import paired_share
from aftershock.reports.answers.detectors import compare_detectors
from aftershock.reports.answers.names import perturbation_of
from aftershock.reports.answers.roc import roc
from aftershock.reports.answers.runs import compare_runs
from aftershock.reports.answers.selection import OUTCOMES, select
from aftershock.reports.answers.summaries import about_parts, attack_numbers, class_numbers, overview
from aftershock.reports.read.frames import RunTables
from scipy.stats import binomtest
from support.planted_runs import EVALUATE, RANKED, Planted, World, write_run

THREE = World(detectors={
    "strong": Planted(0.05), "weak": Planted(0.7), "same": Planted(0.7, same_as="weak"),
})  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    return RunTables.read(write_run(tmp_path_factory.mktemp("planted") / "run", THREE.results(*THREE.detectors)))


def missed(tables: RunTables, detector: str) -> pd.DataFrame:
    """The images of the adaptive attack that fool the model and pass, from the raw table."""
    rows = tables.scores
    rows = rows[(rows["detector"] == detector) & (rows["perturbation"] == f"adaptive@{detector}")]
    return rows[(rows["set"] == "perturbed") & (rows["success"] == 1) & (rows["flagged_at_fpr_5"] == 0)]


@pytest.mark.parametrize("detector", THREE.detectors)
def test_the_images_that_a_detector_misses(planted: RunTables, detector: str) -> None:
    found = select(planted, "adaptive", missed_by=detector)
    assert found.perturbation == f"adaptive@{detector}"
    assert found.images["index"].tolist() == missed(planted, detector)["index"].tolist()
    assert not found.flagged[detector].any()
    assert (found.scores[detector] <= found.thresholds[detector]).all()
    some = select(planted, "adaptive", missed_by=detector, cls="3")
    assert set(some.images["label"]) == {3}
    assert len(select(planted, "adaptive", missed_by=detector, limit=2)) == 2


def test_all_images_are_those_that_fool_and_those_that_do_not(planted: RunTables) -> None:
    counts = [len(select(planted, "pgd", outcome=outcome)) for outcome in OUTCOMES]
    assert (
        counts[0] + counts[1]
        == counts[2]
        == len(planted.scores.query("detector == 'weak' and perturbation == 'pgd'")) - 5
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"perturbation": "pdg"}, "did you mean 'pgd'"),
        ({"perturbation": "pgd", "missed_by": "wek"}, "did you mean 'weak'"),
        ({"perturbation": "pgd", "model": "cnm"}, "did you mean 'cnn'"),
        ({"perturbation": "pgd", "seed": 3}, "no seed 3"),
        ({"perturbation": "pgd", "cls": "cat"}, "no class 'cat'"),
        ({"perturbation": "pgd", "cls": "-1"}, "no class '-1'"),
        ({"perturbation": "pgd", "limit": 0}, "limit = 0"),
        ({"perturbation": "pgd", "outcome": "any"}, "success, failed, all"),
        ({"perturbation": "adaptive"}, "may mean"),
    ],
)
def test_a_name_that_is_none_is_a_sentence(planted: RunTables, arguments: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        select(planted, **arguments)  # type: ignore[arg-type]


def test_numbers_are_shares_of_the_scores(planted: RunTables) -> None:
    rows = attack_numbers(planted).set_index(["perturbation", "detector"])
    of = rows.loc["adaptive@weak", "weak"]
    assert of["fooled"] == 1
    assert of["undetected"] == pytest.approx(len(missed(planted, "weak")) / of["n"])
    assert of["flagged"] == pytest.approx(1 - of["undetected"])
    # What was made against one detector says nothing of another.
    assert ("adaptive@weak", "strong") not in rows.index
    classes = class_numbers(planted, "adaptive@weak", "weak").set_index("class")
    assert (classes["undetected"] * classes["n"]).sum() == pytest.approx(len(missed(planted, "weak")))
    metrics = planted.metrics.query("outcome == 'success' and negatives == 'clean' and detector == 'weak'")
    assert of["auroc"] == pytest.approx(metrics.query("perturbation == 'adaptive@weak'")["auroc"].iloc[0])


def test_the_overview_names_who_flags_most(planted: RunTables) -> None:
    frame = overview(planted).sections[0].frame.set_index("perturbation")
    assert frame.loc["adaptive@strong", "most_by"] == "strong"
    assert frame.loc["adaptive@strong", "fooled"] == 1
    assert len(about_parts(planted, "weak", None, None).sections[0].frame) == 3


def test_a_better_detector_is_better_and_the_same_one_is_not(planted: RunTables) -> None:
    frame = compare_detectors(planted, "strong", "weak").frame.set_index(["figure", "about"])
    robust = frame.loc["robust_accuracy_at_fpr_5", ""]
    assert robust["p_holm"] < 0.001 and robust["difference"] > 0.4
    board = planted.leaderboard.set_index("detector")["robust_accuracy_at_fpr_5"]
    assert (robust["first"], robust["second"]) == (pytest.approx(board["strong"]), pytest.approx(board["weak"]))
    own = frame.loc["undetected_success_at_fpr_5", "adaptive@own"]
    assert own["p"] < 1e-6 and own["first"] < own["second"]
    same = compare_detectors(planted, "same", "weak").frame.set_index("figure")
    assert same.loc["robust_accuracy_at_fpr_5", "p"] == 1
    assert not compare_detectors(planted, "same", "weak").beyond_chance
    none = compare_detectors(planted, "strong", "none").frame
    assert none["figure"].tolist() == ["robust_accuracy_at_fpr_5"] and none["p"][0] < 0.001


def test_one_detector_twice_is_no_comparison(planted: RunTables) -> None:
    with pytest.raises(UsageError, match="two detectors"):
        compare_detectors(planted, "weak", "weak")


def test_mcnemars_test_is_a_binomial_one() -> None:
    draws = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([[0], range(80)], names=["seed", "index"])
    first, second = (pd.Series((draws.random(80) < share).astype(int), index) for share in (0.7, 0.4))
    a, b, found, n = paired_share(first, second.iloc[::-1])
    more, less = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    assert found.p == pytest.approx(binomtest(more, more + less).pvalue)
    assert (a, b, n) == (first.mean(), second.mean(), 80)
    assert found.low < a - b < found.high
    # The same images three times are not more images.
    seeds = [pd.concat({s: of.droplevel("seed") for s in range(3)}, names=["seed"]) for of in (first, second)]
    assert paired_share(*seeds)[2].p == pytest.approx(found.p) and paired_share(*seeds)[3] == 80


def test_a_run_equals_itself(planted: RunTables) -> None:
    found = compare_runs(planted, planted)
    assert found.figures and not found.changes
    assert (found.frame["p"] == 1).all()
    assert "equal" in found.sentences[0]


def test_what_changed_between_two_runs_is_found_on_the_same_images(planted: RunTables, tmp_path: Path) -> None:
    changed = World(detectors={**THREE.detectors, "strong": Planted(0.8, same_as="strong")})
    other = RunTables.read(write_run(tmp_path / "other", changed.results(*changed.detectors)))
    found = compare_runs(planted, other)
    beyond = {(f.what, f.about) for f in found.beyond_chance}
    assert ("robust_accuracy_at_fpr_5", "strong") in beyond
    assert all("weak" not in about and "same" not in about for _, about in beyond)
    assert all("not paired" not in f.test for f in found.figures)


def test_runs_on_other_images_are_compared_by_intervals(planted: RunTables, tmp_path: Path) -> None:
    fewer = World(evaluate=EVALUATE - 20, detectors={"strong": Planted(0.05), "gone": Planted(0.2)})
    other = RunTables.read(write_run(tmp_path / "other", fewer.results(*fewer.detectors), ranked=RANKED - 10))
    found = compare_runs(planted, other)
    robust = next(f for f in found.figures if f.what == "robust_accuracy_at_fpr_5" and f.about == "strong")
    assert "not paired" in robust.test and robust.difference.p > 0.05
    assert any("gone" in note for note in found.notes) and any("weak" in note for note in found.notes)


def test_a_roc_curve_holds_its_area_and_its_threshold(planted: RunTables) -> None:
    found = roc(planted, "weak", "adaptive")
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(found.auroc, abs=1e-9)
    own = planted.scores.query("detector == 'weak'")
    clean = own[(own["set"] == "clean") & (own["label"] == own["prediction"])]
    assert found.at_threshold[0] == pytest.approx((clean["flagged_at_fpr_5"] == 1).mean())
    assert found.interval[0] <= found.auroc <= found.interval[1]
    # Every point is one of the curve: nothing between two neighbours.
    at = np.searchsorted(-found.scores, -found.threshold, "left")
    assert (found.fpr[at], found.tpr[at]) == pytest.approx(found.at_threshold)


def test_a_group_of_budgets_means_that_of_the_threat(planted: RunTables) -> None:
    rows = planted.attacks
    rows = rows[rows["perturbation"] == "pgd"]
    tables = RunTables(planted.folder, {})
    several = pd.concat([rows.assign(perturbation=f"pgd[eps={e:g}]", group="pgd", eps=e) for e in (0.01, 8 / 255, 0.1)])
    named = planted.perturbations.assign(perturbation="x")
    tables.__dict__.update(attacks=several, perturbations=named, leaderboard=planted.leaderboard)
    assert perturbation_of(tables, "pgd") == f"pgd[eps={8 / 255:g}]"


def test_names_that_mean_something_elsewhere_are_names(tmp_path: Path) -> None:
    odd = World(detectors={"=1+1": Planted(0.3), "<script>": Planted(0.3), "@a,b": Planted(0.3)})
    tables = RunTables.read(write_run(tmp_path / "run", odd.results(*odd.detectors)))
    for name in odd.detectors:
        found = select(tables, "adaptive", missed_by=name)
        assert found.perturbation == f"adaptive@{name}" and len(found) == len(missed(tables, name)) > 0
    text = as_csv(attack_numbers(tables))
    assert "'=1+1" in text and ",=1+1" not in text
    frame = compare_detectors(tables, "=1+1", "<script>")
    assert "<script>" not in frame._repr_html_()


def test_the_price_is_compared_by_the_distances_of_the_same_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", THREE.results(*THREE.detectors), price=1.5)
    near = np.random.default_rng(0).uniform(0.01, 0.02, 30)
    rows = [
        {
            "dataset": "digits",
            "model": "cnn",
            "seed": 0,
            "detector": d,
            "index": i,
            "r0": r,
            "rd": r * factor,
            "reach": 1,
        }
        for d, factor in (("strong", 2.0), ("weak", 1.0), ("same", 1.0))
        for i, r in enumerate(near.tolist())
    ]
    write_csv(run / "tables" / "radii.csv", COLUMNS["radii"], rows)
    tables = RunTables.read(run)
    found = compare_detectors(tables, "weak", "strong")
    price = next(f for f in found.figures if f.what == "price")
    assert price.difference.p == pytest.approx(binomtest(0, 30).pvalue) and price.n == 30
    assert "strong is passed at a larger distance than weak for 30 pairs" in found.notes[0]
    same = next(f for f in compare_detectors(tables, "weak", "same").figures if f.what == "price")
    assert same.difference.p == 1
    assert "rony2021alma" in bibtex(tables)
