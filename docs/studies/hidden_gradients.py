"""What a detector gains by hiding its gradients: one score, with and without a surrogate, the same images and settings.

    python docs/studies/hidden_gradients.py --data DATA [--model digits-cnn] [--eps 0.1] [--images 400]

The forms of a score: the detector as it is (``exact``); without a surrogate, with a constant one, with NaN, with one of
the wrong sign; in steps of the clean spread; 0 or 1; the same for all that is flagged. In the last three, too, no
surrogate is offered. Each form is rehearsed and attacked by the worst case as by default. Flagged is the same set of
images in all forms but the stepped one, so what more images stand is what hiding gained.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adaptive_attack import BUDGETS, DETECTORS_TRIED, Case, case, new
from aftershock.detectors.base.detector import Detector
from aftershock.harness.run.fitted_target import FittedTarget
from aftershock.harness.tracing.traces import LiveTrace, Traces
from study_setup import parser, table, write
from torch import Tensor

FORMS = ("exact", "none", "constant", "nan", "wrong-sign", "stepped", "binary", "plateau")


@dataclass(frozen=True)
class Cut:
    """Where the clean scores of a detector lie: their median and their threshold."""

    median: float
    threshold: float


class Form(Detector):
    """A fitted detector in another form."""

    def __init__(self, made: Detector, form: str, cut: Cut) -> None:
        self.made, self.form, self.cut = made, form, cut

    @property
    def info(self) -> Any:  # type: ignore[override]  # a class attribute elsewhere
        return self.made.info

    @property
    def needs(self) -> Any:
        return self.made.needs

    @property
    def views(self) -> Any:
        return self.made.views

    @property
    def surrogate_kind(self) -> Any:
        return "exact" if self.form in ("exact", "constant", "nan", "wrong-sign") else "none"

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Form:
        return self

    def score(self, traces: Traces) -> Tensor:
        scores = self.made.score(traces).double()
        spread = self.cut.threshold - self.cut.median
        if self.form == "stepped":
            return ((scores - self.cut.median) / spread).floor()
        if self.form == "binary":
            return (scores > self.cut.threshold).double()
        if self.form == "plateau":
            return torch.where(scores > self.cut.threshold, self.cut.threshold + spread, scores)
        return scores

    def surrogate(self, live: LiveTrace) -> Tensor:
        if self.form == "constant":
            return 0.0 * live.logits.sum(1)
        found = self.made.surrogate(live)
        return {"nan": found * float("nan"), "wrong-sign": -found}.get(self.form, found)


def formed(ready: Case, made: Detector, form: str) -> FittedTarget:
    """Return one form of a fitted detector as an attack sees it."""
    target = ready.target(made)
    return ready.target(Form(made, form, Cut(target.target_score, target.threshold)))


def main(given: Namespace) -> None:
    """Print one row for each form, budget and detector."""
    ready = case(given.model, Path(given.data), given.images)
    write(f"{given.model}, {len(ready.images)} images\n")
    rows = []
    for label in given.detectors:
        name, params = DETECTORS_TRIED[label]
        for eps in given.eps or BUDGETS[given.model]:
            made, exact = ready.fitted(name, params, eps), None
            for form in given.forms:
                found, learned = new(ready, formed(ready, made, form), eps)
                exact = found.stands if exact is None else exact
                gained = found.stands.double() - exact.double()
                upper = float(gained.mean() + 1.96 * gained.std() / len(gained) ** 0.5)
                credits = {p: found.parts.count(p) for p in dict.fromkeys(found.parts) if p}
                rows.append([
                    label, f"{eps:.4f}", form, f"{found.stands.double().mean():.3f}", f"{gained.mean():+.3f}",
                    f"{upper:+.3f}", f"{learned.follows.get('student', float('nan')):.2f}", f"{found.passes:.0f}",
                ])  # fmt: skip
                write(f"{rows[-1]} {credits}")
    head = ["detector", "eps", "form", "stands", "gained", "at most (95 %)", "student follows", "passes"]
    write(table(head, rows))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--model", default="digits-cnn", choices=sorted(BUDGETS), help="model and data")
    options.add_argument("--eps", type=float, nargs="*", help="budgets in L-inf")
    options.add_argument("--images", type=int, default=400, help="images that are attacked")
    options.add_argument("--detectors", nargs="*", default=["mahalanobis", "feature-squeezing"], help="labels")
    options.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS, help="forms of the score")
    sys.exit(main(options.parse_args()))
