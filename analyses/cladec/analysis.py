"""ClaDec: decode images from a classifier's layers, and see what is left of them (Schneider & Vlachos)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.model_state import untouched
from ...harness.core.parameters import grouped
from ...harness.core.ranges import Count, Natural
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need
from ..base import Analysis, AnalysisInfo
from ..common.inputs import AnalysisInput, ImageSet
from ..findings import Findings
from .attacked import class_means, follow, read_fooling
from .causal import Causes, causes
from .measured import Decoded
from .measures import Judges, judged, logits_of, squared_error
from .networks import chosen_taps
from .parameters import DecoderTraining, JudgeTraining
from .report.figures import figures
from .report.tables import tables
from .report.text import claims
from .training import RANDOM, REFERENCE, Key, Source, Trained, cladec, train_decoders

Target = Literal["label", "prediction"]
# Images in the causal check: enough for means, few enough for a pass per unit.
_CAUSAL_IMAGES = 128
# Share of the progress that a seed's decoders take; the judges take the rest.
_DECODING = 0.6


class ClaDec(Analysis[Decoded]):
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
        images: maximum number of fit images that are trained on.
        test_images: maximum number of evaluate images that are measured on.
        alphas: weights of the classification loss, 0 to 1, beside the mean squared error over pixels.
        seeds: repetitions; fewer than three leave nothing to say about chance in training.
        target: the class that a reconstruction shall keep: the true label, as in the official code, or the prediction.
        units: maximum number of units per tap in the causal check; 0 leaves it out.
        attacked: maximum number of successes of each perturbation.
        gallery: images in the galleries.
        decoder: how every decoder (and RefAE) is trained.
        judge: how the fresh classifiers are trained that read reconstructions.

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
        images: Count = 2000,
        test_images: Count = 500,
        alphas: list[float] | None = None,
        seeds: Count = 3,
        target: Target = "label",
        units: Natural = 24,
        attacked: Natural = 200,
        gallery: Count = 8,
        decoder: Annotated[dict[str, Any] | None, DecoderTraining] = None,
        judge: Annotated[dict[str, Any] | None, JudgeTraining] = None,
    ) -> None:
        alphas = [0.0, 0.1] if alphas is None else list(alphas)
        if not alphas or len(set(alphas)) < len(alphas) or not all(0 <= a <= 1 for a in alphas):
            raise UsageError(f"alphas = {alphas!r}: give one or more different numbers from 0 to 1.")
        if not taps or not all(taps):
            raise UsageError(f"taps = {taps!r}: give spread:N, all, last:N, first:N, or the names of taps.")
        self.taps = taps
        self.images, self.test_images, self.seeds = images, test_images, seeds
        self.budget = grouped(DecoderTraining, "decoder", decoder).budget
        self.judge = grouped(JudgeTraining, "judge", judge)
        self.alphas = sorted(float(a) for a in alphas)
        self.target: Target = target
        self.units, self.attacked, self.gallery = units, attacked, gallery

    @property
    def needs(self) -> tuple[Need, ...]:
        """None: whole activations are read while they are hot, and never stored."""
        return ()

    def measure(self, given: AnalysisInput) -> Decoded:
        """Train, decode, judge.

        Raises:
            UsageError: without images, or for taps that the model has not.
        """
        if len(given.fit) < 2 or len(given.evaluate) < 2:
            raise UsageError("ClaDec needs at least two fit and two evaluate images: raise data.fit or data.evaluate.")
        own, device = given.traced_model, given.device
        taps = chosen_taps(self.taps, own.taps)
        untrained, reason = given.untrained_or_reason()
        sources = [cladec(alpha) for alpha in self.alphas] + ([REFERENCE, RANDOM] if untrained else [])
        clean = _read(given.fit, max(self.images, self.judge.images))
        images, labels, predictions = (column[: self.images] for column in clean)
        lesson, answers = clean[0][: self.judge.images], clean[1][: self.judge.images]
        test, truth, predicted = _read(given.evaluate, self.test_images)
        fooling = [read_fooling(given, p, self.attacked) for p in given.perturbed.values() if self.attacked]
        judges = Judges(untrained, self.judge.epochs, len(given.classes), device)
        targets = labels if self.target == "label" else predictions
        values: dict[Key, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        original: dict[str, list[Tensor]] = defaultdict(list)
        curves: dict[Key, list[list[float]]] = defaultdict(list)
        gallery: dict[Key, Tensor] = {}
        causal: dict[Key, Causes] = {}
        with untouched(own.model):
            for seed in range(self.seeds):

                def draws(*names: str | int, seed: int = seed) -> torch.Generator:
                    return given.draws(seed, *names)

                def progress(share: float, done: float = seed / self.seeds) -> None:
                    given.progress(done + share / self.seeds)

                trained = train_decoders(
                    own, untrained, images, targets, taps, sources, self.budget, draws, device,
                    lambda share, tell=progress: tell(_DECODING * share),  # type: ignore[misc]  # bound per seed
                )  # fmt: skip
                judge = judges.train(lesson, answers, draws)
                readers = {"fresh": judge, "own": own.model}
                if self.judge.retrain:
                    readers["retrained"] = judge if len(lesson) == len(images) else judges.train(images, labels, draws)
                for name, model in readers.items():
                    _judge(original, name, logits_of(model, test, device), truth)
                templates: dict[Key, Tensor] = {}
                for done, key in enumerate(trained.decoders, 1):
                    decoded = trained.reconstruct(*key, test)
                    found = values[key]
                    _measure(found, own, judge, decoded, test, truth, predicted, device)
                    learnable = trained.reconstruct(*key, images)
                    templates[key] = class_means(learnable, labels, len(given.classes))
                    if self.judge.retrain:
                        student = judges.train(learnable, labels, draws)
                        _judge(found, "retrained", logits_of(student, decoded, device), truth)
                    curves[key].append(trained.curves[key])
                    if not seed:
                        gallery[key] = decoded[: self.gallery]
                    progress(_DECODING + (1 - _DECODING) * done / len(trained.decoders))
                for one in fooling:
                    if len(one.images):
                        follow(one, trained, judge, device, templates)
                if not seed:
                    causal = self._causes(given, [tap.name for tap in taps], sources, trained, test.to(device))
        given.progress(1.0)
        return Decoded(
            [tap.name for tap in taps],
            sources,
            given.classes,
            self.budget,
            self.seeds,
            self.judge.retrain,
            len(images),
            len(test),
            test[: self.gallery],
            truth[: self.gallery],
            float(squared_error(images.mean(0, keepdim=True), test).mean()),
            reason,
            [one.record() for one in fooling if len(one.images)],
            [one.success.perturbation for one in fooling if not len(one.images)],
            {key: {m: torch.stack(v) for m, v in found.items()} for key, found in values.items()},
            {m: torch.stack(v) for m, v in original.items()},
            curves,
            gallery,
            causal,
        )

    def report(self, measured: Decoded) -> Findings:
        """What can be read in reconstructions, and what is used."""
        return Findings(claims(measured), figures(measured), tables(measured))

    def _causes(
        self, given: AnalysisInput, taps: Sequence[str], sources: Sequence[Source], trained: Trained, images: Tensor
    ) -> dict[Key, Causes]:
        plain = [s for s in sources if s.alpha == self.alphas[0] and s.encoder != "reference"]
        return {
            (tap, source): causes(
                trained.encoders[tap, source], trained.decoders[tap, source], images[:_CAUSAL_IMAGES], tap,
                self.units, given.draws("causes", tap),
            )
            for tap in taps if self.units
            for source in plain
        }  # fmt: skip


def _judge(found: dict[str, list[Tensor]], reader: str, logits: Tensor, labels: Tensor) -> None:
    correct, loss = judged(logits, labels)
    found[f"{reader}_accuracy"].append(correct)
    found[f"{reader}_cross_entropy"].append(loss)


def _measure(
    found: dict[str, list[Tensor]], own: TracedModel, judge: torch.nn.Module, decoded: Tensor, images: Tensor,
    labels: Tensor, predicted: Tensor, device: torch.device,
) -> None:  # fmt: skip
    found["squared_error"].append(squared_error(decoded, images))
    _judge(found, "fresh", logits_of(judge, decoded, device), labels)
    logits = logits_of(own.model, decoded, device)
    _judge(found, "own", logits, labels)
    found["own_agreement"].append((logits.argmax(1) == predicted).float())


def _read(found: ImageSet, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first images, their labels and the model's predictions."""
    rows = slice(0, min(limit, len(found)))
    traces = found.traces[rows]
    return found.read(rows), traces.labels, traces.predictions
