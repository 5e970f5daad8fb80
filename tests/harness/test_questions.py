"""Questions after a run: loading it, its images, and the commands show, compare and export."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aftershock
import numpy as np
import pytest
from aftershock import UsageError
from aftershock.harness.core.formats import seal
from aftershock.harness.core.registry import DATASETS
from aftershock.reports.read.run_directory import mapping, read_facts
from PIL import Image
from support.commands import Forks

THREAT = 0.2
MISSES = "mahalanobis"


@pytest.fixture(scope="module")
def run(quick_run: Path) -> aftershock.Run:
    return aftershock.load(quick_run)


def resealed(source: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run whose run.json somebody changed who knows its checksum."""
    shutil.copytree(source, to, symlinks=True)
    facts = dict(read_facts(to))
    facts.pop("checksum")
    change(facts)
    (to / "run.json").write_bytes(seal(facts))
    return to


def test_a_loaded_run_is_the_one_that_was_run(run: aftershock.Run, quick_run: Path) -> None:
    assert run.folder == quick_run and run.computed == 0 and not run.failed
    assert set(run.leaderboard["detector"]) == {"bits-on-pgd", "bits-hamming", "mahalanobis", "none"}
    for name in ("metrics", "scores", "perturbations", "attacks", "timings", "radii", "rejection_curve", "past_all"):
        assert list(getattr(run, name).columns), name
    assert run.report.name == "index.html"
    assert "<table>" in run._repr_html_() and "bits-hamming" in run._repr_html_()
    assert r"\toprule" in run.to_latex() and "| Rank |" in run.to_markdown()


def test_a_run_writes_pictures_of_its_images_and_of_worst_cases(run: aftershock.Run, quick_run: Path) -> None:
    index = json.loads((quick_run / "gallery/index.json").read_text())
    sheets = {(s["kind"], s["name"]): s for s in index["sheets"]}
    files = {f.relative_to(quick_run).as_posix() for f in (quick_run / "gallery").iterdir()}
    assert files == {name for name in mapping(read_facts(quick_run)["files"]) if name.startswith("gallery/")}
    assert len(files) == len(sheets) + 1
    # The first that fool the model, in the order of the evaluate set, as they are.
    label = f"pgd[eps={THREAT}]"
    shown, found = sheets["perturbation", label], run.images(label, limit=12)
    assert [i["index"] for i in shown["images"]] == found.index.tolist()
    pixels = np.asarray(Image.open(quick_run / "gallery" / shown["file"]))
    assert pixels.shape == (12 * 8, 4 * 8)
    for row, image in enumerate(shown["images"]):
        columns = [pixels[8 * row : 8 * row + 8, 8 * c : 8 * c + 8] for c in range(4)]
        assert found.clean is not None
        assert np.array_equal(columns[0], (found.clean[row, 0] * 255).round())
        assert np.array_equal(columns[1], (found.perturbed[row, 0] * 255).round())
        assert image["success"] and image["prediction"] == found.prediction[row] != image["label"]
        assert image["scores"][MISSES] == pytest.approx(found.scores[MISSES][row], rel=1e-5)
        assert (MISSES in image["flagged"]) == found.flagged[MISSES][row]
    # The lowest scores of what fools the model within the budget, each image once.
    worst = [(i["perturbation"], i["index"], i["scores"][MISSES]) for i in sheets["detector", MISSES]["images"]]
    rows = run.tables.scores
    rows = rows[(rows["set"] == "perturbed") & (rows["detector"] == MISSES) & (rows["success"] == 1)]
    rows = rows[rows["linf"] <= THREAT * (1 + 1e-5)]
    lowest = rows.groupby("index")["score"].min().sort_values()[:6]
    assert [score for *_, score in worst] == pytest.approx(lowest.tolist(), rel=1e-5)
    assert len({i for _, i, _ in worst}) == 6


def test_the_images_that_a_detector_misses(run: aftershock.Run) -> None:
    found = run.images("pgd", missed_by=MISSES)
    assert found.perturbation == f"pgd[eps={THREAT}]" and len(found) > 10
    assert found.clean is not None and found.difference is not None and not found.note
    assert found.perturbed.dtype == np.float32 and found.perturbed.shape[1:] == (1, 8, 8)
    assert found.perturbed.min() >= 0 and found.perturbed.max() <= 1
    assert np.abs(found.difference).max() <= THREAT + 1e-5
    assert np.abs(found.difference).reshape(len(found), -1).max(1) == pytest.approx(found.norms["linf"], abs=1e-5)
    test = DATASETS.get("digits")(None).load().test
    assert (found.clean == test.images(found.index.tolist()).numpy()).all()
    assert (found.label == test.labels(found.index.tolist()).numpy()).all()
    assert (found.prediction != found.label).all() and (found.clean_prediction == found.label).all()
    assert (found.scores[MISSES] <= found.thresholds[MISSES]).all() and not found.flagged[MISSES].any()
    # Noise of equal size: another image, as far away as the perturbed one.
    own = found.has_control
    away = np.abs(found.control - found.clean)[own].max((1, 2, 3))
    assert own.mean() > 0.5 and away == pytest.approx(found.norms["linf"][own], rel=1e-5)
    assert np.isnan(found.control[~own]).all()


