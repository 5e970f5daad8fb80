"""Run directories whose truth is planted: tables as a run writes them, from scores that somebody chose."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from aftershock.attacks.base.kinds import Effort
from aftershock.harness.evaluation.attack_table import attack_rows
from aftershock.harness.evaluation.csv_files import COLUMNS, write_csv, write_csv_gz
from aftershock.harness.evaluation.leaderboard import Protocol
from aftershock.harness.evaluation.results import RoundedResult
from aftershock.harness.evaluation.tables import (
    DetectorResult,
    PerturbationResult,
    SeedResult,
    Sources,
    Threat,
    leaderboard_rows,
    metrics_rows,
    perturbation_rows,
    score_rows,
)

EPS = 8 / 255
THREAT = Threat("linf", EPS)
FLOOR = Effort(steps=50, restarts=2, queries=100)
CALIBRATE, EVALUATE, RANKED, WRONG = 200, 130, 100, 10


@dataclass(frozen=True)
class Planted:
    """A detector by what gets past it.

    Attributes:
        passing: share of the images at which the adaptive attack passes it.
        rounded: further share that passes only after rounding to 8 bits.
        beyond: further share that passes only beyond the threat.
        same_as: label of the detector whose draws it repeats.
        flags: sanity flags that it carries.
        ranked_only: whether it passes all images after those that the ranking is about.
    """

    passing: float
    rounded: float = 0.0
    beyond: float = 0.0
    same_as: str = ""
    flags: tuple[str, ...] = ()
    ranked_only: bool = False


@dataclass
class World:
    """One data set and model: the images are the same for every detector and run.

    Attributes:
        seeds: of the suite.
        fooled: share of the images that the attack without knowledge of a detector fools.
        evaluate: number of evaluate images.
        detectors: by label.
    """

    seeds: Sequence[int] = (0,)
    fooled: float = 1.0
    evaluate: int = EVALUATE
    detectors: Mapping[str, Planted] = field(default_factory=dict)

    def results(self, *labels: str) -> list[SeedResult]:
        """What a run with some of the detectors measures."""
        return [self._seed(seed, labels) for seed in self.seeds]

    def _seed(self, seed: int, labels: Sequence[str]) -> SeedResult:
        label = np.arange(self.evaluate) % 10
        predicted = np.where(np.arange(self.evaluate) % (self.evaluate // WRONG) == 3, (label + 1) % 10, label)
        known = np.arange(CALIBRATE) % 10
        # Positions in the data set are no positions among the evaluate images.
        s = Sources("digits", "cnn", seed, np.arange(CALIBRATE), known, known, np.arange(self.evaluate)[::-1] + 5000,
                    label, predicted)  # fmt: skip
        made = [self._attack(s, "pgd", "attack", None, self.draw(seed, "pgd", self.evaluate) < self.fooled)]
        made.append(replace(made[0], label="blur", kind="corruption", family="blur", control_index=np.zeros(0, int)))
        made += [self._adaptive(s, d) for d in labels]
        return SeedResult(s, made, [self._detector(s, made, d) for d in labels])

    @staticmethod
    def draw(seed: int, name: str, count: int) -> np.ndarray:
        return np.random.default_rng([seed, zlib.crc32(name.encode())]).random(count)

    def _attack(
        self, s: Sources, label: str, kind: str, against: str | None, got: np.ndarray, size: np.ndarray | float = EPS
    ) -> PerturbationResult:
        index = np.flatnonzero(s.evaluate_correct)
        got, norm = got[index], np.broadcast_to(size, self.evaluate)[index].astype(np.float64)
        to = np.where(got, (s.evaluate_label[index] + 1) % 10, s.evaluate_label[index])
        norms = {"linf": norm, "l2": norm * 9, "l1": norm * 80, "l0": np.full(len(index), 7.0)}
        return PerturbationResult(
            label, kind, kind, "aftershock", "linf", EPS, against, index=index, prediction=to, success=got, norms=norms,
            control_index=index[got][:5], effort=FLOOR if kind == "adaptive" else None,
            group=label.partition("@")[0],
        )  # fmt: skip

    def _adaptive(self, s: Sources, d: str) -> PerturbationResult:
        beyond = self._outcome(s.seed, d) == "beyond"
        p = self._attack(
            s, f"adaptive@{d}", "adaptive", d, np.ones(self.evaluate, bool), np.where(beyond, 2 * EPS, EPS)
        )
        within = {n: np.minimum(v, EPS) for n, v in p.norms.items()} | {"l0": p.norms["l0"]}
        return replace(p, rounded=(RoundedResult("8-bit", p.prediction, p.success, within),))

    def _outcome(self, seed: int, d: str) -> np.ndarray:
        of, u = self.detectors[d], self.draw(seed, self.detectors[d].same_as or d, self.evaluate)
        edges = np.cumsum([of.passing, of.rounded, of.beyond])
        found = np.array(["passes", "rounded", "beyond", "flagged"])[np.searchsorted(edges, u, "right")]
        # Images after those that the ranking is about may have any outcome.
        return np.where((np.arange(self.evaluate) >= RANKED) & of.ranked_only, "passes", found)

    def _detector(self, s: Sources, made: Sequence[PerturbationResult], d: str) -> DetectorResult:
        outcome = self._outcome(s.seed, d)
        name = self.detectors[d].same_as or d
        noise = self.draw(s.seed, f"noise {name}", self.evaluate)

        def scores(p: PerturbationResult) -> np.ndarray:
            if p.against not in (None, d):
                return -1 - noise[p.index]  # an attack that knows another detector passes this one, and does not count
            passes = np.isin(outcome, ("passes", "beyond"))[p.index] & (p.kind == "adaptive")
            return np.where(passes, -1 - noise[p.index], 2 + noise[p.index]).astype(np.float32).astype(np.float64)

        own = next(p for p in made if p.against == d)
        rounded = np.where(outcome[own.index] == "rounded", -1.0, 3.0)
        # What passes only beyond the threat is flagged when it is rounded.
        return DetectorResult(
            d, calibrate=self.draw(s.seed, f"calibrate {d}", CALIBRATE).astype(np.float32),
            clean=(self.draw(s.seed, f"clean {name}", self.evaluate) * 0.9).astype(np.float32),
            perturbed={p.label: scores(p) for p in made},
            control={p.label: scores(p)[: len(p.control_index)] for p in made},
            rounded={(own.label, "8-bit"): rounded}, flags=self.detectors[d].flags,
        )  # fmt: skip


def write_run(path: Path, results: Sequence[SeedResult], ranked: int = RANKED, **columns: object) -> Path:
    """Write the tables that a run with these results has.

    Args:
        path: the run directory.
        results: by seed.
        ranked: number of evaluate images that the ranking is about.
        columns: cells of ``leaderboard.csv`` that are replaced in every row.
    """
    (path / "tables").mkdir(parents=True)
    (path / "run.json").write_text("{}", encoding="utf-8")
    board = leaderboard_rows(results, THREAT, Protocol("digest", "series"), ranked=ranked)
    tables = path / "tables"
    write_csv(tables / "leaderboard.csv", COLUMNS["leaderboard"], [{**row, **columns} for row in board])
    found = [row for r in results for row in perturbation_rows(r.sources, r.perturbations)]
    write_csv(tables / "perturbations.csv", COLUMNS["perturbations"], found)
    made = [(r.sources, r.perturbations, r.detectors) for r in results]
    write_csv(tables / "metrics.csv", COLUMNS["metrics"], [row for m in made for row in metrics_rows(*m, THREAT)])
    write_csv(tables / "attacks.csv", COLUMNS["attacks"], [row for m in made for row in attack_rows(*m)])
    rows = [row for r in results for d in r.detectors for row in score_rows(r.sources, r.perturbations, d)]
    write_csv_gz(tables / "scores.csv.gz", COLUMNS["scores"], rows)
    return path
