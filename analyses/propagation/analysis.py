"""How a perturbation moves through the layers, beside noise of the same size and clean images of the class reached."""

from __future__ import annotations

from collections.abc import Iterator

from ...harness.core.seeds import derive_seed, generator
from ...harness.tracing.traces import Need
from ..base import AnalysisInfo
from ..common.inputs import AnalysisInput, ImageSet, PerturbedSet
from ..common.populations import FAILED, Population, controls, perturbed, target_class
from ..findings import Findings
from ..standing import StandingAnalysis
from .encoders import NEEDS, Encoders, fit_encoders
from .measured import Moved, Propagated
from .measures import cka, measure
from .report.tables import tables


class Propagation(StandingAnalysis[Encoders, Propagated]):
    """What changes at each tap between a clean image and its perturbed one.

    It brings encoders of its own, fitted on clean fit images, so that its numbers do not depend on which detectors a
    suite has. Measured of the images that fool the model, of those that do not, of noise of the same size, and of clean
    images of the class that was reached.
    """

    info = AnalysisInfo(
        title="Propagation",
        paper="Linear CKA: Kornblith, Norouzi, Lee, Hinton (2019), Similarity of Neural Network Representations "
        "Revisited, ICML, arXiv:1905.00414",
        summary="How far each perturbation moves activations, bits and codes, tap by tap; part of every run.",
    )
    prepared_as = "encoders"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Bits, pooled means and a sample of units of every tap."""
        return NEEDS

    def prepare(self, fit: ImageSet) -> Encoders:
        """Fit the encoders.

        Raises:
            UsageError: without an image.
        """
        return fit_encoders(fit.traces)

    def measure(self, given: AnalysisInput) -> Propagated:
        """Measure every perturbation's populations against the clean images."""
        encoders = given.prepared if isinstance(given.prepared, Encoders) else self.prepare(given.fit)
        clean = given.evaluate.traces

        def moved(of: Population) -> Moved:
            before, after = clean.pick(of.rows), of.images.traces.pick(of.where)
            return Moved(measure(encoders, before, after), cka(before, after))

        return Propagated(
            tuple(encoders.taps),
            {label: {p.name: moved(p) for p in _populations(given, one)} for label, one in given.perturbed.items()},
        )

    def report(self, measured: Propagated) -> Findings:
        """One table."""
        return Findings(tables=tables(measured))


def _populations(given: AnalysisInput, one: PerturbedSet) -> Iterator[Population]:
    success = perturbed(one, one.success.nonzero().squeeze(1))
    yield success
    yield perturbed(one, (~one.success).nonzero().squeeze(1), FAILED)
    yield controls(one, success)
    predicted = given.evaluate.traces.predictions
    pools = {c: (predicted == c).nonzero().squeeze(1) for c in range(len(given.classes))}
    draws = generator(derive_seed(given.seed, "propagation", "target-class"))
    yield target_class(given, success, pools, draws)
