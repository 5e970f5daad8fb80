"""Case study: the last weights of SGD against the average of its weights, as samples show them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ...harness.core.model_state import untouched
from ...harness.core.seeds import forked_rng
from ...harness.statistics.intervals import Estimate, proportion, student
from ...harness.statistics.multiple_testing import holm
from ...harness.tracing.traced_model import TracedModel
from .diagnostics import validate_chains
from .energy import Activations, Energy, Scale, Target
from .judge import Judge
from .measured import Averaging, Group, langevin_name
from .measures import p_value
from .metrics import Features, Metrics
from .sampler import Plan, langevin

_BATCH = 64
LAST, AVERAGE, BEFORE = "last", "average", "before"
COMPARED = (
    "activation_sd",
    "total_variation",
    "high_frequency",
    "realism",
    "distance_ratio",
    "discriminator",
    "transfer",
)
# By name, those that are tested: what words call them.
TESTED = {
    "activation_sd": "activation", "total_variation": "total variation", "high_frequency": "high-frequency energy",
    "distance_ratio": "distance to data",
}  # fmt: skip


def fine_tune(
    own: TracedModel, images: Tensor, labels: Tensor, steps: int, rate: float, draws: Callable[..., torch.Generator],
    device: torch.device, progress: Callable[[float], None] = lambda share: None,
) -> tuple[TracedModel, TracedModel]:  # fmt: skip
    """Copies of a network after SGD at a constant rate: with the last weights, and with the mean of the second half's.

    Both have their batch-norm statistics recomputed over the same images. The network itself stays as it is.

    Args:
        own: the network.
        images: (n, channels, height, width).
        labels: (n,).
        steps: of SGD with momentum 0.9.
        rate: learning rate.
        draws: a seeded generator by name.
        device: where it lies.
        progress: told the share that is done.
    """
    last = _copied(own)
    model = last.model.train().requires_grad_(True)
    averaged = AveragedModel(model)
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    picks = draws("averaging", "images")
    size = min(_BATCH, len(images))
    # Dropout, where there is any, draws from the global generator.
    with forked_rng(int(torch.randint(2**62, (1,), generator=picks))), torch.enable_grad():
        for step in range(steps):
            rows = torch.randint(len(images), (size,), generator=picks)
            loss = F.cross_entropy(model(images[rows].to(device)), labels[rows].to(device))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            if step >= steps // 2:
                averaged.update_parameters(model)
            progress((step + 1) / steps)
        batches = [part.to(device) for part in images.split(4 * size)]
        mean = _with(own, averaged.module)
        for made in (last, mean):
            update_bn(batches, made.model)
            made.model.eval().requires_grad_(False)
            for parameter in made.model.parameters():
                parameter.grad = None
    return last, mean


def _copied(own: TracedModel) -> TracedModel:
    with untouched(own.model, freeze=False):
        for parameter in own.model.parameters():
            # A gradient that somebody collects is not ours to copy.
            parameter.grad = None
        return _with(own, copy.deepcopy(own.model))


def _with(own: TracedModel, model: nn.Module) -> TracedModel:
    """The same traced_model on a copy of the model."""
    path = next((name for name, module in own.model.named_modules() if module is own.root), "")
    return replace(own, model=model, root=model.get_submodule(path) if own.root is not None else None)


def case_study(
    energy: Energy, own: TracedModel, targets: Sequence[Target], weights: Sequence[float], start: Tensor, plan: Plan,
    images: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor], judge: Judge, metrics: Metrics,
    steps: int, rate: float, draws: Callable[..., torch.Generator], device: torch.device,
    progress: Callable[[float], None] = lambda share: None,
) -> Averaging:  # fmt: skip
    """Sample from both networks with the same starts, noise and frozen discriminator, and compare chain by chain.

    Args:
        energy: of the network itself: its space, discriminator, pull, smoothness and temperature are used.
        own: the network.
        targets: what the samples are drawn to.
        weights: of the discriminator.
        start: coordinates (chains, size).
        plan: of the chains.
        images: to fine-tune on, (n, channels, height, width).
        labels: (n,).
        held_out: images and labels for the accuracy.
        judge: of realism.
        metrics: gives the discriminator; both networks get metrics of their own.
        steps: of SGD.
        rate: learning rate.
        draws: a seeded generator by name.
        device: where the network lies.
        progress: told the share that is done.
    """
    networks = dict(
        zip((LAST, AVERAGE), fine_tune(own, images, labels, steps, rate, draws, device, lambda s: progress(s / 2)),
            strict=True)
    )  # fmt: skip
    right = {n: _right(m, held_out, device) for n, m in {BEFORE: own, **networks}.items()}
    groups: dict[tuple[str, str, float], Group] = {}
    chains = len(start)
    target = torch.arange(len(targets)).repeat_interleave(len(weights) * chains)
    weight = torch.tensor(list(weights)).repeat_interleave(chains).repeat(len(targets))
    begin = start.repeat(len(targets) * len(weights), 1)
    for number, (name, network) in enumerate(networks.items()):
        activations = Activations(network, tuple(targets))
        data = activations.of(energy.space.expressible(images), device)
        scale = Scale.of(data)
        mine = replace(energy, activations=activations, scale=scale, target=target, weight=weight)
        run = langevin(
            mine,
            begin,
            plan,
            draws("averaging", "noise"),
            lambda s, k=number: progress(0.5 + (k + s) / 4),  # type: ignore[misc]
        )
        validate_chains(run, plan, energy.space.unbounded, energy.discriminator is not None)
        own_metrics = Metrics(activations, scale, data, Features(activations), metrics.discriminator, judge, device)
        for k, (one, value) in enumerate((t, w) for t in targets for w in weights):
            rows = torch.arange(k * chains, (k + 1) * chains)
            states = energy.space.images(run.states[:, rows.to(run.states.device)].flatten(0, 1)).detach().cpu()
            kept = states.unflatten(0, (-1, chains)).transpose(0, 1)
            group = Group(one, langevin_name(value), "langevin", value, kept)
            group = group.diagnosed(run, rows, energy.space.unbounded)
            own_metrics.measure(group)
            groups[name, one.name, value] = group
    accuracy = {n: proportion(int(r.sum()), len(r)) for n, r in right.items()}
    difference = student((right[AVERAGE] - right[LAST]).numpy())
    return Averaging(steps, rate, accuracy, difference, groups, *_compare(groups, targets, weights))


def _compare(
    groups: Mapping[tuple[str, str, float], Group], targets: Sequence[Target], weights: Sequence[float]
) -> tuple[dict[tuple[float, str], Estimate], dict[tuple[float, str], float | None]]:
    """The differences between both networks, and p-values of those that are tested."""
    differences, p_values = {}, {}
    for value in weights:
        for measure in COMPARED:
            pairs = []
            for one in targets:
                new, old = (groups[n, one.name, value].chain_values.get(measure) for n in (AVERAGE, LAST))
                if new is not None and old is not None:
                    pairs.append(new - old)
            # The chains of all targets start from the same states: a chain's mean over targets is one observation.
            if pairs:
                apart = np.mean(pairs, 0)
                differences[value, measure] = student(apart)
                if measure in TESTED:
                    p_values[value, measure] = p_value(apart)
    return differences, dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _right(own: TracedModel, held_out: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
    images, labels = held_out
    with torch.no_grad():
        said = torch.cat([own.model(part.to(device)).argmax(1).cpu() for part in images.split(4 * _BATCH)])
    return (said == labels).double()
