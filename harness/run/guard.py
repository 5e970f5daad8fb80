"""A fitted detector around its model, for live use: logits, alarm and score of new images from one forward pass.

One safetensors file holds all of it: the detector's state, its scores of the calibrate images (so that the threshold
can be chosen when it is loaded), the taps, and the digest of the weights that it belongs to. Nothing in the file is
executed: the detector is looked up in the registry by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...detectors.base.detector import Detector
from ..core.bounded import BitsPerTap, KnownModel, Modules, Tap, bounded_parameters, bytes_of, reason_of
from ..core.content_keys import versions
from ..core.errors import UsageError
from ..core.files import open_tensors, parse_json, refuse_links_on_the_way, write_atomic, write_problem
from ..core.formats import check_schema
from ..core.state import join_state, split_state
from ..models.classifier import Classifier, Normalise
from ..models.weights import state_digest
from ..plan.models import normalise_values
from ..statistics.detection import threshold, threshold_reason
from ..tracing.recorder import discover
from ..tracing.traced_model import TracedModel
from ..tracing.traces import TapInfo, Traces
from .load import Fitted, RunFolder, named_detector

FORMAT: Literal[2] = 2
_ABOUT = "guard"
_CHECKSUM = "checksum"
_STATE = "state/"
_CALIBRATE = "calibrate"


class Verdict(NamedTuple):
    """What a guard says about n images.

    Attributes:
        logits: float32 (n, classes), on the CPU.
        alarm: bool (n,): the score is above the threshold, or no number.
        score: float64 (n,), larger = more suspicious.
    """

    logits: Tensor
    alarm: Tensor
    score: Tensor


@runtime_checkable
class Mapped(Protocol):
    """A detector that knows where images lie."""

    def positions(self, traces: Traces) -> Tensor:
        """(n, dimensions)."""

    def landmarks(self) -> tuple[Tensor, Tensor]:
        """Return positions (n, dimensions) and classes (n,) of fit images."""


class ModelDescription(KnownModel):
    """The model that a guard is for."""

    label: str
    dataset: str
    modules: Modules
    bits_per_tap: BitsPerTap


class Description(BaseModel):
    """The description in a guard's file; it may come from anybody."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[2]
    detector: str
    label: str
    params: dict[str, Any]
    state: Any
    model: ModelDescription
    seed: int
    versions: dict[str, str]


