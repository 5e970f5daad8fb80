"""The protocol on arrays: a model and images at hand, without a suite file."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UsageError
from ..core.parameters import bind, parameters
from ..core.registry import DATASETS, DETECTORS, MODELS, PERTURBATIONS, Registry, StandIn
from .api import run
from .result import Run

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ..data.types import DataSource, ImageSplit
    from .events import Event

# What names the model and the data in the registries while a call lasts.
_MODEL = "model of this session"
# Calibrate images that are set aside of the images where nothing else is said.
CALIBRATE = 1000
# Images of the first batch, which tells the number of classes.
_FEW = 2


def evaluate(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    fit: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    calibrate: int | tuple[Tensor | np.ndarray, Tensor | np.ndarray] | None = None,
    eps: float | str = "8/255",
    norm: str = "linf",
    attacks: Sequence[str | Mapping[str, Any] | type | Callable[..., Any]] = ("pgd", "adaptive"),
    detectors: Sequence[str | Mapping[str, Any] | type] = ("energy", "mahalanobis"),
    classes: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    name: str = "arrays",
    out: Path | str | None = None,
    device: str = "auto",
    cache: Path | str | None = None,
    limits: Mapping[str, float] | None = None,
    fresh: bool = False,
    on_progress: Callable[[Event], None] = lambda event: None,
    on_message: Callable[[str], None] = lambda text: None,
) -> Run:
    """Evaluate a model and detectors on arrays, by the protocol of a run: the same cells, tables, pages and cache.

    ::

        run = aftershock.evaluate(net, x_test, y_test, fit=(x_train, y_train), eps="8/255", attacks=["pgd", my_attack])
        run.leaderboard

    Args:
        model: takes images in [0, 1] and gives logits; it is copied, and stays as it is.
        images: those that get perturbed, uint8 or floats in [0, 1], (n, channels, height, width) or (n, height, width).
        labels: their classes, integers from 0, (n,).
        fit: images that detectors learn from, and their labels; disjoint from the others.
        calibrate: images that thresholds come from, and their labels; or how many of ``images`` are set aside for that,
            drawn at random: by default half, at most 1,000. A rank needs 200.
        eps: the budget of the threat model; attacks with a budget in the same norm get it unless they say their own.
        norm: its norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        attacks: names, tables as a suite has them (``{"name": "pgd", "steps": 40}``), perturbation classes, or plain
            functions ``f(model, images, labels) -> x'``.
        detectors: names, tables or detector classes. What is registered in this session alone gets numbers, but no
            rank, which takes scores from another process.
        classes: names of the classes; by default their numbers.
        seeds: each draws random parts again.
        name: of the data in tables, and of the run.
        out: the run directory; by default ``runs/NAME``.
        device: ``auto``, ``cpu``, ``cuda``, ...
        cache: the shared cache; by default ``AFTERSHOCK_CACHE`` or the user's cache directory.
        limits: what attacks and detectors may spend, as under ``[limits]`` in a suite.
        fresh: compute everything again.
        on_progress: called with every progress event.
        on_message: called with sentences that a person should see.

    Returns:
        the run; its tables are pandas DataFrames.

    Raises:
        UsageError: for arrays that do not fit each other or the model, an unknown part or a wrong parameter.
    """
    from ..data.user_data import array_split

    known = len(classes) if classes is not None else _classes(model, images)
    test = array_split(images, labels, known, "images", "labels")
    train = array_split(*_pair(fit, "fit"), known, "the images of fit", "the labels of fit")
    boundary = None
    if calibrate is None or isinstance(calibrate, int):
        aside = min(CALIBRATE, len(test) // 2) if calibrate is None else calibrate
        if not 0 < aside < len(test):
            raise UsageError(f"calibrate = {aside}: of {len(test)} images, set aside at least 1 and not all.")
        left = len(test) - aside
    else:
        more = array_split(*_pair(calibrate, "calibrate"), known, "the images of calibrate", "the labels of calibrate")
        boundary, aside, left = len(test), len(more), len(test)
        test = _joined(test, more)
    names = tuple(classes) if classes is not None else tuple(str(c) for c in range(known))
    with ExitStack() as ending:
        source = _source(name, names, train, test, boundary)
        ending.enter_context(DATASETS.lending(name, lambda root: source))
        ending.enter_context(MODELS.lending(_MODEL, _Copies(model)))
        suite = {
            "name": name,
            "seeds": list(seeds),
            "data": {"name": name, "fit": len(train), "calibrate": aside, "evaluate": left},
            "threat": {"norm": norm, "eps": eps},
            "models": [{"name": _MODEL, "label": "model", "normalise": False, "digest": _model_digest(model)}],
            "perturbations": [_attack(a, eps, norm, ending) for a in attacks],
            "detectors": [_entry(DETECTORS, d, ending) for d in detectors],
            **({"limits": dict(limits)} if limits else {}),
        }
        return run(suite, out, device=device, cache=cache, fresh=fresh, on_progress=on_progress, on_message=on_message)


class _Copies:
    """Makes a model by copying one; the digest only tells content keys which."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, digest: str) -> Any:
        return copy.deepcopy(self._model)


