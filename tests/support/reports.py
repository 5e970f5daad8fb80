"""Run directories as a small run on digits would leave them, without computing anything."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from support.columns import COLUMNS

TABLES = ("leaderboard", "metrics", "perturbations", "propagation")
DIGEST = "5f0c2d9e8ab14c7793be61d2a0f4477c1d6e2b90c8a35f7e4410b6d9e2f8a7c3"
KINDS = {
    # perturbation: kind, family, library, norm, eps, success, l0, l2, linf, forwards, backwards
    "gaussian": ("noise", "noise", "aftershock", "l2", "1.5", 0.021, 63.9, 1.41, 0.46, 1, 0),
    "fgsm": ("attack", "fgsm", "aftershock", "linf", "0.125", 0.418, 58.2, 0.84, 0.125, 2, 1),
    "pgd": ("attack", "pgd", "aftershock", "linf", "0.125", 0.713, 57.1, 0.77, 0.125, 21, 20),
    "cw": ("attack", "cw", "torchattacks", "l2", "", 0.994, 51.4, 0.61, 0.214, 101, 100),
    "deepfool": ("attack", "deepfool", "foolbox", "l2", "", 1.0, 49.8, 0.52, 0.188, 14, 38),
}
DETECTORS = {
    # detector: fit_on, surrogate, strength on (fgsm, pgd, cw, deepfool), robust, adaptive, benign
    "bits-on-pgd": ("pgd", "relaxed", (0.93, 0.98, 0.66, 0.55), 0.392, 0.874, 0.311),
    "latent": ("", "exact", (0.83, 0.88, 0.74, 0.68), 0.447, 0.921, 0.094),
    "codeshift": ("", "straight-through", (0.79, 0.86, 0.71, 0.63), 0.431, 0.905, 0.121),
    "mahalanobis": ("", "exact", (0.87, 0.90, 0.69, 0.64), 0.418, 0.943, 0.176),
    "energy": ("", "exact", (0.62, 0.41, 0.81, 0.88), 0.352, 0.989, 0.052),
    "msp": ("", "exact", (0.68, 0.37, 0.90, 0.96), 0.347, 0.992, 0.061),
    "kde": ("", "none", (0.74, 0.78, 0.66, 0.61), 0.401, 0.618, 0.088),
}
NOT_RANKED = "adaptive-incomplete"
TAPS = {
    "cnn": ["stem.relu", "block1.relu", "block1.relu:2", "block2.relu", "block2.relu:2", "block3.relu", "head.relu",
            "head.relu:2"],
    "mlp": ["fc1.relu", "fc2.relu", "fc3.relu", "fc4.relu", "fc5.relu", "fc6.relu", "fc7.relu", "fc8.relu"],
}  # fmt: skip


class Tables:
    """A run directory in the making: rows by table, in the columns of the format."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, object]]] = {name: [] for name in TABLES}
        self.facts: dict[str, object] = {}

    def add(self, table: str, **cells: object) -> None:
        unknown = set(cells) - set(COLUMNS[table])
        assert not unknown, unknown
        self.rows[table].append(cells)

    def write(self, path: Path) -> Path:
        (path / "tables").mkdir(parents=True)
        for name, rows in self.rows.items():
            with (path / "tables" / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, COLUMNS[name], restval="")
                writer.writeheader()
                writer.writerows(rows)
        (path / "run.json").write_text(json.dumps(self.facts), encoding="utf-8")
        return path