class Guard:
    """A model with a detector; made by :meth:`load`.

    Attributes:
        threshold: scores above it raise the alarm.
        detector: fitted.
        description: what the file says: ``detector``, ``label``, ``model``, ``versions`` and more.
    """

    def __init__(
        self, detector: Detector, traced_model: TracedModel, threshold: float, description: Description
    ) -> None:
        self.detector, self.threshold, self.description = detector, threshold, description
        self._traced_model = traced_model

    @classmethod
    def load(cls, path: Path | str, model: nn.Module, fpr: float = 0.05, check_weights: bool = True) -> Self:
        """Put a detector that ``aftershock guard export`` wrote around a model.

        Args:
            path: the file.
            model: the network that the detector was fitted for. It is put into eval mode. A bare network gets the
                normalisation that the file states; one that takes images in [0, 1] itself is given as
                :class:`~aftershock.harness.models.classifier.Classifier` (what ``aftershock.load_model`` returns).
            fpr: the share of clean images that may raise the alarm, as measured on the calibrate images.
            check_weights: refuse a model whose weights or normalisation are not those that the detector was fitted for.

        Raises:
            UsageError: for a file that is not a guard, a detector that is not installed, or another model.
        """
        about, tensors = _read(Path(path))
        classifier = _classifier(model, about.model, path)
        if check_weights and normalise_values(classifier) != _normalisation(about.model):
            raise UsageError(
                f"{path} belongs to a model that normalises its input otherwise: give the bare network, which gets the "
                "normalisation of the file, or insist with check_weights=False."
            )
        if check_weights and state_digest(classifier.network) != about.model.digest:
            raise UsageError(
                f"{path} belongs to other weights of {about.model.label!r}: a detector that was fitted for other "
                "activations is not valid. Load the weights of its run, or insist with check_weights=False."
            )
        detector = named_detector(about.detector, about.params, f"{about.detector!r} of {path}")
        state = {name.removeprefix(_STATE): t for name, t in tensors.items() if name.startswith(_STATE)}
        what = f"The detector of {path}"
        try:
            with bounded_parameters(what, bytes_of(state)):
                detector.load_state(join_state(state, about.state))
            scores = _checked_scores(tensors[_CALIBRATE], path)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UsageError(f"{path} is damaged ({reason_of(error)}).") from error
        modules = tuple(about.model.modules)
        taps = _taps(classifier, about.model.taps, modules, path)
        traced_model = TracedModel(classifier, taps, modules, classifier.network, about.model.bits_per_tap)
        # Some detectors build what they need at their first score.
        with bounded_parameters(what, bytes_of(state)):
            _try(traced_model, detector, about.model, path)
        return cls(detector, traced_model, _threshold(scores, fpr), about)

    def __call__(self, images: Tensor) -> Verdict:
        """Logits, alarm and score of images.

        Args:
            images: float32 in [0, 1], (n, channels, height, width), n may be 0, on any device.

        Raises:
            UsageError: for images of another kind or shape.
        """
        self._check(images)
        logits, score = self._traced_model.score(self.detector, images.float())
        # Written so that a NaN score raises the alarm.
        return Verdict(logits, ~(score <= self.threshold), score)

    def positions(self, images: Tensor) -> Tensor:
        """Where images lie on the detector's map, float (n, dimensions), on the CPU: for a picture that moves along.

        Together with :meth:`landmarks` this is the map of self-introspection live (Pardo et al. 2019): a detector
        ``latent`` with ``latent = 3`` gives points in space.

        Raises:
            UsageError: if the detector has no map, or for images of another kind or shape.
        """
        mapped = self._mapped()
        self._check(images)
        return mapped.positions(self._traced_model.traces(self.detector, images.float()))

    def landmarks(self) -> tuple[Tensor, Tensor]:
        """Positions (n, dimensions) and classes, int64 (n,), of fit images that the model gets right, on the same map.

        Raises:
            UsageError: if the detector has no map.
        """
        return self._mapped().landmarks()

    def _mapped(self) -> Mapped:
        if not isinstance(self.detector, Mapped):
            raise UsageError(
                f"The detector {self.description.detector} has no map: export one of the kind `latent`, with "
                "latent = 3 for a picture in space."
            )
        return self.detector

    def _check(self, images: Tensor) -> None:
        shape = self.description.model.shape
        if not isinstance(images, Tensor) or not images.is_floating_point() or tuple(images.shape[1:]) != shape:
            what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(f"A guard takes float images (n, {', '.join(map(str, shape))}) in [0, 1], not {what}.")
        # Written so that NaN fails too.
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise UsageError("A guard takes images in [0, 1], without NaN: it normalises them itself.")


def export_guard(
    run: Path | str, label: str, out: Path | str, model: str | None = None, seed: int | None = None
) -> Path:
    """Write a fitted detector of a run as a guard's file.

    Args:
        run: a run directory.
        label: the detector's label.
        out: the file; replaced if it exists.
        model: the model's label; may be left out where the run has one model.
        seed: may be left out where the run has one seed.

    Returns:
        the file.

    Raises:
        UsageError: if the run has no such detector, or the file cannot be written.
    """
    from safetensors.torch import save

    path = Path(out)
    refuse_links_on_the_way(path.parent, [Path(run)])
    fitted = RunFolder(run).detector(label, model, seed)
    tensors, state = split_state(fitted.detector.state())
    scores = _checked_scores(fitted.calibrate, f"{label!r} of {run}")
    about = json.dumps(_describe(fitted, state).model_dump(mode="python"))
    whole = {f"{_STATE}{name}": t for name, t in tensors.items()} | {_CALIBRATE: scores}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(whole, {_ABOUT: about, _CHECKSUM: _checksum(about, whole)}))
    except OSError as error:
        raise write_problem(path, error, "choose another file, --out") from error
    return path


