"""The site: HTML pages about one or more runs that anybody can open from a folder, without a network.

It reads the run directories' ``run.json``, tables and analyses and nothing else, so a report can be made anew from a
published run. Every name in it may come from an untrusted source: the templates escape, and the page's own policy
forbids loading anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from ...harness.core.errors import AftershockError, UsageError, described
from ...harness.core.files import is_regular, refuse_links_on_the_way, write_atomic, write_problem
from ...harness.evaluation.verdict import Standing, cost, sentence, verdict
from ..findings.files import FOLDER
from ..findings.pages import Study, analysis_page, cards, made_pages, studies
from ..read.run_directory import ADDED, TABLES, Row, Run, check_scores, listed, objects, quantity, read_run, words
from ..templates.rendering import asset, environment, json_block
from .alarms import alarm_table
from .attacks import ROUNDED, rounding, winners
from .budgets import curve_data, ends, ends_table
from .costs import COSTS, cost_tables
from .distances import distance_rows
from .flags import BEYOND, Explained, Flag, condition_flags, explained, flags
from .joined_ranks import common_ranks
from .leaderboard import ABLATION, BOARD, PERTURBED, budget, leaderboard, percent, perturbed, place, scope
from .matrices_and_curves import MEASURES, grouped, matrices, propagation
from .past_all import past_all_sentences
from .reasons import missing_reasons
from .run_facts import labels, run_page
from .shares import Conditions

INDEX, PLOTLY = "index.html", "plotly.min.js"
ASSETS = ("style.css", "site.js", "budgets.js", "analyses.js")


@dataclass
class Group:
    """The rows that may be compared: one data set, model and protocol digest, from one run or several.

    ``origins``: by the label of a row on the page, the run that it comes from and its label there.
    """

    dataset: str
    model: str
    digest: str
    runs: list[Run] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    origins: dict[str, tuple[Path, str]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """``digits / cnn``, as far as it is known."""
        return " / ".join(t for t in (self.dataset, self.model) if t) or "unnamed"

    def rows(self, table: str) -> list[Row]:
        """Return the rows of a table."""
        return self.tables.setdefault(table, [])

    def add(self, run: Run, tables: Mapping[str, Sequence[Row]]) -> None:
        """Take a run's rows in: what is there already is not taken twice, another detector of one name is renamed."""
        renamed: dict[str, str | None] = {}
        present = {r.text("detector"): _result(r) for r in self.rows("leaderboard")}
        for row in tables.get("leaderboard", ()):
            name = row.text("detector")
            if present.get(name) == _result(row):
                renamed[name] = None
            elif name in present:
                renamed[name] = f"{name} ({run.name}, run {len(self.runs) + 1})"
        for table in ("leaderboard", "metrics", "rejection_curve", "radii"):
            for row in tables.get(table, ()):
                label = renamed.get(row.text("detector"), row.text("detector"))
                if label is not None:
                    self.rows(table).append(row.relabelled("detector", label))
                    self.origins.setdefault(label, (run.path, row.text("detector")))
        for table in ("perturbations", "propagation"):
            held = {r.text("perturbation") for r in self.rows(table)}
            self.rows(table).extend(r for r in tables.get(table, ()) if r.text("perturbation") not in held)
        if not self.rows("past_all"):
            self.rows("past_all").extend(tables.get("past_all", ()))
        self._add_attacks(tables.get("attacks", ()), renamed)
        self.runs.append(run)

    def _add_attacks(self, rows: Sequence[Row], renamed: Mapping[str, str | None]) -> None:
        held = {(r.text("perturbation"), r.text("detector")) for r in self.rows("attacks")}
        for row in rows:
            against = row.text("against")
            for column in ("detector", "against"):
                if row.text(column) != ABLATION:
                    row = row.relabelled(column, renamed.get(row.text(column)) or row.text(column))
            if row.text("against") != against:
                # Another detector of the same name: the attack against it is another attack, too.
                row = row.relabelled("perturbation", f"{row.text('perturbation')}, {row.text('against')}")
            if (row.text("perturbation"), row.text("detector")) not in held:
                self.rows("attacks").append(row)

    @cached_property
    def ranked(self) -> list[Row]:
        """The leaderboard's rows; those of several runs are compared anew, image by image."""
        rows = self.rows("leaderboard")
        if len(self.runs) < 2:
            return rows
        return common_ranks(rows, self.origins, self.rows("perturbations"), self.rows("radii"))


