"""The pages of detectors and perturbations, names of pages, figures, and how a site replaces an older one."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.part_descriptions import builtin_parts
from aftershock.reports.read.run_directory import Run, read_run
from aftershock.reports.site.build import build_site, site_of
from aftershock.reports.site.drawing import Chart, Line, drawn, round_ticks
from aftershock.reports.site.pages import page_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from support.browser import Visit
from support.columns import COLUMNS
from support.reports import fabricate
from support.sites import pages_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Labels that lead elsewhere, or are alike on some file system.
LABELS = [
    "index",
    "Index",
    "..",
    "../../up",
    "a/b",
    "a b",
    "A B",
    "con",
    "NUL",
    "",
    "é",
    "x" * 400,
    "<b>",
    "a\x00b",
    ".",
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=12))
def test_pages_have_names_that_every_file_system_takes_and_tells_apart(titles: list[str]) -> None:
    for given_titles in (titles, LABELS):
        paths = page_paths("detectors", given_titles)
        assert len({path.casefold() for path in paths}) == len(given_titles)
        assert all(re.fullmatch(r"detectors/[A-Za-z0-9][A-Za-z0-9_-]{0,100}\.html", path) for path in paths)
        stems = {path.partition("/")[2].removesuffix(".html").casefold() for path in paths}
        assert not stems & {"index", "con", "nul", "aux", "com1"}


def write_scores(run: Path, detectors: Sequence[str], label: str = "msp") -> None:
    """Scores of one model: clean ones around 0, fooling ones around 2, noise in between."""
    draw = random.Random(1)
    lines = [",".join(COLUMNS["scores"])]
    for detector in detectors:
        for kind, perturbation, centre in (
            ("calibrate", "none", 0.0), ("clean", "none", 0.0), ("perturbed", "pgd", 2.0), ("control", "pgd", 1.0),
            ("perturbed", f"adaptive@{detector}", -1.0), ("perturbed", "adaptive@other", 3.0),
        ):  # fmt: skip
            for index in range(210 if kind == "calibrate" else 60):
                fooled = int(kind == "perturbed")
                cells: dict[str, object] = {
                    "dataset": "digits", "model": "cnn", "seed": 0, "perturbation": perturbation, "detector": detector,
                    "index": index, "label": index % 3, "clean_prediction": index % 3,
                    "prediction": (index + fooled) % 3, "set": kind, "score": draw.gauss(centre, 0.5),
                    "flagged_at_fpr_5": 0, "success": fooled if kind in ("perturbed", "control") else "",
                    **dict.fromkeys(("l0", "l1", "l2", "linf"), 0.1),
                }  # fmt: skip
                lines.append(",".join(str(cells[c]) for c in COLUMNS["scores"]))
    (run / "tables/scores.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = fabricate(["cnn"], [0])
    made.facts["resolved"] = {"detectors": [
        {"label": "msp", "name": "msp", "params": {"temperature": 2.5}, "fit_on": []},
        {"label": "bits-on-pgd", "name": "bitvector", "params": {"method": "logistic"}, "fit_on": ["pgd"]},
        {"label": "latent", "name": "bitvector", "params": {"method": "logistic"}, "fit_on": ["fgsm"]},
    ]}  # fmt: skip
    made.facts["classes"] = ["cat", "dog", "<b>bird</b>"]
    # What is said of images that fool the model is not mixed with what is said of all.
    made.rows["metrics"] += [row | {"outcome": outcome, "auroc": 0.111} for row in list(made.rows["metrics"])
                             for outcome in ("failed", "all") if row.get("auroc")]  # fmt: skip
    folder = made.write(tmp_path / "run")
    write_scores(folder, ["msp"])
    return folder


def test_a_detectors_page_says_what_it_is_and_shows_its_row_scores_and_classes(run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    page = (site / "detectors/msp.html").read_text("utf-8")
    said = builtin_parts()["detectors"]["msp"]
    assert said["summary"] in page and "<dt>temperature</dt><dd>2.5</dd>" in page
    assert "<b>34.7\u202f%</b>" in page and "../index.html#board=digits-cnn" in page
    # ROC curves of PGD and of the attack that knows it, not of attacks on others.
    legend = page[page.index("ROC curves") : page.index("<figcaption>Seed 0")]
    assert "adaptive@msp" in legend and "adaptive@other" not in legend and "pgd" in legend
    metrics = {(r.text("negatives"), r.text("outcome")): r.number("auroc") for r in read_run(run).rows("metrics")
               if (r.text("detector"), r.text("perturbation")) == ("msp", "pgd")}  # fmt: skip
    assert f"AUROC {metrics['clean', 'success']:.3f}" in legend and metrics["clean", "all"] == 0.111
    assert page.count('<svg class="chart" viewBox="0 0 380 220"') == 2
    classes = page[page.index("By class") :]
    assert [c for c in ("0 cat", "1 dog", "2 &lt;b&gt;bird&lt;/b&gt;") if c in classes] == [
        "0 cat", "1 dog", "2 &lt;b&gt;bird&lt;/b&gt;"]  # fmt: skip
    # All but the tail of PGD lies above the threshold, and none of the adaptive attack.
    flagged = re.findall(r'<td class="number (?:fooling|adaptive)_flagged" data-sort="([\d.]+)"', classes)
    assert len(flagged) == 6
    assert all(float(v) > 0.8 for v in flagged[::2]) and all(float(v) < 0.05 for v in flagged[1::2])
    matrix = (site / "detectors/latent.html").read_text("utf-8")
    assert "Fitted on, tested on" in matrix and "bits-on-pgd (fitted on pgd)" in matrix
    assert "Fitted on, tested on" not in page
    assert "no scores" not in matrix and '<svg class="chart" viewBox' not in matrix  # without scores no figures


def test_a_perturbations_page_says_what_it_did_and_who_notices(run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    page = (site / "perturbations/pgd.html").read_text("utf-8")
    rows = re.findall(r'<td class="text detector" data-sort="([^"]*)"', page)
    assert rows == ["latent", "codeshift", "mahalanobis", "bits-on-pgd", "energy", "msp", "kde"]
    assert 'href="../detectors/latent.html"' in page and 'href="../models/digits-cnn.html"' in page
    with (site / "data/perturbation-pgd/noticed-1.csv").open() as stream:
        assert stream.readline().startswith("detector,perturbation,seen,n,auroc,control,tpr,undetected")
    index = (site / "perturbations/index.html").read_text("utf-8")
    assert re.findall(r'href="\.\./perturbations/([a-z]+)\.html">', index) == [
        "gaussian", "fgsm", "pgd", "cw", "deepfool"]  # fmt: skip


def test_the_site_offers_the_sources_of_its_parts_as_bibtex(run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    found = (site / "data/sources/references.bib").read_text("utf-8")
    assert found.startswith("@software{aftershock,") and "% bitvector" in found and found.count("@") >= 3
    assert 'href="data/sources/references.bib"' in (site / "index.html").read_text("utf-8")


def test_scores_that_cannot_be_read_cost_the_figures_alone(run: Path, tmp_path: Path) -> None:
    (run / "tables/scores.csv.gz").write_bytes(b"no gzip")
    page = (build_site([run], tmp_path / "site").parent / "detectors/msp.html").read_text("utf-8")
    assert "ROC curves" not in page and "What it notices" in page


def test_more_detectors_than_pages_are_rows_all_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftershock.reports.site.detector_pages.PAGES", 2)
    monkeypatch.setattr("aftershock.reports.site.model_pages.DETECTORS", 3)
    site = build_site([run], tmp_path / "site").parent
    assert {p.name for p in (site / "detectors").iterdir()} == {"index.html", "latent.html", "codeshift.html"}
    assert "5 more have no page" in (site / "detectors/index.html").read_text("utf-8")
    model = (site / "models/digits-cnn.html").read_text("utf-8")
    assert "4 more are in the files" in model
    index = (site / "index.html").read_text("utf-8")
    assert index.count('data-label="Detector"') == 8 and index.count('href="detectors/') == 3  # two, and the menu


def test_a_board_is_made_of_values_that_come_from_no_directory(run: Path) -> None:
    read = read_run(run)
    rows = Run(Path("nowhere"), {"name": "entries"}, {"leaderboard": read.rows("leaderboard")})
    files, failed = site_of([rows])
    assert failed == []
    index = files["index.html"].decode()
    assert index.count('data-label="Detector"') == 8 and "is alone on the first rank" in index
    assert b"34.7" in files["detectors/msp.html"] and b"toprule" in files["data/digits-cnn/leaderboard.tex"]


def test_a_site_removes_what_it_made_before_and_nothing_else(run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    (site / "detectors/mine.html").write_text("mine")
    changed = site / "detectors/kde.html"
    changed.write_text(changed.read_text() + "<!-- notes -->")
    table = run / "tables/leaderboard.csv"
    kept = [line for line in table.read_text().splitlines() if ",kde," not in line and ",msp," not in line]
    table.write_text("\n".join(kept))
    for name in ("metrics",):
        table = run / f"tables/{name}.csv"
        lines = table.read_text().splitlines()
        table.write_text("\n".join(line for line in lines if ",kde," not in line and ",msp," not in line))
    build_site([run], site)
    left = {p.name for p in (site / "detectors").iterdir()}
    assert "msp.html" not in left and {"mine.html", "kde.html", "latent.html"} <= left
    assert not (site / "data/detector-msp").exists()


@pytest.mark.parametrize("path", ["../precious", "/etc/passwd", "data/../../precious", ".hidden", "data", "a/b/c/d/e"])
def test_a_list_of_files_from_a_stranger_removes_nothing_outside(run: Path, tmp_path: Path, path: str) -> None:
    import hashlib

    site = tmp_path / "site"
    site.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (site / ".hidden").write_text("kept")
    digest = hashlib.sha256(b"kept").hexdigest()
    (site / "files.json").write_text(json.dumps({path: digest, "x": 3, "link/precious": digest}))
    (site / "link").symlink_to(tmp_path)
    build_site([run], site)
    assert precious.read_text() == "kept" and (site / ".hidden").read_text() == "kept"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"a": "b"}', b"[" * 100_000])
def test_a_damaged_list_of_files_is_no_reason_to_fail(run: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/files.json").write_bytes(content)
    build_site([run], tmp_path / "site")
    assert "index.html" in json.loads((tmp_path / "site/files.json").read_text())


@pytest.mark.parametrize("folder", ["assets", "data", "models", "detectors", "perturbations"])
def test_no_folder_of_a_site_may_be_a_link(run: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        build_site([run], tmp_path / "site")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_charts_are_well_formed_and_texts_in_them_stay_texts() -> None:
    hostile = '"><script>alert(1)</script>&'
    line = Line(hostile, [(0.0, 0.0), (math.nan, 1.0), (0.5, math.inf), (1.0, 1.0)], 9, True,
                [(0.5, 0.5, 0.25, 0.75), (math.nan, 0.0, None, None)], hostile, True)  # fmt: skip
    svg = str(drawn(Chart(hostile, hostile, hostile, [(0.5, hostile)], [(0.5, hostile)], (0.0, 1.0), (0.0, 1.0), [line],
                          [(0.5, hostile)], True, hostile)))  # fmt: skip
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == hostile and not list(root.iter("script"))
    marks = list(root.iter("circle"))
    assert len(marks) == 1 and not re.search(r"nan|inf", svg)
    assert [label for _, label in round_ticks(0.0, 1.0)] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert round_ticks(1.0, 1.0) == round_ticks(math.nan, 1.0) == []


def test_in_a_browser_figures_are_downloaded_as_svg_and_png(browser: Browser, run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    visit = Visit(browser, site / "detectors/msp.html", wait_for=".figure-files")
    for kind, begins in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with visit.tab.expect_download() as found:
            visit.tab.locator("figure.drawn").first.get_by_role("button", name=kind).click()
        found.value.save_as(tmp_path / "file")
        assert found.value.suggested_filename == f"roc-curves-seed-0.{kind.lower()}"
        assert (tmp_path / "file").read_bytes().startswith(begins)
        if kind == "SVG":
            text = (tmp_path / "file").read_text("utf-8")
            assert "var(" not in text and "class=" not in text
            ET.fromstring(text)
    visit.tab.goto((site / "models/digits-cnn.html").as_uri())
    visit.tab.wait_for_selector("#curve-plot .scatterlayer .trace")
    with visit.tab.expect_download() as found:
        visit.tab.locator("#curves .figure-files").get_by_role("button", name="SVG").click()
    found.value.save_as(tmp_path / "file")
    ET.fromstring((tmp_path / "file").read_text("utf-8"))
    assert visit.wrong == [] and visit.elsewhere == []


def test_in_a_browser_plots_are_drawn_at_the_width_of_paper(browser: Browser, run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    visit = Visit(browser, site / "models/digits-cnn.html", 1400, "#curve-plot .scatterlayer .trace")
    wide = "document.querySelector('#curve-plot .main-svg').getBoundingClientRect().width"
    before = visit.tab.evaluate(wide)
    visit.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.tab.evaluate(wide) <= 720 < before
    visit.tab.evaluate("dispatchEvent(new Event('afterprint'))")
    visit.tab.wait_for_function(f"{wide} == {before}")
    assert visit.wrong == []


def test_in_a_browser_no_page_has_a_serious_violation_of_accessibility(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    site = build_site([run], tmp_path / "site").parent
    shown = ["index.html", "detectors/msp.html", "models/digits-cnn.html", "perturbations/pgd.html", "reading.html"]
    assert set(shown) <= set(pages_of(site))
    for path, scheme in [*((path, "light") for path in shown), *((path, "dark") for path in shown[:2])]:
        tab = browser.new_context(color_scheme=scheme, offline=True).new_page()  # type: ignore[arg-type]
        tab.goto((site / path).as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        found = axe.Axe().run(tab).response["violations"]
        serious = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], f"{path}, {scheme}"
        tab.context.close()
