from dataclasses import dataclass

from aftershock import Analysis, AnalysisInfo, Claim, Findings, Lines, Need, Series, Table, register_analysis


@dataclass(frozen=True)
class Silent:
    taps: tuple[str, ...]
    share: tuple[float, ...]


@register_analysis("silence")
class Silence(Analysis):
    """How many units are silent, by depth."""

    info = AnalysisInfo("Silent units", summary="The share of activations that are zero, by depth.")

    @property
    def needs(self):
        return (Need("full", units=512),)

    def measure(self, given) -> Silent:
        traces = given.evaluate.traces
        taps = traces.tap_names()
        share = [
            sum(float((part.full(tap) == 0).float().mean(1).sum()) for part in traces.batches()) / len(traces)
            for tap in taps
        ]
        return Silent(taps, tuple(share))

    def report(self, measured):
        taps, share = measured.taps, measured.share
        text = f"{share[-1]:.0%} of the units of {taps[-1]} are silent on a typical image."
        return Findings(
            [Claim("silent", taps[-1], {"share": share[-1]}, sentence=text)],
            [Lines("Silent units", "Mean over evaluate images.", taps, "tap", "share", [Series("clean", share)])],
            [Table("silence", "One row per tap.", ["tap", "share"], list(zip(taps, share, strict=True)))],
        )