def _result(row: Row) -> tuple[object, ...]:
    return (*row.texts.items(), *((k, v) for k, v in row.numbers.items() if k != "rank"))


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
            check_scores(run.path, run.facts)
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
    groups = _groups(runs)
    pages = [_group_page(group) for group in groups]
    budgets = [data for g in groups if (data := curve_data(_curve_title(g, groups), _curves(g), _threat(g)))]
    curves = propagation([(_curve_title(g, groups), g.rows("propagation")) for g in groups])
    names = list(dict.fromkeys(run.name for run in runs))
    failures = [f for run in runs for f in _failures(run)]
    return environment().get_template("index.html").render(
        title=names[0] if len(names) == 1 else f"{len(names)} suites",
        names=names,
        runs=[run_page(run) for run in runs],
        groups=pages,
        models=list(dict.fromkeys((page["model"] or "unnamed", page["accuracy"]) for page in pages)),
        apart=_apart(groups),
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


def _groups(runs: Sequence[Run]) -> list[Group]:
    groups: dict[tuple[str, str, str], Group] = {}
    for number, run in enumerate(runs):
        keys: dict[tuple[str, ...], None] = {}
        split = {table: grouped(rows, "dataset", "model") for table, rows in run.tables.items()}
        for table in split.values():
            keys.update(dict.fromkeys(table))
        for dataset, model in keys:
            own = {table: rows.get((dataset, model), []) for table, rows in split.items()}
            digest = next((r.text("protocol_digest") for r in own.get("leaderboard", ())), "") or run.digest
            # Without a digest it is unknown what was compared: such a run stands alone.
            key = (dataset, model, digest or f"\0{number}")
            groups.setdefault(key, Group(dataset, model, digest)).add(run, own)
    return list(groups.values())


def _apart(groups: Sequence[Group]) -> list[str]:
    """Return the data set and model pairs that stand in several leaderboards because their protocols differ."""
    titles = [g.title for g in groups]
    return sorted({t for t in titles if titles.count(t) > 1})


def _curve_title(group: Group, groups: Sequence[Group]) -> str:
    alone = sum(g.title == group.title for g in groups) == 1
    return group.title if alone else f"{group.title} ({group.runs[0].name}, {group.digest[:8] or 'no digest'})"


def _group_page(group: Group) -> dict[str, object]:
    board, metrics = group.ranked, group.rows("metrics")
    reasons, doubts = missing_reasons(group.runs, group.model, group.rows("metrics")), _doubts(group)
    attacks = _conditions(group)
    last = ends(attacks)
    order = [r.text("detector") for r in sorted(board, key=place)]
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
        "headlines": [_headline(rows) for rows in threats.values()],
        "rowless": [(d, reasons.get(d, "")) for d in rowless] if board else [],
        "perturbations": perturbed([r for r in group.rows("perturbations") if r.text("kind") != "adaptive"], doubts),
        "adaptive": perturbed([r for r in group.rows("perturbations") if r.text("kind") == "adaptive"], doubts),
        "doubts": {label: [f for f in found if f.key != BEYOND] for label, found in doubts.items()},
        "attacks": len(attacks.rows),
        "ends": ends_table(last),
        "past_all": past_all_sentences(group.rows("past_all"), board) if len(group.runs) == 1 else [],
        "alarms": alarm_table(group.rows("rejection_curve"), sorted(board, key=place)),
        "rounding": rounding(attacks),
        "winners": winners(attacks, _threat(group)),
        "matrices": matrices(metrics, order, lambda kind: kind != "adaptive"),
        "transfer": matrices(metrics, order, lambda kind: kind == "adaptive")[:1],
    }