def _pair(given: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise UsageError(f"{what} takes images and their labels: {what}=(images, labels).")
    return given[0], given[1]


def _joined(first: ImageSplit, second: ImageSplit) -> ImageSplit:
    import torch

    from ..data.types import ImageSplit

    parts = [split.stored for split in (first, second)]
    if any(part is None for part in parts) or parts[0].dtype != parts[1].dtype:  # type: ignore[union-attr]
        parts = [split.images() for split in (first, second)]
    if parts[0].shape[1:] != parts[1].shape[1:]:  # type: ignore[union-attr]
        raise UsageError("The images of calibrate have another shape than the images that get perturbed.")
    return ImageSplit(torch.cat(parts), torch.cat([first.labels(), second.labels()]))  # type: ignore[arg-type]


def _source(
    name: str, classes: tuple[str, ...], train: ImageSplit, test: ImageSplit, calibrate_from: int | None
) -> DataSource:
    from ..data.types import Dataset, DataSource, channel_statistics, common_shape

    shape, (mean, std) = common_shape(name, train, test), channel_statistics(train)
    dataset = Dataset(name, classes, shape, train, test, mean, std, calibrate_from=calibrate_from)
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(split.labels().numpy().tobytes())
        for rows in split.chunks(1000):
            digest.update(split.images(rows).contiguous().numpy().data)
    fingerprint = {"arrays": digest.hexdigest(), "classes": list(classes), "calibrate_from": calibrate_from}
    return DataSource(name, (), lambda: dataset, fingerprint)


def _classes(model: nn.Module, images: Any) -> int:
    """Return the number of classes that a model tells apart."""
    import torch

    from ..core.model_state import device_of, untouched
    from ..data.user_data import array_split
    from ..tracing.logits import find_logits

    few = images[:_FEW]
    given = array_split(few, torch.zeros(len(few), dtype=torch.int64), 2, "images", "labels").images()
    try:
        with untouched(model), torch.no_grad():
            found, _ = find_logits(model(given.to(device_of(model))))
    except UsageError as error:
        raise UsageError(f"The model gives no logits: {error}.") from error
    except Exception as error:  # whatever the network raises, it cannot take these images
        size = " x ".join(map(str, given.shape[1:]))
        raise UsageError(f"The model cannot take images of {size}: {' '.join(str(error).split())}.") from error
    return int(found.shape[1]) if found.ndim == 2 and found.shape[1] > 1 else 2


def _model_digest(model: nn.Module) -> str:
    """Digest of a network's state and of the code of its modules."""
    from ..core.code_digests import foreign_digest
    from ..models.weights import network_digest

    digest = hashlib.sha256(network_digest(model).encode())
    for kind in sorted({type(module) for module in model.modules()}, key=lambda k: (k.__module__, k.__qualname__)):
        digest.update(f"{kind.__module__}.{kind.__qualname__} {foreign_digest(kind)}".encode())
    return digest.hexdigest()


def _attack(given: Any, eps: float | str, norm: str, ending: ExitStack) -> dict[str, Any]:
    entry = _entry(PERTURBATIONS, given, ending)
    part = PERTURBATIONS.get(entry["name"])
    info, params = getattr(part, "info", None), {k: v for k, v in entry.items() if k not in ("name", "label")}
    if "eps" in params or getattr(info, "minimises", False):
        return entry
    if isinstance(part, StandIn):
        wanted = "eps" in bind(part, params)[1]  # type: ignore[arg-type]  # stand-ins bind by themselves
    else:
        wanted = "eps" in parameters(part) and (info is None or info.norm in (norm, None))
    return {**entry, "eps": eps} if wanted else entry


def _entry(registry: Registry, given: Any, ending: ExitStack) -> dict[str, Any]:
    """Return an entry of a suite for what a caller named or gave; a part that is not registered is lent a name."""
    if isinstance(given, str):
        return {"name": given}
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, type) and not inspect.isroutine(given):
        raise UsageError(
            f"{given!r:.60} is not a {registry.word} to evaluate: give a class, a name, or a table such as "
            '{"name": ..., "parameter": ...}, of which the run makes instances itself.'
        )
    held = registry.name_of(given)
    if held is not None:
        return {"name": held}
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", given.__name__).replace("_", "-").strip("-<>").lower() or "unnamed"
    part: Any = given
    if inspect.isroutine(given):
        from ...attacks.base.from_function import from_function

        part = from_function(given, name)
    ending.enter_context(registry.lending(name, part))
    return {"name": name}
