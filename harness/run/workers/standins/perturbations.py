"""The stand-in for a plugin's perturbation: it runs in its own process, the model and the detector stay here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .....attacks.base.kinds import Effort
from .....attacks.base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo
from .....attacks.base.target import TargetDetector
from .....attacks.base.watched_model import LimitError, WatchedModel
from ....core.errors import AftershockError, UsageError
from ....core.recent import Recent
from ....core.seeds import Draws
from ..channel import Message
from ..process import raised
from .part import LONG, SETTLING, Instance, PluginPart

# Passes that can still be differentiated; an attack that averages over draws holds several.
_PASSES = 64


class PluginPerturbation(Perturbation):
    """Asks a plugin's process to perturb, and makes every pass that it asks for.

    Args:
        part: the plugin's class.
        params: of its constructor.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(title="a plugin's perturbation", kind="noise", family="plugin")

    def __init__(self, part: PluginPart, **params: Any) -> None:
        self._part = part
        self._instance = Instance(part, "perturbations", params)
        facts = self._instance.facts
        self.eps, self.images = facts["eps"], facts["images"]
        for name, value in facts["optional"].items():
            setattr(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        # The class has an `info` of its own, since every perturbation has one.
        if name == "info":
            return object.__getattribute__(self, "_part").info
        return object.__getattribute__(self, name)

    @property
    def changed(self) -> list[str]:
        """What state of its process the plugin left changed; it was put back."""
        return list(self._instance.changed)

    @property
    def norm(self) -> Norm | None:
        found: Norm | None = self._instance.facts["norm"]
        return found

    @property
    def family(self) -> str:
        return str(self._instance.facts["family"])

    @property
    def effort(self) -> Effort | None:
        found = self._instance.facts["effort"]
        return None if found is None else Effort(*found)

    @property
    def learnable(self) -> bool:
        return bool(self._instance.facts["learnable"])

    def source_files(self) -> tuple[Path, ...]:
        return tuple(Path(name) for name in self._instance.facts["source_files"])

    def missing(self) -> str | None:  # type: ignore[override]  # the plugin's class is known by its stand-in alone
        return self._part.missing()

    def covers(self, positions: Sequence[int]) -> list[bool]:
        found: list[bool] = self._instance.ask("covers", {"positions": list(positions)}).values["covers"]
        return found

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        return self._of_task("inapplicable", shape, classes)

    def reduced(self, shape: tuple[int, int, int], classes: int) -> str | None:
        return self._of_task("reduced", shape, classes)

    def _of_task(self, name: str, shape: tuple[int, int, int], classes: int) -> str | None:
        found = self._instance.ask("task", {"shape": list(shape), "classes": classes}).values[name]
        return None if found is None else str(found)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        passes = _Passes(model)
        about = {
            "seed": draws.seed, "indices": list(draws.indices),
            "target": None if model.target is None else _described(model.target),
        }  # fmt: skip
        calls = {
            "model": passes.model, "observe": passes.observe, "score": passes.score, "query": passes.query,
            "guides": passes.guides, "backward": passes.backward,
        }  # fmt: skip
        given: dict[str, Any] = {"images": images, "labels": labels}
        try:
            limit = f"seconds for each image, and {SETTLING:g} s for what is done once"
            allowed = _allowed(model, len(images))
            found = self._instance.ask("perturb", about, given, cpu=allowed, limit=limit, calls=calls)
        finally:
            # What stopped it here (a limit) says more than how the attack took it.
            stopped = passes.stopped
        self._leave(model, found, images)
        if stopped is not None:
            raise stopped
        if "raised" in found.values:
            raise raised(found.values["raised"])
        if "images" not in found.tensors:
            return None  # type: ignore[return-value]  # measured, and flagged, like any other result that is none
        made = found.tensor("images").to(images.device)
        return made.requires_grad_() if found.values["attached"] and made.is_floating_point() else made

    def _leave(self, model: CountingModel, found: Message, images: Tensor) -> None:
        model.credits = tuple(found.values["credits"])
        model.late = int(found.values["late"])
        model.told, model.asked_score = found.tensor("told"), found.tensor("asked_score")
        for name in ("partial", "asked"):
            value = found.tensors.get(name)
            if isinstance(value, Tensor) and value.shape == images.shape:
                setattr(model, name, value.to(images.device))


class _Passes:
    """What an attack may ask back: passes through the model, looks at the detector, and their gradients."""

    def __init__(self, model: CountingModel) -> None:
        self._model = model
        self.stopped: Exception | None = None
        # By number of a pass: images and results with their graph, and what asks for the scores of its images.
        self._graphs: Recent[int, tuple[Tensor, Sequence[Tensor]]] = Recent(_PASSES)
        self._scores: Recent[int, Callable[[Tensor], Tensor]] = Recent(_PASSES)
        self._count = 0

    def model(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Logits."""
        return self._differentiable(values, tensors, lambda part, images: {"logits": part(images)})

    def observe(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Return what one look at the detector shows; its scores are asked for by :meth:`score`."""
        target = self._target()

        def observed(part: CountingModel, images: Tensor) -> dict[str, Tensor]:
            seen = target.observe(
                part, images, float(values["temperature"]), bool(values["straight_through"]), bool(values["surrogate"])
            )
            self._scores[self._count + 1] = seen.score
            found = {"logits": seen.logits}
            if seen.suspicion is not None:
                found["suspicion"] = seen.suspicion
            return found | {f"feature:{name}": value for name, value in seen.features.items()}

        return self._differentiable(values, tensors, observed)

    def score(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Return true scores of some images of an earlier look."""
        wanted = tensors["wanted"]
        if values["pass"] not in self._scores:
            raise AftershockError(f"only images of the last {_PASSES} looks can be scored")
        if wanted.dtype != torch.bool or wanted.ndim != 1:
            raise UsageError("`score` of an observation takes which images are wanted, bool (n,).")
        with self._noted(), torch.no_grad():
            return Message({}, {"score": self._scores[values["pass"]](wanted.to(self._device))})

    def query(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Return logits and true scores."""
        with self._noted(), torch.no_grad():
            logits, score = self._target().query(self._part(values), self._images(tensors))
        return Message({}, {"logits": logits, "score": score})

    def guides(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Clean images of other source sets."""
        with self._noted():
            found = self._target().guides()
        return Message({}, {"images": found.images, "labels": found.labels, "scores": found.scores})

    def backward(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Return the gradient of an earlier result with respect to its images."""
        if values["graph"] not in self._graphs:
            raise AftershockError(f"only the last {_PASSES} passes can be differentiated")
        leaf, outputs = self._graphs[values["graph"]]
        weights = [tensors.get(f"weight/{n}") for n in range(len(outputs))]
        pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if w is not None and o.requires_grad]
        gradient = None
        if pairs:
            with self._noted():
                (gradient,) = torch.autograd.grad(
                    [o for o, _ in pairs], leaf, [w.to(o) for o, w in pairs], retain_graph=True, allow_unused=True
                )
        return Message({}, {"gradient": torch.zeros_like(leaf) if gradient is None else gradient})

    def _differentiable(
        self, values: Mapping[str, Any], tensors: Mapping[str, Tensor],
        compute: Callable[[CountingModel, Tensor], dict[str, Tensor]],
    ) -> Message:  # fmt: skip
        wanted, images = bool(values["differentiate"]), self._images(tensors)
        with self._noted(), torch.set_grad_enabled(wanted):
            found = compute(self._part(values), images.requires_grad_() if wanted else images)
        self._count += 1
        if wanted:
            self._graphs[self._count] = (images, tuple(found.values()))
        return Message({"names": list(found), "number": self._count}, {n: t.detach() for n, t in found.items()})

    def _part(self, values: Mapping[str, Any]) -> CountingModel:
        rows = values["rows"]
        return self._model if rows is None else self._model.of(torch.tensor(rows, dtype=torch.int64))

    def _images(self, tensors: Mapping[str, Tensor]) -> Tensor:
        images = tensors["images"]
        if images.ndim != 4:
            raise UsageError(
                f"The model takes images of shape (n, channels, height, width), not {tuple(images.shape)}."
            )
        return images.detach().clone().to(self._device)

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self._model.parameters()), torch.device("cpu"))

    def _target(self) -> TargetDetector:
        if self._model.target is None:
            raise UsageError("An adaptive attack is made against a detector: use it in a suite that has detectors.")
        return self._model.target

    def _noted(self) -> _Noted:
        return _Noted(self)


class _Noted:
    """Keeps the exception that stops an attack, which its process knows by its text alone."""

    def __init__(self, passes: _Passes) -> None:
        self._passes = passes

    def __enter__(self) -> None:
        if self._passes.stopped is not None:
            raise self._passes.stopped

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LimitError):
            self._passes.stopped = error


def _allowed(model: CountingModel, images: int) -> float:
    """CPU seconds in the attack's own process; what it asks back is held against its limits here."""
    limits = model.limits if isinstance(model, WatchedModel) else None
    return LONG if limits is None else SETTLING + limits.seconds * images


def _described(target: TargetDetector) -> dict[str, Any]:
    return {
        "threshold": target.threshold, "target_score": target.target_score, "scale": target.scale,
        "has_surrogate": target.has_surrogate, "evaluations": int(getattr(target, "evaluations", 1)),
    }  # fmt: skip
