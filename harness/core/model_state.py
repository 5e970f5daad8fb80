"""A model as it has to be while it is measured or attacked, and exactly as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

# What every module has for its own purposes.
_INTERNAL = frozenset(vars(nn.Module()))


@contextmanager
def untouched(model: nn.Module, freeze: bool = True) -> Iterator[None]:
    """Eval mode, with ``freeze`` frozen parameters, and full precision inside the block; afterwards all is as it was.

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
        with full_precision(device_of(model).type == "cuda"):
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
def state_kept(model: nn.Module) -> Iterator[list[str]]:
    """Buffers and plain attributes of all modules are afterwards what they were; the names of those that changed.

    Numbers, texts, tensors, and lists, tuples, sets and dictionaries of them are compared and put back; other objects
    are put back where an attribute holds another one. What a lazy module makes of itself stays.
    """
    changed: list[str] = []
    before = [(name, module, *_state_of(module)) for name, module in model.named_modules() if not _is_lazy(module)]
    try:
        yield changed
    finally:
        for name, module, attributes, buffers in before:
            for held, kept in ((module.__dict__, attributes), (module._buffers, buffers)):
                now = _plain(held) if held is module.__dict__ else dict(held)
                for key in now.keys() - kept.keys():
                    del held[key]
                for key, (value, copy) in kept.items():
                    if key not in now or now[key] is not value or not _equal(now[key], copy):
                        changed.append(f"{name}.{key}" if name else key)
                        held[key] = _put_back(value, copy)
                changed += [f"{name}.{key}" if name else key for key in now.keys() - kept.keys()]


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin)


def _plain(held: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in held.items() if key not in _INTERNAL}


def _state_of(module: nn.Module) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """Return attributes and buffers of one module: each as it is, and a copy of what it holds."""
    attributes, buffers = _plain(module.__dict__), dict(module._buffers)
    return tuple({k: (v, _copied(v)) for k, v in held.items()} for held in (attributes, buffers))  # type: ignore[return-value]  # two


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple, set):
        return type(value)(_copied(inner) for inner in value)
    return {key: _copied(inner) for key, inner in value.items()} if type(value) is dict else value


def _equal(value: Any, copy: Any) -> bool:
    """Return whether a value is what it was when it was copied."""
    if type(value) is not type(copy) and not (isinstance(value, Tensor) and isinstance(copy, Tensor)):
        return False
    if isinstance(value, Tensor):
        same = value.shape == copy.shape and value.dtype == copy.dtype and value.device == copy.device
        return same and torch.equal(value.detach().nan_to_num(), copy.nan_to_num())
    if type(value) in (list, tuple):
        return len(value) == len(copy) and all(_equal(one, other) for one, other in zip(value, copy, strict=True))
    if type(value) is dict:
        return value.keys() == copy.keys() and all(_equal(value[key], copy[key]) for key in copy)
    return value is copy or (type(value) in (bool, int, float, complex, str, bytes, set) and value == copy)


def _put_back(value: Any, copy: Any) -> Any:
    """Return the very object that was there, where its content can be put back."""
    if isinstance(value, Tensor) and value.shape == copy.shape:
        with torch.no_grad():
            value.copy_(copy)
        return value
    if type(value) in (list, dict, set):
        value.clear()
        if isinstance(value, list):
            value.extend(copy)
        else:
            value.update(copy)
        return value
    return copy


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


@contextmanager
def full_precision(wanted: bool = True) -> Iterator[None]:
    """Convolutions in float32 inside the block, where ``wanted``, also on GPUs.

    By default cuDNN rounds what it multiplies to TF32's ten bits: on a ResNet-20 logits move by .02, and one bit in
    10,000 differs from the CPU's, against one in 10 million without (tests/gpu).
    """
    before = torch.backends.cudnn.allow_tf32 if wanted else False
    if before:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if before:
            torch.backends.cudnn.allow_tf32 = True


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter or buffer lies; the CPU for a model without any."""
    # One after the other, since it is asked at every pass: all would be looked up module by module.
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")
