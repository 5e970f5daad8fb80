"""A copy of a model that computes the same faster: batch norm folded into convolutions, channels last in memory.

In eval mode batch norm is a linear map of each channel, which the convolution before it can do as well. Sums are taken
in another order and last digits differ, so only attacks look at the copy; what is recorded is the model's own.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..core.model_state import untouched
from ..core.seeds import forked_rng

# How far the copy's logits may be from the model's, in standard deviations of the logits, and the least cosine between
# their gradients by an image. On networks of torchvision and the built-in ones they are 1e-6 apart.
_LOGITS, _COSINE = 1e-4, 0.999


def folded(model: nn.Module, images: Tensor) -> nn.Module | None:
    """Return a copy of a model with the same logits and gradients, in eval mode and frozen.

    Args:
        model: images in [0, 1] to logits (n, classes).
        images: float32 (n, channels, height, width), on its device, on which both are compared.

    Returns:
        the copy, or ``None`` where there is no convolution, or both do not agree: a model that cannot be copied, reads
        what a convolution gives a second time, or needs activations that are contiguous.
    """
    try:
        quick = copy.deepcopy(model).eval().requires_grad_(False)
        if not any(type(module) is nn.Conv2d for module in quick.modules()):
            return None
        with untouched(model):
            _fold(quick, _pairs(quick, images))
            quick = quick.to(memory_format=torch.channels_last)
            return quick if _agree(model, quick, images) else None
    except Exception:
        # Whatever a model of others does not take: it is attacked as it is.
        return None


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Return convolutions with the name of the batch norm that reads their output, each called once in a pass."""
    outputs: list[tuple[Tensor, int, nn.Conv2d]] = []
    found: list[tuple[nn.Conv2d, str]] = []
    calls: dict[nn.Module, int] = {}

    def leaving(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            outputs.append((output, output._version, module))

    def entering(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for output, version, conv in outputs:
            if output is inputs[0] and output._version == version:
                found.append((conv, name))

    handles = []
    # Hooks of others would see folded values; plain layers alone are known to compute what they seem to.
    for name, module in model.named_modules():
        plain = not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        if type(module) is nn.Conv2d and plain:
            handles.append(module.register_forward_hook(leaving))
        elif type(module) is nn.BatchNorm2d and plain and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(lambda m, inputs, name=name: entering(name, m, inputs)))
            handles.append(module.register_forward_hook(leaving))
    try:
        with torch.no_grad(), forked_rng(0):
            model(images[:2])
    finally:
        for handle in handles:
            handle.remove()
    norms = dict(model.named_modules())
    return [(conv, name) for conv, name in found if calls[conv] == calls[norms[name]] == 1]


def _fold(model: nn.Module, pairs: list[tuple[nn.Conv2d, str]]) -> None:
    """Let each convolution do what the batch norm of that name does, which becomes the identity."""
    modules = dict(model.named_modules())
    for conv, name in pairs:
        norm = modules[name]
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, nn.Identity())


def _agree(model: nn.Module, quick: nn.Module, images: Tensor) -> bool:
    """Whether logits and gradients are the same up to rounding."""
    (logits, gradient), (other, its) = _look(model, images), _look(quick, images)
    apart = (logits - other).abs().max() / logits.std().clamp(min=1e-12)
    cosine = torch.cosine_similarity(gradient.flatten(1), its.flatten(1))
    known = gradient.flatten(1).abs().amax(1) > 0
    return bool(apart <= _LOGITS) and bool((cosine[known] >= _COSINE).all())


def _look(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), forked_rng(0):
        x = images.detach().clone().requires_grad_()
        logits: Tensor = model(x)
        lead = logits.topk(2, dim=1).values
        (gradient,) = torch.autograd.grad((lead[:, 0] - lead[:, 1]).sum(), x)
    return logits.detach(), gradient
