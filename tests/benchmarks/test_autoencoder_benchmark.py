"""How long an autoencoder of activations takes to train beside scikit-learn's multilayer perceptron of the same shape.

Both take the same number of steps of Adam. The error on other rows is asserted (a faster one must not be a worse one),
times are only recorded.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from aftershock.detectors.codes.autoencoder import Autoencoder, fit_in_components
from support.timing import beside
from torch import Tensor

ROWS, INPUTS, LATENT, HIDDEN, EPOCHS, BATCH = 900, 4864, 16, (512, 128), 5, 28


@pytest.fixture(scope="module")
def data() -> Tensor:
    """Rows to learn from and as many others: a curved surface in many dimensions, and noise of the same size."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2 * ROWS, 8, generator=generator)
    curved = torch.cat([factors, factors.square() - 1, factors.sin()], 1)
    signal = curved @ torch.randn(curved.shape[1], INPUTS, generator=generator) / curved.shape[1] ** 0.5
    return signal + torch.randn(2 * ROWS, INPUTS, generator=generator)


def test_an_autoencoder_beside_scikit_learns_perceptron(benchmark: Any, data: Tensor) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    known, new = data[:ROWS], data[ROWS:]
    found: dict[str, Any] = {}

    def ours() -> Autoencoder:
        found["ours"] = fit_in_components(
            lambda: [known], LATENT, HIDDEN, EPOCHS, torch.Generator().manual_seed(0), BATCH
        )
        return found["ours"]

    def theirs() -> None:
        network = MLPRegressor(
            hidden_layer_sizes=(*HIDDEN, LATENT, *HIDDEN[::-1]), alpha=0.0, batch_size=BATCH, max_iter=EPOCHS,
            random_state=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found["theirs"] = network.fit(known.numpy(), known.numpy())

    beside(benchmark, ours, {"scikit_learn": theirs}, 1)
    unexplained = {
        "ours": float((found["ours"](new) - new).square().mean() / new.var()),
        "scikit_learn": float(
            (torch.from_numpy(found["theirs"].predict(new.numpy())) - new).square().mean() / new.var()
        ),
    }
    benchmark.extra_info |= {f"{name}_unexplained": share for name, share in unexplained.items()}
    assert unexplained["ours"] < unexplained["scikit_learn"]
