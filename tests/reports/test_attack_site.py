"""The pages about attacks.csv from fabricated runs: budget curves, their ends, 8-bit rounding, parts, and flags."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.evaluation.sanity import adaptive_flags, perturbation_flags
from aftershock.harness.statistics.intervals import wilson
from aftershock.reports.site.build import build_site
from aftershock.reports.site.flags import FLAGS, flags
from support.browser import Visit
from support.columns import COLUMNS
from support.sites import models_of, pages_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TABLES = ("leaderboard", "perturbations", "attacks")
LEVELS = (2, 4, 8, 16)
# The figure of budgets is there.
DRAWN = "#budget-plot .scatterlayer .trace"
DETECTORS = ("latent", "msp")
# Success at each level, and what share of it a detector flags.
PGD = {2: 0.25, 4: 0.5, 8: 0.9, 16: 1.0}
FGSM = {2: 0.2, 4: 0.4, 8: 0.6, 16: 0.64}
FLAGGED = {"pgd": 0.5, "fgsm": 0.75, "adaptive": 0.1}

Rows = dict[str, list[dict[str, object]]]


def fabricate(seeds: Sequence[int] = (0, 1), levels: Sequence[int] = LEVELS) -> Rows:
    """Tables of one model under two attacks and an adaptive one; the second seed lies 0.02 lower."""
    made: Rows = {name: [] for name in TABLES}
    board = {"dataset": "cifar10", "model": "resnet", "norm": "linf", "eps": 8 / 255, "protocol_digest": "d" * 64}
    for rank, detector in enumerate((*DETECTORS, "none"), 1):
        ranked = {**board, "detector": detector, "rank": "" if detector == "none" else rank}
        made["leaderboard"].append({**ranked, "robust_accuracy_at_fpr_5": 0.5 - 0.1 * rank, "surrogate": "exact"})
    for seed in seeds:
        for level in levels:
            head = {"dataset": "cifar10", "model": "resnet", "seed": seed, "norm": "linf", "eps": f"{level / 255:.6g}"}
            for group, curve in (("pgd", PGD), ("fgsm", FGSM)):
                condition(made, head, group, f"{group}[eps={level}/255]", "", curve[level] - 0.02 * seed)
            for detector in DETECTORS:
                label = f"adaptive[eps={level}/255]@{detector}"
                condition(made, head, "adaptive", label, detector, PGD[level] - 0.02 * seed)
    return made


def condition(made: Rows, head: dict[str, object], group: str, label: str, against: str, success: float) -> None:
    success = 1.0 if success >= 0.98 else success
    kind = "adaptive" if against else "attack"
    about = {**head, "perturbation": label, "kind": kind}
    made["perturbations"].append(
        {**about, "family": group, "library": "aftershock", "n": 100, "success_rate": success,
         "max_linf": head["eps"], "flags": "unconverged; weaker-than-one-step:fgsm" if label == "pgd[eps=4/255]" else
         "below-100-at-largest-budget" if label == "fgsm[eps=16/255]" else ""})  # fmt: skip
    for detector in ("none", *DETECTORS):
        flagged = 0.0 if detector == "none" else FLAGGED[group]
        rounded = (against in ("", detector)) and not (against and detector == "none")
        made["attacks"].append(
            {**about, "group": group, "against": against, "n": 100, "detector": detector, "success_rate": success,
             "flagged_at_fpr_5": flagged, "undetected_success_at_fpr_5": success * (1 - flagged),
             "success_rate_8bit": success * 0.75 if rounded else "",
             "flagged_at_fpr_5_8bit": flagged if rounded else "",
             "undetected_success_at_fpr_5_8bit": success * 0.75 * (1 - flagged) if rounded else ""})  # fmt: skip


def write(made: Rows, path: Path, leave_out: Sequence[str] = ("parts",)) -> Path:
    (path / "tables").mkdir(parents=True)
    for name, rows in made.items():
        columns = [c for c in COLUMNS[name] if name != "attacks" or c not in leave_out]
        with (path / "tables" / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    (path / "run.json").write_text(json.dumps({"name": "curves", "protocol_digest": "d" * 64}), encoding="utf-8")
    return path


def site(made: Rows, tmp_path: Path, leave_out: Sequence[str] = ("parts",)) -> str:
    """The page of the model."""
    return model_of(build_site([write(made, tmp_path / "run", leave_out)], tmp_path / "site"))


def model_of(index: Path) -> str:
    """The page of the only model of a site."""
    (page,) = models_of(index.parent)
    return page


def budgets_of(page: str) -> list[dict[str, Any]]:
    block = re.search(r'<script type="application/json" id="budget-data">(.*?)</script>', page, re.S)
    assert block
    found: list[dict[str, Any]] = json.loads(block[1])
    return found


def section(page: str, start: str, end: str) -> str:
    return page[page.index(start) : page.index(end, page.index(start))]


def texts(part: str) -> list[list[str]]:
    """The cells of the rows of some HTML."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return [[" ".join(html.unescape(re.sub(r"<[^>]+>", " ", c)).split()) for c in row] for row in cells]


