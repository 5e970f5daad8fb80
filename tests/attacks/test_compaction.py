"""Looking less often which images are done, as GPUs want it, changes neither images nor what is counted as fooled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aftershock.attacks.base.perturbation import CountingModel, Perturbation
from aftershock.attacks.native import autopgd, pgd, square
from aftershock.attacks.native.autopgd import AutoPGD
from aftershock.attacks.native.pgd import PGD
from aftershock.attacks.native.square import Square
from aftershock.harness.core.seeds import Draws
from torch import Tensor, nn

ATTACKS: dict[str, Callable[[], Perturbation]] = {
    "pgd": lambda: PGD(0.12, steps=9, early_stop=True),
    "pgd, restarts": lambda: PGD(0.08, steps=5, early_stop=True, restarts=3, momentum=0.9),
    "autopgd": lambda: AutoPGD(0.1, steps=20),
    "autopgd, restarts": lambda: AutoPGD(0.08, steps=12, restarts=2, loss="dlr-targeted"),
    "autopgd in l1": lambda: AutoPGD(1.0, norm="l1", steps=15),
    "square": lambda: Square(0.1, queries=60),
    "square in l2": lambda: Square(0.6, norm="l2", queries=60),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_results_do_not_depend_on_how_often_is_looked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 5)).eval().requires_grad_(False)
    images = torch.rand(40, 3, 4, 4)
    labels = model(images).argmax(1)
    made: list[Tensor] = []
    for every in (1, 4, 1000):
        for module in (pgd, autopgd, square):
            monkeypatch.setattr(module, "steps_between_looks", lambda device, every=every: every)
        made.append(ATTACKS[name]().perturb(CountingModel(model), images, labels, Draws(5, range(40))))
    fooled = [model(found).argmax(1) != labels for found in made]
    # Some are fooled on the way and some never, or there would be nothing to get wrong.
    assert 0 < int(fooled[0].sum()) < 40
    for found, other in zip(made[1:], fooled[1:], strict=True):
        torch.testing.assert_close(found, made[0], rtol=0, atol=1e-6)
        assert torch.equal(other, fooled[0])
