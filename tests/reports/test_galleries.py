"""Galleries: pictures that a run wrote, on pages of its site; those that are not what they should be are left out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.formats import seal
from aftershock.reports.read.gallery import PANELS, read_gallery
from aftershock.reports.read.run_directory import read_run
from aftershock.reports.site.build import build_site
from PIL import Image
from support.browser import Visit
from support.reports import fabricate
from support.sites import assert_whole

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIDE = 8


def png(rows: int, side: int = SIDE, kind: str = "PNG") -> bytes:
    """A sheet whose rows of panels differ in their grey."""
    levels = np.repeat(np.arange(rows * len(PANELS), dtype=np.uint8).reshape(rows, -1) * 5, side, 0).repeat(side, 1)
    made = io.BytesIO()
    Image.fromarray(levels).save(made, kind)
    return made.getvalue()


def image(index: int, flagged: list[str], **changed: object) -> dict[str, Any]:
    return {
        "perturbation": "pgd", "index": index, "label": 0, "clean_prediction": 0, "prediction": 2, "success": True,
        "linf": 0.125, "l2": 0.9, "magnified": 8.0, "panels": list(PANELS), "scores": {"msp": 0.25, "latent": -1.5},
        "flagged": flagged, **changed,
    }  # fmt: skip


def sheet(file: str, kind: str, name: str, *images: Mapping[str, Any], **changed: object) -> dict[str, Any]:
    return {"file": file, "dataset": "digits", "model": "cnn", "seed": 0, "kind": kind, "name": name, "height": SIDE,
            "width": SIDE, "step": 1, "note": "", "images": [*images], **changed}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with pictures of PGD, and of the worst cases of MSP."""
    made = fabricate(["cnn"], [0])
    made.facts["classes"] = ["cat", "dog", "<b>bird</b>"]
    folder = made.write(tmp_path / "run")
    (folder / "gallery").mkdir()
    no_control = image(9, ["msp", "latent"], panels=list(PANELS[:3]))
    sheets = [
        sheet("0001.png", "perturbation", "pgd", image(3, ["msp"]), image(7, []), no_control),
        sheet("0002.png", "detector", "msp", image(7, [])),
    ]
    (folder / "gallery/0001.png").write_bytes(png(3))
    (folder / "gallery/0002.png").write_bytes(png(1))
    write_index(folder, sheets)
    return folder


def write_index(run: Path, sheets: object) -> None:
    (run / "gallery/index.json").write_text(json.dumps({"format": 1, "sheets": sheets}))