def test_the_model_says_of_the_images_what_the_tables_say(run: aftershock.Run, quick_run: Path) -> None:
    import torch

    found = run.images("fgsm", outcome="all")
    model = aftershock.load_model(quick_run)
    with torch.no_grad():
        predicted = model(torch.from_numpy(found.perturbed)).argmax(1).numpy()
    assert (predicted == found.prediction).all() and ((predicted != found.label) == found.success).all()


def test_images_without_their_data_are_there_all_the_same(quick_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(root: Path) -> None:
        raise UsageError("There are no digits here.")

    monkeypatch.setattr(DATASETS.entry("digits"), "target", absent)
    found = aftershock.load(quick_run).images("pgd", limit=3)
    assert found.clean is None and found.difference is None
    assert found.note == "The clean images are not at hand: There are no digits here."
    assert found.perturbed.shape == (3, 1, 8, 8)


def test_other_data_of_the_same_name_are_not_taken_for_the_clean_images(
    quick_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DATASETS.get("digits")

    def other(root: Path) -> Any:
        source = real(root)
        whole = source.load()
        test = type(whole.test)(1 - whole.test.images(), whole.test.labels())
        from dataclasses import replace

        return replace(source, load=lambda: replace(whole, test=test))

    monkeypatch.setattr(DATASETS.entry("digits"), "target", other)
    found = aftershock.load(quick_run).images("pgd", limit=3)
    assert found.clean is None and "are not the run's" in found.note


def test_a_curve_and_a_figure_of_each_kind(run: aftershock.Run) -> None:
    assert 0.5 < run.roc("bits-hamming", "pgd").auroc <= 1
    for figure in (
        run.figures.roc(["bits-hamming", "mahalanobis"], "adaptive"), run.figures.scores("mahalanobis", "pgd"),
        run.figures.budget("pgd", "mahalanobis"),
    ):  # fmt: skip
        assert figure.data and figure.layout.title.text
    with pytest.raises(UsageError, match=r"no measure|no row"):
        run.figures.propagation(metric="nothing")
    assert run.compare("bits-hamming", "mahalanobis").beyond_chance
    assert "equal" in run.compare(run).sentences[0]


def test_references_are_of_the_parts_that_were_used(run: aftershock.Run) -> None:
    text = run.to_bibtex()
    for key in ("aftershock", "madry2018", "goodfellow2015", "jamil2023", "lee2018mahalanobis", "tramer2020adaptive"):
        assert f"{{{key},\n" in text
    assert "feinman2017" not in text
    assert text.count("{madry2018,") == 1


@pytest.mark.parametrize("arguments", [(), ("--missed-by", MISSES, "--perturbation", "pgd", "--class", "3")])
def test_show_answers_in_eighty_columns(forks: Forks, quick_run: Path, arguments: tuple[str, ...]) -> None:
    said = forks("show", str(quick_run), *arguments, cwd=quick_run)
    assert said.status == 0, said.output
    assert max(map(len, said.output.splitlines())) <= 80


def test_show_answers_as_data(forks: Forks, quick_run: Path) -> None:
    asked = ("show", str(quick_run), "--detector", MISSES, "--perturbation", "pgd", "--format")
    value = json.loads(forks(*asked, "json", cwd=quick_run).output)
    rows = list(csv.DictReader(io.StringIO(forks(*asked, "csv", cwd=quick_run).output)))
    assert value["title"] and len(rows) == len(value["images"]) > 0
    assert list(rows[0]) == list(value["images"][0])


def test_show_writes_images_to_look_at_and_arrays(
    forks: Forks, quick_run: Path, run: aftershock.Run, tmp_path: Path
) -> None:
    asked = ("--perturbation", "pgd", "--missed-by", MISSES, "--limit", "3", "--images", "seen")
    assert forks("show", str(quick_run), *asked, cwd=tmp_path).status == 0
    found = run.images("pgd", missed_by=MISSES, limit=3)
    pictures = sorted((tmp_path / "seen").glob("*.png"))
    assert len(pictures) == 3 and all(f"index-{i}" in p.name for i, p in zip(found.index, pictures, strict=True))
    with Image.open(pictures[0]) as picture:
        levels = np.asarray(picture.convert("L"))
    assert found.clean is not None
    # Four panels of 8 x 8 pixels, each 16 x 16 times as large, with gaps of 8 pixels.
    assert levels.shape == (128, 4 * 128 + 3 * 8)
    for at, image in enumerate((found.clean[0], found.perturbed[0], None, found.control[0])):
        if image is not None:
            panel = levels[8::16, at * 136 + 8 : at * 136 + 128 : 16]
            assert np.abs(panel / 255 - image[0]).max() < 0.003
    with np.load(tmp_path / "seen" / "images.npz", allow_pickle=False) as arrays:
        assert (arrays["perturbed"] == found.perturbed).all() and (arrays["index"] == found.index).all()
        assert arrays["scores"][:, list(arrays["detectors"]).index(MISSES)] == pytest.approx(found.scores[MISSES])
    with (tmp_path / "seen" / "index.csv").open(encoding="utf-8") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == [p.name for p in pictures]
    again = forks("show", str(quick_run), *asked, cwd=tmp_path)
    assert again.status == 2 and "not empty" in again.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("show", "RUN", "--perturbation", "pdg"), "did you mean 'pgd'"),
        (("show", "detectr", "msp"), "did you mean 'detector'"),
        (("show", "detector", "mps"), "did you mean 'msp'"),
        (("show", "detector", "msp", "--class", "3"), "about a run"),
        (("show", "RUN", "--missed-by", MISSES), "--perturbation"),
        (("compare", "RUN"), "two runs"),
        (("compare", "RUN", "--detectors", MISSES, "msp"), "no detector 'msp'"),
        (("export", "RUN", "--to", "png"), "--out"),
        (("export", "RUN", "--to", "latex", "--table", "leaderbord"), "did you mean 'leaderboard'"),
        (("export", "RUN", "--to", "bibtex", "--class", "3"), "npz"),
    ],
)
def test_a_mistake_is_a_sentence(forks: Forks, quick_run: Path, arguments: tuple[str, ...], named: str) -> None:
    said = forks(*(str(quick_run) if a == "RUN" else a for a in arguments), cwd=quick_run)
    assert said.status == 2 and named in said.output and "Traceback" not in said.output


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("detector", "mahalanobis", ("statistic", "mean, max, std", "arXiv 1807.03888", "pooled maps")),
        ("perturbation", "pgd", ("steps", "whole number of at least 1", "arXiv:1706.06083")),
        ("model", "cnn", ("width", "16")),
        ("suite", "quick", ("cnn, mlp", "linf at most 0.2")),
    ],
)
def test_show_says_what_a_part_takes(forks: Forks, tmp_path: Path, kind: str, name: str, said: tuple[str, ...]) -> None:
    found = forks("show", kind, name, cwd=tmp_path)
    assert found.status == 0 and all(" ".join(part.split()) in " ".join(found.output.split()) for part in said)


