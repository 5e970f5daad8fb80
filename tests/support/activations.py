"""A small made-up network: class-dependent pre-activations at three taps, recorded as a trace would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from aftershock.harness.tracing.bits import pack
from aftershock.harness.tracing.traces import LiveTrace, Need, TapInfo, Traces, pool, sampled_units
from torch import Tensor

# 96, 72 and 20 units: one width is no multiple of eight.
TAPS = (TapInfo("conv", "relu", (6, 4, 4)), TapInfo("block.relu", "relu", (8, 3, 3)), TapInfo("dense", "relu", (20,)))
CLASSES = 5


@dataclass(frozen=True)
class Sample:
    """Images of the made-up network: pre-activations by tap (n, units), logits (n, classes), labels (n,)."""

    before: dict[str, Tensor]
    logits: Tensor
    labels: Tensor

    def take(self, rows: Tensor | slice) -> Sample:
        return Sample({k: v[rows] for k, v in self.before.items()}, self.logits[rows], self.labels[rows])

    def changed(self, tap: str, change: Callable[[Tensor], Tensor]) -> Sample:
        return replace(self, before={**self.before, tap: change(self.before[tap])})


@dataclass(frozen=True)
class World:
    """Draws samples and turns them into traces."""

    taps: tuple[TapInfo, ...] = TAPS
    classes: int = CLASSES

    def clean(self, n: int, seed: int, wrong: float = 0.05) -> Sample:
        """Class templates plus noise; a share ``wrong`` is predicted as the class after its own."""
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(self.classes, (n,), generator=draw)
        before = {}
        for tap in self.taps:
            template = self._fixed(f"{tap.name} classes", self.classes, tap.units)
            maps = torch.randn(n, tap.units, generator=draw)
            before[tap.name] = template[labels] + 0.7 * maps - 0.2
        predicted = torch.where(torch.rand(n, generator=draw) < wrong, (labels + 1) % self.classes, labels)
        logits = 0.5 * torch.randn(n, self.classes, generator=draw)
        logits[torch.arange(n), predicted] += 6
        return Sample(before, logits, labels)

    def perturbed(self, n: int, seed: int) -> Sample:
        """Activations pushed in a direction that clean images do not vary in, another prediction, small logits."""
        clean = self.clean(n, seed, wrong=0)
        before = {
            tap.name: clean.before[tap.name] + 1.2 * self._fixed(f"{tap.name} push", 1, tap.units) for tap in self.taps
        }
        turned = torch.nn.functional.one_hot((clean.labels + 2) % self.classes, self.classes).float()
        return Sample(before, 0.2 * clean.logits + 1.5 * turned, clean.labels)

    def traces(self, sample: Sample, needs: tuple[Need, ...], fit: bool = False, seed: int = 0) -> Traces:
        """The codes that ``needs`` ask for; labels and generator only for fitting."""
        codes: dict[str, dict[str, Tensor]] = {}
        for need in needs:
            found = {tap.name: self._code(sample, need, tap) for tap in need.select(self.taps)}
            codes.setdefault(need.code, {}).update(found)
        return Traces(
            sample.logits, self.taps, codes, needs,
            label_rows=sample.labels if fit else None,
            random=torch.Generator().manual_seed(seed) if fit else None,
        )  # fmt: skip

    def live(self, sample: Sample, needs: tuple[Need, ...]) -> tuple[LiveTrace, list[Tensor]]:
        """A trace that can be differentiated with respect to the tensors that come with it."""
        leaves = [sample.before[tap.name].clone().requires_grad_() for tap in self.taps]
        logits = sample.logits.clone().requires_grad_()
        shaped = {t.name: x.unflatten(1, t.shape) for t, x in zip(self.taps, leaves, strict=True)}
        after = {name: x.relu() for name, x in shaped.items()}
        images = torch.zeros(len(logits), 3, 2, 2)
        return LiveTrace(images, logits, self.taps, after, shaped, needs), [*leaves, logits]

    @staticmethod
    def _code(sample: Sample, need: Need, tap: TapInfo) -> Tensor:
        before = sample.before[tap.name]
        if need.representation == "pooled":
            return pool(before.relu().unflatten(1, tap.shape), need.statistic)
        kept = sampled_units(tap, need.units)
        before = before if kept is None else before[:, kept]
        return pack(before > 0) if need.representation == "bits" else before.relu()

    @staticmethod
    def _fixed(name: str, *shape: int) -> Tensor:
        seed = int.from_bytes(name.encode(), "big") % 2**31
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_apart(n: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, torch.Generator]:
    """Rows that a detector fits on, held-out ones, and the generator after they were drawn."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=draw)
    return order[count:].sort().values, order[:count].sort().values, draw
