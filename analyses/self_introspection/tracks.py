"""What is measured along the tracks of perturbations and in the neighbourhoods of the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...harness.statistics.intervals import mean_interval, mean_intervals, proportion
from ...harness.tracing.traces import Need
from ..common.inputs import AnalysisInput, ImageSet, PerturbedSet
from ..common.recording import read_images
from .latent_map import Code, Tracks, chance_purity, first_crossing, purity, trace_tracks
from .measured import ATTACK, NOISE, Crossing, Path, Purity


@dataclass(frozen=True, eq=False)
class Chosen:
    """The successes of a perturbation that are tracked, with the noise of the same size."""

    perturbed: PerturbedSet
    positions: list[int]
    controls: list[int]
    rows: list[int]


@dataclass(frozen=True, eq=False)
class Paths:
    """Tracks of one perturbation and of its noise, from the same clean images.

    Attributes:
        label: the perturbation's.
        rows: evaluate rows of the images.
        clean: their classes, int64 (m,).
        reached: the classes that the perturbation ends in, int64 (m,).
        attack: to the perturbed images.
        noise: to the noise of the same size.
    """

    label: str
    rows: list[int]
    clean: Tensor
    reached: Tensor
    attack: Tracks
    noise: Tracks


def pick(perturbed: Mapping[str, PerturbedSet], below: int, count: int) -> list[Chosen]:
    """For each perturbation its first ``count`` successes that have a control; those without one are left out."""
    found = []
    for each in perturbed.values():
        chosen = pairs(each.rows, each.success, each.control_rows, below, count)
        if chosen:
            positions, controls, rows = (list(column) for column in zip(*chosen, strict=True))
            found.append(Chosen(each, positions, controls, rows))
    return found


def follow(
    needs: Sequence[Need], given: AnalysisInput, codes: Mapping[str, Code], chosen: list[Chosen], steps: int
) -> list[Paths]:
    """Trace the way to every chosen image and to its noise."""
    found = []
    for each in chosen:
        clean = _read(given.evaluate, each.rows)
        ends = _read(each.perturbed.images, each.positions), _read(each.perturbed.control, each.controls)
        attack, noise = (trace_tracks(needs, given.traced_model, codes, clean, end, steps) for end in ends)
        classes, reached = attack.logits[:, 0].argmax(1), attack.logits[:, -1].argmax(1)
        found.append(Paths(each.perturbed.label, each.rows, classes, reached, attack, noise))
    return found


def _read(images: ImageSet, rows: Sequence[int]) -> Tensor:
    return read_images(images.read, len(images), torch.tensor(rows))


def pairs(rows: Tensor, success: Tensor, control_rows: Tensor, below: int, count: int) -> list[tuple[int, int, int]]:
    """Successes that have a noise control: (position among the perturbed, among the controls, evaluate row)."""
    control = {row: i for i, row in enumerate(control_rows.tolist())}
    found: list[tuple[int, int, int]] = []
    for position, row in enumerate(rows.tolist()):
        if len(found) < count and bool(success[position]) and row in control and row < below:
            found.append((position, control[row], row))
    return found


def purities_of(spaces: Mapping[str, Tensor], labels: Tensor, neighbours: int, seed: int) -> list[Purity]:
    """How pure the classes of held-out images are in each space (n, d)."""
    from sklearn.metrics import silhouette_score

    several = 1 < len(labels.unique()) < len(labels)
    found = []
    for name, points in spaces.items():
        share = mean_interval(purity(points, labels, neighbours), seed)
        silhouette = float(silhouette_score(points.numpy(), labels.numpy())) if several else float("nan")
        found.append(Purity(name, points.shape[1], share, chance_purity(labels), silhouette))
    return found


def path_of(paths: Paths, encoders: Sequence[str]) -> Path:
    """What is kept of tracks through the maps of some encoders."""
    both = {ATTACK: paths.attack, NOISE: paths.noise}
    return Path(
        paths.label, paths.rows, paths.attack.share,
        {kind: {e: tracks.codes[e] for e in encoders} for kind, tracks in both.items()},
        {kind: tracks.logits.argmax(2) for kind, tracks in both.items()},
    )  # fmt: skip


def cross(path: Paths, name: str, code: Code, seed: int) -> Crossing:
    """Where predictions change along the tracks, and where a scoring code comes nearer to the reached class."""
    both = {ATTACK: path.attack, NOISE: path.noise}
    sides = {kind: t.nearing(f"{name} scores", code, path.clean, path.reached) for kind, t in both.items()}
    values, flips = sides[ATTACK], path.attack.flips()
    # An image that lies nearer to the reached class from the start has nothing to cross.
    started = values[:, 0] > 0
    crossings = torch.where(started, torch.nan, first_crossing(path.attack.share, values))
    crossed = crossings.isfinite() & flips.isfinite()
    steps = path.attack.share.tolist()
    return Crossing(
        path.label,
        name,
        len(path.rows),
        steps,
        {kind: mean_intervals(v, seed) for kind, v in sides.items()},
        {kind: [float((t.flips() <= s + 1e-12).double().mean()) for s in steps] for kind, t in both.items()},
        mean_interval(flips[flips.isfinite()], seed),
        proportion(int(started.sum()), len(values)),
        {kind: proportion(int((v[:, -1] > 0).sum()), len(v)) for kind, v in sides.items()},
        int(crossed.sum()),
        mean_interval(crossings[crossed], seed),
        mean_interval((crossings - flips)[crossed], seed),
    )
