"""What the adaptive worst case leaves standing, beside the one that it replaced, with at least as many passes for that.

    python docs/studies/adaptive_attack.py --data DATA [--model mnist-cnn] [--eps 0.1 0.15] [--images 100]

Both attack the same fitted detectors on the same images, image by image the worst case; the old one
(`opponents/frozen_adaptive.py`) gets restarts and queries multiplied until it has made as many passes. The new one's
rehearsal takes place on other images; its passes are counted with the rest. The last column is the exact two-sided
McNemar test over the images.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aftershock.attacks.adaptive.rehearsal import Informed, Rehearsal, Stage, rehearse
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import CountingModel
from aftershock.attacks.native.pgd import PGD
from aftershock.detectors.base.detector import Detector
from aftershock.harness.core.registry import DETECTORS
from aftershock.harness.data.sets import cifar10, digits, mnist
from aftershock.harness.models.classifier import ModelSpec, obtain
from aftershock.harness.run.fitted_target import FittedTarget
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel, fit_traces
from opponents.frozen_adaptive import FrozenWorstCase
from scipy.stats import binomtest
from study_setup import MEAN, STD, WEIGHTS, parser, table, write
from torch import Tensor

FIT, CALIBRATE, GUIDES, REHEARSED = 1000, 400, 256, 36
# By label: name and parameters; eight families that the suites have.
DETECTORS_TRIED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "msp": ("msp", {}),
    "mahalanobis": ("mahalanobis", {"layers": "all"}),
    "knn": ("knn", {"layers": "last:3"}),
    "kde": ("kde", {}),
    "bits-hamming": ("bitvector", {"method": "hamming"}),
    "nap": ("nap", {}),
    "codeshift": ("codeshift", {}),
    "latent": ("latent", {}),
    "lid": ("lid", {}),
    "feature-squeezing": ("feature-squeezing", {"squeezers": ["bit-depth", "median"]}),
}
BUDGETS = {"cifar10-resnet20": (0.5 / 255, 1 / 255), "mnist-cnn": (0.1, 0.15), "digits-cnn": (0.05, 0.1)}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, images that it gets right, and what detectors are fitted on."""

    traced: TracedModel
    fit: Tensor
    fit_labels: Tensor
    calibrate: Tensor
    calibrate_labels: Tensor
    images: Tensor
    labels: Tensor

    def fitted(self, name: str, params: Mapping[str, Any], eps: float) -> Detector:
        """Return a detector, fitted; one that learns from attacks sees PGD."""
        detector: Detector = DETECTORS.get(name)(**params)
        clean = fit_traces(self.traced.traces(detector, self.fit), self.fit_labels, torch.Generator().manual_seed(0))
        seen = None
        if detector.supervised:
            made = perturb_batch(PGD(eps), self.traced.model, self.fit[:400], self.fit_labels[:400], range(400), 0)
            seen = self.traced.traces(detector, made.images[made.success])
        return detector.fit(clean, seen)

    def target(self, detector: Detector) -> FittedTarget:
        """Return a fitted detector as an attack sees it."""
        guides = self.fit[:GUIDES], self.fit_labels[:GUIDES]
        scores = [self.traced.score(detector, part)[1] for part in (self.calibrate, guides[0])]
        return FittedTarget(detector, self.traced, scores[0], *guides, scores[1])


def case(model: str, data: Path, images: int) -> Case:
    """Return a model with its images, the first that it gets right of each part of the data."""
    if model == "cifar10-resnet20":
        dataset = cifar10(data).load()
        spec = ModelSpec(name="resnet20", weights=data / WEIGHTS, mean=MEAN, std=STD)
    else:
        dataset = mnist(data).load() if model == "mnist-cnn" else digits(data).load()
        spec = ModelSpec(name="cnn")
    classifier = obtain(spec, dataset, 0).eval().requires_grad_(False)

    def right(split: Any, first: int, count: int) -> tuple[Tensor, Tensor]:
        rows = list(range(first, min(first + 2 * count, len(split))))
        found, labels = split.images(rows), split.labels(rows)
        with torch.no_grad():
            good = torch.cat([classifier(part).argmax(1) for part in found.split(128)]) == labels
        return found[good][:count], labels[good][:count]

    fit, evaluate = right(dataset.train, 0, FIT), right(dataset.test, 0, images)
    calibrate = right(dataset.test, 2 * images, CALIBRATE)
    taps = discover(classifier, fit[0][:1], (), classifier.network)
    return Case(TracedModel(classifier, taps, (), classifier.network), *fit, *calibrate, *evaluate)