def test_show_says_what_a_part_takes_as_data(forks: Forks, tmp_path: Path) -> None:
    value = json.loads(forks("show", "detector", "mahalanobis", "--format", "json", cwd=tmp_path).output)
    assert (value["name"], value["kind"]) == ("mahalanobis", "detector")
    assert {p["parameter"]: p["default"] for p in value["parameters"]}["statistic"] == '"mean"'


def test_compare_gives_each_figure_its_test(forks: Forks, quick_run: Path) -> None:
    asked = ("compare", str(quick_run), "--detectors", "bits-hamming", MISSES)
    rows = list(csv.DictReader(io.StringIO(forks(*asked, "--format", "csv", cwd=quick_run).output)))
    assert {row["test"] for row in rows} == {"board's paired test", "DeLong", "McNemar, exact"}
    assert "figures are equal" in forks("compare", str(quick_run), str(quick_run), cwd=quick_run).output


def test_export_writes_files(forks: Forks, quick_run: Path, tmp_path: Path, run: aftershock.Run) -> None:
    written = forks("export", str(quick_run), "--to", "latex", "--out", "table.tex", cwd=tmp_path)
    assert written.status == 0 and (tmp_path / "table.tex").read_text(encoding="utf-8") == run.to_latex()
    assert forks("export", str(quick_run), "--to", "npz", "--out", "arrays", "--limit", "2", cwd=tmp_path).status == 0
    files = sorted((tmp_path / "arrays").glob("*/images.npz"))
    assert len(files) > 5
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            assert 1 <= len(arrays["index"]) <= 2 and arrays["clean"].shape == arrays["perturbed"].shape


HOSTILE = [
    "../../../evil", "<script>alert(1)</script>", "=cmd|'/c calc'!A0", "\x1b[31mred\x1b[0m", "a\r\nb", "{}\\input",
    "CON", "", ".", "x" * 500,
]  # fmt: skip