def _checked_scores(scores: Tensor, where: object) -> Tensor:
    """Return scores of the calibrate images, float64 (m,)."""
    if scores.ndim != 1 or scores.is_complex() or not bool(torch.isfinite(scores).all()):
        raise UsageError(
            f"The scores of the calibrate images of {where} are not a row of finite numbers: no threshold can be "
            "chosen from them."
        )
    return scores.double()


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a guard's description and tensors."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(tensors.items()):
        whole = value.detach().cpu().contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\0".encode())
        digest.update(whole.flatten().view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return digest.hexdigest()


def _describe(fitted: Fitted, state: Any) -> Description:
    taps: list[Tap] = [(t.name, t.kind, t.shape) for t in fitted.taps]
    model = ModelDescription(
        label=fitted.model, dataset=fitted.dataset, taps=taps, modules=list(fitted.modules),
        bits_per_tap=fitted.bits_per_tap, **fitted.about,
    )  # fmt: skip
    made = {name: str(v) for name, v in versions("aftershock", "torch").items()}
    return Description(
        format=FORMAT, detector=fitted.name, label=fitted.label, params=dict(fitted.params), state=state, model=model,
        seed=fitted.seed, versions=made,
    )  # fmt: skip


def _read(path: Path) -> tuple[Description, dict[str, Tensor]]:
    try:
        with open_tensors(path) as stream:
            found = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        about = parse_json(found[_ABOUT].encode(), path)
        writer = about["versions"].get("aftershock")
        check_schema(path, about["format"], FORMAT, writer, oldest=FORMAT)
        if found.get(_CHECKSUM) != _checksum(found[_ABOUT], tensors):
            raise ValueError("it was changed after it was written")
        return Description.model_validate(about), tensors
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        what = reason_of(error)
        raise UsageError(
            f"{path} is not a guard that `aftershock guard export` of this version wrote: {what}"
        ) from error


def _classifier(model: nn.Module, about: ModelDescription, path: Path | str) -> Classifier:
    if not isinstance(model, nn.Module):
        raise UsageError(f"A guard is put around a torch.nn.Module, not {type(model).__name__}.")
    if isinstance(model, Classifier):
        if (tuple(model.shape), model.classes) != (about.shape, about.classes):
            size = " x ".join(map(str, about.shape))
            raise UsageError(
                f"{path} is for a model of {about.classes} classes and images of {size}, not for one of "
                f"{model.classes} classes and images of {' x '.join(map(str, model.shape))}."
            )
        return model.eval()
    layer = Normalise(about.normalise.mean, about.normalise.std) if about.normalise else nn.Identity()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Classifier(model, layer.to(device), about.shape, about.classes).eval()


def _normalisation(about: ModelDescription) -> dict[str, list[float]] | None:
    return about.normalise.model_dump() if about.normalise else None


def _taps(
    classifier: Classifier, listed: Sequence[Tap], modules: Sequence[str], path: Path | str
) -> tuple[TapInfo, ...]:
    """Return the taps of a model; raises where they are not those that a guard's file lists."""
    device = next((p.device for p in classifier.network.parameters()), torch.device("cpu"))
    try:
        example = torch.zeros(1, *classifier.shape, device=device)
        found = discover(classifier, example, modules, classifier.network)
        with torch.no_grad():
            logits = classifier(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        what = " ".join(str(error).split())
        raise UsageError(f"The model cannot take the images that {path} is for: {what}") from error
    if logits.shape != (1, classifier.classes):
        raise UsageError(
            f"{path} is for a model of {classifier.classes} classes; this one answers an image with "
            f"{tuple(logits.shape[1:])} numbers."
        )
    if [(t.name, t.shape) for t in found] != [(name, shape) for name, _, shape, *_ in listed]:
        raise UsageError(
            f"The model has other layers than the one that {path} was made for: it has "
            f"{', '.join(t.name for t in found)} instead of {', '.join(name for name, *_ in listed)}."
        )
    return found


def _try(traced_model: TracedModel, detector: Detector, about: ModelDescription, path: Path | str) -> None:
    device = next((p.device for p in traced_model.model.parameters()), torch.device("cpu"))
    try:
        traced_model.score(detector, torch.zeros(1, *about.shape, device=device))
    except UsageError:
        raise
    except Exception as error:  # whatever a detector raises, it cannot score this model's images
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(f"The detector of {path} cannot score the images of this model: {what}") from error


def _threshold(scores: Tensor, fpr: float) -> float:
    if isinstance(fpr, bool) or not isinstance(fpr, int | float) or not 0 < fpr < 1:
        raise UsageError(f"fpr = {fpr!r}: give the share of clean images that may raise the alarm, between 0 and 1.")
    reason = threshold_reason(len(scores), fpr)
    if reason:
        raise UsageError(f"fpr = {fpr}: {reason}.")
    return float(threshold(scores.numpy(), fpr))
