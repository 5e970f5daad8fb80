"""Feature squeezing (Xu et al. 2018): does the prediction survive a coarser input?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Literal, Self, get_args

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Positive
from ...harness.tracing.extra_passes import View
from ...harness.tracing.traces import LiveTrace, Traces
from ..base.detector import Detector, DetectorInfo, Surrogate

Squeezer = Literal["bit-depth", "median", "non-local-means"]


class FeatureSqueezing(Detector):
    """The largest L1 distance between the softmax of an image and those of its squeezed versions.

    Squeezers: fewer bits per channel; a median over a window; non-local means (each pixel a mean over a search window,
    weighted by the likeness of the patches around; Buades et al. 2005). The paper's best joint choice for CIFAR-10 is
    5 bits, a 2 by 2 median and non-local means (13, 3, 2); for MNIST 1 bit and a 2 by 2 median. Nothing is fitted.

    The surrogate is the score itself, through the squeezed passes; gradients pass straight through the loss of bits and
    through non-local means, whose own would take the memory of every patch, and through the median as it is.

    Cost: one forward per squeezer and image; non-local means O(search² * pixels) besides.

    Args:
        squeezers: some of ``bit-depth``, ``median`` and ``non-local-means``.
        bits: bits per channel that are left.
        window: side of the median's window.
        search: side of the window that non-local means search, odd.
        patch: side of the patches that they compare, odd.
        strength: their h, in units of 1/255: larger smooths more.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Feature squeezing",
        paper="Xu, Evans and Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, "
        "arXiv 1704.01155",
        needs=(),
        surrogate="straight-through",
        summary="How much the prediction changes when the image loses bits or is smoothed.",
    )

    def __init__(
        self,
        squeezers: Sequence[str] = ("bit-depth", "median", "non-local-means"),
        bits: Count = 5,
        window: Annotated[int, Ge(2)] = 2,
        search: Count = 13,
        patch: Count = 3,
        strength: Positive = 2.0,
    ) -> None:
        known = get_args(Squeezer)
        if isinstance(squeezers, str) or not squeezers or not set(squeezers) <= set(known):
            raise UsageError(f"squeezers = {squeezers!r}: list some of {', '.join(known)}.")
        for name, value in (("search", search), ("patch", patch)):
            if value % 2 == 0:
                raise UsageError(f"{name} = {value!r}: give an odd number, so that the window has a middle.")
        self.squeezers = list(dict.fromkeys(squeezers))
        self.bits, self.window, self.search, self.patch, self.strength = bits, window, search, patch, strength

    @property
    def views(self) -> tuple[View, ...]:
        """One forward per squeezer."""
        ready: dict[str, Callable[[Tensor], Tensor]] = {
            "bit-depth": partial(reduce_bits, bits=self.bits),
            "median": partial(median, window=self.window),
            "non-local-means": partial(
                non_local_means, search=self.search, patch=self.patch, strength=self.strength / 255
            ),
        }
        return tuple(
            View(name, partial(_transform, ready[name]), differentiable=name == "median") for name in self.squeezers
        )

    @property
    def surrogate_kind(self) -> Surrogate:
        """Exact where the median is the only squeezer."""
        return "exact" if self.squeezers == ["median"] else "straight-through"

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,) in [0, 2]."""
        return self._distance(traces.logits, [traces.view(name).logits for name in self.squeezers])

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score, float64 (n,)."""
        return self._distance(live.logits, [live.view(name).logits for name in self.squeezers])

    @staticmethod
    def _distance(logits: Tensor, squeezed: Sequence[Tensor]) -> Tensor:
        own = logits.double().softmax(1)
        return torch.stack([(own - other.double().softmax(1)).abs().sum(1) for other in squeezed]).amax(0)


def reduce_bits(images: Tensor, bits: int) -> Tensor:
    """Return images in [0, 1], (n, channels, height, width), on ``2**bits`` even levels from 0 to 1."""
    steps = float((1 << bits) - 1)
    return (images * steps).round() / steps


def median(images: Tensor, window: int) -> Tensor:
    """The median of every window of each channel, mirrored at the borders; of an even number the larger middle one.

    As ``scipy.ndimage.median_filter`` with mode ``reflect``: an even window reaches further up and left. No window is
    sorted: as many shifted images as a window has pixels go through those comparisons of a sorting network that the
    median depends on, each the minimum and the maximum of two whole images.
    """
    before, after = window // 2, (window - 1) // 2
    height, width = images.shape[2:]
    rows, columns = (_mirrored(size, before, after, images.device) for size in (height, width))
    padded = images[:, :, rows][:, :, :, columns]
    wires = [padded[:, :, y : y + height, x : x + width] for y in range(window) for x in range(window)]
    middle = len(wires) // 2
    for low, high, keeps_low, keeps_high in selection_network(len(wires), middle):
        smaller = torch.minimum(wires[low], wires[high]) if keeps_low else wires[low]
        wires[high] = torch.maximum(wires[low], wires[high]) if keeps_high else wires[high]
        wires[low] = smaller
    return wires[middle].contiguous()


@cache
def selection_network(size: int, rank: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return comparisons after which wire ``rank`` of ``size`` holds the value of that rank, counted from 0.

    They are those of Batcher's odd-even merge sort (1968) that the wire depends on.

    Returns:
        in order, the two wires that are compared, and whether their minimum (which goes to the first) and their maximum
        (to the second) are needed.
    """
    comparisons = []
    run = 1
    while run < size:
        step = run
        while step:
            for start in range(step % run, size - step, 2 * step):
                for low in range(start, min(start + step, size - step)):
                    if low // (2 * run) == (low + step) // (2 * run):
                        comparisons.append((low, low + step))
            step //= 2
        run *= 2
    needed, kept = {rank}, []
    for low, high in reversed(comparisons):
        if low in needed or high in needed:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


def non_local_means(images: Tensor, search: int, patch: int, strength: float) -> Tensor:
    """Each pixel a mean over its search window, weighted by exp(−d² / h²), d² the mean square difference of patches.

    All channels share the weights; borders are mirrored.
    """
    reach = search // 2
    height, width = images.shape[2:]
    rows, columns = (_mirrored(size, reach, reach, images.device) for size in (height, width))
    padded = images[:, :, rows][:, :, :, columns]
    total = torch.zeros_like(images)
    weights = torch.zeros_like(images[:, :1])
    for y in range(search):
        for x in range(search):
            other = padded[:, :, y : y + height, x : x + width]
            squares = (images - other).square().mean(1, keepdim=True)
            likeness = functional.avg_pool2d(squares, patch, 1, patch // 2, count_include_pad=False)
            weight = torch.exp(-likeness / strength**2)
            total += weight * other
            weights += weight
    return total / weights


def _transform(squeeze: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
    return squeeze(images)


def _mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Indices of a row mirrored at its ends, the end included (…, 1, 0, 0, 1, …), however far it is continued."""
    position = torch.arange(-before, size + after, device=device) % (2 * size)
    return torch.where(position < size, position, 2 * size - 1 - position)