def _threat(group: Group) -> tuple[str, float | None]:
    """Norm and budget that the first of a group's rankings is about."""
    norm, eps = next(iter(grouped(group.rows("leaderboard"), "norm", "eps")), ("", ""))
    return norm, _fraction(eps)


def _doubts(group: Group) -> dict[str, list[Flag]]:
    return condition_flags(group.rows("perturbations"), _threat(group))


def _conditions(group: Group) -> Conditions:
    return Conditions(
        group.rows("attacks"), [r.text("detector") for r in sorted(group.ranked, key=place)], _doubts(group)
    )


def _curves(group: Group) -> Conditions:
    """The conditions of budget curves: every attack's, and what was found at each distance."""
    found = _conditions(group)
    return replace(found, rows=[*found.rows, *distance_rows(group.rows("radii"), _threat(group))])


def _problems(groups: Sequence[Group]) -> list[Explained]:
    """Every flag on the page once, with what it means and the detectors and perturbations that carry it."""
    carried: list[tuple[str, str, Flag]] = []
    for group in groups:
        for row in group.rows("leaderboard"):
            carried += [(group.title, row.text("detector"), flag) for flag in flags(row.text("flags"))]
        for label, doubts in _doubts(group).items():
            carried += [(group.title, label, flag) for flag in doubts]
    return explained(carried)


def _standing(row: Row) -> Standing:
    prices = (row.number(name) for name in ("price", "price_low", "price_high"))
    return Standing(row.text("detector"), row.number("rank"), row.text("not_ranked_reason"), *prices)


def _headline(rows: Sequence[Row]) -> dict[str, str]:
    """Return the verdict on one table, and the best ranked detector against the ablation, in numbers."""
    standings = [_standing(r) for r in sorted(rows, key=place)]
    found = verdict(standings)
    ablation = next((r for r in rows if r.text("detector") == ABLATION), None)
    without = None if ablation is None else ablation.number("robust_accuracy_at_fpr_5")
    about = {
        "kind": found.kind,
        "sentence": sentence(found),
        "cost": cost(standings),
        "ablation": "" if without is None else percent(without),
    }
    able = [r for r in rows if r.number("rank") is not None and r.text("detector") != ABLATION]
    if not able:
        return about
    best = min(able, key=place)
    low, high = best.number("robust_accuracy_low"), best.number("robust_accuracy_high")
    adaptive, worst = best.number("adaptive_undetected_at_fpr_5"), best.number("worst_auroc")
    unseen = [r for r in able if r.number("mean_auroc_unseen") is not None]
    leader = max(unseen, key=lambda r: r.number("mean_auroc_unseen") or 0.0, default=None)
    at_most = "at most " if best.number("robust_accuracy_is_upper_bound") else ""
    return about | {
        "detector": best.text("detector"),
        "robust": at_most + percent(best.number("robust_accuracy_at_fpr_5")),
        "interval": f"{percent(low)} to {percent(high)}" if low is not None and high is not None else "",
        "scope": scope(best),
        "adaptive": "" if adaptive is None else percent(adaptive),
        "worst": "" if worst is None else f"{worst:.2f}",
        "worst_perturbation": best.text("worst_perturbation"),
        "leader": leader.text("detector") if leader is not None else "",
        "leader_auroc": f"{leader.number('mean_auroc_unseen'):.2f}" if leader is not None else "",
    }


def _failures(run: Run) -> list[tuple[str, str, str, str]]:
    """Run, cell, reason and status (failed or skipped) of every cell without a result."""
    return [(run.name, words(f.get("cell")) or "a cell", words(f.get("reason")) or "no reason was recorded",
             words(f.get("status")))
            for f in objects(run.facts.get("failures"))]  # fmt: skip


def _fraction(text: str) -> float | None:
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