def test_the_curves_hold_the_tables_numbers(tmp_path: Path) -> None:
    made = fabricate()
    (data,) = budgets_of(site(made, tmp_path))
    assert data["detectors"] == ["latent", "msp", "none"] and data["seeds"] == 2
    assert data["attacks"] == [["pgd", False], ["fgsm", False], ["adaptive", True]]
    (norm,) = data["norms"]
    assert (norm["name"], norm["unit"]) == ("L∞", "in 1/255") and norm["threat"] == pytest.approx(8, rel=1e-4)
    assert [t[1] for t in norm["ticks"]] == ["2", "4", "8", "16"]
    series = {(s[1], s[2]): s[3] for s in data["series"]}
    for d, detector in enumerate(data["detectors"]):
        for a, (attack, knows) in enumerate(data["attacks"]):
            own = [r for r in made["attacks"] if r["group"] == attack and r["detector"] == detector
                   and r["against"] == (detector if knows else "")]  # fmt: skip
            assert ((d, a) in series) == bool(own)
            for point in series.get((d, a), ()):
                here = [r for r in own if f"{round(float(str(r['eps'])) * 255)}/255" in point[1]]
                assert len(here) == 2
                columns = ("undetected_success_at_fpr_5", "success_rate", "flagged_at_fpr_5")
                for (value, low, high), column in zip(point[2:5], columns, strict=True):
                    expected = sum(float(str(r[column])) for r in here) / 2
                    assert value == pytest.approx(expected, abs=2e-5)
                    assert low <= value <= high and high - low > 0.01
                assert point[5] == 100


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 59), (58, 59), (200, 200), (1, 1)])
def test_intervals_are_wilsons(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_detection_is_a_share_of_the_fooling_images_and_empty_where_there_are_none(tmp_path: Path) -> None:
    made = fabricate([0])
    for row in made["attacks"]:
        if row["perturbation"] == "pgd[eps=2/255]":
            row.update(success_rate=0, flagged_at_fpr_5="", undetected_success_at_fpr_5=0)
    (data,) = budgets_of(site(made, tmp_path))
    points = next(s[3] for s in data["series"] if s[1:3] == [0, 0])
    assert points[0][4] == [None, None, None]
    # Half of the 50 that fool the model, of 100 that were attacked.
    assert points[1][4] == pytest.approx([0.5, *wilson(0.5, 50)], abs=2e-5)


def test_a_curve_that_stops_short_says_so(tmp_path: Path) -> None:
    page = site(fabricate([0]), tmp_path)
    (data,) = budgets_of(page)
    said = "1 of 4 curves stops short of 100\u202f% success at the largest budget: fgsm (64.0\u202f% at L∞ ≤ 16/255)."
    assert str(data["ends"]).startswith(said)
    rows = {row[0]: row for row in texts(section(page, "Where the curves end", "</table>"))[1:]}
    assert "stops short of 100 %" in rows["fgsm knows no detector"][3]
    assert rows["fgsm knows no detector"][6] == "below 100 % at the largest budget"
    assert rows["pgd knows no detector"][3].endswith("reaches 100 %")
    assert rows["adaptive against latent"][4:6] == ["10.0 %", "90.0 %"]


def test_curves_that_all_get_there_say_so_and_single_budgets_are_no_curve(tmp_path: Path) -> None:
    made = fabricate([0])
    for name in ("attacks", "perturbations"):
        made[name] = [r for r in made[name] if "fgsm" not in str(r["perturbation"])]
    (data,) = budgets_of(site(made, tmp_path / "all"))
    assert data["ends"] == "Every budget curve here reaches 100\u202f% success."
    page = site(fabricate([0], [8]), tmp_path / "one")
    assert "so there is no curve" in page and "budget-data" not in page and "Where the curves end" not in page
    assert "8-bit rounding" in page


def test_rounding_shows_the_table_before_and_after(tmp_path: Path) -> None:
    page = site(fabricate([0]), tmp_path)
    part = section(page, "<h3>8-bit rounding</h3>", '<p class="key">')
    first = texts(part[: part.index("</table>")])
    pgd = next(row for row in first if row[0] == "pgd[eps=8/255]")
    assert pgd[1].startswith("90.0 % → 67.5 % −22.5")
    assert pgd[2].startswith("50.0 % → 50.0 % 0.0")
    assert pgd[3].startswith("45.0 % → 33.8 % −11.2") or pgd[3].startswith("45.0 % → 33.7 % −11.2")
    assert any(row[0] == "adaptive[eps=8/255]@latent knows the detector" for row in first)
    assert not any("@msp" in row[0] for row in first)  # latent's table
    assert re.findall(r'<option value="\d">(.*?)</option>', part) == ["latent", "msp", "none (the model alone)"]
    assert "Largest changes: success −25.0 points (pgd[eps=16/255]); detection none;" in part


def test_older_tables_without_rounding_or_without_attacks(tmp_path: Path) -> None:
    later = ("success_rate_8bit", "flagged_at_fpr_5_8bit", "undetected_success_at_fpr_5_8bit", "parts")
    page = site(fabricate([0]), tmp_path / "a", later)
    assert "No image was measured again" in page and "<h3>8-bit rounding</h3>" not in page
    assert budgets_of(page) and "Which part of" not in page
    run = write(fabricate([0]), tmp_path / "b")
    (run / "tables/attacks.csv").unlink()
    index = build_site([run], tmp_path / "c")
    assert "tables/attacks.csv</code>" in (index.parent / "runs.html").read_text("utf-8")
    assert "so there is no curve" in model_of(index)


def with_parts(cells: dict[str, str]) -> Rows:
    made = fabricate([0, 1])
    for row in made["attacks"]:
        if row["against"] and row["eps"] == f"{8 / 255:.6g}":
            row["parts"] = cells.get(str(row["against"]), "")
    return made


def test_parts_are_shares_of_the_attacked_images_counted_once_per_seed(tmp_path: Path) -> None:
    cells = {"latent": '{"selective": 40, "selective-8-bit": 20, "search": 15}', "msp": '{"orthogonal": 100}'}
    page = site(with_parts(cells), tmp_path, ())
    part = section(page, "Which part of adaptive won", "</table>")
    rows = {row[0]: row for row in texts(part)}
    assert rows["latent"][1] == "L∞ ≤ 8/255"
    assert "selective PGD: 120;" in rows["latent"][2] and "search on the true score: 30;" in rows["latent"][2]
    assert rows["latent"][3] == "200 50 not fooled"
    assert rows["msp"][3] == "200"
    widths = [float(w) for w in re.findall(r'<svg x="[\d.]+%" width="([\d.]+)%"', part)]
    assert widths == [60.0, 15.0, 100.0]


def test_runs_that_share_a_protocol_share_their_attacks(tmp_path: Path) -> None:
    first, second = fabricate([0]), fabricate([0])
    for rows in second.values():  # the second run has the same attacks, another detector for msp, and another msp
        rows[:] = [r for r in rows if r.get("detector") != "latent" and r.get("against") != "latent"]
    for row in second["attacks"]:
        if row["detector"] == "msp":
            row["flagged_at_fpr_5"] = 0.25
    second["leaderboard"][0].update(detector="msp", robust_accuracy_at_fpr_5=0.45)
    runs = [write(first, tmp_path / "a"), write(first, tmp_path / "same"), write(second, tmp_path / "b")]
    (data,) = budgets_of(model_of(build_site(runs, tmp_path / "site")))
    assert data["detectors"] == ["msp (curves)", "latent", "msp", "none"]  # by robust accuracy
    for detector, flagged in ((0, 0.25), (2, 0.5)):
        (points,) = [s[3] for s in data["series"] if s[1:3] == [detector, 0]]
        assert len(points) == 4 and points[3][4][0] == flagged
    assert len([s for s in data["series"] if s[2] == 2]) == 3


@pytest.mark.parametrize(
    "cell", ["{", "[1]", '{"a": -1}', '{"a": 1.5}', '{"a": true}', '{"a": null}', '{"a": 1e400}', "[" * 50_000]
)
def test_malformed_parts_are_one_sentence(tmp_path: Path, cell: str) -> None:
    made = fabricate([0])
    made["attacks"][1]["parts"] = cell
    with pytest.raises(UsageError, match=r"column parts, row 3, where a JSON object of counts belongs") as caught:
        site(made, tmp_path, ())
    assert len(str(caught.value)) < 500


def test_every_flag_is_explained_once_and_every_link_has_a_target(tmp_path: Path) -> None:
    made = fabricate([0])
    made["leaderboard"][0]["flags"] = "adaptive-weaker-than:fgsm[eps=2/255]; something <b>new</b>"
    page = site(made, tmp_path)
    reading = (tmp_path / "site/reading.html").read_text("utf-8")
    ids = re.findall(r'\sid="([^"]+)"', reading)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="(?:\.\./)?reading\.html#([^"]+)"', "".join(pages_of(tmp_path / "site").values()))
    assert set(links) <= set(ids)
    assert {"flag-unconverged", "flag-weaker-than-one-step", "flag-adaptive-weaker-than"} <= set(links)
    glossary = texts(section(reading, "<h2>Flags</h2>", "</table>"))
    meaning = {row[0]: row[1:] for row in glossary}
    assert meaning["not converged"] == [FLAGS["unconverged"][1], "pgd[eps=4/255]"]
    assert meaning["weaker than one step"][1] == "pgd[eps=4/255] (fgsm)"
    assert "something <b>new</b>" in meaning
    rounding = texts(section(page, "<h3>8-bit rounding</h3>", "</table>"))
    assert next(r for r in rounding if r[0] == "pgd[eps=4/255]")[-1] == "not converged weaker than one step: fgsm"


