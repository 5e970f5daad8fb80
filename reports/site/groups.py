"""Rows that may be compared, from one run or several: one data set, model and protocol."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..read.run_directory import Row, Run, objects, quantity, words
from .flags import Flag, condition_flags
from .joined_ranks import common_ranks
from .leaderboard import ABLATION, percent, place
from .matrices_and_curves import grouped
from .run_facts import run_title
from .shares import Conditions


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
                renamed[name] = self._another(name, run, present)
        for table in ("leaderboard", "metrics", "rejection_curve", "radii"):
            for row in tables.get(table, ()):
                name = row.text("detector")
                label = renamed.get(name, name)
                if label is not None:
                    self.rows(table).append(row if label == name else row.relabelled("detector", label))
                    self.origins.setdefault(label, (run.path, name))
        for table in ("perturbations", "propagation"):
            held = {r.text("perturbation") for r in self.rows(table)}
            self.rows(table).extend(r for r in tables.get(table, ()) if r.text("perturbation") not in held)
        if not self.rows("past_all"):
            self.rows("past_all").extend(tables.get("past_all", ()))
        self._add_attacks(tables.get("attacks", ()), renamed)
        self.runs.append(run)

    def _another(self, name: str, run: Run, present: Container[str]) -> str:
        """Return a label for another detector of a name that is taken: with its run's name and date."""
        label = f"{name} ({run_title(run)})"
        return label if label not in present else f"{name} ({run_title(run)}, run {len(self.runs) + 1})"

    def _add_attacks(self, rows: Sequence[Row], renamed: Mapping[str, str | None]) -> None:
        held = {(r.text("perturbation"), r.text("detector")) for r in self.rows("attacks")}
        for row in rows:
            against = row.text("against")
            for column in ("detector", "against"):
                label = renamed.get(row.text(column))
                if label is not None and row.text(column) != ABLATION:
                    row = row.relabelled(column, label)
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

    @cached_property
    def threat(self) -> tuple[str, float | None]:
        """Norm and budget that the first of the rankings is about."""
        norm, eps = next(iter(grouped(self.rows("leaderboard"), "norm", "eps")), ("", ""))
        return norm, fraction(eps)

    @cached_property
    def order(self) -> list[str]:
        """The detectors with a row, as the leaderboard has them."""
        return [r.text("detector") for r in sorted(self.ranked, key=place)]

    @cached_property
    def accuracy(self) -> str:
        """The model's clean accuracy, the mean over seeds; empty where no run tells it."""
        facts = [m for run in self.runs for m in objects(run.facts.get("models"))
                 if words(m.get("dataset")) == self.dataset and words(m.get("model")) == self.model]  # fmt: skip
        known = [a for m in facts if (a := quantity(m.get("clean_accuracy"))) is not None]
        return percent(sum(known) / len(known)) if known else ""

    @property
    def origin(self) -> str:
        """The runs that the rows come from, in words."""
        names = [run_title(run) for run in self.runs]
        return names[0] if len(names) == 1 else f"joined from {len(names)} runs: {'; '.join(names)}"

    @cached_property
    def doubts(self) -> dict[str, list[Flag]]:
        """The flags of every perturbation, by label."""
        return condition_flags(self.rows("perturbations"), self.threat)

    @cached_property
    def conditions(self) -> Conditions:
        """The rows about attacks."""
        return Conditions(self.rows("attacks"), self.order, self.doubts)


def _result(row: Row) -> tuple[object, ...]:
    return (*row.texts.items(), *((k, v) for k, v in row.numbers.items() if k != "rank"))


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Return the rows of some runs by data set, model and protocol digest, in order of first appearance."""
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


def apart(groups: Sequence[Group]) -> list[str]:
    """Return the data set and model pairs that stand in several leaderboards because their protocols differ."""
    titles = [g.title for g in groups]
    return sorted({t for t in titles if titles.count(t) > 1})


def title_among(group: Group, groups: Sequence[Group]) -> str:
    """Return a title that no other group has."""
    alone = sum(g.title == group.title for g in groups) == 1
    return group.title if alone else f"{group.title} ({run_title(group.runs[0])}, {group.digest[:8] or 'no digest'})"


def fraction(text: str) -> float | None:
    """Return a budget as a number: ``8/255`` or ``0.03``; ``None`` where it is none."""
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
