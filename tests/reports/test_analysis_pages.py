"""Findings on their way from an analysis to the reader: files in the run directory, pages of the site, a browser."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from aftershock.analyses.findings import Claim, Findings, HeatMaps, Lines, Panel, Pictures, Points, Series, Table
from aftershock.harness.core.errors import UsageError
from aftershock.reports.findings import figures as analysis_figures
from aftershock.reports.findings import files as analysis_files
from aftershock.reports.findings.figures import colour_range, drawn
from aftershock.reports.findings.files import Result, findings_folder, read_findings, remove_others, write_findings
from aftershock.reports.site.build import build_site
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from support.browser import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TAPS = ["stem.relu", "block1.relu:1", "block1.relu:2", "head.relu"]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "=cmd|' /C calc'!A0",
    "%{y}<b>x</b>",
    "../../up",
]


def head_of(**other: object) -> dict[str, object]:
    return {"dataset": "digits", "model": "cnn", "seed": 0, "label": "rdm", "name": "rdm",
            "title": "Representational dissimilarity", "paper": "Kriegeskorte et al. (2008)",
            "parameters": {"images": 100, "taps": ["a", "b"]}, **other}  # fmt: skip


def sample(seed: int = 0, names: list[str] | None = None) -> Findings:
    """Findings with a figure of every kind, gaps included; ``names`` stand for all words."""
    draw = torch.Generator().manual_seed(seed)
    word = iter(names * 40) if names else None

    def say(text: str) -> str:
        return next(word) if word else text

    lines = Lines(
        say("Correlation by tap"), say("One curve per net."), [say(t) for t in TAPS], say("tap"), say("correlation"),
        [Series(say("trained"), [0.1 + seed, None, math.nan, 0.123456789012345], [0.0, None, None, 0.1],
                [0.2 + seed, None, None, 0.2]), Series(say("untrained"), [0.3, 0.2, 0.1, 0.0], style="dashed")],
    )  # fmt: skip
    path = Lines("Along the path", "Numbers on the axis.", [0, 0.25, 1], "share", "probability",
                 [Series("cat", [0.0, 0.5, 1.0])], (0.0, 1.0))  # fmt: skip
    matrices = torch.rand(2, 6, 6, generator=draw)
    matrices[0, 1, 2] = math.nan
    heat = HeatMaps(say("Dissimilarity"), say("Images by class."), [Panel(say("stem"), matrices[0]),
                    Panel(say("head"), matrices[1])], 0.0, 1.0, [(0, say("cat")), (3, say("dog"))])  # fmt: skip
    solid = Points(say("Embedding"), say("Classical scaling."), [say("first"), say("second"), say("third")],
                   torch.randn(12, 3, generator=draw), torch.arange(12) % 2, [say("cat"), say("dog")],
                   torch.randn(2, 3, 3, generator=draw), [say("fgsm"), say("pgd")])  # fmt: skip
    flat = Points(
        "Flat",
        "Two axes.",
        ["x", "y"],
        torch.randn(5, 2, generator=draw),
        torch.tensor([0, 0, 0, 1, 1]),
        ["all", "all, odd"],
    )
    images = torch.rand(2, 3, 1, 8, 8, generator=draw)
    images[1, 2] = math.nan
    pictures = Pictures(say("Decoded digits"), say("Decoder by class."), images, [say("input"), say("decoded")],
                        [say("0"), say("1"), say("2")])  # fmt: skip
    table = Table(say("correlations"), say("One row per tap."), [say("tap"), say("value"), say("count"), say("note")],
                  [[say(t), v, i, say("fine")] for i, (t, v) in enumerate(zip(TAPS, [0.1 + seed, None, math.nan,
                   0.123456789012345], strict=True))])  # fmt: skip
    told = say("The last tap correlates 0.12 with the classes.")
    return Findings([Claim("correlation", "head", {"spearman": (0.12, -0.1, 0.3)}, "none", told)],
                    [lines, heat, solid, pictures, path, flat], [table],
                    {"maps": matrices, "again": matrices[0]})  # fmt: skip


def put(run: Path, findings: Findings, **other: object) -> Path:
    run.mkdir(exist_ok=True)
    if not (run / "run.json").exists():
        (run / "run.json").write_text(json.dumps({"schema": 1, "name": "quick", "status": "done"}))
    head = head_of(**other)
    folder = findings_folder(run, head)
    write_findings(folder, head, findings)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for seed in (0, 1):
        put(tmp_path / "run", sample(seed), seed=seed)
    return tmp_path / "run"


def read_one(run: Path) -> Result:
    (found,) = read_findings(run)
    return found


def data_of(page: str) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="figure-data">(.*?)</script>', page, re.S)
    assert block
    made: dict[str, Any] = json.loads(block[1])
    return made


def unpacked(packed: Mapping[str, str]) -> np.ndarray[Any, Any]:
    values = np.frombuffer(base64.b64decode(packed["bdata"]), {"f4": "<f4"}[packed["dtype"]])
    return values.reshape([int(n) for n in packed["shape"].split(",")]) if "shape" in packed else values


def test_files_hold_every_number(tmp_path: Path) -> None:
    findings = sample()
    folder = put(tmp_path, findings)
    assert folder == tmp_path / "analyses/digits-cnn-0-rdm"
    assert sorted(f.name for f in folder.iterdir()) == ["arrays.safetensors", "correlations.csv", "decoded-digits.png",
                                                       "findings.json"]  # fmt: skip
    found = read_one(tmp_path)
    assert found.problem == "" and found.findings is not None
    assert {k: found.head[k] for k in head_of()} == head_of()
    tensors, value = findings.stored()
    again, value_again = found.findings.stored()
    assert tensors.keys() == again.keys()
    for path, tensor in tensors.items():
        torch.testing.assert_close(again[path], tensor, rtol=0, atol=0, equal_nan=True)
    assert value_again == json.loads(json.dumps(value).replace("NaN", "null"))
    assert load_file(folder / "arrays.safetensors").keys() == tensors.keys()
    with (folder / "correlations.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["tap", "value", "count", "note"], ["stem.relu", "0.1", "0", "fine"],
                    ["block1.relu:1", "", "1", "fine"], ["block1.relu:2", "", "2", "fine"],
                    ["head.relu", "0.123456789", "3", "fine"]]  # fmt: skip


def test_the_same_findings_give_the_same_bytes_and_replace_what_was_there(tmp_path: Path) -> None:
    folder = put(tmp_path, sample())
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    put(tmp_path, replace(sample(1), tables=[]))
    assert not (folder / "correlations.csv").exists()
    put(tmp_path, sample())
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


def test_a_writer_that_fails_leaves_the_old_folder_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, sample())
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def broken(figure: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(analysis_figures, "sheet", broken)
    with pytest.raises(OSError, match="disk full"):
        put(tmp_path, sample(1))
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    ragged = replace(sample(), tables=[Table("t", "", ["a", "b"], [[1]])])
    with pytest.raises(UsageError, match="not as long as its header"):
        put(tmp_path, ragged)


@pytest.mark.parametrize("value", ["", "..", "a/b", ".hidden", "-x", "a b", "ä", "a\nb", None, ["a"], "x" * 300])
@pytest.mark.parametrize("key", ["dataset", "model", "seed", "label"])
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UsageError):
        findings_folder(tmp_path, head_of(**{key: value}))
    with pytest.raises(UsageError):
        write_findings(tmp_path / "analyses/digits-cnn-0-rdm", head_of(**{key: value}), Findings())
    assert list(tmp_path.iterdir()) == []


def test_findings_without_anything_are_a_page_too(tmp_path: Path) -> None:
    put(tmp_path, Findings())
    build_site([tmp_path], tmp_path / "site")
    assert "no findings in words" in (tmp_path / "site/analyses/digits-cnn-rdm.html").read_text("utf-8")


def test_two_analyses_whose_names_run_into_each_other_do_not_overwrite(tmp_path: Path) -> None:
    put(tmp_path, sample(), model="a", seed=0, label="1-x")
    with pytest.raises(UsageError, match="holds another analysis"):
        put(tmp_path, sample(), model="a-0", seed=1, label="x")


def test_folders_and_links_of_others_are_not_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "analyses").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        put(run, sample())
    (run / "analyses").unlink()
    (run / "analyses").mkdir()
    (run / "analyses/digits-cnn-0-rdm").symlink_to(elsewhere)
    folder = put(run, sample())
    assert list(elsewhere.iterdir()) == [] and elsewhere.is_dir() and not folder.is_symlink()
    with pytest.raises(UsageError, match="is not that of"):
        write_findings(run / "analyses/other", head_of(), sample())


def test_results_of_an_earlier_suite_can_be_removed(run: Path) -> None:
    kept = findings_folder(run, head_of(seed=1))
    (run / "analyses/notes").mkdir()
    remove_others(run, [kept])
    assert sorted(f.name for f in (run / "analyses").iterdir()) == ["digits-cnn-1-rdm", "notes"]


def test_names_of_tables_and_figures_stay_in_the_folder_and_apart(tmp_path: Path) -> None:
    tables = [
        Table(n, "", ["=1+1", "@b"], [["=2", 1]]) for n in ("../../up", "a/b", "a b", "A-B", "", "findings", "..")
    ]
    shown = [Pictures(t, "", torch.rand(1, 1, 3, 4, 4)) for t in ("../x", "../X", "")]
    folder = put(tmp_path, Findings([], shown, tables))
    assert sorted(f.name for f in folder.iterdir()) == sorted(
        ["up.csv", "a-b.csv", "a-b-2.csv", "A-B-3.csv", "unnamed-5.csv", "findings.csv", "unnamed-7.csv", "x.png",
         "x-2.png", "unnamed-3.png", "findings.json", "arrays.safetensors"])  # fmt: skip
    assert (folder / "up.csv").read_text() == "'=1+1,'@b\n'=2,1\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=100), max_size=8))
def test_file_names_are_always_safe_and_different(names: list[str]) -> None:
    made = analysis_files.file_names(names, ".csv")
    assert len({m.casefold() for m in made}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*\.csv", m) for m in made)


def test_pictures_are_enlarged_without_smoothing_and_gaps_are_transparent(tmp_path: Path) -> None:
    folder = put(tmp_path, sample())
    figure = sample().figures[3]
    assert isinstance(figure, Pictures)
    with Image.open(folder / "decoded-digits.png") as opened:
        pixels = np.asarray(opened.convert("RGBA"))
    factor, gap = 14, 14  # 112 // 8
    assert pixels.shape == (2 * 8 * factor + gap, 3 * 8 * factor + 2 * gap, 4)
    for r in range(2):
        for c in range(3):
            tile = pixels[r * 126 : r * 126 + 112, c * 126 : c * 126 + 112]
            if (r, c) == (1, 2):
                assert tile[..., 3].max() == 0
                continue
            expected = (figure.images[r, c, 0] * 255).round().numpy().repeat(factor, 0).repeat(factor, 1)
            assert np.array_equal(tile[..., 0], expected) and tile[..., 3].min() == 255
    assert pixels[112:126, :, 3].max() == 0


def test_numbers_that_json_does_not_know_become_empty(tmp_path: Path) -> None:
    inf, nan = math.inf, math.nan
    findings = Findings([], [
        Lines("t", "c", [0.0, nan], "x", "y", [Series("s", [inf, 1.0])], (0.0, inf)),
        HeatMaps("t", "c", [Panel("p", torch.tensor([[nan, 2.0], [5.0, inf]]))], nan, inf),
        HeatMaps("t", "c", [Panel("p", torch.full((2, 2), nan))], nan, nan),
        HeatMaps("t", "c", [Panel("p", torch.ones(2, 2))], 1, 1),
        Points("t", "c", ["x"], torch.tensor([[nan, 0.0], [1.0, 2.0]]), torch.tensor([0, 0]), ["g"]),
        Points("t", "c", [], torch.rand(2, 2), torch.tensor([0, 0]), ["g"], torch.rand(1, 2, 3)),
        Pictures("t", "c", torch.full((1, 1, 1, 2, 2), nan)), Pictures("t", "c", torch.empty(0, 0, 3, 2, 2)),
    ], [Table("t", "c", ["a"], [[inf], [nan], [True]])])  # fmt: skip
    folder = put(tmp_path, findings)
    assert not re.search(r"NaN|Infinity", (folder / "findings.json").read_text().replace('"nan"', ""))
    assert (folder / "t.csv").read_text() == 'a\n""\n""\n1\n'
    found = read_one(tmp_path).findings
    assert found is not None
    lines, heat, empty, one, points, tracks, gap, none = map(drawn, found.figures)
    assert lines.data["series"][0]["y"] == [None, 1.0] and lines.data["y_range"] is None
    assert (heat.data["low"], heat.data["high"]) == (2.0, 5.0)
    assert (empty.data["low"], empty.data["high"]) == (0.0, 1.0)
    assert (one.data["low"], one.data["high"]) == (0.5, 1.5)
    assert np.isnan(unpacked(heat.data["panels"][0]["z"])[[0, 1], [0, 1]]).all()
    assert points.data["groups"][0]["n"] == 1 and "no finite place" in points.notes[0]
    assert tracks.data["tracks"] == [] and "not drawn" in tracks.notes[0]
    assert gap.rows == [("", [None])] and none.rows == []
    assert build_site([tmp_path], tmp_path / "site").is_file()


def test_large_matrices_are_drawn_as_means_of_blocks() -> None:
    values = torch.arange(600 * 10, dtype=torch.float32).reshape(600, 10)
    made = drawn(HeatMaps("t", "c", [Panel("p", values)], 0, 6000))
    (panel,) = made.data["panels"]
    assert (panel["rows"], panel["columns"], panel["dy"], panel["dx"]) == (600, 10, 3, 1)
    assert np.allclose(unpacked(panel["z"]), values.reshape(200, 3, 10).mean(1))
    assert "means of blocks" in made.notes[0]
    many = HeatMaps("t", "c", [Panel("p", torch.zeros(1, 1))] * 70, 0, 1)
    assert len(drawn(many).data["panels"]) == 64 and "first 64 of 70 panels" in drawn(many).notes[0]
    assert colour_range(replace(many, low=-1)) == (-1, 1)


def test_pages_hold_every_number_of_every_seed(run: Path) -> None:
    index = build_site([run], run / "site").read_text("utf-8")
    assert '<a href="analyses/digits-cnn-rdm.html">Representational dissimilarity</a>' in index
    assert "The last tap correlates 0.12 with the classes." in index and "2 seeds" in index
    page = (run / "site/analyses/digits-cnn-rdm.html").read_text("utf-8")
    data = data_of(page)
    for seed in (0, 1):
        findings = sample(seed)
        lines, heat, solid, pictures, path, flat = findings.figures
        assert isinstance(lines, Lines) and isinstance(heat, HeatMaps) and isinstance(pictures, Pictures)
        assert isinstance(solid, Points) and isinstance(flat, Points) and isinstance(path, Lines)
        series = data[f"figure-{seed}-0"]["series"]
        assert series[0]["y"] == [0.1 + seed, None, None, 0.123456789012345] and series[0]["high"][0] == 0.2 + seed
        assert data[f"figure-{seed}-0"]["x"] == TAPS and data[f"figure-{seed}-0"]["categorical"]
        for panel, shown in zip(heat.panels, data[f"figure-{seed}-1"]["panels"], strict=True):
            assert np.array_equal(unpacked(shown["z"]), panel.values.numpy(), equal_nan=True)
        assert data[f"figure-{seed}-1"]["ticks"] == [[0, "cat"], [3, "dog"]]
        for g, shown in enumerate(data[f"figure-{seed}-2"]["groups"]):
            at = np.stack([unpacked(c) for c in shown["at"]], 1)
            assert np.array_equal(at, solid.coordinates[solid.group == g].numpy())
        track = np.stack([unpacked(c) for c in data[f"figure-{seed}-2"]["tracks"][1]["at"]], 1)
        assert np.array_equal(track, solid.tracks[1].numpy())
        assert data[f"figure-{seed}-4"]["x"] == [0, 0.25, 1] and not data[f"figure-{seed}-4"]["categorical"]
        assert f"figure-{seed}-3" not in data
        section = re.search(rf'<section class="result" id="result-{seed}">(.*?)</section>', page, re.S)
        assert section
        images = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', section[1])
        assert [alt for _, alt in images] == ["input, 0", "input, 1", "input, 2", "decoded, 0", "decoded, 1"]
        with Image.open(io.BytesIO(base64.b64decode(images[4][0]))) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert np.array_equal(pixels[..., 0], (pictures.images[1, 1, 0] * 255).round().numpy())
        keys = re.findall(r'<td class="number" data-sort="([^"]*)">', section[1])
        assert keys == [repr(0.1 + seed), "0", "", "1", "", "2", "0.123456789012345", "3"]
        for name in ("correlations.csv", "decoded-digits.png", "arrays.safetensors", "findings.json"):
            (href,) = set(re.findall(rf'href="([^"]+{name})"', section[1]))
            copied = (run / "site/analyses" / href).resolve()
            assert copied.is_relative_to(run / "site/data")
            assert copied.read_bytes() == (run / f"analyses/digits-cnn-{seed}-rdm" / name).read_bytes()
    assert "Kriegeskorte et al. (2008)" in page and "<dt>images</dt><dd>100</dd>" in page and "<dd>a, b</dd>" in page


def test_a_published_site_holds_all_that_it_offers_and_says_where_large_arrays_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftershock.reports.findings.pages._LARGEST", 100)
    build_site([run], tmp_path / "made/site")
    (tmp_path / "made/site").rename(tmp_path / "published")
    page = (tmp_path / "published/analyses/digits-cnn-rdm.html").read_text("utf-8")
    assert "<code>analyses/digits-cnn-1-rdm/arrays.safetensors</code> of the run directory" in page
    targets = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    files = {t.partition("#")[0] for t in targets if not t.startswith(("#", "data:"))}
    assert {"../data/digits-cnn-rdm-0/correlations.tex", "../data/digits-cnn-rdm-0/correlations.md"} <= files
    for target in files:
        file = (tmp_path / "published/analyses" / target).resolve()
        assert file.is_relative_to(tmp_path / "published") and file.is_file(), target


def test_hostile_words_appear_only_escaped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    put(run, sample(0, HOSTILE), title=HOSTILE[0], name=HOSTILE[1], paper=HOSTILE[0],
        parameters={HOSTILE[0]: HOSTILE[1]})  # fmt: skip
    index = build_site([run], run / "site").read_text("utf-8")
    page = (run / "site/analyses/digits-cnn-rdm.html").read_text("utf-8")
    for text in (index, page):
        assert "<script>alert" not in text and "onerror=alert(2)>" not in text and html.escape(HOSTILE[0]) in text
    assert re.findall(r"<script[^>]*>", page) == [
        '<script src="../assets/plotly.min.js">', '<script src="../assets/site.js">',
        '<script type="application/json" id="figure-data">', '<script src="../assets/analyses.js">',
        '<script src="../assets/figures.js">']  # fmt: skip
    assert all(src.startswith("data:image/png;base64,") for src in re.findall(r'<img src="([^"]*)"', page))
    assert HOSTILE[0] in json.dumps(data_of(page))


def break_json(folder: Path) -> None:
    (folder / "findings.json").write_text("{")


def nest(folder: Path) -> None:
    (folder / "findings.json").write_text("[" * 100_000)


def other_schema(folder: Path) -> None:
    edit(folder, lambda whole: whole.update(schema=99))


def cut_tensors(folder: Path) -> None:
    file = folder / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_tensors(folder: Path) -> None:
    (folder / "arrays.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save({"x": torch.zeros(2)}, folder / "arrays.safetensors")


def linked(folder: Path) -> None:
    (folder / "findings.json").rename(folder.parent.parent / "outside.json")
    (folder / "findings.json").symlink_to(folder.parent.parent / "outside.json")


def piped(folder: Path) -> None:
    (folder / "arrays.safetensors").unlink()
    os.mkfifo(folder / "arrays.safetensors")


def other_folder(folder: Path) -> None:
    edit(folder, lambda whole: whole.update(label="other"))


def unknown_figure(folder: Path) -> None:
    edit(folder, lambda whole: whole["findings"]["figures"][0].update(kind="script"))


def endless_tick(folder: Path) -> None:
    edit(folder, lambda whole: whole["findings"]["figures"][1].update(ticks=[[1e400, "x"]]))


def wrong_kind(folder: Path) -> None:
    edit(
        folder,
        lambda whole: whole["findings"].update(
            claims=[{"kind": "", "estimates": {}, "sentence": {"$tensor": "arrays/maps"}}]
        ),
    )


def edit(folder: Path, change: Any) -> None:
    whole = json.loads((folder / "findings.json").read_text())
    change(whole)
    (folder / "findings.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("damage", [break_json, nest, other_schema, cut_tensors, no_tensors, pickled, linked, piped,
                                    other_folder, unknown_figure, endless_tick, wrong_kind])  # fmt: skip
def test_a_damaged_result_is_one_sentence_and_the_rest_goes_on(run: Path, damage: Any) -> None:
    damage(run / "analyses/digits-cnn-0-rdm")
    first, second = read_findings(run, arrays=False)
    assert first.findings is None and second.findings is not None
    assert first.problem.startswith("analyses/digits-cnn-0-rdm cannot be shown: ") and "\n" not in first.problem
    index = build_site([run], run / "site").read_text("utf-8")
    (note,) = re.findall(r'<p class="note warn">(.*?)</p>', index)
    assert html.unescape(note) == first.problem
    page = (run / "site/analyses/digits-cnn-rdm.html").read_text("utf-8")
    assert len(re.findall(r'<section class="result"', page)) == 1 and "0.1" in page


def test_oversized_files_and_too_many_folders_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis_files, "ARRAYS_LIMIT", 100)
    assert all("is larger than" in r.problem for r in read_findings(run))
    monkeypatch.setattr(analysis_files, "JSON_LIMIT", 10)
    assert all("findings.json is larger than" in r.problem for r in read_findings(run))
    monkeypatch.setattr(analysis_files, "RESULTS_LIMIT", 1)
    assert len(read_findings(run)) == 2 and "2 entries" in read_findings(run)[1].problem


def test_linked_folders_are_not_followed(run: Path, tmp_path: Path) -> None:
    (run / "analyses/digits-cnn-2-rdm").symlink_to(run / "analyses/digits-cnn-1-rdm")
    (run / "analyses/stray.txt").write_text("x")
    assert [r.problem.partition(": ")[2] for r in read_findings(run)] == ["", "", "it is not a folder",
                                                                         "it is not a folder"]  # fmt: skip
    (run / "analyses").rename(tmp_path / "moved")
    (run / "analyses").symlink_to(tmp_path / "moved")
    (found,) = read_findings(run)
    assert "is a link, which a report does not follow" in found.problem
    index = build_site([run], run / "site").read_text("utf-8")
    assert "is a link, which a report does not follow" in index and not (run / "site/analyses").exists()


def test_the_pages_are_not_written_through_a_link_and_old_ones_go(run: Path, tmp_path: Path) -> None:
    site, elsewhere = run / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    site.mkdir()
    (site / "analyses").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        build_site([run], site)
    (site / "analyses").unlink()
    put(run, sample(), label="gone")
    build_site([run], site)
    (site / "analyses/own.html").write_text("<p>not ours</p>")
    assert (site / "analyses/digits-cnn-gone.html").is_file()
    remove_others(run, [findings_folder(run, head_of(seed=s)) for s in (0, 1)])
    build_site([run], site)
    assert sorted(f.name for f in (site / "analyses").iterdir()) == ["digits-cnn-rdm.html", "own.html"]


def test_runs_without_analyses_have_no_such_section(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert read_findings(tmp_path) == []
    page = build_site([tmp_path], tmp_path / "site").read_text("utf-8")
    assert 'id="analyses"' not in page and "#analyses" not in page and not (tmp_path / "site/analyses").exists()


def test_several_runs_share_a_page_and_copies_count_once(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    put(other, sample(0), seed=0)
    put(other, sample(5), seed=1)
    put(other, sample(5), seed=10)
    (other / "run.json").write_text(json.dumps({"name": "second"}))
    build_site([run, other], tmp_path / "site")
    page = (tmp_path / "site/analyses/digits-cnn-rdm.html").read_text("utf-8")
    assert re.findall(r"<h2>(Seed.*?)</h2>", page) == ["Seed 0, quick", "Seed 1, quick", "Seed 1, second",
                                                      "Seed 10, second"]  # fmt: skip


# In a browser


def figure(visit: Visit, key: str, inside: str) -> None:
    """Wait until a part of a figure is there."""
    visit.tab.locator(f'[data-figure="{key}"]').scroll_into_view_if_needed()
    visit.tab.wait_for_selector(f'[data-figure="{key}"] {inside}', state="attached")


def test_in_a_browser_every_kind_of_figure_appears(browser: Browser, run: Path) -> None:
    build_site([run], run / "site")
    visit = Visit(browser, run / "site/analyses/digits-cnn-rdm.html")
    tab = visit.tab
    for key, inside in (("0-0", ".scatterlayer .trace"), ("0-1", ".heatmaplayer image"), ("0-2", "canvas"),
                        ("0-4", ".scatterlayer .trace"), ("0-5", ".scatterlayer .points path")):  # fmt: skip
        figure(visit, f"figure-{key}", inside)
    # A part of a group has its colour and another mark.
    whole, part = tab.evaluate(
        "document.querySelector('[data-figure=\"figure-0-5\"]').data.map(t => [t.marker.color, t.marker.symbol])"
    )
    assert whole[0] == part[0] and (whole[1], part[1]) == ("circle", "x")
    first = tab.locator('[data-figure="figure-0-0"]')
    assert first.locator(".xtick text").all_text_contents() == TAPS
    assert tab.locator('[data-figure="figure-0-1"] .heatmaplayer image').count() == 2
    # The first curve's band is one position on either side of its gap: two bands, two curves.
    assert first.locator(".scatterlayer .trace").count() == 2 + 2
    tab.locator('[data-legend="figure-0-0"]').get_by_role("button", name="untrained").click()
    assert first.locator(".scatterlayer .trace").count() == 2 + 1

    assert tab.locator("#result-0").is_visible() and not tab.locator("#result-1").is_visible()
    tab.get_by_role("button", name="seed 1").click()
    assert tab.locator("#result-1").is_visible() and not tab.locator("#result-0").is_visible()
    figure(visit, "figure-1-0", ".scatterlayer .trace")
    shown = tab.locator("#result-1 .pictures img")
    assert shown.count() == 5 and all(i.evaluate("e => e.naturalWidth") == 8 for i in shown.all())
    assert shown.first.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    tab.locator("#result-1 .table summary").first.click()
    tab.locator("#result-1 table.sortable").get_by_role("button", name="value").click()
    cells = tab.locator("#result-1 table.sortable tbody tr td:first-child").all_inner_texts()
    assert cells[:2] == ["stem.relu", "head.relu"]  # 1.1, 0.12, and those without a value
    tab.locator(".brand").click()
    tab.wait_for_url("**/index.html")
    tab.locator(".card a").click()
    tab.wait_for_url("**/digits-cnn-rdm.html")
    assert visit.wrong == []
    assert visit.requests and visit.elsewhere == []


@pytest.mark.parametrize("words", [None, HOSTILE])
def test_in_a_browser_a_narrow_page_does_not_scroll_sideways(browser: Browser, tmp_path: Path, words: Any) -> None:
    run = tmp_path / "run"
    findings = sample(0, words)
    put(run, replace(findings, figures=[f for i, f in enumerate(findings.figures) if i != 2]))  # 3-D takes seconds
    build_site([run], run / "site")
    visit = Visit(browser, run / "site/analyses/digits-cnn-rdm.html", width=400)
    for key in ("0-0", "0-1", "0-4"):
        figure(visit, f"figure-{key}", ".plot-container .main-svg")
    assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 400
    if words:
        assert visit.tab.locator("[data-figure] a, [data-figure] b, img[src=x]").count() == 0
        shown = str(visit.tab.locator('[data-figure="figure-0-1"]').text_content())
        assert "<b>x</b>" in shown or "<script>" in shown
    assert visit.wrong == []
    visit.tab.goto((run / "site/index.html").as_uri())
    assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 400
