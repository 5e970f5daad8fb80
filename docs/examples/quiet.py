from aftershock import Detector, DetectorInfo, Need, register_detector


@register_detector("quiet")
class Quiet(Detector):
    """Distance of the last layers' mean activations to those of clean images."""

    info = DetectorInfo(
        title="Quiet",
        paper="unpublished",
        summary="Distance to the mean activations of clean images.",
        needs=(Need("pooled", taps="last:2"),),
    )

    def fit(self, clean, perturbed=None):
        self.mean = {tap: clean.pooled(tap).mean(0) for tap in clean.tap_names()}
        return self

    def score(self, traces):  # larger = more suspicious
        return sum((traces.pooled(tap) - mean).norm(dim=1) for tap, mean in self.mean.items())
