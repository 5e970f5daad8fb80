"""What an analysis found, by the names of its tables, claims and estimates."""

from __future__ import annotations

from typing import Any

from aftershock.analyses.findings import Claim, Findings


def findings_table(findings: Findings, name: str) -> list[dict[str, Any]]:
    """The rows of a table."""
    (table,) = (t for t in findings.tables if t.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def value_of(claim: Claim, name: str) -> float | None:
    """A number that a claim rests on, without its interval."""
    found = claim.estimates[name]
    return found[0] if isinstance(found, tuple) else found
