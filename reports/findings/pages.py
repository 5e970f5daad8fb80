"""The pages of analyses: one for each label, data set and model, with all its seeds, and cards that lead there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...harness.core.files import MIB, read_file
from ...harness.evaluation.csv_files import csv_bytes
from ..read.run_directory import Run, mapping, words
from ..templates.rendering import json_block
from ..text_tables import TextTable, latex, markdown
from .figures import Drawn, drawn
from .files import FILE_LIMIT, FOLDER, Result, file_names, picture_files, read_findings, table_files
from .thumbnails import thumbnail

if TYPE_CHECKING:
    from ...analyses.findings import Findings, Table

ARRAYS, FINDINGS = "arrays.safetensors", "findings.json"
# Arrays of more bytes stay in the run directory: a site is for people.
_LARGEST = 8 * MIB
Keep = Callable[[str, str, bytes], str]
ROWS = 2000
COLUMNS = 200
TABLES = 100
FIGURES = 100
SENTENCES = 50
_SLUG = 150


@dataclass(frozen=True, eq=False)
class Study:
    """One analysis of one model, with all its seeds.

    Attributes:
        slug: its page's file name without the ending.
        members: run and result, the first to be shown first.
    """

    slug: str
    members: Sequence[tuple[Run, Result]]

    @property
    def first(self) -> Result:
        """The result that speaks for all on the front page."""
        return self.members[0][1]

    @property
    def title(self) -> str:
        """The human name of the analysis."""
        return self.first.text("title") or self.first.text("name") or self.first.text("label")

    @property
    def model(self) -> str:
        """``digits / cnn``."""
        return f"{self.first.text('dataset')} / {self.first.text('model')}"


def studies(runs: Sequence[Run]) -> tuple[list[Study], list[str]]:
    """Return the analyses of some runs, and a sentence for each that cannot be shown."""
    by_key: dict[tuple[str, ...], list[tuple[Run, Result]]] = {}
    problems: list[str] = []
    for run in runs:
        for result in read_findings(run.path, arrays=False, facts=run.facts):
            if result.findings is None:
                problems.append(f"{run.name}: {result.problem}" if len(runs) > 1 else result.problem)
                continue
            members = by_key.setdefault(tuple(result.text(k) for k in ("label", "dataset", "model")), [])
            if all(r.folder != result.folder or r.digest != result.digest for _, r in members):
                members.append((run, result))
    found: list[Study] = []
    taken: set[str] = set()
    for (label, dataset, model), members in by_key.items():
        members.sort(key=lambda m: _by_number(m[1].text("seed")))
        slug = base = f"{dataset}-{model}-{label}"[:_SLUG]
        count = 2
        while slug.casefold() in taken:
            slug, count = f"{base}-{count}", count + 1
        taken.add(slug.casefold())
        found.append(Study(slug, members))
    return found, problems


def _by_number(seed: str) -> tuple[int, int, str]:
    return (0, int(seed), "") if seed.isdecimal() and len(seed) < 20 else (1, 0, seed)


def cards(found: Sequence[Study]) -> list[dict[str, object]]:
    """Return what the front page shows of each."""
    made: list[dict[str, object]] = []
    for study in found:
        findings = study.first.findings
        assert findings is not None  # noqa: S101 - studies() keeps no other
        sentence = next((t for t in map(words, findings.sentences) if t), "")
        made.append(
            {
                "href": f"{FOLDER}/{study.slug}.html",
                "title": study.title,
                "label": study.first.text("label"),
                "model": study.model,
                "seeds": len({result.text("seed") for _, result in study.members}),
                "sentence": sentence if len(sentence) <= 400 else f"{sentence[:400]}…",
                "picture": thumbnail(findings),
            }
        )
    return made


def analysis_page(study: Study, keep: Keep) -> dict[str, Any]:
    """Return what the template ``analysis.html`` shows of a study.

    Args:
        study: what it is about.
        keep: takes a file that the page offers: its folder among the downloads, its name and its content; returns its
            path from the site's folder.

    Raises:
        UsageError: if a file that the page offers cannot be read.
    """
    data: dict[str, dict[str, Any]] = {}
    sections = [
        _section(f"{file_names([study.slug], '')[0]}-{number}", number, run, result, data, keep)
        for number, (run, result) in enumerate(study.members)
    ]
    several = len({run.path.resolve() for run, _ in study.members}) > 1
    return {
        "title": study.title,
        "label": study.first.text("label"),
        "name": study.first.text("name"),
        "model": study.model,
        "paper": study.first.text("paper"),
        "parameters": [(words(k), _listed(v)) for k, v in mapping(study.first.head.get("parameters")).items()],
        "sections": sections,
        "several_runs": several,
        "figures": json_block(data),
        "has_figures": bool(data),
        "solid": any(figure.get("dimensions") == 3 for figure in data.values()),
    }


def _section(
    place: str, number: int, run: Run, result: Result, data: dict[str, dict[str, Any]], keep: Keep
) -> dict[str, object]:
    findings = result.findings
    assert findings is not None  # noqa: S101 - studies() keeps no other
    folder, there = run.path / FOLDER / result.folder, dict(result.files)

    def copied(name: str, limit: int = FILE_LIMIT) -> list[dict[str, str]]:
        # The size of what is read in any case is not listed.
        if there.get(name, 0 if name == FINDINGS else limit + 1) > limit:
            return []
        content = read_file(folder / name, limit, within=run.path)
        return [{"text": f"{name} ({_size(len(content))})", "path": keep(place, name, content)}]

    pictures = picture_files(findings.figures)
    figures: list[tuple[Drawn, str, list[dict[str, str]]]] = []
    for position, figure in enumerate(findings.figures[:FIGURES]):
        made, key = drawn(figure), f"figure-{number}-{position}"
        if made.data:
            data[key] = made.data
        figures.append((made, key, copied(pictures.get(position, ""))))
    names = table_files(findings.tables)
    arrays = copied(ARRAYS, _LARGEST)
    return {
        "id": f"result-{number}",
        "seed": result.text("seed"),
        "run": run.name,
        "sentences": [t for t in map(words, findings.sentences[:SENTENCES]) if t],
        "figures": figures,
        "tables": [
            _table(t, _table_files(t, place, n, keep))
            for t, n in zip(findings.tables[:TABLES], names[:TABLES], strict=True)
        ],
        "files": [*arrays, *copied(FINDINGS)],
        "elsewhere": f"{FOLDER}/{result.folder}/{ARRAYS}" if ARRAYS in there and not arrays else "",
        "without": _without(result.head.get("without")),
        "left_out": _left_out(findings),
    }


def _table_files(table: Table, place: str, name: str, keep: Keep) -> list[dict[str, str]]:
    """Add a table as CSV, Markdown and LaTeX."""
    stem = name.removesuffix(".csv")
    columns = [words(c) for c in table.columns]
    made = [("CSV", name, csv_bytes(columns, [[_finite(v) for v in row] for row in table.rows], digits=9))]
    if len(table.rows) <= ROWS:
        text = TextTable(tuple(columns), tuple(tuple(words(v) for v in row) for row in table.rows),
                         caption=words(table.caption))  # fmt: skip
        made += [("Markdown", f"{stem}.md", markdown(text).encode()), ("LaTeX", f"{stem}.tex", latex(text).encode())]
    return [{"text": text, "path": keep(place, file, content)} for text, file, content in made]


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without(labels: object) -> str:
    """Return what failed perturbations mean for a result."""
    named = [t for t in map(words, labels[:SENTENCES]) if t] if isinstance(labels, list) else []
    return f"Made without {', '.join(named)}, which failed." if named else ""


def _left_out(findings: Findings) -> list[str]:
    counts = ((findings.sentences, SENTENCES, "sentences"), (findings.figures, FIGURES, "figures"),
              (findings.tables, TABLES, "tables"))  # fmt: skip
    return [f"The first {most} of {len(part)} {what} are shown." for part, most, what in counts if len(part) > most]


def _table(table: Table, links: Sequence[Mapping[str, str]]) -> dict[str, object]:
    columns = [words(c) for c in table.columns[:COLUMNS]]
    rows = [row[:COLUMNS] for row in table.rows[:ROWS]]
    numeric = [any(v is not None for v in column) and not any(isinstance(v, str) for v in column)
               for column in zip(*rows, strict=True)] if rows else [False] * len(columns)  # fmt: skip
    kept = [f"{len(rows):,} of {len(table.rows):,} rows"] if len(rows) < len(table.rows) else []
    kept += [f"{len(columns)} of {len(table.columns)} columns"] if len(columns) < len(table.columns) else []
    return {
        "name": words(table.name),
        "caption": words(table.caption),
        "columns": [(c, "number" if n else "text") for c, n in zip(columns, numeric, strict=True)],
        "rows": [[(words(v), _sorted_by(v)) for v in row] for row in rows],
        "count": len(table.rows),
        "kept": f"The first {' and '.join(kept)} are shown." if kept else "",
        "files": links,
    }


def _sorted_by(value: object) -> str:
    return repr(value) if isinstance(value, int | float) else words(value)


def _listed(value: object) -> str:
    return ", ".join(words(v) for v in value) if isinstance(value, list) else words(value) or "none"


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB / 2 else f"{max(1, round(count / 1024))} KiB"
