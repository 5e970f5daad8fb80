"""Fringe scores against what the logits say anyway, and what the code misses by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...harness.statistics.intervals import FloatArray, auroc_difference, auroc_estimate
from ...harness.tracing.traces import Traces
from ..common.recording import BATCH
from .latent_map import Code
from .measured import Errors, Merit

LEAST_ERRORS = 5
COVERAGES = tuple(c / 20 for c in range(1, 21))


def neighbour_entropy(code: Code, codes: Tensor, neighbours: int, classes: int) -> Tensor:
    """Entropy in nats of the classes of the nearest fit images, float64 (n,): high in the fringe between classes.

    Distances are taken under the covariance within classes; only fit images that the model gets right count.
    """
    from sklearn.neighbors import NearestNeighbors

    points, owners = code.detector.classes["points"], code.detector.classes["point_classes"]
    count = min(neighbours, len(points))
    search = NearestNeighbors(n_neighbors=count).fit(points.numpy())
    nearest = torch.from_numpy(search.kneighbors(code.whiten(codes).numpy(), return_distance=False)).long()
    shares = torch.nn.functional.one_hot(owners[nearest], classes).double().mean(1)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy


def error_scores(traces: Traces, raw: Tensor, codes: Mapping[str, Code], neighbours: int) -> dict[str, FloatArray]:
    """Scores that shall be high where the model is wrong, float64 (n,) each: of the logits, then of each code.

    Args:
        traces: of the images.
        raw: their activations, (n, d).
        codes: by the name that is shown.
        neighbours: for the entropy of the classes around.
    """
    logits = traces.logits.double()
    shares = logits.softmax(1)
    found = {"max-softmax": 1 - shares.amax(1), "entropy": torch.special.entr(shares).sum(1)}
    for name, code in codes.items():
        found[f"fringe, {name}"] = torch.cat([code.detector.score(part) for part in traces.batches(BATCH)])
        found[f"neighbour entropy, {name}"] = neighbour_entropy(code, code.encode(raw), neighbours, logits.shape[1])
        found[f"reconstruction, {name}"] = reconstruction(code, raw)
    return {name: np.asarray(score, dtype=np.float64) for name, score in found.items()}


def reconstruction(code: Code, raw: Tensor) -> Tensor:
    """Root mean square of what the decoder misses, float64 (n,)."""
    return torch.cat([code.residual(x).double().square().mean(1).sqrt() for x in raw.split(BATCH)])


def merits(scores: Mapping[str, FloatArray], wrong: Tensor, reference: str, seed: int) -> list[Merit]:
    """How well each score tells wrong predictions from right ones; empty for fewer than 5 of either."""
    positive = wrong.numpy()
    if min(positive.sum(), (~positive).sum()) < LEAST_ERRORS:
        return []
    found = []
    for name, score in scores.items():
        up, down = score[positive], score[~positive]
        beyond = auroc_difference(score, scores[reference], positive, seed)
        found.append(Merit(name, auroc_estimate(up, down), beyond))
    return found


def risk_by_coverage(score: FloatArray, wrong: Tensor, coverages: Sequence[float]) -> list[float]:
    """The error rate among the least suspicious share of images, for each share; ties in the order of the images."""
    order = np.argsort(score, kind="stable")
    errors = wrong.numpy()[order].cumsum()
    kept = [max(1, math.ceil(c * len(order) - 1e-9)) for c in coverages]
    return [float(errors[k - 1] / k) for k in kept]


def errors(scores: Mapping[str, FloatArray], wrong: Tensor, seed: int) -> Errors:
    """Whether the fringe knows errors better than max-softmax does."""
    found = merits(scores, wrong, "max-softmax", seed)
    names = [m.name for m in found if "reconstr" not in m.name]
    risk = {name: risk_by_coverage(scores[name], wrong, COVERAGES) for name in names}
    return Errors(len(wrong), int(wrong.sum()), found, COVERAGES, risk)
