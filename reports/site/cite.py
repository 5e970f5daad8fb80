"""How to cite a report."""

from __future__ import annotations


def bibtex(version: str) -> str:
    """Return the entry of the tool (CITATION.cff has the same facts)."""
    return (
        "@software{aftershock,\n"
        "  title = {Aftershock: an adversarial robustness benchmarking harness},\n"
        "  author = {{The Aftershock developers}},\n"
        f"  version = {{{version}}},\n"
        "}"
    )