@dataclass(frozen=True)
class Outcome:
    """What an attack left: which images stand, bool (n,), and its forwards and backwards per image."""

    stands: Tensor
    passes: float
    parts: Sequence[str] = ()


def outcome(made: PerturbedBatch, target: FittedTarget, further: float = 0.0) -> Outcome:
    """Judge final images as a run does: scored again, without the attack."""
    _, scores = target.query(target.traced_model.model, made.images)
    passes = made.success & (scores <= target.threshold)
    return Outcome(~passes, made.forwards + made.backwards + further, made.credits)


def rehearsed(case: Case, target: FittedTarget, attack: WorstCase) -> tuple[Rehearsal, int]:
    """Return what is learned on calibrate images, and how many passes that took."""
    counting = CountingModel(case.traced.model)
    stage = Stage(counting, target, case.calibrate[:REHEARSED], case.calibrate_labels[:REHEARSED], 0)
    return rehearse(attack, stage), counting.forwards + counting.backwards


def new(case: Case, target: FittedTarget, eps: float) -> tuple[Outcome, Rehearsal]:
    """Attack with what the package has."""
    attack = WorstCase(eps, images=None)
    learned, spent = rehearsed(case, target, attack)
    informed = Informed(target, learned.stand_ins, [p.part for p in learned.parts])
    n = len(case.images)
    made = perturb_batch(attack, case.traced.model, case.images, case.labels, range(n), 0, target=informed)
    return outcome(made, target, spent / n), learned


def old(case: Case, target: FittedTarget, eps: float, passes: float) -> Outcome:
    """Attack with the opponent, restarts and queries multiplied until it has made that many passes."""
    times = 1
    while True:
        attack = FrozenWorstCase(eps, queries=100 * times, restarts=3 * times, images=None)
        n = len(case.images)
        made = perturb_batch(attack, case.traced.model, case.images, case.labels, range(n), 0, target=target)
        found = outcome(made, target)
        if found.passes >= passes or times >= 64 or not bool(found.stands.any()):
            return found
        times = max(times + 1, min(math.ceil(times * passes / found.passes), 64))


def main(given: Namespace) -> None:
    """Print one row for each detector and budget."""
    ready = case(given.model, Path(given.data), given.images)
    write(f"{given.model}, {len(ready.images)} images, share that stands\n")
    rows = []
    for eps in given.eps or BUDGETS[given.model]:
        for label in given.detectors or DETECTORS_TRIED:
            name, params = DETECTORS_TRIED[label]
            target = ready.target(ready.fitted(name, params, eps))
            now, learned = new(ready, target, eps)
            before = old(ready, target, eps, now.passes)
            only = int((now.stands & ~before.stands).sum()), int((before.stands & ~now.stands).sum())
            p = binomtest(only[1], sum(only)).pvalue if sum(only) else 1.0
            rows.append([
                label, f"{eps:.5f}", f"{before.stands.double().mean():.3f}", f"{now.stands.double().mean():.3f}",
                str(only[1]), str(only[0]), f"{before.passes:.0f}", f"{now.passes:.0f}", f"{p:.3f}",
            ])  # fmt: skip
            write(f"{rows[-1]} {[(r.part, r.passed, r.images) for r in learned.parts][:5]} {dict(learned.follows)}")
    head = ["detector", "eps", "before", "now", "only before", "only now", "passes before", "passes now", "p"]
    write(table(head, rows))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--model", default="cifar10-resnet20", choices=sorted(BUDGETS), help="model and data")
    options.add_argument("--eps", type=float, nargs="*", help="budgets in L-inf")
    options.add_argument("--images", type=int, default=100, help="images that are attacked")
    options.add_argument("--detectors", nargs="*", choices=sorted(DETECTORS_TRIED), help="labels; by default all")
    sys.exit(main(options.parse_args()))
