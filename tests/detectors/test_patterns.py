"""Distances to stored patterns: of hard and relaxed bits, with all patterns at once or class by class."""

from __future__ import annotations

import pytest
import torch
from aftershock.detectors.bits import patterns as module
from aftershock.detectors.bits.patterns import StoredPatterns
from aftershock.harness.tracing.bits import pack

UNITS, CLASSES = [40, 13], 4


@pytest.fixture
def stored() -> tuple[StoredPatterns, list[torch.Tensor]]:
    """Patterns of three of four classes, and their bits."""
    draw = torch.Generator().manual_seed(0)
    bits = [torch.rand(60, units, generator=draw) > 0.5 for units in UNITS]
    return StoredPatterns([pack(b) for b in bits], UNITS, torch.arange(60) % (CLASSES - 1)), bits


@pytest.mark.parametrize("together", [True, False])
def test_the_nearest_pattern_of_the_class_counts(
    stored: tuple[StoredPatterns, list[torch.Tensor]], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 1 << 19 if together else 0)
    monkeypatch.setattr(module, "_BLOCK", 100)
    held, bits = stored
    draw = torch.Generator().manual_seed(1)
    classes = torch.arange(25) % CLASSES
    soft = [torch.rand(25, units, generator=draw) for units in UNITS]
    of_class = (held.groups == classes[:, None]) | (classes == CLASSES - 1)[:, None]

    def expected(values: list[torch.Tensor]) -> torch.Tensor:
        layers = [(v[:, None] - b[None].float()).abs().mean(2) for v, b in zip(values, bits, strict=True)]
        return torch.stack(layers).mean(0).masked_fill(~of_class, torch.inf).amin(1)

    hard = [value > 0.5 for value in soft]
    torch.testing.assert_close(held.distance([pack(h) for h in hard], classes), expected([h.float() for h in hard]))
    relaxed = torch.cat(soft, 1).requires_grad_()
    again = torch.cat(soft, 1).requires_grad_()
    found, wanted = held.relaxed_distance(relaxed, classes), expected(list(again.split(UNITS, 1)))
    torch.testing.assert_close(found, wanted)
    one, other = (
        torch.autograd.grad(found.square().sum(), relaxed)[0],
        torch.autograd.grad(wanted.square().sum(), again)[0],
    )
    torch.testing.assert_close(one, other)
