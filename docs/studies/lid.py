"""LID with neighbours as in the published code, with the original kept, and from a stored reference.

On CIFAR-10 with the ResNet-20 checkpoint. Command, about eight minutes on one core::

    AFTERSHOCK_DATA=DIR python docs/studies/lid.py

It prints the table of docs/results.md, section "LID: where the number comes from"; tests/test_studies.py checks the
arithmetic on planted distances, without data.

Source that was read: https://github.com/xingjunm/lid_adversarial_subspace_detection at
29ae6f5d1b376753876c9cb404e7fe297d17a2d4 (``util.py``: ``mle_batch``, ``get_lids_random_batch``, ``block_split``;
``extract_characteristics.py``; ``detect_adv_examples.py``). It needs TensorFlow 1 and is not run here: its arithmetic
was read and is written anew below.

What it does. Test images that the model classifies correctly are cut into minibatches of 100. For each layer,
distances are taken from the clean, the noisy and the perturbed images of a minibatch to its 100 *clean* images; each
row is sorted, its first column is dropped, and the next k = 20 make the maximum-likelihood estimate. The first column
is the image itself (distance 0) for a clean image, and nearly always the own original for a noisy or a perturbed one.
So the original is not a neighbour, for any of the three. Noisy images (Gaussian, of the attack's mean L2 norm) are
negatives beside the clean ones. Each layer's estimates are scaled to [0, 1] over all images, those of the test part
included, and a logistic regression (``LogisticRegressionCV``) learns from the first 80 % of the minibatches.

What is different here. Only perturbed images that fool the model count, with the clean and the noisy image of each; the
published code keeps the others too. Each minibatch is the test part once, and the mean AUROC is reported, since there
are 1,000 images and not 10,000. Layers are the outputs of the 19 ReLUs; the published code takes every layer of its
network, the input included. Sizes of noise come from the attack itself instead of a table of constants.

The rows with a stored reference change one thing: where neighbours come from. The other minibatches are cut into halves
A and B; the reference is clean A, and the regression learns from clean and noisy B as negatives. Its positives are
perturbed B (no original is stored), or perturbed A (every original is stored). No image of the test part is stored.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.recorder import discover, record
from aftershock.harness.tracing.traces import Need, TapInfo
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler
from study_setup import attacked, equal_size_noise, figure, parser, prepare, table, write
from torch import Tensor, nn

MINIBATCH, NEIGHBOURS = 100, 20
ATTACKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "FGSM 8/255": ("fgsm", {"eps": 8 / 255}),
    "PGD 8/255": ("pgd", {"eps": 8 / 255, "steps": 10}),
    "PGD 2/255": ("pgd", {"eps": 2 / 255, "steps": 10}),
    "DeepFool L∞": ("foolbox.LinfDeepFoolAttack", {}),
}
ROWS = (
    "the published form: the nearest image of the clean minibatch is dropped",
    "the same, but the original of a perturbed image is kept",
    "the same, but the originals of perturbed and noisy images are kept",
    "a stored reference without the originals",
    "a stored reference with the originals of the perturbed images that the regression learns from",
)
# A distance of 0 has no logarithm.
_SMALLEST = 1e-30


def distances(queries: Tensor, reference: Tensor) -> Tensor:
    """Return Euclidean distances (n, m), in the dtype of ``queries`` (n, d) and ``reference`` (m, d).

    They come from a matrix product: centre both on the reference first, or digits are lost.
    """
    squares = queries.square().sum(1, keepdim=True) + reference.square().sum(1) - 2 * queries @ reference.T
    return squares.clamp(min=0).sqrt()


def estimates(distance: Tensor, k: int, drop_nearest: bool) -> Tensor:
    """Return the maximum-likelihood LID of each row of distances (n, m), float64 (n,).

    It is −k / Σ log(r_i / r_k) over r_1 ≤ … ≤ r_k: with ``drop_nearest`` these are the second to the (k + 1)-th
    smallest distances, otherwise the first k. Of fewer than k + 1 distances, one is always left out, as published.
    """
    k = min(k, distance.shape[1] - 1)
    first = 1 if drop_nearest else 0
    ordered = distance.double().sort(1).values[:, first : first + k].clamp(min=_SMALLEST)
    return -k / (ordered / ordered[:, -1:]).log().sum(1)


def features(model: nn.Module, taps: Sequence[TapInfo], images: Tensor, pooled: bool) -> list[Tensor]:
    """Return the features (n, d) of each tap: all activations, or one mean per map."""
    need = Need("pooled" if pooled else "full")
    codes = record(model, images, taps, (need,)).codes[need.code]
    return [codes[tap.name].float() for tap in taps]


class Neighbours:
    """Distances of several kinds of images to the clean ones, layer by layer.

    Args:
        model: images in [0, 1] to logits.
        kinds: clean images, then what was made of them in the same order, a multiple of 100 each.
        pooled: read one mean per map instead of all activations.
        stored: keep the distances to all clean images too, not only those within a minibatch.
    """

    def __init__(self, model: nn.Module, kinds: Sequence[Tensor], pooled: bool, stored: bool = True) -> None:
        taps = discover(model, kinds[0][:2])
        self.batches = len(kinds[0]) // MINIBATCH
        clean = features(model, taps, kinds[0], pooled)
        centres = [layer.mean(0) for layer in clean]
        for layer, centre in zip(clean, centres, strict=True):
            layer -= centre
        # Of each kind and minibatch: (layers, 100, 100) within the minibatch, (layers, 100, all) to all clean images.
        self._own: list[list[Tensor]] = [[] for _ in kinds]
        self._stored: list[list[Tensor]] = [[] for _ in kinds]
        for place, images in enumerate(kinds):
            for number, part in enumerate(images.split(MINIBATCH)):
                rows = slice(number * MINIBATCH, (number + 1) * MINIBATCH)
                layers = [f - c for f, c in zip(features(model, taps, part, pooled), centres, strict=True)]
                pairs = list(zip(layers, clean, strict=True))
                self._own[place].append(torch.stack([distances(q.double(), c[rows].double()) for q, c in pairs]))
                if stored:
                    # Among all clean images small distances are rare, and float32 is several times faster.
                    self._stored[place].append(torch.stack([distances(q, c) for q, c in pairs]))

    def within_minibatch(self, k: int, keep: Sequence[int] = ()) -> list[Tensor]:
        """Return each kind's estimates (n, layers) from its minibatch, the nearest image dropped but for ``keep``."""
        return [
            torch.cat([_columns(batch, k, place not in keep) for batch in kind]) for place, kind in enumerate(self._own)
        ]

    def original_is_nearest(self, kind: int) -> float:
        """Return in what share of rows (layers × images) an image of a kind is nearest to its own original."""
        found = [batch.argmin(2) == torch.arange(MINIBATCH) for batch in self._own[kind]]
        return float(torch.cat(found, 1).double().mean())

    def from_reference(self, k: int, reference: Tensor) -> list[Tensor]:
        """Return each kind's estimates (n, layers) from the clean images at ``reference`` (int64); none is dropped."""
        return [torch.cat([_columns(batch[:, :, reference], k, False) for batch in kind]) for kind in self._stored]


