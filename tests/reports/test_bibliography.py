"""References: every source that a built-in part names has its entry, and what parts of others say breaks nothing."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aftershock.harness.core.registry import ANALYSES, DETECTORS, PERTURBATIONS
from aftershock.reports.answers.bibliography import bibtex, entries, keys_of
from aftershock.reports.read.frames import RunTables

PAPERS = {
    f"{registry.word} {name}": str(getattr(registry.get(name).info, "paper", ""))
    for registry in (DETECTORS, ANALYSES, PERTURBATIONS)
    for name in registry.builtins
}
FIELDS = {key: dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE)) for key, text in entries().items()}


def test_entries_are_whole_and_stand_once() -> None:
    assert len(entries()) > 70
    for key, text in entries().items():
        assert {"author", "title", "year"} <= set(FIELDS[key]), key
        assert text.count("{") == text.count("}") and key.startswith(re.split(r"\d", key)[0])
        assert len(re.findall(r"^  \w+ = ", text, re.MULTILINE)) == len(FIELDS[key])
        kind = "journal" if text.startswith("@article") else "booktitle"
        assert (kind in FIELDS[key]) == text.startswith(("@article", "@inproceedings"))
    named = [fields.get("eprint") or fields.get("doi") or fields["title"] for fields in FIELDS.values()]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(
    "part", [part for part, paper in PAPERS.items() if re.search(r"\d{4}\.\d{4,5}|10\.\d{4}/", paper)]
)
def test_a_source_that_a_part_names_has_its_entry(part: str) -> None:
    paper = PAPERS[part]
    keys = keys_of(paper)
    named = re.findall(r"\d{4}\.\d{4,5}|10\.\d{4,9}/[\w.()/-]*[\w)]", paper)
    known = {FIELDS[key].get("eprint") for key in keys} | {FIELDS[key].get("doi") for key in keys}
    assert set(named) <= known
    # Years and first authors as the part says them.
    years = set(re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"\d{4}\.\d{4,5}|10\.\d+/\S+", "", paper)))
    assert not years or {FIELDS[key]["year"] for key in keys} & years
    first = FIELDS[keys[0]]["author"].split(",")[0].split()[-1]
    assert re.sub(r"[^A-Za-z]", "", first)[-3:] in re.sub(r"[^A-Za-z ]", "", paper) or "\\" in first


def test_parts_that_are_not_here_or_not_listed_break_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tables").mkdir()
    resolved: dict[str, Any] = {
        "detectors": [{"name": "gone\n@book{x,"}, {"name": "own-one"}, {"name": 3}],
        "perturbations": "none", "analyses": [None],
    }  # fmt: skip
    real = DETECTORS.get
    info = SimpleNamespace(paper="Somebody 2031, } @article{y, \\input{z} arXiv 3101.00001", library="")
    monkeypatch.setattr(
        type(DETECTORS), "get",
        lambda self, name: SimpleNamespace(info=info) if name == "own-one" else real(name),
    )  # fmt: skip
    text = bibtex(RunTables(tmp_path, {"resolved": resolved, "versions": {"aftershock": "0.1}"}}))
    made = re.findall(r"^@(\w+)\{([^,]+),", text, re.MULTILINE)
    assert ("misc", "own-one") in made and "eprint = {3101.00001}" in text and "year = {2031}" in text
    assert not {"x", "y"} & {key for _, key in made}
    assert text.count("{") == text.count("}") and "\\input" not in text
    assert "Not installed here" in text
