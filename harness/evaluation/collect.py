"""From finished cells to the run's tables: what was measured is read back and handed to the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .attack_table import attack_rows
from .costs import timing_rows
from .csv_files import COLUMNS, table_file, write_csv, write_csv_gz
from .finished import Finished
from .leaderboard import Protocol, leaderboard_rows
from .past_all import past_all_rows
from .problems import Problems
from .radius_results import radius_rows
from .rejection_curve import rejection_rows
from .results import DetectorResult, SeedResult
from .seed_results import seed_result
from .standing_tables import standing_rows
from .tables import metrics_rows, perturbation_rows, score_rows

Row = dict[str, Any]


class Tables:
    """Builds the tables of one run.

    Args:
        found: what was planned and computed.
        problems: takes what cannot be made of a part or written of a table; the rest is.
    """

    def __init__(self, found: Finished, problems: Problems | None = None) -> None:
        self.found, self.plan, self.suite = found, found.plan, found.plan.suite
        self.problems = problems or Problems(debug=True)

    def write(self, folder: Path) -> list[Row]:
        """Write all tables; returns the rows of the leaderboard."""
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, list[Row]] = {name: [] for name in COLUMNS}
        scored: list[tuple[SeedResult, DetectorResult]] = []
        for part in self.suite.models:
            seeds: list[SeedResult] = []
            missing: dict[int, str] = {}
            for model_plan in (s for s in self.plan.models if s.part.label == part.label):
                result = seed_result(self.found, self.problems, model_plan)
                if result is None:
                    missing[model_plan.seed] = self.found.without_clean(model_plan)
                    continue
                seeds.append(result)
                with self.problems.of(f"past_all of {part.label}, seed {model_plan.seed}"):
                    rows["past_all"] += past_all_rows(self.found, model_plan)
                for name, found in (self._rows(result) | standing_rows(self.found, self.problems, model_plan)).items():
                    rows[name] += found
                scored += [(result, detector) for detector in result.detectors]
            if seeds:
                shared = self.plan.protocols[part.label]
                protocol = Protocol(shared.digest, shared.series)
                with self.problems.of(f"leaderboard of {part.label}"):
                    ranked = leaderboard_rows(
                        seeds, self.suite.threat, protocol, missing, self.plan.ranked, self.plan.alarms
                    )
                    rows["leaderboard"] += ranked
            else:
                rows["leaderboard"] += self._without_numbers(part.label, missing)
        rows["timings"] = timing_rows(self.found)
        for name, columns in COLUMNS.items():
            file = folder / table_file(name)
            with self.problems.of(f"tables/{file.name}", writes=True):
                # What an earlier command left there may not pass for this one's.
                file.unlink(missing_ok=True)
                if name == "scores":
                    write_csv_gz(file, columns, self._score_rows(scored))
                else:
                    write_csv(file, columns, rows[name])
        return rows["leaderboard"]

    def _rows(self, result: SeedResult) -> dict[str, list[Row]]:
        """Return the rows of one model and seed, by table; a table that cannot be made has none of it."""
        sources, perturbations, detectors = result.sources, result.perturbations, result.detectors
        makers: dict[str, Callable[[], list[Row]]] = {
            "metrics": lambda: metrics_rows(sources, perturbations, detectors, self.suite.threat),
            "perturbations": lambda: perturbation_rows(sources, perturbations),
            "attacks": lambda: attack_rows(sources, perturbations, detectors),
            "radii": lambda: radius_rows(result),
            "rejection_curve": lambda: rejection_rows(result, self.suite.threat, self.plan.alarms),
        }
        where = f"{sources.model}, seed {sources.seed}"
        none: list[Row] = []
        return {
            name: self.problems.attempt(f"{name} of {where}", make, lambda reason: none)
            for name, make in makers.items()
        }

    def _without_numbers(self, model: str, missing: Mapping[int, str]) -> list[Row]:
        """The rows of a model of which nothing could be measured: its reason stands where a person looks for it."""
        flags = "; ".join(f"seed {seed} is missing: {reason}" for seed, reason in missing.items())
        base = dict.fromkeys(COLUMNS["leaderboard"]) | {
            "dataset": self.suite.data.name,
            "model": model,
            "norm": self.suite.threat.norm,
            "eps": self.suite.threat.eps,
            "flags": flags,
            "not_ranked_reason": flags,
            "protocol_digest": self.plan.protocols[model].digest,
            "series_digest": self.plan.protocols[model].series,
        }
        return [{**base, "detector": label} for label in (*(d.label for d in self.suite.detectors), "none")]

    def _score_rows(self, scored: list[tuple[SeedResult, DetectorResult]]) -> Iterator[Any]:
        for result, detector in scored:
            yield from score_rows(result.sources, result.perturbations, detector)