def test_pages_show_images_with_prediction_score_and_flag(run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    assert_whole(site)
    page = (site / "perturbations/pgd.html").read_text("utf-8")
    shown = page[page.index("Examples") : page.index("Who notices")]
    assert re.findall(r'<p class="about"><b>([^<]*)</b>', shown) == ["cat, taken for &lt;b&gt;bird&lt;/b&gt;"] * 3
    assert re.findall(r"Flagged by (\d) of (\d)", shown) == [("1", "2"), ("0", "2"), ("2", "2")]
    assert re.findall(r'data-missed="([\d ]*)"', shown) == ["0", "0 1", ""]  # latent is the first of the board
    assert re.findall(r'viewBox="(\d+ \d+ 8 8)"', shown) == [
        *(f"{x} {y} 8 8" for y in (0, 8) for x in (0, 8, 16, 24)), "0 16 8 8", "8 16 8 8", "16 16 8 8"]  # fmt: skip
    assert "difference ×8" in shown and shown.count("style=") == 0
    worst = (site / "detectors/msp.html").read_text("utf-8")
    worst = worst[worst.index("Worst cases") :]
    assert "score <b>0.25</b>: missed" in worst and "by pgd" in worst and "lowest scores" in worst
    front = (site / "index.html").read_text("utf-8")
    assert re.findall(r'<section id="([a-z]+)"', front)[:3] == ["propagation", "images", "leaderboard"]
    # Each sheet is a file of the site once.
    assert sorted(f.name for f in (site / "data/gallery").iterdir()) == ["0001.png", "0002.png"]


def test_a_run_without_pictures_is_reported_without_them(run: Path, tmp_path: Path) -> None:
    for file in (run / "gallery").iterdir():
        file.unlink()
    (run / "gallery").rmdir()
    site = build_site([run], tmp_path / "site").parent
    assert 'id="images"' not in (site / "index.html").read_text("utf-8")
    assert 'class="gallery"' not in (site / "perturbations/pgd.html").read_text("utf-8")
    assert read_gallery(read_run(run)) == ([], [])


def test_without_clean_images_the_other_panels_are_shown_and_why(run: Path, tmp_path: Path) -> None:
    bare = image(3, [], panels=["perturbed", "control"], magnified=None)
    note = "The clean images are not at hand: <i>no data</i>."
    write_index(run, [sheet("0002.png", "perturbation", "pgd", bare, note=note)])
    page = (build_site([run], tmp_path / "site").parent / "perturbations/pgd.html").read_text("utf-8")
    assert re.findall(r'viewBox="(\d+) \d+ 8 8"', page) == ["8", "24"]
    assert "not at hand: &lt;i&gt;no data&lt;/i&gt;." in page


def _svg(run: Path) -> None:
    (run / "gallery/0001.png").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")


def _jpeg(run: Path) -> None:
    (run / "gallery/0001.png").write_bytes(png(3, kind="JPEG"))


def _too_wide(run: Path) -> None:
    content = bytearray(png(3))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    (run / "gallery/0001.png").write_bytes(bytes(content))


def _too_many_bytes(run: Path) -> None:
    with (run / "gallery/0001.png").open("ab") as file:
        file.truncate(5 * 2**20)


def _missing(run: Path) -> None:
    (run / "gallery/0001.png").unlink()


def _link(run: Path) -> None:
    (run.parent / "elsewhere.png").write_bytes(png(3))
    _missing(run)
    (run / "gallery/0001.png").symlink_to(run.parent / "elsewhere.png")


def _pipe(run: Path) -> None:
    _missing(run)
    os.mkfifo(run / "gallery/0001.png")


def _changed(**changed: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        index = json.loads((run / "gallery/index.json").read_text())
        index["sheets"][0] |= changed
        write_index(run, index["sheets"])

    return change


HOSTILE = {
    "an SVG": _svg, "a JPEG": _jpeg, "a header that lies": _too_wide, "five MiB": _too_many_bytes, "nothing": _missing,
    "a link out of the run": _link, "a pipe": _pipe, "a path upwards": _changed(file="../run.json"),
    "a path from the root": _changed(file="/etc/passwd"), "a side of no number": _changed(height="8"),
    "a huge side": _changed(height=10**9), "a side below one": _changed(width=0), "no image": _changed(images=[]),
    "too many images": _changed(images=[{}] * 25), "an unknown kind": _changed(kind="<script>"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_picture_that_is_none_is_left_out_and_the_others_are_shown(run: Path, what: str) -> None:
    HOSTILE[what](run)
    found, problems = read_gallery(read_run(run))
    assert [s.name for s in found] == ["msp"]
    assert len(problems) == 1 and "is left out" in problems[0]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[" * 100_000, b'{"format": 1, "format": 1}', b'{"format": 2}', b'{"format": NaN}', b"[]"],
)
def test_an_index_that_cannot_be_read_leaves_all_pictures_out(run: Path, tmp_path: Path, content: bytes) -> None:
    (run / "gallery/index.json").write_bytes(content)
    found, problems = read_gallery(read_run(run))
    assert found == [] and len(problems) == 1


def test_odd_values_of_images_are_shown_as_none(run: Path, tmp_path: Path) -> None:
    keys = ("perturbation", "index", "label", "prediction", "success", "linf", "l2", "magnified", "panels", "scores",
            "flagged")  # fmt: skip
    odd: list[object] = ["<script>", None, -1, 1e300, [], {}, True]
    (run / "gallery/0001.png").write_bytes(png(len(odd)))
    write_index(run, [sheet("0001.png", "perturbation", "pgd", *(image(3, []) | dict.fromkeys(keys, v) for v in odd))])
    page = (build_site([run], tmp_path / "site").parent / "perturbations/pgd.html").read_text("utf-8")
    assert page.count('<li data-missed="') == len(odd) and "<script>" not in page


def test_a_picture_that_was_changed_after_the_run_is_refused(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    digests = {f"gallery/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in (run / "gallery").iterdir()}
    (run / "run.json").write_bytes(seal({**facts, "files": digests}))
    assert len(read_gallery(read_run(run))[0]) == 2
    (run / "gallery/0002.png").write_bytes(png(1)[:-1] + b"\0")
    with pytest.raises(UsageError, match=r"0002\.png was changed or damaged"):
        read_gallery(read_run(run))


def test_in_a_browser_a_gallery_shows_what_a_detector_misses(browser: Browser, run: Path, tmp_path: Path) -> None:
    site = build_site([run], tmp_path / "site").parent
    visit = Visit(browser, site / "perturbations/pgd.html", width=390)
    tab = visit.tab
    shown = tab.locator(".gallery li:visible .about .faint")
    assert shown.count() == 3
    tab.select_option("[data-missed-by]", label="msp")
    assert [text.split(" · ")[0] for text in shown.all_inner_texts()] == ["image 7"]
    assert tab.locator(".gallery .count").inner_text() == "1 of 3 images"
    tab.select_option("[data-missed-by]", label="latent")
    assert [text.split(" · ")[0] for text in shown.all_inner_texts()] == ["image 3", "image 7"]
    tab.select_option("[data-missed-by]", label="all images")
    assert shown.count() == 3
    # Pixels stay squares, and nothing widens a narrow page.
    assert tab.evaluate("getComputedStyle(document.querySelector('.pixels image')).imageRendering") == "pixelated"
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert visit.wrong == [] and visit.elsewhere == []
