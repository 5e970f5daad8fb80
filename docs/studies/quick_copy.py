"""What attacks find on a quick copy of a model (version 3 of the protocol), beside what they find on the model itself.

``python docs/studies/quick_copy.py [--data DIR] [--images N]``

Both are measured with the model as given, on the same images with the same draws. The pixels that differ are those by
more than 1e-6. CPU seconds of this process.
"""

from __future__ import annotations

import time

from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import Perturbation
from aftershock.attacks.native.autopgd import AutoPGD
from aftershock.attacks.native.pgd import FGSM, PGD
from aftershock.harness.core.errors import UsageError
from aftershock.harness.models.folding import folded
from study_setup import Images, parser, prepare, table, write
from torch import nn

ATTACKS: dict[str, Perturbation] = {
    "FGSM, 1/255": FGSM(1 / 255),
    "PGD, .5/255": PGD(0.5 / 255),
    "PGD, 1/255": PGD(1 / 255),
    "PGD, 2/255": PGD(2 / 255),
    "PGD, 8/255": PGD(8 / 255),
    "AutoPGD, 1/255": AutoPGD(1 / 255, steps=20),
}


def attacked(
    attack: Perturbation, followed: nn.Module, judge: nn.Module, clean: Images
) -> tuple[PerturbedBatch, float]:
    """Return what an attack finds on one model, measured with another, and its CPU seconds."""
    begun = time.process_time()
    made = perturb_batch(attack, followed, clean.images, clean.labels, clean.positions, seed=0, measured_with=judge)
    return made, time.process_time() - begun


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=300)
    asked = options.parse_args()
    setup = prepare(asked.data, asked.images, seed=asked.seed)
    quick = folded(setup.model, setup.clean.images[:8])
    if quick is None:
        raise UsageError("The model has no quick copy.")
    rows = []
    for name, attack in ATTACKS.items():
        (one, slow), (two, fast) = (attacked(attack, m, setup.model, setup.clean) for m in (setup.model, quick))
        success = [f"{100 * made.success.double().mean():.1f} %" for made in (one, two)]
        differ = f"{int((one.success != two.success).sum())} of {len(one.success)}"
        pixels = ((one.images - two.images).abs() > 1e-6).double().mean()
        rows.append([name, *success, differ, f"{100 * pixels:.1f} %", f"{slow / fast:.2f}"])
    head = ["attack", "success on the model itself", "on its quick copy", "images that differ", "pixels", "speed"]
    write(table(head, rows))


if __name__ == "__main__":
    main()
