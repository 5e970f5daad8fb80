import torch
from aftershock import Detector, DetectorInfo, Need, register_detector


@register_detector("quiet-units")
class QuietUnits(Detector):
    """How far the pooled maps of the last layers are from their clean mean.

    Args:
        layers: ``all``, ``last:N``, ``first:N``, or the name of a layer.
    """

    info = DetectorInfo(
        title="Quiet units",
        paper="unpublished",
        surrogate="exact",
        summary="Distance of the last layers' pooled maps to their clean mean.",
    )

    def __init__(self, layers: str = "last:2") -> None:
        self.layers = layers
        self.means: dict[str, torch.Tensor] = {}

    @property
    def needs(self):
        return (Need("pooled", taps=self.layers),)

    def fit(self, clean, perturbed=None):
        self.means = {tap: clean.pooled(tap).double().mean(0) for tap in clean.tap_names()}
        return self

    def score(self, traces):
        return self._distance(traces)

    def surrogate(self, live):
        return self._distance(live)

    def _distance(self, traces):
        layers = [
            (traces.pooled(tap).double() - mean.to(traces.logits.device)).square().mean(1)
            for tap, mean in self.means.items()
        ]
        return torch.stack(layers).mean(0)
