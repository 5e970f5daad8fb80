"""What a run writes for people: tables, findings, the site, and ``run.json`` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...reports.findings.files import findings_folder, remove_others, write_findings
from ...reports.site.build import build_site, site_files
from ..core.files import sync, write_atomic
from ..core.formats import KEYS, seal
from ..evaluation.collect import Row, Tables
from ..evaluation.csv_files import COLUMNS, table_file
from ..evaluation.problems import Problems
from ..store.run_directory import unwritable
from ..suite.instances import make_analysis
from .computing import Computed
from .findings import reported
from .images import ImageReader
from .run_facts import RUNNING
from .site_gallery import write_site_gallery
from .up_to_date import published

if TYPE_CHECKING:
    from ..data.types import ImageSplit


def write_run(
    out: Path, computed: Computed, facts: Mapping[str, Any], stamp: str | None, problems: Problems, root: Path,
    test: ImageSplit,
) -> list[Row]:  # fmt: skip
    """Write all that a run directory shows; a table, findings or a site that cannot be made is among its problems.

    The site is made from what is in the directory by then, as ``aftershock report`` makes it.

    Args:
        out: the run directory.
        computed: what became of the cells.
        facts: what is known of the run without its tables; written first, whatever happens to these.
        stamp: fingerprint of what was asked for.
        problems: takes what cannot be made.
        root: of the data sets.
        test: the test images, for pictures.

    Returns:
        the rows of the leaderboard.

    Raises:
        AftershockError: if the directory cannot be written.
    """
    summary, store = computed.finished.summary, computed.finished.store
    try:
        # What is on the disk before a file says that it is: a power cut costs no more than what people read.
        store.sync()
        _write_facts(out, facts, problems)
        rows = Tables(computed.finished, problems).write(out / "tables")
        partial = bool(facts["only"]) or facts["status"] == RUNNING
        findings = _write_findings(out, computed, partial, problems)
        keys = sorted({*computed.chosen, *summary.done})
        write_atomic(out / KEYS, "".join(f"{key}\n" for key in keys).encode())
        shown = [out / KEYS, *(out / "tables" / table_file(name) for name in COLUMNS)]
        shown += [file for folder in findings for file in sorted(folder.iterdir())]
        # Pictures are chosen by the tables, pages made of both: each is read as a file that run.json names.
        files = published(out, shown)
        _write_facts(out, {**facts, "files": files}, problems)
        with problems.of("gallery"):
            files |= published(out, write_site_gallery(out, ImageReader(out, root, test)))
        _write_facts(out, {**facts, "files": files}, problems)
        with problems.of("site"):
            build_site([out], out / "site")
            files |= published(out, site_files(out / "site"))
        sync(sorted({place for file in files for place in (out / file, (out / file).parent)}))
        _write_facts(out, {**facts, "files": files, "packs": store.packs(), "fingerprint": stamp}, problems)
        sync([out / "run.json", out])
        return rows
    except OSError as error:
        raise unwritable(out, error) from error


def _write_findings(out: Path, computed: Computed, partial: bool, problems: Problems) -> list[Path]:
    """Return what the analyses found, as files that people open; those of an earlier suite in this directory go.

    Args:
        partial: this call was to compute a part of the suite: what it did not compute stays.
    """
    found, plan = computed.finished, computed.plan
    kept = []
    for model_plan in plan.models:
        for part in plan.suite.analyses:
            key = model_plan.analyses[part.label]
            if key not in found.summary.done:
                continue
            with problems.of(f"findings of {plan.cells[key].name}", writes=True):
                known = plan.facts.analyses[part.label]
                head = {
                    "dataset": plan.suite.data.name, "model": model_plan.part.label, "seed": model_plan.seed,
                    "label": part.label, "name": part.name, "title": known.title, "paper": known.paper,
                    "parameters": dict(part.params),
                }  # fmt: skip
                if known.reads_perturbed and computed.lost.get(model_plan.key):
                    head["without"] = list(computed.lost[model_plan.key])
                folder = findings_folder(out, head)
                measured = found.store.values(key)["measured"]
                write_findings(folder, head, reported(make_analysis(part), found.store.load(key), measured))
                kept.append(folder)
    if not partial:
        remove_others(out, kept)
    return kept


def _write_facts(out: Path, facts: Mapping[str, Any], problems: Problems) -> None:
    """Write ``run.json``, with the tables and pages that could not be made among the failures."""
    whole = dict(facts)
    if problems.found:
        more = [{"cell": name, "status": "failed", "reason": reason} for name, reason in problems.found.items()]
        whole |= {"status": "failed", "failures": [*facts["failures"], *more]}
    write_atomic(out / "run.json", seal(whole, default=str))
