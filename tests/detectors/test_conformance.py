"""The conformance kit: a sound detector passes, and each way of breaking the contract is caught by its check."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from aftershock import check_detector, parametrize_with_detector_checks
from aftershock.detectors import Detector, DetectorInfo, Need
from aftershock.detectors.activations.mahalanobis import Mahalanobis
from aftershock.detectors.bits.bitvector import BitVector
from aftershock.harness.conformance.detectors import CHECKS
from aftershock.harness.conformance.fixture import make_fixture
from aftershock.harness.core.errors import UsageError


class Sound(Detector):
    """Distance of the pooled last layers to their clean mean."""

    info = DetectorInfo(
        title="Sound", paper="none", summary="Distance to the clean mean.", surrogate="exact",
        needs=(Need("pooled", "last:3"),),
    )  # fmt: skip

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign
        self.means: list[torch.Tensor] = []

    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        if not len(clean):
            raise UsageError("no images")
        self.means = [clean.pooled(tap).double().mean(0) for tap in clean.tap_names()]
        return self

    def distance(self, layers: list[torch.Tensor]) -> torch.Tensor:
        parts = [(x.double() - m.to(x.device)).square().mean(1) for x, m in zip(layers, self.means, strict=True)]
        return self.sign * torch.stack(parts).mean(0)

    def score(self, traces: Any) -> torch.Tensor:
        return self.distance([traces.pooled(tap) for tap in traces.tap_names()])

    def surrogate(self, live: Any) -> torch.Tensor:
        return self.distance([live.pooled(tap) for tap in live.tap_names()])


class Nameless(Sound):
    info = DetectorInfo(title="", needs=(Need("pooled", "last:3"),), surrogate="exact")


class Terse(Sound):
    info = DetectorInfo(title="Terse", needs=(Need("pooled", "last:3"),), surrogate="exact")


class NoSuchTap(Sound):
    @property
    def needs(self) -> Any:
        return (Need("pooled", ("layer9",)),)


class Forgets(Sound):
    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        super().fit(clean, perturbed)


class Column(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        return super().score(traces).unsqueeze(1)


class Holes(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        scores = super().score(traces).clone()
        scores[3:4] = torch.nan
        return scores


class Counts(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        return super().score(traces) > 0


class Squeezed(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        return super().score(traces).unsqueeze(0).squeeze()


class Dice(Sound):
    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        super().fit(clean, perturbed)
        self.means = [m + torch.randn(len(m)) for m in self.means]
        return self


class Standardised(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        scores = super().score(traces)
        return (scores - scores.mean()) / (scores.std(correction=0) + 1e-6)


class Peers(Sound):
    """Looks past its batch at all images of the set."""

    def score(self, traces: Any) -> torch.Tensor:
        whole = traces.logits_rows[0 : len(traces.logits_rows)].double()
        return super().score(traces) - whole.logsumexp(1).mean()


class Learns(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        scores = super().score(traces)
        if len(traces) > 1:
            self.means = [
                m + 1e-3 * traces.pooled(t).mean(0) for m, t in zip(self.means, traces.tap_names(), strict=True)
            ]
        return scores


class Peeks(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        try:
            return super().score(traces) + (traces.labels != traces.predictions)
        except UsageError:
            return super().score(traces)


class Draws(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        try:
            return super().score(traces) + torch.rand(len(traces), generator=traces.generator)
        except (UsageError, TypeError, RuntimeError):
            return super().score(traces)


class Hidden(Sound):
    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        super().fit(clean, perturbed)
        self._scale = 7.0
        return self

    def distance(self, layers: list[torch.Tensor]) -> torch.Tensor:
        return super().distance(layers) * getattr(self, "_scale", 1.0)


class Seeds(Sound):
    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        torch.manual_seed(0)
        return super().fit(clean, perturbed)


class SeedsNumPy(Sound):
    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        np.random.seed(0)
        random.seed(0)
        return super().fit(clean, perturbed)


class SwitchesOff(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        torch.set_grad_enabled(False)
        return super().score(traces)


class InPlace(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        for tap in traces.tap_names():
            traces.pooled(tap).mul_(2)
        return super().score(traces)


class Reversed(Mahalanobis):
    def score(self, traces: Any) -> torch.Tensor:
        return -super().score(traces)


class Weak(BitVector):
    """Supervised, and scores by the first bit."""

    def score(self, traces: Any) -> torch.Tensor:
        return (traces.bits(traces.tap_names()[0])[:, 0] & 1).double()


class Constant(Sound):
    info = DetectorInfo(title="Constant", paper="none", summary="0", needs=(Need("pooled", "last:3"),))

    def distance(self, layers: list[torch.Tensor]) -> torch.Tensor:
        return torch.zeros(len(layers[0]))

    surrogate = Detector.surrogate


class Slow(Sound):
    def score(self, traces: Any) -> torch.Tensor:
        if len(traces) == 1:
            time.sleep(1.1)
        return super().score(traces)


class Greedy(Sound):
    def fit(self, clean: Any, perturbed: Any = None) -> Any:
        super().fit(clean, perturbed)
        self.means = [m / (len(clean) - 2) * (len(clean) - 2) for m in self.means]
        return self


class Detached(Sound):
    def surrogate(self, live: Any) -> torch.Tensor:
        return super().surrogate(live).detach()


class Unrelated(Sound):
    info = DetectorInfo(
        title="Unrelated", paper="none", summary="Its surrogate is another thing.", surrogate="relaxed",
        needs=(Need("pooled", "last:3"),),
    )  # fmt: skip

    def surrogate(self, live: Any) -> torch.Tensor:
        return -super().surrogate(live)


class NotExact(Sound):
    def surrogate(self, live: Any) -> torch.Tensor:
        return 1.1 * super().surrogate(live)


class Undeclared(Sound):
    info = DetectorInfo(title="Undeclared", paper="none", summary="", needs=(Need("pooled", "last:3"),))


BROKEN: dict[str, tuple[type[Detector], str]] = {
    "info": (Nameless, r"info\.title = ''"),
    "described": (Terse, "lacks paper and summary"),
    "needs": (NoSuchTap, "no tap 'layer9'"),
    "fits": (Forgets, "returned None"),
    "scores": (Column, r"gave \(120, 1\) for 120 images"),
    "few-images": (Squeezed, r"gave \(\) for 1 images"),
    "deterministic": (Dice, "fitting twice"),
    "batches": (Standardised, "in batches of 1 a score moved"),
    "remembers-nothing": (Learns, "after perturbed ones had been scored"),
    "labels": (Peeks, "reads labels"),
    "state": (Hidden, "stored and loaded"),
    "global-state": (Seeds, "torch's global generator"),
    "inputs": (InPlace, r"score\(\) changes the traces"),
    "planted": (Reversed, "scores clean images higher"),
    "speed": (Slow, r"one image took 1\.\d s"),
    "few-fit-images": (Greedy, "ZeroDivisionError|not finite"),
    "surrogate": (Unrelated, "rank correlation of its surrogate with its score is -"),
}
MORE: dict[str, list[tuple[type[Detector], str]]] = {
    "scores": [(Holes, "gave 1 values that are not finite"), (Counts, "gave bool values")],
    "batches": [(Peers, "a score moved")],
    "labels": [(Draws, "draws from the generator")],
    "global-state": [(SeedsNumPy, "NumPy's global generator and Python's"), (SwitchesOff, "gradients are recorded")],
    "planted": [(Constant, "detects none of them"), (Weak, "does not detect PGD")],
    "surrogate": [
        (Detached, "no gradient"),
        (NotExact, "called exact, but differs"),
        (Undeclared, "info says that there"),
    ],
}
CASES = [(name, *case) for name, case in BROKEN.items()]
CASES += [(name, *case) for name, cases in MORE.items() for case in cases]


@parametrize_with_detector_checks([Sound(), "bitvector"])
def test_a_sound_detector_passes_every_check(detector: object, check: Callable[[object], None]) -> None:
    check(detector)


def test_there_is_a_broken_detector_for_every_check() -> None:
    # What breaks on a GPU alone needs one.
    assert set(BROKEN) == set(CHECKS) - {"gpu"}


@pytest.mark.parametrize(("name", "broken", "message"), CASES)
def test_each_check_catches_what_breaks_its_rule(name: str, broken: type[Detector], message: str) -> None:
    (finding,) = check_detector(broken, only=[name])
    assert finding.status == ("failed" if CHECKS[name].level == "rule" else "warning")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(finding.detail)
    assert finding.fix and finding.fix in str(finding) and finding.rule in str(finding)


def test_a_detector_that_cannot_be_fitted_is_told_so_once() -> None:
    findings = check_detector(Forgets)
    assert [f.name for f in findings if f.status == "failed"] == ["fits"]
    assert {f.status for f in findings[4:]} == {"skipped"}
    assert "passes `fits`" in findings[-1].detail


def test_what_follows_from_one_mistake_is_not_told_again() -> None:
    findings = {f.name: f for f in check_detector(Holes)}
    assert [name for name, f in findings.items() if f.status == "failed"] == ["scores"]
    assert "passes `scores`" in findings["planted"].detail


def test_what_was_measured_is_told_where_a_rule_is_kept() -> None:
    (finding,) = check_detector("msp", only=["planted"])
    assert finding.status == "passed" and "pgd 0." in finding.detail


def test_an_exception_is_a_finding_and_the_rest_goes_on() -> None:
    class Raises(Sound):
        def surrogate(self, live: Any) -> torch.Tensor:
            raise KeyError("relu")

    findings = {f.name: f for f in check_detector(Raises)}
    assert "KeyError: 'relu'" in findings["surrogate"].detail
    assert findings["planted"].status == "passed"


def test_names_and_parameters_that_are_wrong_are_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"no detector 'mahalanobi'.*did you mean 'mahalanobis'"):
        check_detector("mahalanobi")
    with pytest.raises(UsageError, match="temperature"):
        check_detector("msp", {"temperature": "hot"})
    with pytest.raises(UsageError, match="no check 'colour'"):
        check_detector("msp", only=["colour"])
    with pytest.raises(UsageError, match="is not a detector"):
        check_detector(dict)  # type: ignore[arg-type]


def test_the_fixture_is_what_it_says() -> None:
    world = make_fixture()
    model = world.traced_model.model
    with torch.no_grad():
        right = (model(world.fit_images).argmax(1) == world.fit_labels).float().mean()
    assert right > 0.95
    assert all(len(x) >= 60 and float(x.min()) >= 0 and float(x.max()) <= 1 for x in world.planted.values())
    assert len(world.fit_planted) >= 100
    assert not model.training and not any(p.requires_grad for p in model.parameters())
