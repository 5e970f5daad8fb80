"""From finished cells to the run's tables: scores and successes are read back and handed to the protocol."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.process_state import CHANGED, CHANGED_FLAG
from ..core.registry import ANALYSES, DETECTORS, PERTURBATIONS
from ..data.types import Dataset
from ..plan import Plan, Subject
from ..plan.cells import ROUNDINGS, Rounding, SetName
from ..plan.summary import Summary
from ..run.runner import name_parts
from ..statistics.detection import MIN_IMAGES
from ..store.run_directory import Store
from ..store.stored_traces import cat_column, tap_infos
from ..suite.resolved import DetectorPart, PerturbationPart
from .attack_table import attack_rows
from .csv_files import COLUMNS, write_csv, write_csv_gz
from .leaderboard import Protocol, leaderboard_rows
from .problems import Problems
from .rankability import INCOMPLETE, OPENED, READS_FILES, STARTED, STARTS_PROCESSES, UNCHECKED, reaches_threat
from .results import DetectorResult, PerturbationResult, Rescored, RoundedResult, SeedResult, Sources
from .sanity import adaptive_flags, perturbation_flags
from .tables import metrics_rows, perturbation_rows, score_rows

Row = dict[str, Any]
NORMS = ("l0", "l1", "l2", "linf")
_NONE = np.zeros(0, np.int64)
POPULATIONS = ("success", "failed", "control", "target-class")


class Tables:
    """Builds the tables of one run.

    Args:
        plan: what was planned.
        store: what was computed.
        summary: what failed, with reasons.
        dataset: for the true classes.
        problems: takes what cannot be made of a part or written of a table; the rest is.
    """

    def __init__(
        self, plan: Plan, store: Store, summary: Summary, dataset: Dataset, problems: Problems | None = None
    ) -> None:
        self.plan, self.store, self.summary, self.dataset = plan, store, summary, dataset
        self.problems = problems or Problems(debug=True)
        self.suite = plan.suite

    def write(self, folder: Path) -> list[Row]:
        """Write all tables; returns the rows of the leaderboard."""
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, list[Row]] = {name: [] for name in COLUMNS}
        scored: list[tuple[SeedResult, DetectorResult]] = []
        for part in self.suite.models:
            seeds: list[SeedResult] = []
            missing: dict[int, str] = {}
            for subject in (s for s in self.plan.subjects if s.part.label == part.label):
                result = self.seed_result(subject)
                if result is None:
                    missing[subject.seed] = self._reason(*self._clean_logits(subject))
                    continue
                seeds.append(result)
                for name, found in self._rows(result).items():
                    rows[name] += found
                rows["propagation"] += self.propagation_rows(subject)
                scored += [(result, detector) for detector in result.detectors]
            if seeds:
                protocol = Protocol(self.plan.protocol_digests[part.label], self.plan.series_digests[part.label])
                with self.problems.of(f"leaderboard of {part.label}"):
                    ranked = leaderboard_rows(seeds, self.suite.threat, protocol, missing, self.plan.ranked)
                    rows["leaderboard"] += ranked
            else:
                rows["leaderboard"] += self._without_numbers(part.label, missing)
        rows["timings"] = self.timing_rows()
        for name, columns in COLUMNS.items():
            file = folder / (f"{name}.csv" if name != "scores" else "scores.csv.gz")
            with self.problems.of(f"tables/{file.name}", writes=True):
                # What an earlier command left there may not pass for this one's.
                file.unlink(missing_ok=True)
                if name == "scores":
                    write_csv_gz(file, columns, self._score_rows(scored))
                else:
                    write_csv(file, columns, rows[name])
        return rows["leaderboard"]

    def _rows(self, result: SeedResult) -> dict[str, list[Row]]:
        """The rows of one model and seed, by table; a table that cannot be made has none of it."""
        sources, perturbations, detectors = result.sources, result.perturbations, result.detectors
        makers: dict[str, Callable[[], list[Row]]] = {
            "metrics": lambda: metrics_rows(sources, perturbations, detectors, self.suite.threat),
            "perturbations": lambda: perturbation_rows(sources, perturbations),
            "attacks": lambda: attack_rows(sources, perturbations, detectors),
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
            "protocol_digest": self.plan.protocol_digests[model],
            "series_digest": self.plan.series_digests[model],
        }
        return [{**base, "detector": label} for label in (*(d.label for d in self.suite.detectors), "none")]

    def _score_rows(self, scored: list[tuple[SeedResult, DetectorResult]]) -> Iterator[Any]:
        for result, detector in scored:
            yield from score_rows(result.sources, result.perturbations, detector)

    def seed_result(self, subject: Subject) -> SeedResult | None:
        """Everything measured for one model and seed; ``None`` where the clean passes are missing."""
        if self._reason(*self._clean_logits(subject)):
            return None
        calibrate, evaluate = self._predictions(subject, "calibrate"), self._predictions(subject, "evaluate")
        made = self.store.values(subject.key)
        sources = Sources(
            self.suite.data.name, subject.part.label, subject.seed,
            self.plan.sets.calibrate.numpy(), self._labels("calibrate").numpy(), calibrate.numpy(),
            self.plan.sets.evaluate.numpy(), self._labels("evaluate").numpy(), evaluate.numpy(),
            bool(made["gradient"]), tuple(made.get("flags", ())),
        )  # fmt: skip
        perturbations = [self._sound_perturbation(sources, subject, part) for part in self.suite.perturbations]
        doubts = perturbation_flags(perturbations)
        perturbations = [replace(p, flags=(*p.flags, *doubts.get(p.label, ()))) for p in perturbations]
        detectors = [self._sound_detector(sources, subject, part, perturbations) for part in self.suite.detectors]
        detectors = [replace(d, flags=(*d.flags, *adaptive_flags(d, perturbations))) for d in detectors]
        return SeedResult(sources, perturbations, detectors)

    def _sound_perturbation(self, sources: Sources, subject: Subject, part: PerturbationPart) -> PerturbationResult:
        """The result of a perturbation if its rows can be made, else the reason why not."""

        def made() -> PerturbationResult:
            found = self.perturbation(subject, part)
            perturbation_rows(sources, SeedResult(sources, [found], []).perturbations)
            return found

        def failed(reason: str) -> PerturbationResult:
            # An entry that was checked says of which kind it is.
            kind = PERTURBATIONS.get(part.name).info.kind
            return PerturbationResult(part.label, kind, "", "", against=part.against or None, reason=reason)

        name = f"rows of {part.label} ({subject.part.label}, seed {subject.seed})"
        return self.problems.attempt(name, made, failed)

    def _sound_detector(
        self, sources: Sources, subject: Subject, part: DetectorPart, perturbations: list[PerturbationResult]
    ) -> DetectorResult:
        """The result of a detector if it fits the others', else the reason why not."""

        def made() -> DetectorResult:
            found = self.detector(subject, part, perturbations)
            return SeedResult(sources, perturbations, [found]).detectors[0]

        name = f"rows of {part.label} ({subject.part.label}, seed {subject.seed})"
        return self.problems.attempt(name, made, lambda reason: DetectorResult(part.label, reason=reason))

    @staticmethod
    def _clean_logits(subject: Subject) -> list[str]:
        measured: tuple[SetName, ...] = ("calibrate", "evaluate")
        return [t.logits for name in measured for t in subject.clean[name]]

    def _labels(self, name: SetName) -> torch.Tensor:
        return self.dataset.test.labels(self.plan.sets.of(name).tolist())

    def _predictions(self, subject: Subject, name: SetName) -> torch.Tensor:
        keys = [t.logits for t in subject.clean[name]]
        return torch.cat([self.store.tensor(key, "logits").argmax(1) for key in keys])

    def _reason(self, *keys: str) -> str:
        """Why the first of these cells that has no result has none; empty where all have one."""
        for key in keys:
            reason = self.summary.failed.get(key) or self.summary.skipped.get(key)
            if reason:
                return reason
            if key not in self.summary.done:
                return "not computed in this run"
        return ""

    def perturbation(self, subject: Subject, part: PerturbationPart) -> PerturbationResult:
        """What one perturbation did to the evaluate images."""
        made = PERTURBATIONS.get(part.name)(**part.params)
        info = made.info
        about: dict[str, Any] = {
            "label": part.label,
            "kind": info.kind,
            "family": str(made.family),
            "library": str(info.library),
            "norm": made.norm or "",
            "eps": None if made.eps is None else float(made.eps),
            "against": part.against or None,
            "group": part.group,
            # Nobody knows what made the images of a file.
            "box": info.box if made.learnable else "",
            "one_step": info.one_step,
            "effort": made.effort,
        }
        inapplicable = self.plan.applicability.inapplicable.get(part.label)
        if part.against in self.plan.applicability.unfitted:
            inapplicable = f"it is made against {part.against}, which is not fitted"
        if inapplicable:
            return PerturbationResult(**about, reason=inapplicable, inapplicable=True)
        keys, controls = subject.perturbs[part.label, "evaluate"], subject.controls[part.label]
        reason = self._reason(*keys)
        if reason:
            blind = info.kind == "attack" and info.gradients and not self.store.values(subject.key)["gradient"]
            return PerturbationResult(**about, reason=reason, inapplicable=blind)
        values = [self.store.values(key) for key in keys]
        images = sum(v["rows"] for v in values)

        def per_image(name: str) -> float | None:
            return sum(v[name] * v["rows"] for v in values) / images if images else None

        unmeasured = bool(self._reason(*controls))
        reduced = ["reduced-ensemble"] * (part.label in self.plan.applicability.reduced)
        return PerturbationResult(
            **about,
            index=cat_column(self.store, keys, "row").long().numpy(),
            prediction=cat_column(self.store, keys, "prediction").long().numpy(),
            success=cat_column(self.store, keys, "success").bool().numpy(),
            norms={name: cat_column(self.store, keys, f"norm:{name}").double().numpy() for name in NORMS},
            control_index=_NONE if unmeasured else cat_column(self.store, controls, "row").long().numpy(),
            forwards=per_image("forwards"),
            backwards=per_image("backwards"),
            flags=tuple(dict.fromkeys([*(flag for v in values for flag in v["flags"]), *reduced])),
            late=sum(v.get("late", 0) for v in values),
            parts=sum((Counter(v.get("parts", {})) for v in values), Counter()),
            told=self._told(keys, part) if part.against else np.zeros((0, 0)),
            questions=self._questions(keys) if part.against else np.zeros((2, 0)),
            questions_reason=next((r for v in values if (r := v.get("questions", ""))), ""),
            rounded=[
                self._rounded(subject, part.label, how) for how in ROUNDINGS if (part.label, how) in subject.rounded
            ],
        )

    def _told(self, keys: tuple[str, ...], part: PerturbationPart) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The true scores of its final images that an attack was told: in its loop, if it says so, and at its end."""
        keys = tuple(key for key in keys if self.store.values(key)["rows"])
        if not keys:
            return np.zeros((0, 0))
        judged = torch.cat([self.store.tensor(key, "judged") for key in keys], dim=1)
        told = [self.store.tensor(key, "told") for key in keys]
        detector = next(d for d in self.suite.detectors if d.label == part.against)
        drawn = DETECTORS.get(detector.name)(**detector.params).randomised
        # The lowest of many draws is no evaluation like the others.
        if drawn or any(len(t) != self.store.values(key)["rows"] for t, key in zip(told, keys, strict=True)):
            return judged.double().numpy()
        return torch.cat([torch.cat(told)[None], judged]).double().numpy()

    def _questions(self, keys: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What an attack was told on its way, and what the detector says of the same images elsewhere, (2, k)."""
        found = [t for key in keys if "asked:told" in (t := self.store.load(key))]
        names = ("asked:told", "asked:scored")
        rows = [torch.cat([torch.empty(0, dtype=torch.float64), *(t[name] for t in found)]) for name in names]
        return torch.stack(rows).double().numpy()

    def _rounded(self, subject: Subject, label: str, how: Rounding) -> RoundedResult:
        """One attack's images rounded to the levels of image files."""
        keys = subject.rounded[label, how]
        reason = self._reason(*keys)
        if reason:
            return RoundedResult(how, reason=reason)
        return RoundedResult(
            how,
            prediction=cat_column(self.store, keys, "prediction").long().numpy(),
            success=cat_column(self.store, keys, "success").bool().numpy(),
            norms={name: cat_column(self.store, keys, f"norm:{name}").double().numpy() for name in NORMS},
        )

    def detector(self, subject: Subject, part: DetectorPart, perturbations: list[PerturbationResult]) -> DetectorResult:
        """The scores of one detector; a score that is missing has its reason."""
        detector = DETECTORS.get(part.name)(**part.params)
        families = frozenset(p.family for p in perturbations if p.label in part.fit_on)
        about: dict[str, Any] = {
            "label": part.label,
            # Noise that it learned as harmless is no more unseen than an attack that it learned as hostile.
            "fit_on": (*part.fit_on, *part.fit_negatives),
            "fit_families": families,
            "surrogate": str(detector.surrogate_kind),
            "randomised": bool(detector.randomised),
            "flags": (
                *self._changed_state(subject, part),
                *self._unbroken(subject, part),
                *self._opened(subject, part),
            ),
        }

        def key(source: str) -> str:
            return subject.scores[part.label, source]

        reason = self.plan.applicability.unfitted.get(part.label)
        reason = reason or self._reason(subject.fits[part.label], key("calibrate"), key("clean"))
        if reason:
            return DetectorResult(**about, reason=reason)
        perturbed, control, rounded, reasons = {}, {}, {}, {}
        for p in perturbations:
            missing = p.reason or self._reason(key(p.label))
            if missing:
                reasons[p.label] = missing
                continue
            perturbed[p.label] = self.store.tensor(key(p.label), "score").numpy()
            if p.against not in (None, part.label):
                # The control of an attack says something about the detector that it was made against.
                continue
            for r in p.rounded:
                source = f"{r.how}:{p.label}"
                if not r.reason and not self._reason(key(source)):
                    rounded[p.label, r.how] = self.store.tensor(key(source), "score").numpy()
            missing = self._reason(key(f"control:{p.label}"))
            if missing:
                reasons[p.label] = missing
            else:
                control[p.label] = self.store.tensor(key(f"control:{p.label}"), "score").numpy()
        return DetectorResult(
            **about,
            calibrate=self.store.tensor(key("calibrate"), "score").numpy(),
            clean=self.store.tensor(key("clean"), "score").numpy(),
            perturbed=perturbed,
            control=control,
            rounded=rounded,
            rescored=self._rescored(subject, part),
            reasons=reasons,
        )

    def _opened(self, subject: Subject, part: DetectorPart) -> tuple[str, ...]:
        """Flags for a detector whose code opened what is not its own, or started programs, with the first of each."""
        keys = [subject.fits.get(part.label), *(k for (label, _), k in subject.scores.items() if label == part.label)]
        done = [key for key in keys if key is not None and key in self.summary.done]
        flags = []
        for flag, noted in ((READS_FILES, OPENED), (STARTS_PROCESSES, STARTED)):
            found = sorted({str(name) for key in done for name in self.store.values(key).get(noted, ())})
            if found:
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                # Not the whole path: tables are published.
                name = re.sub(r"[^\w.-]+", "_", Path(found[0]).name)
                flags.append(f"{flag}: {name}{more}")
        return tuple(flags)

    def _rescored(self, subject: Subject, part: DetectorPart) -> dict[str, Rescored]:
        """The scores that a detector gave when it was asked again, by source."""
        found = {}
        for (label, source), key in subject.scores.items():
            if label != part.label or self._reason(key):
                continue
            tensors = self.store.load(key)
            if "recheck:rows" not in tensors:
                continue
            contexts = {n.removeprefix("recheck:"): v.double().numpy() for n, v in tensors.items() if ":" in n}
            rows = contexts.pop("rows").astype(np.int64)
            found[source] = Rescored(rows, contexts, self.store.values(key)["recheck"])
        return found

    def _changed_state(self, subject: Subject, part: DetectorPart) -> tuple[str, ...]:
        """A flag for each piece of the process's state that the detector changed."""
        scores = (key for (label, _), key in subject.scores.items() if label == part.label)
        keys = [key for key in (subject.fits.get(part.label, ""), *scores) if key in self.summary.done]
        names = dict.fromkeys(name for key in keys for name in self.store.values(key).get(CHANGED, ()))
        return tuple(f"{CHANGED_FLAG}:{name}" for name in names)

    def _unbroken(self, subject: Subject, part: DetectorPart) -> tuple[str, ...]:
        """A flag where no adaptive attack turned and hid every image at its large budget, or none has one."""
        found: list[str] = []
        against = [
            p for p in self.suite.perturbations if p.against == part.label and (p.label, "evaluate") in subject.perturbs
        ]
        for p in self.suite.perturbations:
            key = subject.checks.get(p.label)
            if key is None or p.against != part.label:
                continue
            reason = self._reason(key)
            made = PERTURBATIONS.get(p.name)(**p.params)
            whole = reaches_threat(made.norm, made.eps, self.suite.threat)
            if reason or not whole or not getattr(made, "is_checked", True):
                # It did not run, or says nothing about the attack that counts.
                continue
            values = self.store.values(key)
            if values["rows"] < MIN_IMAGES:
                return (UNCHECKED,)
            if values.get("undetected", 0) < values["rows"]:
                found.append(f"{values.get('undetected', 0)} of {values['rows']}")
            else:
                # One attack that reaches everything shows that the detector can be passed.
                return ()
        if found:
            return INCOMPLETE, f"at the large budget: {', '.join(found)}"
        return (UNCHECKED,) if against else ()

    def propagation_rows(self, subject: Subject) -> list[Row]:
        """The rows of ``propagation.csv`` for one model and seed."""
        report = ANALYSES.get("propagation")
        taps = [t.name for t in tap_infos(self.store.values(subject.key))]
        rows: list[Row] = []
        for label, key in subject.propagation.items():
            if key not in self.summary.done:
                continue
            base = {
                "dataset": self.suite.data.name,
                "model": subject.part.label,
                "seed": subject.seed,
                "perturbation": label,
            }
            with self.problems.of(f"propagation of {label} ({subject.part.label}, seed {subject.seed})"):
                stored = self.store.load(key)
                for population in POPULATIONS:
                    values, whole = stored[population], stored[f"cka:{population}"]
                    rows += report.propagation_rows(base, population, taps, values, whole)
        return rows

    def timing_rows(self) -> list[Row]:
        """What the cells of this run cost, by what and name; the one table that differs between runs."""
        spent: dict[tuple[str, ...], list[float]] = {}
        for cell in self.plan.cells.values():
            if cell.key not in self.summary.done:
                continue
            dataset, model, seed, what, *rest = name_parts(cell.name)
            name = rest[0] if rest else model
            total = spent.setdefault((dataset, model, seed, what, name), [0.0, 0.0])
            total[0] += self.store.record(cell.key).seconds
            total[1] += self.store.values(cell.key).get("rows", cell.images)
        return [
            {
                "dataset": dataset,
                "model": model,
                "seed": seed,
                "what": what,
                "name": name,
                "seconds": seconds,
                "ms_per_image": 1000 * seconds / images if images else None,
            }
            for (dataset, model, seed, what, name), (seconds, images) in sorted(spent.items())
        ]
