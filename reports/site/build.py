"""The site: HTML pages about one or more runs that anybody can open from a folder, without a network.

It reads the run directories' ``run.json``, tables and analyses and nothing else, so a report can be made anew from a
published run. Every name in it may come from an untrusted source: the templates escape, and the page's own policy
forbids loading anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ...harness.core.errors import AftershockError, UsageError, described
from ...harness.core.files import is_regular, refuse_links_on_the_way, write_atomic, write_problem
from ..findings.files import FOLDER
from ..findings.pages import Study, analysis_page, cards, made_pages, studies
from ..read.run_directory import ADDED, TABLES, Run, check_scores, listed, objects, quantity, read_run, words
from ..templates.rendering import asset, environment, json_block
from .alarms import alarm_table
from .attacks import ROUNDED, rounding, winners
from .budgets import curve_data, ends, ends_table
from .costs import COSTS, cost_tables
from .distances import distance_rows
from .flags import BEYOND, Explained, Flag, explained, flags
from .groups import Group, apart, groups_of, title_among
from .headlines import headline
from .leaderboard import BOARD, PERTURBED, budget, leaderboard, percent, perturbed, place
from .matrices_and_curves import MEASURES, grouped, matrices, propagation
from .past_all import past_all_sentences
from .reasons import missing_reasons
from .run_facts import labels, run_page
from .shares import Conditions

INDEX, PLOTLY = "index.html", "plotly.min.js"
ASSETS = ("style.css", "site.js", "budgets.js", "analyses.js")


def build_site(runs: Sequence[Path], out: Path) -> Path:
    """Write the site of some runs, from what is in their directories.

    Args:
        runs: run directories; rows of the same data set, model and protocol digest share a leaderboard.
        out: the folder of the site, made if need be. It may be a link, but not one that lies in one of the runs.

    Returns:
        ``out/index.html``, with ``out/assets`` beside it, and ``out/analyses`` where the runs have analyses.

    Raises:
        UsageError: if there is no run, a run cannot be read, or ``out`` cannot be written.
        AftershockError: if the disk is full or broken (each file is then the old one, the new one, or not there), or if
            the page of an analysis cannot be made; it is named, and everything else is written.
    """
    if not runs:
        raise UsageError("Name at least one run directory to report on.")
    read = [read_run(Path(path)) for path in runs]
    if len(read) > 1:
        for run in read:
            check_scores(run)
    found, problems = studies(read)
    out = Path(out)
    more, failed = _analysis_pages(found, out)
    shown = [s for s in found if f"{s.slug}.html" in more]
    page = render(read, shown, [*problems, *failed])
    assets, analyses = out / "assets", out / FOLDER
    # A run directory may come from anybody, and a report could be written through a link in it.
    refuse_links_on_the_way(out, runs)
    for folder in (assets, analyses):
        if folder.is_symlink():
            raise UsageError(f"{folder} is a link: remove it, or choose another folder for the report.")
    texts = {assets / name: asset(name) for name in ASSETS}
    texts[assets / PLOTLY] = _plotly()
    texts |= {analyses / name: text for name, text in more.items()}
    texts[out / INDEX] = page
    try:
        assets.mkdir(parents=True, exist_ok=True)
        if more:
            analyses.mkdir(exist_ok=True)
        for file, text in texts.items():
            write_atomic(file, text.encode("utf-8"))
        for old in made_pages(analyses):
            if old.name not in more:
                old.unlink()
    except OSError as error:
        raise write_problem(out, error, "choose another folder for the report") from error
    if failed:
        raise AftershockError(" ".join(failed))
    return out / INDEX


def site_files(out: Path) -> list[Path]:
    """Return the files of a site that :func:`build_site` wrote; files of others in its folders are not among them."""
    own = [*(out / "assets" / name for name in (*ASSETS, PLOTLY)), out / INDEX]
    return [*(file for file in own if is_regular(file)), *made_pages(out / FOLDER)]


def _analysis_pages(found: Sequence[Study], out: Path) -> tuple[dict[str, str], list[str]]:
    """The pages of analyses by file name, and a sentence for each that cannot be made: they hold what others found."""
    templates, made, failed = environment(), {}, []
    for study in found:
        name = f"{study.slug}.html"
        try:
            # Its card is part of the front page, which nothing may keep from being made.
            cards([study])
            made[name] = analysis_page(study, templates, out, version("aftershock"))
        except Exception as error:
            failed.append(f"The page analyses/{name} could not be made: {described(error)}.")
    return made, failed


def render(runs: Sequence[Run], analyses: Sequence[Study] = (), analysis_problems: Sequence[str] = ()) -> str:
    """Return the front page as text."""
    groups = groups_of(runs)
    pages = [_group_page(group) for group in groups]
    budgets = [data for g in groups if (data := curve_data(title_among(g, groups), _curves(g), g.threat))]
    curves = propagation([(title_among(g, groups), g.rows("propagation")) for g in groups])
    names = list(dict.fromkeys(run.name for run in runs))
    failures = [f for run in runs for f in _failures(run)]
    return environment().get_template("index.html").render(
        title=names[0] if len(names) == 1 else f"{len(names)} suites",
        names=names,
        runs=[run_page(run) for run in runs],
        groups=pages,
        models=list(dict.fromkeys((page["model"] or "unnamed", page["accuracy"]) for page in pages)),
        apart=apart(groups),
        costs=cost_tables(runs),
        cost_columns=COSTS,
        measures=MEASURES,
        board=BOARD,
        perturbed=PERTURBED,
        curves=json_block(curves),
        curve_count=len(curves),
        budgets=json_block(budgets),
        budget_count=len(budgets),
        rounded=ROUNDED,
        analyses=cards(analyses),
        analysis_problems=analysis_problems,
        problems=_problems(groups),
        failures=[f[:3] for f in failures if f[3] != "skipped"],
        skipped=[f[:3] for f in failures if f[3] == "skipped"],
        warnings=[(run.name, words(w)) for run in runs
                  for w in (*listed(run.facts.get("warnings")), *listed(run.facts.get("notes"))) if words(w)],
        missing=[(run.name, t) for run in runs for t in TABLES if t not in run.tables and t not in ADDED],
        version=version("aftershock"),
    )  # fmt: skip


def _group_page(group: Group) -> dict[str, object]:
    board, metrics = group.ranked, group.rows("metrics")
    reasons, doubts = missing_reasons(group.runs, group.model, group.rows("metrics")), group.doubts
    attacks = group.conditions
    last = ends(attacks)
    order = group.order
    threats = grouped(board, "norm", "eps")
    facts = [m for run in group.runs for m in objects(run.facts.get("models"))
             if words(m.get("dataset")) == group.dataset and words(m.get("model")) == group.model]  # fmt: skip
    accuracies = [a for m in facts if (a := quantity(m.get("clean_accuracy"))) is not None]
    shown = [(budget(n, e), leaderboard(rows, reasons)) for (n, e), rows in threats.items()]
    rowless = [d for d in dict.fromkeys(d for run in group.runs for d in labels(run, "detectors")) if d not in order]
    return {
        "title": group.title,
        "dataset": group.dataset,
        "model": group.model,
        "digest": group.digest,
        "runs": [run.name for run in group.runs],
        "accuracy": percent(sum(accuracies) / len(accuracies)) if accuracies else "",
        "boards": shown,
        "headlines": [headline(rows) for rows in threats.values()],
        "rowless": [(d, reasons.get(d, "")) for d in rowless] if board else [],
        "perturbations": perturbed([r for r in group.rows("perturbations") if r.text("kind") != "adaptive"], doubts),
        "adaptive": perturbed([r for r in group.rows("perturbations") if r.text("kind") == "adaptive"], doubts),
        "doubts": {label: [f for f in found if f.key != BEYOND] for label, found in doubts.items()},
        "attacks": len(attacks.rows),
        "ends": ends_table(last),
        "past_all": past_all_sentences(group.rows("past_all"), board) if len(group.runs) == 1 else [],
        "alarms": alarm_table(group.rows("rejection_curve"), sorted(board, key=place)),
        "rounding": rounding(attacks),
        "winners": winners(attacks, group.threat),
        "matrices": matrices(metrics, order, lambda kind: kind != "adaptive"),
        "transfer": matrices(metrics, order, lambda kind: kind == "adaptive")[:1],
    }


def _curves(group: Group) -> Conditions:
    """The conditions of budget curves: every attack's, and what was found at each distance."""
    found = group.conditions
    return replace(found, rows=[*found.rows, *distance_rows(group.rows("radii"), group.threat)])


def _problems(groups: Sequence[Group]) -> list[Explained]:
    """Every flag on the page once, with what it means and the detectors and perturbations that carry it."""
    carried: list[tuple[str, str, Flag]] = []
    for group in groups:
        for row in group.rows("leaderboard"):
            carried += [(group.title, row.text("detector"), flag) for flag in flags(row.text("flags"))]
        for label, doubts in group.doubts.items():
            carried += [(group.title, label, flag) for flag in doubts]
    return explained(carried)


def _failures(run: Run) -> list[tuple[str, str, str, str]]:
    """Run, cell, reason and status (failed or skipped) of every cell without a result."""
    return [(run.name, words(f.get("cell")) or "a cell", words(f.get("reason")) or "no reason was recorded",
             words(f.get("status")))
            for f in objects(run.facts.get("failures"))]  # fmt: skip


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
