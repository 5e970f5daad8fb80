"""Self-organising maps by Kohonen's batch update, in torch: deterministic, on any device.

Source: T. Kohonen, "Essentials of the self-organizing map", Neural Networks 37, 2013 (batch update, equation 8;
PCA initialisation, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .codebook import Codebook

# Rows of which an update holds the products with all prototypes at once.
_BLOCK = 8192
# Squared grid distance up to which units lie beside each other: the eight around one.
_BESIDE = 2.0
# Share of a unit's samples whose second-best unit lies elsewhere, by what its radius then grows, and the maximum.
_FOLDED, _GROWTH, _MOST = 0.01, 1.1, 1.3
# Dimensions above which the initial plane is found from a Gram matrix, and the maximum number of its samples.
_PCA_SIDE = 1000


@dataclass(frozen=True, eq=False)
class SOM(Codebook):
    """A fitted map on a rectangular grid; unit ``u`` lies at row ``u // columns``, column ``u % columns``.

    Attributes:
        prototypes: float32 of shape (rows · columns, d).
        rows: rows of the grid.
        columns: columns of the grid.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.prototypes.ndim != 2 or len(self.prototypes) != self.rows * self.columns or not len(self.prototypes):
            raise ValueError(
                f"prototypes of shape {tuple(self.prototypes.shape)} do not fit a {self.rows} x {self.columns} grid"
            )

    def coordinates(self, units: Tensor) -> Tensor:
        """Return the row and column of units (n,), float32 (n, 2)."""
        return torch.stack([units // self.columns, units % self.columns], -1).float()

    def grid_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the Euclidean distance on the grid between units ``a`` and ``b`` (int64, (n,)), float32 (n,)."""
        return (self.coordinates(a) - self.coordinates(b)).square().sum(-1).sqrt()


def fit_som(
    data: Tensor,
    rows: int,
    columns: int,
    epochs: int = 10,
    first_radius: float | None = None,
    last_radius: float = 0.85,
    repairs: int = 3,
) -> SOM:
    """Fit a map by the batch update with a Gaussian neighbourhood; nothing is drawn at random.

    A small last radius brings prototypes closer to the samples but folds the map; a large one does the opposite. So the
    epochs end at a moderate radius, and in a few more passes only those units get a larger one where the map is folded:
    where the second-best unit of more than 1 % of a unit's samples is not beside it.

    Args:
        data: samples of shape (n, d), n of at least 1; on the device on which the map shall live.
        rows: rows of the grid.
        columns: columns of the grid.
        epochs: passes over the data.
        first_radius: the neighbourhood's standard deviation in the first epoch, in grid steps; by default half of the
            longer side.
        last_radius: the same in the last epoch; it shrinks geometrically in between.
        repairs: further passes, each with a tenth more radius where the map is folded, up to 1.3.

    Raises:
        ValueError: for data that are empty or not finite, and for sizes or radii that are not positive.
    """
    if data.ndim != 2 or not data.numel():
        raise ValueError(f"fit_som takes samples of shape (n, d) with n and d of at least 1, not {tuple(data.shape)}")
    if rows < 1 or columns < 1 or epochs < 1 or repairs < 0:
        raise ValueError("rows, columns and epochs are at least 1, repairs at least 0")
    data = data.float()
    if not bool(data.isfinite().all()):
        raise ValueError("fit_som takes finite data")
    # Centred, so that the fast form of the distances below loses no digits to the data's offset.
    centre = data.mean(0)
    data = data - centre
    prototypes = initial_prototypes(data, rows, columns)
    squares = _grid_squares(rows, columns, data.device)
    for radius in radii(rows, columns, epochs, first_radius, last_radius):
        prototypes = _update(data, prototypes, squares / (2 * radius * radius))
    if rows * columns > 1:
        most = max(_MOST, last_radius)
        own = torch.full((rows * columns, 1), last_radius, device=data.device)
        for _ in range(repairs):
            own = torch.where(_is_folded(data, prototypes, squares), (_GROWTH * own).clamp(max=most), own)
            prototypes = _update(data, prototypes, squares / (2 * own * own))
    return SOM(prototypes + centre, rows, columns)


def radii(
    rows: int, columns: int, epochs: int, first_radius: float | None = None, last_radius: float = 0.85
) -> list[float]:
    """Return the neighbourhood's standard deviation in each epoch: geometric from the first to the last radius."""
    first = max(rows, columns) / 2 if first_radius is None else first_radius
    if not (first > 0 and last_radius > 0):
        raise ValueError("radii are positive")
    if first_radius is None:
        first = max(first, last_radius)
    ratio = last_radius / first
    return [first * ratio ** (epoch / max(1, epochs - 1)) for epoch in range(epochs)]


def initial_prototypes(data: Tensor, rows: int, columns: int) -> Tensor:
    """Return a regular grid over the data's principal plane, two standard deviations to each side; (rows · columns, d).

    The longer side of the grid lies along the first component. A component's sign is such that its largest loading is
    positive.
    """
    mean = data.mean(0)
    axes = _leading_axes(data - mean)
    steps = [
        torch.linspace(-1, 1, size, device=data.device) if size > 1 else torch.zeros(1, device=data.device)
        for size in (rows, columns)
    ]
    if rows >= columns:
        down, across = axes[0], axes[1]
    else:
        down, across = axes[1], axes[0]
    grid = steps[0][:, None, None] * down + steps[1][None, :, None] * across
    return mean + 2 * grid.reshape(rows * columns, -1)


def topographic_error(som: SOM, x: Tensor) -> float:
    """Share of samples (n, d) whose two best units are not neighbours (the eight around a unit) on the grid.

    NaN without samples and for a map of one unit, for which it is not defined.
    """
    if som.units < 2 or not len(x):
        return math.nan
    apart = som.grid_distance(som.match(x)[0], som.second_match(x))
    return float((apart > 1.5).double().mean())


def _update(data: Tensor, prototypes: Tensor, exponents: Tensor) -> Tensor:
    """One batch update: each prototype becomes the mean of all samples, weighted by exp(−exponents[unit, winner])."""
    units = len(prototypes)
    sums, counts = torch.zeros_like(prototypes), prototypes.new_zeros(units)
    half_norms = prototypes.square().sum(1) / 2
    for block in torch.split(data, _BLOCK):
        winners = (half_norms - block @ prototypes.T).argmin(1)
        # A one-hot product and not index_add: that one adds in no fixed order on a GPU.
        chosen = torch.nn.functional.one_hot(winners, units).to(data.dtype)
        sums += chosen.T @ block
        counts += chosen.sum(0)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    # The softmax of the logarithms is the same weighted mean, but cannot underflow to 0 / 0 for a unit that is far
    # from every winner: such a unit takes the mean of the nearest occupied ones.
    return torch.softmax(counts.log() - exponents, 1) @ means


def _is_folded(data: Tensor, prototypes: Tensor, squares: Tensor) -> Tensor:
    """Whether the second-best unit of more than 1 % of a unit's samples is not beside it; (units, 1)."""
    units = len(prototypes)
    counts, apart = prototypes.new_zeros(units), prototypes.new_zeros(units)
    half_norms = prototypes.square().sum(1) / 2
    for block in torch.split(data, _BLOCK):
        scores = half_norms - block @ prototypes.T
        winners = scores.argmin(1)
        second = scores.scatter_(1, winners.unsqueeze(1), math.inf).argmin(1)
        counts += torch.bincount(winners, minlength=units)
        apart += torch.bincount(winners[squares[winners, second] > _BESIDE], minlength=units)
    return (apart > _FOLDED * counts).unsqueeze(1)


def _grid_squares(rows: int, columns: int, device: torch.device) -> Tensor:
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    return ((row[:, None] - row).square() + (column[:, None] - column).square()).float()


def _leading_axes(centred: Tensor) -> Tensor:
    """The two leading principal axes times their standard deviations, (2, d); zeros where the data have fewer."""
    n, d = centred.shape
    axes = torch.zeros(2, d, dtype=torch.float64)
    if d <= _PCA_SIDE:
        variances, vectors = torch.linalg.eigh((centred.T @ centred / n).cpu().double())
        found = vectors.T
    else:
        part = centred[:: -(-n // _PCA_SIDE)]
        variances, vectors = torch.linalg.eigh((part @ part.T / len(part)).cpu().double())
        found = vectors.T @ part.cpu().double()
        found = found / torch.linalg.vector_norm(found, dim=1, keepdim=True).clamp(min=1e-30)
    count = min(2, len(found))
    axes[:count] = (found * variances.clamp(min=0).sqrt().unsqueeze(1)).flip(0)[:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return (axes * torch.where(largest < 0, -1.0, 1.0)).to(centred)