def fabricate(models: Sequence[str] = ("cnn", "mlp"), seeds: Sequence[int] = (0, 1), name: str = "quick") -> Tables:
    """Tables as a small run on digits would leave them."""
    made, draw = Tables(), random.Random(7)
    made.facts = {
        "schema": 1, "name": name, "protocol_digest": DIGEST, "status": "incomplete",
        "started": "2026-11-20T09:41:07+00:00", "finished": "2026-11-20T09:44:39+00:00", "seconds": 212.4,
        "cells": {"done": 143, "failed": 1, "skipped": 2},
        "failures": [{"status": "failed", "cell": "digits/mlp/1/fit/autoencoder",
                      "model": "mlp", "kind": "fit", "part": "autoencoder",
                      "reason": "The loss became NaN after 3 epochs."},
                     {"status": "skipped", "cell": "digits/mlp/1/score/autoencoder/pgd",
                      "model": "mlp", "kind": "score", "part": "autoencoder",
                      "reason": "needs digits/mlp/1/fit/autoencoder"}],
        "versions": {"aftershock": "0.1.0", "torch": "2.15.0", "torchvision": "0.30.0", "torchattacks": "3.5.1",
                     "foolbox": "3.3.4", "scikit-learn": "1.9.1", "numpy": "2.4.6"},
        "hardware": {"cpu": "AMD EPYC 7763", "cores": 2, "memory_gb": 7.8, "device": "cpu", "platform": "Linux x86_64"},
        "models": [{"dataset": "digits", "model": m, "seed": s, "clean_accuracy": a + 0.004 * s, "n_test": 540,
                    "source": "trained in this run"} for m, a in zip(models, (0.981, 0.963), strict=False)
                   for s in seeds],
        "suite": {
            "name": name, "seeds": list(seeds),
            "data": {"name": "digits", "fit": 1000, "calibrate": 200, "evaluate": 200},
            "threat": {"norm": "linf", "eps": "0.125"}, "models": [{"name": m} for m in models],
            "perturbations": [{"name": p} for p in KINDS],
            "detectors": [{"name": d} for d in [*DETECTORS, "autoencoder"]],
        },
    }  # fmt: skip
    for model in models:
        _measure(made, model, seeds, draw)
        _rank(made, model, seeds, draw)
    return made


def _measure(made: Tables, model: str, seeds: Sequence[int], draw: random.Random) -> None:
    for seed in seeds:
        key = {"dataset": "digits", "model": model, "seed": seed}
        for p, (kind, family, library, norm, eps, success, l0, l2, linf, fwd, bwd) in KINDS.items():
            about = {**key, "perturbation": p, "kind": kind, "family": family, "norm": norm, "eps": eps}
            rate = min(1.0, success * draw.uniform(0.96, 1.04))
            made.add("perturbations", **about, library=library, n=196, success_rate=rate, mean_l0=l0, mean_l2=l2,
                     mean_linf=linf, max_linf=linf * (1 if norm == "linf" else 1.9), forwards_per_image=fwd,
                     backwards_per_image=bwd,
                     flags="attack not converged" if p == "cw" and model == "mlp" else "")  # fmt: skip
            n = round(196 * rate)
            for d, (fit_on, _, strengths, *_, benign) in DETECTORS.items():
                seen = "no" if not fit_on else {"pgd": "exact", "fgsm": "family"}.get(p, "no")
                known = {**about, "outcome": "success", "detector": d, "fit_on": fit_on, "seen": seen, "n_positive": n}
                for negatives in ("clean", "control"):
                    if p == "gaussian":
                        made.add("metrics", **known, negatives=negatives, n_negative=196,
                                 reason=f"{n} fooling images, 30 are needed")  # fmt: skip
                        continue
                    a = strengths[list(KINDS).index(p) - 1] + draw.uniform(-0.015, 0.015)
                    a = min(0.995, a - (0.08 if negatives == "control" else 0) - (0.02 if model == "mlp" else 0))
                    half = 1.96 * math.sqrt(a * (1 - a) / n)
                    tpr = max(0.01, min(0.99, (a - 0.45) * 1.7))
                    made.add("metrics", **known, negatives=negatives, n_negative=196, auroc=a, auroc_low=a - half,
                             auroc_high=min(1, a + half * 0.8), average_precision=a, tpr_at_fpr_1=tpr / 2,
                             tpr_at_fpr_5=tpr, tpr_at_fpr_10=min(1, tpr * 1.2),
                             undetected_success_at_fpr_5=rate * (1 - tpr),
                             control_flagged_at_fpr_5=benign * 1.3)  # fmt: skip
            _propagate(made, model, key, p, list(KINDS).index(p), draw)


