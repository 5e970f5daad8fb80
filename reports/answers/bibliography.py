"""The references of a run as BibTeX: the tool, and the source of every part that it used.

Parts name their sources by arXiv number or DOI (``info.paper``); ``references.bib`` holds what those are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from ...harness.core.errors import AftershockError
from ...harness.core.registry import ANALYSES, DETECTORS, PERTURBATIONS, Registry
from ..read.frames import RunTables, facts_of
from ..read.run_directory import objects, words

_ENTRY = re.compile(r"^@\w+\{([\w:-]+),\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)
_IDENTIFIER = re.compile(r"(?:arXiv[: ]?)(\d{4}\.\d{4,5})|(10\.\d{4,9}/[\w.()/-]*[\w)])")
_KINDS: tuple[tuple[str, Registry], ...] = (
    ("perturbations", PERTURBATIONS), ("detectors", DETECTORS), ("analyses", ANALYSES)
)  # fmt: skip
# Analyses that are part of every run, and searches that belong to no entry of a suite.
_ALWAYS = ("propagation",)
_LIBRARIES = {"torchattacks": ("2010.01950",), "foolbox": ("1707.04131", "10.21105/joss.02607")}
_PRICE, _PAST_ALL = "2011.11857", "1906.03563"
_LONGEST = 300


def bibtex(tables: RunTables) -> str:
    """Return the references of a run, each once, with the parts that name it in a comment above.

    Args:
        tables: of the run; a part that is not installed here is named in a comment.
    """
    return references(_papers(tables), words(facts_of(tables.facts, "versions").get("aftershock")))


def references(papers: Iterable[tuple[str, str | None]], made: str = "") -> str:
    """Return works as BibTeX, each once, with the parts that name it in a comment above, and the tool first.

    Args:
        papers: a part, and its ``paper`` or an identifier; ``None`` where it is not known.
        made: version of the tool that made the results; empty: this one.
    """
    blocks = [tool(made)]
    used: dict[str, list[str]] = {}
    unknown: list[str] = []
    for part, paper in papers:
        if paper is None:
            unknown.append(part)
            continue
        for key in keys_of(paper):
            used.setdefault(key, []).append(part)
        if not keys_of(paper):
            blocks.append(f"% {_comment(part)}\n{_unlisted(part, paper)}")
    for key, parts in used.items():
        blocks.append(f"% {_comment(', '.join(dict.fromkeys(parts)))}\n{entries()[key]}")
    if unknown:
        blocks.append(
            f"% Not installed here, and so without a reference: {_comment(', '.join(dict.fromkeys(unknown)))}\n"
        )
    return "\n".join(blocks)


@cache
def entries() -> Mapping[str, str]:
    """Return the entries of ``references.bib`` by key."""
    text = (files(__package__) / "references.bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in _ENTRY.finditer(text)}


@cache
def _by_identifier() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for key, text in entries().items():
        fields = dict(_FIELD.findall(text))
        names = [fields[name] for name in ("eprint", "doi") if name in fields]
        found |= dict.fromkeys(names or [_folded(fields["title"])], key)
    return found


def keys_of(paper: str) -> list[str]:
    """Return the keys of the works that a part's ``paper`` names, in its order."""
    known = _by_identifier()
    named = [arxiv or doi for arxiv, doi in _IDENTIFIER.findall(paper)]
    titled = [key for name, key in known.items() if name not in named and len(name) > 20 and name in _folded(paper)]
    return list(dict.fromkeys([*titled, *(known[name] for name in named if name in known)]))


def _folded(text: str) -> str:
    return re.sub(r"[{}]", "", text).lower()


def _papers(tables: RunTables) -> Iterable[tuple[str, str | None]]:
    """Yield every part of a run and its ``paper``, empty where it names none; ``None`` for a part that is not here."""
    resolved = facts_of(tables.facts, "resolved")
    for kind, registry in _KINDS:
        names = [words(entry.get("name")) for entry in objects(resolved.get(kind))]
        for name in dict.fromkeys([*names, *(_ALWAYS if kind == "analyses" else ())]):
            try:
                info: Any = getattr(registry.get(name), "info", None)
            except AftershockError:
                yield name, None
                continue
            paper = str(getattr(info, "paper", "") or "")
            if paper:
                yield name, paper
            yield from ((name, paper) for paper in library_papers(str(getattr(info, "library", "") or "")))
    if tables.has_rows("radii"):
        yield "price of detection", _named(_PRICE)
    if tables.has_rows("past_all"):
        yield "one image past all detectors", _named(_PAST_ALL)


def library_papers(library: str) -> list[str]:
    """Return the identifiers of the papers that a library of attacks asks to be cited."""
    return [_named(identifier) for identifier in _LIBRARIES.get(library, ())]


def _named(identifier: str) -> str:
    return identifier if identifier.startswith("10.") else f"arXiv:{identifier}"


def tool(made: str = "") -> str:
    """Return the entry of Aftershock, of a version or of this one."""
    try:
        made = made or version("aftershock")
    except PackageNotFoundError:
        made = made or "unknown"
    return (
        "@software{aftershock,\n  author = {{The Aftershock developers}},\n"
        "  title = {Aftershock: an adversarial robustness benchmarking harness},\n"
        f"  version = {{{_safe(made)}}},\n}}\n"
    )


def _unlisted(part: str, paper: str) -> str:
    """Return an entry for a source that ``references.bib`` does not hold: what its part says of it, as a note."""
    found = _IDENTIFIER.search(paper)
    more = ""
    if found:
        more = (
            f"  eprint = {{{found[1]}}},\n  archivePrefix = {{arXiv}},\n" if found[1] else f"  doi = {{{found[2]}}},\n"
        )
    year = re.search(r"\b(19|20)\d\d\b", paper)
    more += f"  year = {{{year[0]}}},\n" if year else ""
    key = re.sub(r"[^A-Za-z0-9-]+", "-", part).strip("-") or "part"
    return f"@misc{{{key},\n  note = {{{_safe(paper)}}},\n{more}}}\n"


def _safe(text: str) -> str:
    """Return a text that ends no field and starts no command, on one line."""
    return re.sub(r"[#$&^_~]", " ", _comment(text))


def _comment(text: str) -> str:
    return re.sub(r"[@{}\\%\s]+", " ", words(text))[:_LONGEST]
