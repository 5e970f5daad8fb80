"""Answers about perturbations: the attack runs here, and asks its owner for every pass through the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ....attacks.base.perturbation import CountingModel, Perturbation
from ....attacks.base.target import Guides, Observation, StandIn
from ...core.seeds import Draws, derive_seed, forked_rng
from ...suite.instances import make_perturbation
from ..workers.channel import Message, error_message
from .router import Answers, Kind

# What the harness reads of an instance only where it has it.
_OPTIONAL = ("large_eps", "is_checked")


def facts(perturbation: Perturbation) -> dict[str, Any]:
    """Return what an instance says about itself."""
    effort = perturbation.effort
    return {
        "eps": perturbation.eps,
        "norm": perturbation.norm,
        "images": perturbation.images,
        "family": perturbation.family,
        "effort": None if effort is None else [effort.steps, effort.restarts, effort.queries],
        "learnable": perturbation.learnable,
        "source_files": [str(file) for file in perturbation.source_files()],
        "optional": {name: getattr(perturbation, name) for name in _OPTIONAL if hasattr(perturbation, name)},
    }


class _Asked(torch.autograd.Function):
    """What the owner computes from images; its graph is there too."""

    @staticmethod
    def forward(
        ctx: Any, answers: Answers, call: str, values: Mapping[str, Any], said: dict[str, Any], images: Tensor
    ) -> tuple[Tensor, ...]:
        wanted = bool(ctx.needs_input_grad[4])
        found = answers.call(call, {**values, "differentiate": wanted}, {"images": images.detach()})
        said |= found.values
        ctx.answers, ctx.graph = answers, found.values["number"]
        ctx.set_materialize_grads(False)
        return tuple(found.tensor(name) for name in found.values["names"])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
        given = {f"weight/{n}": w for n, w in enumerate(weights) if w is not None}
        found = ctx.answers.call("backward", {"graph": ctx.graph}, given)
        return None, None, None, None, found.tensor("gradient")


def _ask(answers: Answers, call: str, values: Mapping[str, Any], images: Tensor) -> tuple[dict[str, Tensor], int]:
    """Return what the owner computes from images, by name, and the number by which it knows this pass."""
    said: dict[str, Any] = {}
    outputs = _Asked.apply(answers, call, values, said, images)
    return dict(zip(said["names"], outputs, strict=True)), int(said["number"])


class _Network(nn.Module):
    """Images to logits, by asking the owner."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.rows: Tensor | None = None
        # Libraries look for the device of the first parameter.
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        rows = None if self.rows is None else self.rows.tolist()
        return _ask(self.answers, "model", {"rows": rows}, images)[0]["logits"]


class AskingModel(CountingModel):
    """The model as an attack sees it; the passes are made, counted and limited where it is."""

    def __init__(self, answers: Answers, target: AskingTarget | None) -> None:
        network = _Network(answers)
        super().__init__(network, target)
        self._network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self._network.rows = self._rows
        return super().forward(images)


class AskingTarget:
    """The detector that an attack is made against, by asking the owner (see ``attacks.target.TargetDetector``)."""

    def __init__(self, answers: Answers, described: Mapping[str, Any]) -> None:
        self._answers = answers
        self.threshold, self.target_score, self.scale = (
            described["threshold"],
            described["target_score"],
            described["scale"],
        )
        self.has_surrogate, self.evaluations = described["has_surrogate"], described["evaluations"]
        # A plugin's attack learns for itself what it wants to know.
        self.stand_ins: Mapping[str, StandIn] = {}
        self.rehearsed: Sequence[str] = ()

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        """See the protocol."""
        rows = _rows_of(model)
        how = {"temperature": temperature, "straight_through": straight_through, "surrogate": surrogate}
        found, number = _ask(self._answers, "observe", {"rows": rows, **how}, images)
        features = {n.removeprefix("feature:"): t for n, t in found.items() if n.startswith("feature:")}

        def score(wanted: Tensor) -> Tensor:
            return self._answers.call("score", {"pass": number}, {"wanted": wanted}).tensor("score")

        return Observation(found["logits"], found.get("suspicion"), score, features)

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the protocol."""
        rows = _rows_of(model)
        found = self._answers.call("query", {"rows": rows}, {"images": images.detach()})
        return found.tensor("logits"), found.tensor("score")

    def guides(self) -> Guides:
        """See the protocol."""
        found = self._answers.call("guides", {}, {})
        return Guides(found.tensor("images"), found.tensor("labels"), found.tensor("scores"))


def _rows_of(model: nn.Module) -> list[int] | None:
    rows = model._rows if isinstance(model, CountingModel) else None
    return None if rows is None else rows.tolist()


def _perturb(answers: Answers, asked: Message) -> Message:
    perturbation: Perturbation = answers.part(asked)
    about = asked.values["values"]
    target = None if about["target"] is None else AskingTarget(answers, about["target"])
    model = AskingModel(answers, target)
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    try:
        with torch.enable_grad(), forked_rng(derive_seed(about["seed"], "batch", about["indices"][0])):
            draws = Draws(about["seed"], about["indices"])
            made = perturbation.perturb(model, asked.tensor("images"), asked.tensor("labels"), draws)
        # What is not a tensor is sent as none, which the owner flags.
        if isinstance(made, Tensor):
            values["attached"] = made.requires_grad
            tensors["images"] = made.detach()
    except (Exception, SystemExit) as error:
        # What an attack leaves behind when a limit ends it is kept.
        text, types = error_message(error)
        values["raised"] = {"error": text, "types": types}
    values |= {"credits": [str(part) for part in model.credits], "late": int(model.late)}
    left = {"told": model.told, "asked_score": model.asked_score, "partial": model.partial, "asked": model.asked}
    tensors |= {name: value.detach() for name, value in left.items() if isinstance(value, Tensor)}
    return Message(values, tensors)


def _covers(answers: Answers, asked: Message) -> Message:
    positions: Sequence[int] = asked.values["values"]["positions"]
    return Message({"covers": [bool(c) for c in answers.part(asked).covers(positions)]})


def _task(answers: Answers, asked: Message) -> Message:
    """Return what the shape of a task leaves of a perturbation."""
    about = asked.values["values"]
    shape = (about["shape"][0], about["shape"][1], about["shape"][2])
    perturbation: Perturbation = answers.part(asked)
    found = {name: getattr(perturbation, name)(shape, about["classes"]) for name in ("inapplicable", "reduced")}
    return Message({name: None if text is None else str(text) for name, text in found.items()})


KIND = Kind(lambda part, about: make_perturbation(part), facts, {"perturb": _perturb, "covers": _covers, "task": _task})
