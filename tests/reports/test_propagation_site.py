"""Propagation on the site: attack over noise by depth, where the two part, and what is said where they do not."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aftershock.reports.read.run_directory import Row, read_run
from aftershock.reports.site.amplification import Amplification, amplification, foremost, readable, sentences
from aftershock.reports.site.build import build_site
from support.browser import Visit
from support.reports import Tables, fabricate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NOISE = (0.2, 0.15, 0.25)  # mean and range at every depth


def plant(
    made: Tables, perturbation: str, ratios: Sequence[float], n: int = 100, seed: int = 0, spread: float = 0.1
) -> None:
    """Add an attack that is so many times as far from its clean images as noise is."""
    for depth, ratio in enumerate(ratios):
        key = {"dataset": "digits", "model": "cnn", "seed": seed, "perturbation": perturbation, "depth": depth,
               "tap": f"block{depth}.relu", "metric": "relative_l2", "n": n}  # fmt: skip
        mean = NOISE[0] * ratio
        made.add("propagation", **key, population="control", mean=NOISE[0], q05=NOISE[1], q50=NOISE[0], q95=NOISE[2])
        made.add("propagation", **key, population="success", mean=mean, q05=mean * (1 - spread), q50=mean,
                 q95=mean * (1 + spread))  # fmt: skip


def planted() -> Tables:
    made = fabricate(["cnn"], [0])
    made.rows["propagation"] = []
    return made


def rows_of(made: Tables, folder: Path) -> Sequence[Row]:
    return read_run(made.write(folder)).rows("propagation")


def found_in(made: Tables, folder: Path) -> Amplification:
    found = amplification(rows_of(made, folder), {})
    assert found is not None
    return found


def test_the_depth_from_which_an_attack_is_amplified_more_is_found_with_its_ratios(tmp_path: Path) -> None:
    made = planted()
    plant(made, "pgd", [1.0, 1.2, 3.0, 3.4])
    found = found_in(made, tmp_path / "run")
    (pgd,) = found.perturbations
    assert [round(d.ratio, 6) for d in pgd.depths if d] == [1.0, 1.2, 3.0, 3.4]
    assert (pgd.apart, pgd.images) == ((2, 3), 100)
    (sentence,) = sentences(found, pgd)
    assert sentence.startswith("From block2 (depth 3 of 4) on, pgd is amplified 3.0 to 3.4 times as much as noise")


@pytest.mark.parametrize(
    ("ratios", "spread", "said"),
    [
        ([3, 3, 3, 3], 0.1, "At every depth, pgd is amplified 3.0 times"),
        ([1, 1, 1, 3], 0.1, "At block3 (the last of 4), pgd is amplified 3.0 times"),
        ([1, 2, 4, 1], 0.1, "From block1 to block2 (depths 2 to 3 of 4), pgd is amplified 2.0 to 4.0 times"),
        # Twice as far on average, but the ranges hold each other's mean.
        ([2, 2, 2, 2], 0.6, "At no depth is pgd amplified more than noise of its norm beyond the spread of images: it "
                            "moves the activations 2.0 times as far."),
        # Less than noise is not more.
        ([0.2, 0.2, 0.2, 0.2], 0.1, "At no depth"),
    ],
)  # fmt: skip
def test_the_sentence_says_where_and_where_it_is_within_the_spread_that_it_is(
    tmp_path: Path, ratios: Sequence[float], spread: float, said: str
) -> None:
    made = planted()
    plant(made, "pgd", ratios, spread=spread)
    found = found_in(made, tmp_path / "run")
    assert sentences(found, found.perturbations[0])[0].startswith(said)


def test_seeds_must_agree_and_those_of_few_images_do_not_count(tmp_path: Path) -> None:
    made = planted()
    plant(made, "pgd", [3.0, 3.0], seed=0)
    plant(made, "pgd", [1.1, 3.0], seed=1)
    plant(made, "fgsm", [3.0, 3.0], seed=0)
    plant(made, "fgsm", [1.0, 1.0], seed=1, n=29)
    plant(made, "cw", [5.0, 5.0], n=29)
    found = found_in(made, tmp_path / "run")
    assert {a.perturbation: a.apart for a in found.perturbations} == {"pgd": (1, 1), "fgsm": (0, 1)}
    assert [(a.perturbation, a.reason) for a in found.left_out] == [
        ("cw", "29 images that fool the model and have a control, fewer than 30")
    ]


def test_without_noise_to_compare_with_nothing_is_said(tmp_path: Path) -> None:
    made = planted()
    plant(made, "pgd", [3.0, 3.0])
    made.rows["propagation"] = [r for r in made.rows["propagation"] if r["population"] != "control"]
    assert amplification(rows_of(made, tmp_path / "run"), {}) is None
    assert 'id="propagation"' not in page_of(tmp_path / "run")


def test_noise_that_moves_nothing_gives_no_ratio(tmp_path: Path) -> None:
    made = planted()
    plant(made, "pgd", [3.0, 3.0])
    for row in made.rows["propagation"]:
        if row["population"] == "control" and row["depth"] == 0:
            row |= {"mean": 0, "q05": 0, "q95": 0}
    (pgd,) = found_in(made, tmp_path / "run").perturbations
    assert pgd.depths[0] is None and pgd.apart == (1, 1)


def test_the_figure_is_about_the_strongest_attack_at_the_budget_that_knows_no_detector(tmp_path: Path) -> None:
    made = planted()
    for name, n in (("cw", 190), ("fgsm", 90), ("pgd", 150), ("adaptive@msp", 196)):
        plant(made, name, [3.0], n=n)
    found = found_in(made, tmp_path / "run")
    assert [getattr(foremost(found, at), "perturbation", None) for at in ({"fgsm", "pgd"}, set())] == ["pgd", "cw"]


def test_names_of_taps_are_shortened_only_where_they_stay_different() -> None:
    assert readable(["relu", "layer1.0.relu", "layer1.0.relu:2", "layer1.0.relu:11"]) == [
        "relu", "layer1.0", "layer1.0 (2nd)", "layer1.0 (11th)"]  # fmt: skip
    assert readable(["a.relu", "b.conv"]) == ["a.relu", "b.conv"]
    assert readable(["a", "a.relu"]) == ["a", "a.relu"]
    assert readable(["x:<b>", "y:0"]) == ["x (<b>)", "y (0)"]


def page_of(run: Path) -> str:
    return build_site([run], run / "site").read_text("utf-8")


def test_propagation_is_second_on_the_front_page_and_first_on_the_models(tmp_path: Path) -> None:
    made = planted()
    plant(made, "pgd", [1.0, 1.0, 3.0])
    plant(made, "gaussian", [1.0, 1.0, 1.0], n=4)
    plant(made, "adaptive@msp", [1.0, 2.0, 2.0])
    page = page_of(made.write(tmp_path / "run"))
    assert re.findall(r'<section id="([a-z]+)"', page)[:2] == ["propagation", "leaderboard"]
    said = html.unescape(page)
    assert "From block2" not in said and "At block2 (the last of 3), pgd is amplified 3.0 times" in said
    assert "Left out: gaussian: 4 images that fool the model and have a control, fewer than 30." in said
    # One bar where the two part for each of the perturbations; what knows a detector is folded away.
    folded = page[page.index("1 more: attacks that know a detector") :]
    assert page.count("they part here") == 2 and folded.count("they part here") == 1
    model = (tmp_path / "run/site/models/digits-cnn.html").read_text("utf-8")
    assert re.findall(r'<section id="([a-z]+)"', model)[0] == "propagation"
    table = (tmp_path / "run/site/data/digits-cnn/amplification.csv").read_text("utf-8").splitlines()
    assert table == ["perturbation,images,block0,block1,block2,beyond the spread from", "pgd,100,1,1,3,block2",
                     "adaptive@msp,100,1,2,2,block1"]  # fmt: skip


def test_curves_of_fewer_than_30_images_are_left_out_and_counted(tmp_path: Path) -> None:
    made = planted()
    plant(made, "pgd", [1.0, 3.0], n=29)
    page_of(made.write(tmp_path / "run"))
    model = (tmp_path / "run/site/models/digits-cnn.html").read_text("utf-8")
    assert "2 curves of fewer than 30 images left out" in model and "curve-data" not in model
    assert "<li>pgd, images that fool the model: 29 images</li>" in model


def test_in_a_browser_attacks_that_know_a_detector_are_one_choice(browser: Browser, tmp_path: Path) -> None:
    made = planted()
    for name in ("pgd", "adaptive@msp", "adaptive@<b>x"):
        plant(made, name, [1.0, 3.0])
    page_of(made.write(tmp_path / "run"))
    visit = Visit(browser, tmp_path / "run/site/models/digits-cnn.html", wait_for="#curve-plot .main-svg")
    tab = visit.tab
    assert tab.locator("#curve-chips .chip").all_inner_texts() == ["pgd"]
    assert tab.locator("#curve-knowing option").all_inner_texts() == ["none", "adaptive@msp", "adaptive@<b>x"]
    tab.select_option("#curve-knowing", label="adaptive@<b>x")
    tab.wait_for_function("document.querySelector('#curve-plot').textContent.includes('adaptive@<b>x')")
    tab.select_option("#curve-knowing", label="none")
    tab.wait_for_function("!document.querySelector('#curve-plot').textContent.includes('adaptive@')")
    assert visit.wrong == [] and visit.elsewhere == []
