"""A model as it has to be while it is measured or attacked, and exactly as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, freeze: bool = True) -> Iterator[None]:
    """Eval mode and, with ``freeze``, frozen parameters inside the block; afterwards all is as it was.

    Put back, also on an error, are the training mode of every submodule, ``requires_grad`` and ``.grad`` of every
    parameter, and the buffers (an attack that switches to train mode would move batch-norm statistics). Frozen
    parameters save about a fifth of an attack's time. Not guarded: an attack that writes to the weights themselves.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        model.eval()
        for parameter, _, _ in parameters if freeze else ():
            parameter.requires_grad_(False)
            # Out of reach, so that nothing can add to a gradient that a training loop is collecting.
            parameter.grad = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One thread inside the block, where ``wanted``: for tensors so small that several would only wait for each other.

    On a machine whose cores have other work, that waiting multiplied the time of the digits by nine (measured).
    """
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
