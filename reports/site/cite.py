"""How to cite a report: the tool, and the source of every detector, attack and analysis in it."""

from __future__ import annotations

from collections.abc import Iterable

from ..answers.bibliography import library_papers, references, tool
from .parts import Part


def bibtex() -> str:
    """Return the entry of the tool."""
    return tool().rstrip()


def references_of(parts: Iterable[Part], analyses: Iterable[tuple[str, str]]) -> str:
    """Return the tool and the sources of some parts as BibTeX, each once.

    Args:
        parts: detectors and perturbations.
        analyses: label and paper of each.
    """
    papers: dict[tuple[str, str], None] = {}
    for part in parts:
        library = next((value for key, value in part.facts if key == "library"), "")
        named = part.name or part.label
        papers.update(dict.fromkeys((named, paper) for paper in (part.paper, *library_papers(library)) if paper))
    papers.update(dict.fromkeys((label, paper) for label, paper in analyses if paper))
    return references(papers)
