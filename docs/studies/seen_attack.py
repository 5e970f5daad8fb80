"""Mahalanobis and LID under the protocol of a published comparison, with input pre-processing (CIFAR-10, ResNet-20).

Command, about ten minutes on one core::

    AFTERSHOCK_DATA=DIR python docs/studies/seen_attack.py

It prints what docs/results.md, section "Published beside ours", says of these two beside Cohen, Sapiro and Giryes 2020.

Sources that were read (none is run: they need Python 2 with TensorFlow 1, or an early PyTorch):

- https://github.com/giladcohen/NNIF_adv_defense at 81ff0368af91c67e36f8752b0ac68d2bf41b1032: ``attack.py``,
  ``extract_characteristics.py``, ``detect_adv_examples.py``, ``tools/utils.py``. The protocol is theirs: L2 DeepFool
  with the defaults of cleverhans (overshoot 0.02, 50 steps), and one targeted FGSM step of 0.1 towards a random class;
  images that the model classifies correctly, perturbed ones whether or not they fool it; clean images as the only
  negatives; columns scaled to [0, 1] on the images that the regression learns from, ``LogisticRegressionCV`` with
  three folds, and other images to test on.
- https://github.com/pokaxpoka/deep_Mahalanobis_detector at 90c2105e78c6f76a2801fc4c1cb1b84f4ff9af63:
  ``lib_generation.py``. The pre-processing is theirs: for each layer alone, the gradient of the squared Mahalanobis
  distance to the nearest class mean with respect to the image; a step of ``magnitude`` against its sign; the layer's
  distance again, for the image after the step. Their step is divided by the standard deviations that inputs are
  normalised with, so that a magnitude is in units of [0, 1] pixels. (The code of Cohen et al. has 2·(max(g, 0) − 1/2)
  in place of the sign of g, which is near −1 for every small gradient, divides by those deviations and works on
  [0, 1] pixels; it is not measured here.)

LID is that of lid.py: neighbours from a minibatch of 100 clean images, the nearest one dropped.

The column "four times as long" is not an attack of theirs, but tests one reason for the difference. Their table of
noise of the attacks' size has 0.008 per pixel for DeepFool on CIFAR-10, an L2 norm of 0.44, where DeepFool needs 0.11
here.

What is different here: ResNet-20 and not ResNet-34; the regression learns from 400 images and 600 test it, and not
1,000 and 10,000; means and covariance come from 10,000 train images; Mahalanobis reads the first ReLU and the outputs
of the nine blocks, LID the outputs of all 19 ReLUs. Magnitude and k are chosen on the learning images: a regression on
one half, AUROC on the other. The published code leaves that choice open.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.model_state import untouched
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.taps import TapCall, Taps
from aftershock.harness.tracing.traces import pool
from lid import MINIBATCH, Neighbours
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler
from study_setup import attacked, figure, parser, predictions, prepare, table, write
from torch import Tensor, nn

DEEPFOOL, LONGER = "DeepFool L2", "the same, four times as long"
ATTACKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "FGSM 0.1, targeted": (
        "pgd",
        {"eps": 0.1, "steps": 1, "step_size": 0.1, "random_start": False, "targeted": True, "target": "random"},
    ),
    DEEPFOOL: ("foolbox.L2DeepFoolAttack", {"overshoot": 0.02, "steps": 50}),
}
# Those of Lee et al. 2018; 0 is the score without pre-processing.
MAGNITUDES = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)
NEIGHBOURS = (10, 20, 30, 40)
_BATCH = 250


class _Reached(Exception):
    """The tap was reached: what lies behind it need not be computed."""


def pooled_at(model: nn.Module, images: Tensor, tap: str) -> Tensor:
    """Return one mean per map of a tap, (n, maps), with a graph where gradients are on."""
    found: list[Tensor] = []

    def visit(call: TapCall) -> None:
        if call.name == tap:
            found.append(pool(call.activation, "mean"))
            raise _Reached

    with Taps(model, visit):
        try:
            model(images)
        except _Reached:
            return found[0]
    raise UsageError(f"The model has no tap {tap!r}.")


@dataclass(frozen=True, eq=False)
class Gaussians:
    """One Gaussian per class with a common covariance.

    Attributes:
        means: float64, (classes, d).
        precision: the pseudo-inverse of the common covariance, float64, (d, d).
    """

    means: Tensor
    precision: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor) -> Gaussians:
        """Estimate means and covariance from features (n, d) and classes (n,) from 0."""
        values = features.double()
        means = torch.stack([values[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        offsets = values - means[labels]
        return cls(means, torch.linalg.pinv(offsets.T @ offsets / len(offsets), hermitian=True))

    def distance(self, features: Tensor) -> Tensor:
        """Return half the squared distance to the nearest mean, float64 (n,), differentiable."""
        offsets = features.double().unsqueeze(1) - self.means
        found: Tensor = torch.einsum("ncd,de,nce->nc", offsets, self.precision, offsets).amin(1) / 2
        return found


def preprocessed(
    model: nn.Module, tap: str, gaussians: Gaussians, images: Tensor, magnitudes: Sequence[float]
) -> Tensor:
    """Return a layer's distances after a step of each magnitude, float64 (magnitudes, n)."""
    columns = []
    for part in images.split(_BATCH):
        x = part.clone().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(gaussians.distance(pooled_at(model, x, tap)).sum(), x)
        # As published, a gradient of 0 counts as positive.
        sign = torch.where(gradient >= 0, 1.0, -1.0)
        with torch.no_grad():
            columns.append(
                torch.stack([gaussians.distance(pooled_at(model, part - m * sign, tap)) for m in magnitudes])
            )
    return torch.cat(columns, 1)


