"""The pages of analyses: one for each label, data set and model, with all its seeds, and cards that lead there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...harness.core.files import MIB, is_regular, open_file
from ..read.run_directory import Run, mapping, words
from ..templates.rendering import json_block
from .figures import Drawn, drawn
from .files import FILE_LIMIT, FOLDER, Result, picture_files, read_findings, table_files
from .thumbnails import thumbnail

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from ...analyses.findings import Findings, Table

# Every page carries this, and by it a later report recognises the page of an analysis that no longer exists.
GENERATOR = '<meta name="generator" content="Aftershock analysis page">'
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


def analysis_page(study: Study, environment: Environment, out: Path, version: str) -> str:
    """Return a page as text.

    Args:
        study: what it is about.
        environment: with the templates, escaping.
        out: the site's folder: where it lies in the run directory, the page links the files beside it.
        version: of the package.
    """
    data: dict[str, dict[str, Any]] = {}
    sections = [_section(number, run, result, out, data) for number, (run, result) in enumerate(study.members)]
    several = len({run.path.resolve() for run, _ in study.members}) > 1
    return environment.get_template("analysis.html").render(
        generator=_markup(GENERATOR),
        title=study.title,
        label=study.first.text("label"),
        name=study.first.text("name"),
        model=study.model,
        paper=study.first.text("paper"),
        parameters=[(words(k), _listed(v)) for k, v in mapping(study.first.head.get("parameters")).items()],
        sections=sections,
        several_runs=several,
        figures=json_block(data),
        plotted=bool(data),
        version=version,
    )


def _section(number: int, run: Run, result: Result, out: Path, data: dict[str, dict[str, Any]]) -> dict[str, object]:
    findings = result.findings
    assert findings is not None  # noqa: S101 - studies() keeps no other
    beside = run.path.resolve() == out.resolve().parent
    there = dict(result.files)
    base = f"../../{FOLDER}/{result.folder}/" if beside else ""

    def link(name: str) -> dict[str, str] | None:
        return {"name": name, "href": base + name, "size": _size(there[name])} if name in there and base else None

    pictures = picture_files(findings.figures)
    figures: list[tuple[Drawn, str, dict[str, str] | None]] = []
    for position, figure in enumerate(findings.figures[:FIGURES]):
        made, key = drawn(figure), f"figure-{number}-{position}"
        if made.data:
            data[key] = made.data
        figures.append((made, key, link(pictures.get(position, ""))))
    names = table_files(findings.tables)
    return {
        "id": f"result-{number}",
        "seed": result.text("seed"),
        "run": run.name,
        "sentences": [t for t in map(words, findings.sentences[:SENTENCES]) if t],
        "figures": figures,
        "tables": [_table(t, link(n)) for t, n in zip(findings.tables[:TABLES], names[:TABLES], strict=True)],
        "arrays": link("arrays.safetensors"),
        "findings": {"name": "findings.json", "href": f"{base}findings.json"} if base else None,
        "folder": f"{FOLDER}/{result.folder}",
        "without": _without(result.head.get("without")),
        "left_out": _left_out(findings),
    }


def _without(labels: object) -> str:
    """Return what failed perturbations mean for a result."""
    named = [t for t in map(words, labels[:SENTENCES]) if t] if isinstance(labels, list) else []
    return f"Made without {', '.join(named)}, which failed." if named else ""


def _left_out(findings: Findings) -> list[str]:
    counts = ((findings.sentences, SENTENCES, "sentences"), (findings.figures, FIGURES, "figures"),
              (findings.tables, TABLES, "tables"))  # fmt: skip
    return [f"The first {most} of {len(part)} {what} are shown." for part, most, what in counts if len(part) > most]


def _table(table: Table, link: Mapping[str, str] | None) -> dict[str, object]:
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
        "link": link,
    }


def _sorted_by(value: object) -> str:
    return repr(value) if isinstance(value, int | float) else words(value)


def _listed(value: object) -> str:
    return ", ".join(words(v) for v in value) if isinstance(value, list) else words(value) or "none"


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB / 2 else f"{max(1, round(count / 1024))} KiB"


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 - a constant


def made_pages(folder: Path) -> list[Path]:
    """Return the pages of analyses in a site's folder, by this report or an earlier one; no other files."""
    if not folder.is_dir():
        return []
    found = []
    for page in sorted(folder.glob("*.html")):
        if is_regular(page):
            with open_file(page, FILE_LIMIT, follow=False) as stream:
                if GENERATOR.encode() in stream.read(2048):
                    found.append(page)
    return found
