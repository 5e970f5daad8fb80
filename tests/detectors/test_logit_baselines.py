"""Baselines on logits against SciPy and pytorch-ood."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.logits.baselines import Energy, Entropy, KLMatching, Margin, MaxLogit
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import LiveTrace, Traces
from scipy.special import softmax
from scipy.stats import entropy


def only_logits(logits: torch.Tensor) -> Traces:
    return Traces(logits, (), random=torch.Generator().manual_seed(0))


@pytest.fixture
def logits() -> torch.Tensor:
    return 4 * torch.randn(80, 7, generator=torch.Generator().manual_seed(0))


def test_they_are_their_formulas(logits: torch.Tensor) -> None:
    values = logits.double().numpy()
    ordered, probabilities = np.sort(values, 1), np.sort(softmax(values, 1), 1)
    expected = {
        MaxLogit(): -values.max(1),
        Margin(): ordered[:, -2] - ordered[:, -1],
        Margin("probabilities"): probabilities[:, -2] - probabilities[:, -1],
        Entropy(): entropy(softmax(values, 1), axis=1),
        Entropy(3.0): entropy(softmax(values / 3, 1), axis=1),
    }
    for detector, scores in expected.items():
        np.testing.assert_allclose(detector.score(only_logits(logits)).numpy(), scores, rtol=1e-9, atol=1e-12)


def test_entropy_and_kl_matching_are_those_of_pytorch_ood_where_it_does_not_round(
    logits: torch.Tensor, pytorch_ood: Any
) -> None:
    moderate = logits / 4
    torch.testing.assert_close(Entropy().score(only_logits(moderate)), pytorch_ood.Entropy.score(moderate.double()))
    fit, test = moderate[:50], moderate[50:]
    reference = pytorch_ood.KLMatching(None).fit_logits(fit)
    found = KLMatching().fit(only_logits(fit)).score(only_logits(test))
    torch.testing.assert_close(found.float(), reference.predict_logits(test), rtol=1e-4, atol=1e-5)


def test_energy_and_largest_logit_equal_those_of_pytorch_ood(logits: torch.Tensor, pytorch_ood: Any) -> None:
    """To the last bit."""
    values = logits.double()
    for temperature in (0.5, 1.0, 10.0):
        found = Energy(temperature).score(only_logits(logits))
        assert torch.equal(found, pytorch_ood.EnergyBased.score(values, temperature))
    assert torch.equal(MaxLogit().score(only_logits(logits)), pytorch_ood.MaxLogit.score(values))


@pytest.mark.parametrize(
    "detector", [Entropy(), Margin("probabilities"), KLMatching()], ids=["entropy", "margin", "kl"]
)
def test_confident_images_are_told_apart_and_keep_a_gradient(detector: Any) -> None:
    """Probabilities of 1 − 1e-9 and 1 − 1e-13 are equal in float32, and cut off alike by pytorch-ood."""
    logits = torch.tensor([[20.0, 0.0, -1.0], [30.0, 0.0, -1.0]])
    detector.fit(only_logits(torch.tensor([[40.0, 0.0, -1.0], [0.0, 40.0, 1.0]])))
    scores = detector.score(only_logits(logits))
    assert float(scores[0]) > float(scores[1])
    leaf = logits.clone().requires_grad_()
    live = LiveTrace(torch.zeros(2, 1, 1, 1), leaf, (), {}, {})
    (gradient,) = torch.autograd.grad(detector.surrogate(live).sum(), leaf)
    assert bool((gradient[:, 0] < 0).all())


def test_kl_matching_knows_typical_confusions() -> None:
    """A planted case: images of class 0 always lean towards class 1 a bit; leaning towards 2 is suspicious."""
    draw = torch.Generator().manual_seed(1)
    fit, clean, odd = (0.1 * torch.randn(60, 3, generator=draw) for _ in range(3))
    for sample, lean in ((fit, 1), (clean, 1), (odd, 2)):
        sample[:, 0] += 3
        sample[:, lean] += 2
    detector = KLMatching().fit(only_logits(fit))
    assert float(detector.score(only_logits(clean)).max()) < float(detector.score(only_logits(odd)).min())


def test_wrong_parameters() -> None:
    with pytest.raises(UsageError, match="of = "):
        Margin("softmax")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="temperature"):
        Entropy(0.0)
    with pytest.raises(UsageError, match="two classes"):
        Margin().score(only_logits(torch.zeros(3, 1)))
