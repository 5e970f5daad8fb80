"""ClaDec: decode images from a classifier's layers, and see what is left of them (Schneider & Vlachos)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...detectors.base.parameters import check_choice, check_count, check_positive
from ...harness.core.errors import UsageError
from ...harness.core.model_state import untouched
from ...harness.tracing.traced_model import Instruments
from ...harness.tracing.traces import Need
from .. import Analysis, AnalysisInfo, AnalysisInput, Findings, ImageSet
from .attacked import Reading, class_means, follow, read_turned
from .causal import causes
from .measures import Judges, judged, logits_of, squared_error
from .networks import chosen_taps
from .report.tables import report
from .study import Study
from .training import RANDOM, REFERENCE, Budget, Key, Trained, cladec, train_decoders

Target = Literal["label", "prediction"]
# Images in the causal check: enough for means, few enough for a pass per unit.
_CAUSAL_IMAGES = 128
# Share of the progress that a seed's decoders take; the judges take the rest.
_DECODING = 0.6


class ClaDec(Analysis[Any]):
    """Decodes the input from the activations at some taps and asks what a reader of the pictures could tell.

    For each tap, decoders of one architecture, budget and initialisation turn activations back into images. The sources
    of activations: the classifier under study (one decoder for each of ``alphas``, the weight of the classifier's
    cross-entropy on the reconstruction beside the squared error); a RefAE, whose encoder is the same architecture up to
    the tap, trained from scratch together with its decoder; and the untrained network. Each of ``seeds`` repeats all of
    it with fresh decoders, encoders, mini-batches and judges.

    The classifier under study cannot judge its own reconstructions: a high ``alpha`` makes pictures that it alone
    likes. Judges are fresh classifiers of the same architecture, trained from scratch: one on clean images (what do the
    pictures show?), and, with ``retrain``, one for each source on its reconstructions of the fit images (what could be
    learnt from them? the papers' measure).

    With perturbations in the suite, turned images are decoded too: from which tap on is the reached class read, beside
    noise of the same norm. A causal check mixes single units up between images and compares what moves the picture with
    what moves the prediction: a decoder shows what can be read, not what is used.

    Cost: seeds x taps x (alphas + 2) decoder trainings of ``epochs`` passes over ``images`` images, and as many
    classifier trainings with ``retrain``; each alpha above 0 adds a pass through the classifier to every step.

    Args:
        taps: ``spread:N`` for N taps evenly by depth (the first and the last among them), ``all``, ``last:N``,
            ``first:N``, or names.
        images: at most so many fit images are trained on.
        test_images: at most so many evaluate images are measured on.
        epochs: passes of every decoder (and RefAE).
        judge_images: at most so many fit images teach the fresh classifiers that read reconstructions.
        judge_epochs: passes of every fresh classifier.
        width: maps in the decoders.
        alphas: weights of the classification loss, 0 to 1, beside the mean squared error over pixels.
        seeds: repetitions; fewer than three leave nothing to say about chance in training.
        target: the class that a reconstruction shall keep: the true label, as in the official code, or the prediction.
        retrain: train judges on reconstructions, too.
        units: at most so many units a tap in the causal check; 0 leaves it out.
        attacked: at most so many turned images of each perturbation.
        batch_size: images a step.
        learning_rate: of Adam at the start; it follows half a cosine down to 0.
        gallery: images in the galleries.

    Raises:
        UsageError: for a value out of range.
    """

    info = AnalysisInfo(
        "ClaDec",
        "J. Schneider, M. Vlachos (2021): Explaining Neural Networks by Decoding Layer Activations, IDA, LNCS 12695, "
        "pp. 63-75 (arXiv 2005.13630)",
        "decodes images from a classifier's layers beside a reference autoencoder; fresh classifiers judge them",
    )
    reads_perturbed = True

    def __init__(
        self,
        taps: str | list[str] = "spread:3",
        images: int = 2000,
        test_images: int = 500,
        epochs: int = 6,
        judge_images: int = 10000,
        judge_epochs: int = 4,
        width: int = 32,
        alphas: list[float] | None = None,
        seeds: int = 3,
        target: Target = "label",
        retrain: bool = False,
        units: int = 24,
        attacked: int = 200,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        gallery: int = 8,
    ) -> None:
        counts = {
            "images": images, "test_images": test_images, "epochs": epochs, "judge_images": judge_images,
            "judge_epochs": judge_epochs, "width": width, "seeds": seeds, "batch_size": batch_size, "gallery": gallery,
        }  # fmt: skip
        for name, count in counts.items():
            check_count(name, count)
        check_count("units", units, 0)
        check_count("attacked", attacked, 0)
        check_positive("learning_rate", learning_rate)
        check_choice("target", target, Target)
        alphas = [0.0, 0.1] if alphas is None else list(alphas)
        if not alphas or len(set(alphas)) < len(alphas) or not all(0 <= a <= 1 for a in alphas):
            raise UsageError(f"alphas = {alphas!r}: give one or more different numbers from 0 to 1.")
        if not taps or not all(taps):
            raise UsageError(f"taps = {taps!r}: give spread:N, all, last:N, first:N, or the names of taps.")
        self.taps = taps
        self.images, self.test_images, self.judge_images = images, test_images, judge_images
        self.judge_epochs, self.seeds = judge_epochs, seeds
        self.budget = Budget(epochs, batch_size, learning_rate, width)
        self.alphas = sorted(float(a) for a in alphas)
        self.target: Target = target
        self.retrain, self.units, self.attacked, self.gallery = retrain, units, attacked, gallery

    @property
    def needs(self) -> tuple[Need, ...]:
        """None: whole activations are read while they are hot, and never stored."""
        return ()

    def study(self, material: AnalysisInput) -> Findings:
        """Train, decode, judge.

        Raises:
            UsageError: without images, or for taps that the model has not.
        """
        if len(material.fit) < 2 or len(material.evaluate) < 2:
            raise UsageError("ClaDec needs at least two fit and two evaluate images: raise data.fit or data.evaluate.")
        own, device = material.instruments, material.device
        taps = chosen_taps(self.taps, own.taps)
        untrained = _untrained(material)
        sources = [cladec(alpha) for alpha in self.alphas] + ([REFERENCE, RANDOM] if untrained else [])
        clean = _read(material.fit, max(self.images, self.judge_images))
        images, labels, predictions = (column[: self.images] for column in clean)
        lesson, answers = clean[0][: self.judge_images], clean[1][: self.judge_images]
        test, truth, said = _read(material.evaluate, self.test_images)
        turned = (
            [read_turned(p, material.evaluate, self.attacked) for p in material.perturbed.values()]
            if self.attacked
            else []
        )
        study = Study(
            taps=taps, sources=sources, classes=material.classes, budget=self.budget, seeds=self.seeds,
            target=self.target, retrained=self.retrain, trained_on=len(images), controlled=untrained is not None,
            images=test, labels=truth, mean_error=float(squared_error(images.mean(0, keepdim=True), test).mean()),
            readings=[Reading(t) for t in turned if len(t.images)],
            unturned=[t.label for t in turned if not len(t.images)],
        )  # fmt: skip
        judges = Judges(untrained, self.judge_epochs, len(material.classes), device)
        targets = labels if self.target == "label" else predictions
        with untouched(own.model):
            for seed in range(self.seeds):

                def draws(*names: str | int, seed: int = seed) -> torch.Generator:
                    return material.draws(seed, *names)

                def progress(share: float, done: float = seed / self.seeds) -> None:
                    material.progress(done + share / self.seeds)

                trained = train_decoders(
                    own, untrained, images, targets, taps, sources, self.budget, draws, device,
                    lambda share, tell=progress: tell(_DECODING * share),  # type: ignore[misc]  # bound per seed
                )  # fmt: skip
                judge = judges.train(lesson, answers, draws)
                readers = {"fresh": judge, "own": own.model}
                if self.retrain:
                    readers["retrained"] = judge if len(lesson) == len(images) else judges.train(images, labels, draws)
                for name, model in readers.items():
                    correct, loss = judged(logits_of(model, test, device), truth)
                    study.measured.original[f"{name}_accuracy"].append(correct)
                    study.measured.original[f"{name}_cross_entropy"].append(loss)
                templates: dict[Key, Tensor] = {}
                for done, key in enumerate(trained.decoders, 1):
                    decoded = trained.reconstruct(*key, test)
                    found = study.measured.values[key]
                    _measure(found, own, judge, decoded, test, truth, said, device)
                    learnable = trained.reconstruct(*key, images)
                    templates[key] = class_means(learnable, labels, len(material.classes))
                    if self.retrain:
                        student = judges.train(learnable, labels, draws)
                        correct, loss = judged(logits_of(student, decoded, device), truth)
                        found["retrained_accuracy"].append(correct)
                        found["retrained_cross_entropy"].append(loss)
                    study.curves.setdefault(key, []).append(trained.curves[key])
                    if not seed:
                        study.gallery[key] = decoded[: self.gallery]
                    progress(_DECODING + (1 - _DECODING) * done / len(trained.decoders))
                for reading in study.readings:
                    follow(reading, trained, judge, device, templates)
                if not seed:
                    self._causes(study, trained, test.to(device), material)
        material.progress(1.0)
        return report(study)

    def _causes(self, study: Study, trained: Trained, images: Tensor, material: AnalysisInput) -> None:
        plain = [s for s in study.sources if s.alpha == self.alphas[0] and s.encoder != "reference"]
        for tap in study.taps if self.units else ():
            for source in plain:
                key = tap.name, source
                draws = material.draws("causes", tap.name)
                study.causes[key] = causes(
                    trained.encoders[key], trained.decoders[key], images[:_CAUSAL_IMAGES], tap.name, self.units, draws
                )


def _measure(
    found: dict[str, list[Tensor]], own: Instruments, judge: torch.nn.Module, decoded: Tensor, images: Tensor,
    labels: Tensor, said: Tensor, device: torch.device,
) -> None:  # fmt: skip
    found["squared_error"].append(squared_error(decoded, images))
    correct, loss = judged(logits_of(judge, decoded, device), labels)
    found["fresh_accuracy"].append(correct)
    found["fresh_cross_entropy"].append(loss)
    logits = logits_of(own.model, decoded, device)
    correct, loss = judged(logits, labels)
    found["own_accuracy"].append(correct)
    found["own_cross_entropy"].append(loss)
    found["own_agreement"].append((logits.argmax(1) == said).float())


def _read(found: ImageSet, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first images, their labels and the model's predictions."""
    rows = slice(0, min(limit, len(found)))
    traces = found.traces[rows]
    return found.read(rows), traces.labels, traces.predictions


def _untrained(material: AnalysisInput) -> Instruments | None:
    try:
        return material.untrained()
    except UsageError:
        return None