def mahalanobis(model: nn.Module, train: tuple[Tensor, Tensor], sets: Sequence[Tensor]) -> list[dict[float, Tensor]]:
    """Return for each set of images the layers' distances by magnitude, float64 (n, layers)."""
    taps = [t.name for t in discover(model, train[0][:2])]
    taps = [name for name in taps if name == taps[0] or name.endswith(":2")]
    columns: list[list[Tensor]] = [[] for _ in sets]
    with untouched(model):
        for tap in taps:
            with torch.no_grad():
                features = torch.cat([pooled_at(model, part, tap) for part in train[0].split(_BATCH)])
            gaussians = Gaussians.fit(features, train[1])
            for place, images in enumerate(sets):
                columns[place].append(preprocessed(model, tap, gaussians, images, MAGNITUDES))
    return [{m: torch.stack([c[i] for c in found], 1) for i, m in enumerate(MAGNITUDES)} for found in columns]


def auroc(clean: Tensor, perturbed: Tensor, learn: slice, test: slice) -> float:
    """Return the AUROC on the rows ``test``, of a regression that learned from the rows ``learn``."""
    rows: NDArray[np.float64] = np.concatenate([clean[learn].numpy(), perturbed[learn].numpy()])
    scaler = MinMaxScaler().fit(rows)
    half = len(rows) // 2
    with warnings.catch_warnings():
        # scikit-learn announces other defaults; those of today are the published ones.
        warnings.simplefilter("ignore", FutureWarning)
        regression = LogisticRegressionCV(cv=3, max_iter=20_000)
        regression.fit(scaler.transform(rows), [0] * half + [1] * half)
    scores = [regression.decision_function(scaler.transform(part[test].numpy())) for part in (clean, perturbed)]
    return float(roc_auc_score([0] * len(scores[0]) + [1] * len(scores[1]), np.concatenate(scores)))


@dataclass(frozen=True)
class Measured:
    """AUROC of one method on one attack by the value of its parameter, and the value chosen on the learning images."""

    by_value: Mapping[float, float]
    chosen: float


def measured(clean: Mapping[float, Tensor], perturbed: Mapping[float, Tensor], learn: int) -> Measured:
    """Measure every value of a parameter; the first ``learn`` rows of each value's columns are learned from."""
    half, found, on_half = learn // 2, {}, {}
    for value in clean:
        on_half[value] = auroc(clean[value], perturbed[value], slice(0, half), slice(half, learn))
        found[value] = auroc(clean[value], perturbed[value], slice(0, learn), slice(learn, None))
    return Measured(found, max(on_half, key=on_half.__getitem__))


def main() -> None:
    """Print the AUROC of every magnitude and every k, and of those chosen."""
    options = parser(__doc__)
    options.add_argument("--learn", type=int, default=400, help="images that regressions learn from; whole hundreds")
    options.add_argument("--test", type=int, default=600, help="images that test them; whole hundreds")
    options.add_argument("--train", type=int, default=10_000, help="train images for means and covariances")
    given = options.parse_args()
    if given.learn % MINIBATCH or given.test % MINIBATCH:
        raise UsageError(f"--learn and --test are multiples of {MINIBATCH}, the size of a minibatch.")
    setup = prepare(given.data, given.learn + given.test, given.train, given.seed)
    made = {}
    for label, (name, params) in ATTACKS.items():
        made[label], _ = attacked(setup.model, setup.clean, name, params, given.seed)
    made[LONGER] = (setup.clean.images + 4 * (made[DEEPFOOL] - setup.clean.images)).clamp(0, 1)
    for label, images in made.items():
        fooled = float((predictions(setup.model, images) != setup.clean.labels).double().mean())
        norm = float((images - setup.clean.images).flatten(1).norm(dim=1).mean())
        write(f"{label}: {fooled:.1%} fool the model, mean L2 norm {norm:.2f}")
    sets = [setup.clean.images, *made.values()]
    clean, *others = mahalanobis(setup.model, (setup.train_images, setup.train_labels), sets)
    distances = [measured(clean, other, given.learn) for other in others]
    neighbours = Neighbours(setup.model, sets, pooled=False, stored=False)
    by_k = {k: neighbours.within_minibatch(k) for k in NEIGHBOURS}
    dimensions = [
        measured({k: v[0] for k, v in by_k.items()}, {k: v[place] for k, v in by_k.items()}, given.learn)
        for place in range(1, len(sets))
    ]
    rows = [["Mahalanobis, no pre-processing", *(figure(m.by_value[0.0]) for m in distances)]]
    rows += [[f"Mahalanobis, magnitude {m:g}", *(figure(d.by_value[m]) for d in distances)] for m in MAGNITUDES[1:]]
    rows.append(
        ["Mahalanobis, magnitude chosen", *(f"{figure(d.by_value[d.chosen])} ({d.chosen:g})" for d in distances)]
    )
    rows += [[f"LID, k = {k}", *(figure(d.by_value[k]) for d in dimensions)] for k in NEIGHBOURS]
    rows.append(["LID, k chosen", *(f"{figure(d.by_value[d.chosen])} ({d.chosen:g})" for d in dimensions)])
    write("\n" + table(["all layers, seen attack", *made], rows))


if __name__ == "__main__":
    main()