def _propagate(made: Tables, model: str, key: dict[str, object], p: str, index: int, draw: random.Random) -> None:
    for depth, tap in enumerate(TAPS[model]):
        for population, factor in (("success", 1.0), ("failed", 0.62), ("control", 0.42), ("target-class", 1.3)):
            if (p == "gaussian" and population == "success") or (p == "deepfool" and population == "failed"):
                continue
            growth = (0.05, 0.11, 0.15, 0.085, 0.07)[index] * (1 if population != "control" else 0.25)
            shift = factor * (0.16 + 0.03 * index % 0.1 + growth * (depth + 1)) * draw.uniform(0.97, 1.03)
            flips = min(0.5, shift * 0.28)
            cell = {**key, "perturbation": p, "population": population, "depth": depth, "tap": tap, "n": 120}
            made.add(
                "propagation", **cell, metric="relative_l2", mean=shift, q05=shift * 0.55, q50=shift, q95=shift * 1.6
            )
            made.add(
                "propagation", **cell, metric="bit_flip_rate", mean=flips, q05=flips * 0.4, q50=flips, q95=flips * 1.7
            )
            made.add("propagation", **cell, metric="cka", mean=max(0.05, 1 - shift * 0.45))


def _rank(made: Tables, model: str, seeds: Sequence[int], draw: random.Random) -> None:
    drop = 0.05 if model == "mlp" else 0.0
    order = sorted(DETECTORS, key=lambda d: (d == "kde", -DETECTORS[d][3]))
    shared = {"dataset": "digits", "model": model, "norm": "linf", "eps": "0.125", "protocol_digest": DIGEST,
              "seeds": " ".join(map(str, seeds))}  # fmt: skip
    for rank, d in enumerate(order, 1):
        fit_on, surrogate, strengths, robust, adaptive, benign = DETECTORS[d]
        robust -= drop
        attacks = dict(zip(list(KINDS)[1:], strengths, strict=True))
        unseen = [a for p, a in attacks.items() if not fit_on or p not in ("pgd", "fgsm")]
        worst = min(attacks, key=lambda p: attacks[p])
        made.add("leaderboard", **shared, rank="" if d == "kde" else rank, detector=d, robust_accuracy_at_fpr_5=robust,
                 not_ranked_reason=NOT_RANKED if d == "kde" else "", robust_accuracy_is_upper_bound=0, n_images=200,
                 robust_accuracy_low=robust - 0.066, robust_accuracy_high=robust + 0.061,
                 adaptive_undetected_at_fpr_5=adaptive, worst_auroc=attacks[worst], worst_perturbation=worst,
                 mean_auroc_seen=0.955 if fit_on else "", mean_auroc_unseen=sum(unseen) / len(unseen),
                 n_unseen=len(unseen), control_flagged_at_fpr_5=benign * 1.3, benign_flagged_at_fpr_5=benign,
                 fpr_realised_5=draw.uniform(0.038, 0.067), surrogate=surrogate, seed_sd=draw.uniform(0.004, 0.021),
                 flags=NOT_RANKED if d == "kde" else "")  # fmt: skip
    made.add("leaderboard", **shared, rank=len(order), detector="none", robust_accuracy_at_fpr_5=0.287 - drop,
             robust_accuracy_low=0.225 - drop, robust_accuracy_high=0.349 - drop, adaptive_undetected_at_fpr_5=1.0,
             control_flagged_at_fpr_5=0, benign_flagged_at_fpr_5=0, fpr_realised_5=0, surrogate="none",
             seed_sd=0.011, robust_accuracy_is_upper_bound=0, n_images=200)  # fmt: skip