def test_the_harness_raises_no_flag_that_the_site_does_not_know() -> None:
    said = "\n".join(f.__doc__ or "" for f in (perturbation_flags, adaptive_flags))
    names = [name.split(":")[0] for name in re.findall(r"``([a-z0-9-]+(?::LABEL)?)``", said)]
    assert len(names) >= 6
    for name in names:
        (found,) = flags(f"{name}:x" if f"{name}:LABEL" in said else name)
        assert found.key == name and found.help.endswith(".")


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "%{y}<b>x</b>")


def hostile(tmp_path: Path) -> Path:
    made = with_parts({"latent": json.dumps({HOSTILE[0]: 50, HOSTILE[1]: 20})})
    swap = {"latent": HOSTILE[0], "pgd": HOSTILE[1], "resnet": HOSTILE[2]}
    for rows in made.values():
        for row in rows:
            for column in ("detector", "against", "group", "perturbation", "model"):
                if column in row:
                    text = str(row[column])
                    row[column] = swap.get(text, text.replace("@latent", f"@{HOSTILE[0]}").replace("pgd[", HOSTILE[1]))
    made["perturbations"][0]["flags"] = HOSTILE[0]
    return build_site([write(made, tmp_path / "run", ())], tmp_path / "site")


def test_hostile_names_appear_only_escaped(tmp_path: Path) -> None:
    page = model_of(hostile(tmp_path))
    assert "<script>alert" not in page and "<img" not in page and "<b>x" not in page
    assert HOSTILE[0] in str(budgets_of(page)[0]["detectors"])
    assert f"{html.escape(HOSTILE[0])}: 50 of" in page or f"{html.escape(HOSTILE[0])}: 100 of" in page


