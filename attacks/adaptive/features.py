"""What a look at a detector's taps says of each image, as one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.target import Observation


def described(found: Observation) -> Tensor:
    """Return mean and standard deviation of every map at the taps that the detector reads, and the logits.

    Activations without positions stand for themselves. Differentiable with respect to the images.

    Returns:
        float32 (n, numbers).
    """
    columns = [found.logits]
    for values in found.features.values():
        if values.ndim <= 2:
            columns.append(values.flatten(1))
            continue
        maps = values.flatten(2) if values.ndim > 3 else values.movedim(1, -1)
        columns += [maps.mean(2), (maps.var(2, correction=0) + 1e-12).sqrt()]
    return torch.cat([c.float() for c in columns], 1)