def _columns(distance: Tensor, k: int, drop_nearest: bool) -> Tensor:
    return torch.stack([estimates(layer, k, drop_nearest) for layer in distance], 1)


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of the images that a regression learns from, as negatives and as positives, and of the test part."""

    negatives: Tensor
    positives: Tensor
    test: Tensor


def auroc(values: Sequence[Tensor], fold: Fold) -> tuple[float, float]:
    """Return the AUROC on the test part: against clean and noisy negatives (as published), and against clean ones.

    Args:
        values: estimates (n, layers) of clean, noisy and perturbed images; scales come from all of them, as published.
        fold: the rows to learn from, and to test on.
    """
    scaler = MinMaxScaler().fit(torch.cat(tuple(values)).numpy())
    clean, noisy, perturbed = (scaler.transform(part.numpy()) for part in values)
    rows = np.concatenate([clean[fold.negatives], noisy[fold.negatives], perturbed[fold.positives]])
    truth = [0] * (2 * len(fold.negatives)) + [1] * len(fold.positives)
    with warnings.catch_warnings():
        # scikit-learn announces other defaults; those of today are the published ones.
        warnings.simplefilter("ignore", FutureWarning)
        regression = LogisticRegressionCV(max_iter=2000).fit(rows, truth)

    def against(*negatives: NDArray[np.float64]) -> float:
        scores = [regression.decision_function(part[fold.test]) for part in (*negatives, perturbed)]
        labels = [0] * sum(map(len, scores[:-1])) + [1] * len(scores[-1])
        return float(roc_auc_score(labels, np.concatenate(scores)))

    return against(clean, noisy), against(clean)


def measure(neighbours: Neighbours, k: int = NEIGHBOURS) -> list[list[tuple[float, float]]]:
    """Return for each of ``ROWS`` the AUROCs of the folds (see :func:`auroc`)."""
    kept = [
        neighbours.within_minibatch(k),
        neighbours.within_minibatch(k, keep=(2,)),
        neighbours.within_minibatch(k, keep=(1, 2)),
    ]
    found: list[list[tuple[float, float]]] = [[] for _ in ROWS]
    batches = torch.arange(neighbours.batches * MINIBATCH).split(MINIBATCH)
    for number, test in enumerate(batches):
        others = [rows for place, rows in enumerate(batches) if place != number]
        learn = torch.cat(others)
        a, b = torch.cat(others[::2]), torch.cat(others[1::2])
        stored = neighbours.from_reference(k, a)
        folds = [Fold(learn, learn, test)] * 3 + [Fold(b, b, test), Fold(b, a, test)]
        for place, (values, fold) in enumerate(zip([*kept, stored, stored], folds, strict=True)):
            found[place].append(auroc(values, fold))
    return found


def main() -> None:
    """Print the tables.

    Raises:
        UsageError: where an attack leaves fewer than three minibatches.
    """
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1000, help="correctly classified test images")
    options.add_argument("--pooled", action="store_true", help="one mean per map instead of all activations")
    options.add_argument("--failed", action="store_true", help="keep perturbed images that do not fool the model")
    given: Namespace = options.parse_args()
    setup = prepare(given.data, given.images, seed=given.seed)
    columns = []
    for place, (label, (name, params)) in enumerate(ATTACKS.items()):
        images, success = attacked(setup.model, setup.clean, name, params, given.seed)
        rows = torch.arange(len(images)) if given.failed else success.nonzero().squeeze(1)
        rows = rows[: len(rows) // MINIBATCH * MINIBATCH]
        if len(rows) < 3 * MINIBATCH:
            raise UsageError(f"{label} leaves {len(rows)} images, too few to learn, store and test: raise --images.")
        clean, perturbed = setup.clean.images[rows], images[rows]
        noisy = equal_size_noise(clean, perturbed, torch.Generator().manual_seed(given.seed + place))
        neighbours = Neighbours(setup.model, (clean, noisy, perturbed), given.pooled)
        columns.append(measure(neighbours))
        share = neighbours.original_is_nearest(2)
        write(f"{label}: {len(rows)} images; the original is the nearest one in {share:.1%} of images × layers")
    head = ["neighbours come from", *ATTACKS]
    for what, which in (("clean and noisy images as negatives (published)", 0), ("clean images as negatives", 1)):
        write(f"\nMean AUROC over the minibatches, {what}:\n")
        lines = []
        for row, text in enumerate(ROWS):
            means = [float(np.mean([fold[which] for fold in column[row]])) for column in columns]
            lines.append([text, *map(figure, means)])
        write(table(head, lines))
    errors = [np.std([f[0] for f in row], ddof=1) / len(row) ** 0.5 for column in columns for row in column]
    write(f"Largest standard error of a mean over minibatches: {max(errors):.3f}")


if __name__ == "__main__":
    main()