@pytest.mark.parametrize("number", ["1e308", "-1", "nan", "1e-300", "0"])
def test_absurd_numbers_do_not_break_the_page(tmp_path: Path, number: str) -> None:
    made = fabricate([0, 1])
    for row in made["attacks"]:
        if row["group"] == "pgd":
            row.update(n=number, success_rate=number, eps=number)
        if row["group"] == "fgsm":
            row.update(flagged_at_fpr_5=number, success_rate_8bit=number, n=number)
    page = site(made, tmp_path)
    assert budgets_of(page) and "nan" not in section(page, 'id="budgets"', "</main>").lower()


def test_in_a_browser_the_figure_follows_its_choices(browser: Browser, tmp_path: Path) -> None:
    build_site([write(fabricate(), tmp_path / "run")], tmp_path / "site")
    visit = Visit(browser, tmp_path / "site/models/cifar10-resnet.html", wait_for=DRAWN)
    tab = visit.tab
    plot = tab.locator("#budget-plot")
    assert plot.locator(".scatterlayer .trace").count() == 3 + 3 + 2  # two detectors with the adaptive attack, and none
    assert "budget, L∞ in 1/255 (log scale)" in plot.inner_text() and "share of attacked images" in plot.inner_text()
    tab.get_by_role("button", name="Detection", exact=True).click()
    assert plot.get_attribute("data-measure") == "detection"
    assert plot.locator(".scatterlayer .trace").count() == 6  # `none` flags nothing
    tab.select_option("#budget-detector", label="msp")
    assert plot.get_attribute("data-measure") == "all" and plot.locator(".scatterlayer .trace").count() == 9
    tab.locator("#budget-chips").get_by_role("button", name="fgsm").click()
    assert plot.locator(".scatterlayer .trace").count() == 6
    assert "short of 100" in tab.locator("#budget-ends").inner_text()
    tab.select_option("select[data-pick]", label="msp")
    shown = tab.locator("table.rounding:visible")
    assert shown.count() == 1 and "@msp" in shown.inner_text() and "@latent" not in shown.inner_text()
    assert visit.wrong == [] and visit.elsewhere == []


def test_in_a_browser_a_narrow_hostile_page_stays_in_its_width_and_its_names_stay_names(
    browser: Browser, tmp_path: Path
) -> None:
    (model,) = (p for p in (hostile(tmp_path).parent / "models").glob("*.html") if p.name != "index.html")
    visit = Visit(browser, model, 400, wait_for=DRAWN)
    tab = visit.tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert HOSTILE[0] in str(tab.locator("#budget-plot").text_content())
    assert tab.locator("img").count() == 0 and visit.wrong == [] and visit.elsewhere == []