def test_names_that_somebody_made_up_stay_names(forks: Forks, quick_run: Path, tmp_path: Path) -> None:
    def rename(facts: dict[str, Any]) -> None:
        facts["classes"], facts["name"] = HOSTILE, HOSTILE[1] + HOSTILE[3]

    hostile = resealed(quick_run, tmp_path / "hostile", rename)
    (tmp_path / "here").mkdir()
    asked = ("--perturbation", "pgd", "--limit", "40", "--images", "here/seen")
    said = forks("show", str(hostile), *asked, cwd=tmp_path)
    assert said.status == 0, said.output
    assert "\x1b" not in said.output and "\r" not in said.output
    written = [p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*")]
    assert len([p for p in written if p.suffix == ".png"]) == 40
    assert all(p.parts[0] == "seen" and len(p.parts) <= 2 and len(p.name) < 120 for p in written)
    assert {p.name for p in tmp_path.iterdir()} == {"hostile", "here"}
    page = (tmp_path / "here" / "seen" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    cells = [
        cell for row in csv.reader((tmp_path / "here" / "seen" / "index.csv").open(encoding="utf-8")) for cell in row
    ]
    assert not any(cell.startswith(("=", "@", "\t", "\r")) for cell in cells)
    assert "<script" not in aftershock.load(hostile)._repr_html_()
    assert "\\input" not in aftershock.load(hostile).to_latex()
    made = aftershock.load(hostile)
    assert not any("\x1b" in text for text in (made.to_latex(), made.to_markdown(), made.to_bibtex()))


def test_images_that_are_not_those_of_the_tables_are_refused(quick_run: Path, tmp_path: Path) -> None:
    def swap(facts: dict[str, Any]) -> None:
        for result in facts["results"]:
            made = result["perturbations"]
            made[f"pgd[eps={THREAT}]"], made["fgsm"] = made["fgsm"], made[f"pgd[eps={THREAT}]"]

    with pytest.raises(UsageError, match="not those of its tables"):
        aftershock.load(resealed(quick_run, tmp_path / "swapped", swap)).images("pgd")

    def forget(facts: dict[str, Any]) -> None:
        for result in facts["results"]:
            del result["perturbations"]

    with pytest.raises(UsageError, match="does not say where its images"):
        aftershock.load(resealed(quick_run, tmp_path / "older", forget)).images("pgd")

    def beyond(facts: dict[str, Any]) -> None:
        facts["sets"]["evaluate"] = facts["sets"]["evaluate"][:3]

    with pytest.raises(UsageError, match="not in its evaluate set"):
        aftershock.load(resealed(quick_run, tmp_path / "fewer", beyond)).images("pgd")

    def huge(facts: dict[str, Any]) -> None:
        facts["sets"]["evaluate"][0] = 10**30

    with pytest.raises(UsageError, match=r"run\.json is damaged"):
        aftershock.load(resealed(quick_run, tmp_path / "huge", huge)).images("pgd")


@pytest.mark.parametrize(
    "data",
    [
        {"name": "nothing"}, {"name": "digits", "params": {"x": 1}}, {"name": "npz", "params": {"path": "/dev/zero"}},
        {"name": "image-folder", "params": {"path": "/etc", "size": 8}},
    ],
)  # fmt: skip
def test_a_data_set_that_a_run_makes_up_gives_no_clean_images(
    quick_run: Path, tmp_path: Path, data: dict[str, Any]
) -> None:
    made_up = resealed(quick_run, tmp_path / "run", lambda facts: facts["resolved"].update(data=data))
    found = aftershock.load(made_up).images("pgd", limit=3)
    assert found.clean is None and found.note.startswith("The clean images are not at hand: ") and len(found) == 3


def test_tables_that_were_changed_are_refused(quick_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quick_run, copy)
    with (copy / "tables" / "attacks.csv").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    with pytest.raises(UsageError, match="was changed or damaged"):
        aftershock.load(copy).attacks.head()
    (copy / "tables" / "attacks.csv").unlink()
    (copy / "tables" / "attacks.csv").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="leads out"):
        aftershock.load(copy).attacks.head()


def test_nothing_is_written_through_a_link_of_a_run(forks: Forks, quick_run: Path, tmp_path: Path) -> None:
    copy, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(quick_run, copy)
    outside.mkdir()
    (copy / "seen").symlink_to(outside)
    for arguments in (
        ("show", str(copy), "--perturbation", "pgd", "--images", str(copy / "seen" / "deep")),
        ("export", str(copy), "--to", "npz", "--out", str(copy / "seen")),
        ("export", str(copy), "--to", "latex", "--out", str(copy / "seen" / "table.tex")),
    ):
        said = forks(*arguments, cwd=tmp_path)
        assert said.status == 2 and "is a link" in said.output
    assert not list(outside.iterdir())
