"""Answers about detectors: fits, scores, views, and the gradients of surrogates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....detectors.base.detector import Detector
from ...core.errors import AftershockError, UsageError
from ...core.memory import peak_memory
from ...core.parameters import bind
from ...core.registry import DETECTORS
from ...core.seeds import derive_seed, forked_rng
from ...core.state import join_state, split_state
from ...suite.instances import make_detector
from ...tracing.extra_passes import View
from ...tracing.traces import LiveTrace
from ..workers.channel import Message
from ..workers.packing import unpack_live, unpack_traces
from ..workers.plugins import open_plugin_file
from .router import Answers, Kind


def facts(detector: Detector) -> dict[str, Any]:
    """Return what an instance says about itself."""
    return {
        "needs": [asdict(need) for need in detector.needs],
        "supervised": detector.supervised,
        "surrogate_kind": detector.surrogate_kind,
        "randomised": detector.randomised,
        "made_of": list(detector.made_of),
        "views": [[view.name, view.dropout, _ascent_facts(view)] for view in detector.views],
        "gradients": [gradient.name for gradient in detector.gradients],
    }


def _ascent_facts(view: View) -> dict[str, Any] | None:
    if view.ascent is None:
        return None
    return {"eps": view.ascent.eps, "step_size": view.ascent.step_size, "steps": view.ascent.steps}


def _fit(answers: Answers, asked: Message) -> Message:
    detector: Detector = answers.part(asked)
    about = asked.values["values"]
    clean = unpack_traces(asked.tensors, about["clean"])
    draws = torch.Generator()
    draws.set_state(asked.tensor("random"))
    clean = replace(clean, random=draws)
    given = {name.removeprefix("perturbed/"): t for name, t in asked.tensors.items() if name.startswith("perturbed/")}
    perturbed = unpack_traces(given, about["perturbed"]) if about["perturbed"] is not None else None
    with forked_rng(about["seed"]), peak_memory() as peak:
        fitted = detector.fit(clean, perturbed)
    if fitted is not detector:
        raise AftershockError("fit() must return the detector itself (`return self`)")
    learned = _state(answers, asked)
    return Message({**learned.values, "peak_bytes": peak.rise}, learned.tensors)


def _state(answers: Answers, asked: Message) -> Message:
    tensors, state = split_state(answers.part(asked).state())
    return Message({"state": state}, {f"state/{name}": value for name, value in tensors.items()})


def _load_state(answers: Answers, asked: Message) -> Message:
    answers.part(asked).load_state(_joined(asked))
    return Message({})


def _score(answers: Answers, asked: Message) -> Message:
    detector: Detector = answers.part(asked)
    about = asked.values["values"]
    with forked_rng(about["seed"]):
        found = detector.score(unpack_traces(asked.tensors, about["traces"]).alone())
    if not isinstance(found, Tensor):
        raise AftershockError(f"score() gave {type(found).__name__} instead of a tensor")
    return Message({}, {"score": found})


def _rescore(answers: Answers, asked: Message) -> Message:
    """Return scores of a detector that is made for this question alone, as often as asked."""
    about = asked.values["values"]
    factory = DETECTORS.get(about["name"])
    params, problems = bind(factory, about["params"])
    if problems:
        raise AftershockError("; ".join(problems.values()))
    try:
        detector: Detector = factory(**params)
    except UsageError:
        # A built-in one may be made of others, which are a plugin's.
        for path in about["plugins"]:
            open_plugin_file(Path(path))
        detector = factory(**params)
    detector.load_state(_joined(asked))
    traces = unpack_traces(asked.tensors, about["traces"]).alone()
    found = []
    for number in range(about["repeats"]):
        # Drawn scores are the same in every run, whatever was asked before.
        with torch.no_grad(), forked_rng(derive_seed(0, "recheck", "process", about["first"] + number)):
            scores = detector.score(traces)
            if not isinstance(scores, Tensor) or scores.shape != (len(traces),):
                raise AftershockError(f"score() gave no tensor of shape ({len(traces)},)")
            found.append(scores.detach().double().cpu())
    return Message({}, {"scores": torch.stack(found)})


def _joined(asked: Message) -> Any:
    held = {name.removeprefix("state/"): t for name, t in asked.tensors.items() if name.startswith("state/")}
    return join_state(held, asked.values["values"]["state"])  # type: ignore[arg-type]  # tensors, by how they were sent


def _transform(answers: Answers, asked: Message) -> Message:
    detector: Detector = answers.part(asked)
    view = next(v for v in detector.views if v.name == asked.values["values"]["view"])
    draws = torch.Generator()
    draws.set_state(asked.tensor("random"))
    changed = view.transform(asked.tensor("images"), draws)
    if not isinstance(changed, Tensor):
        raise AftershockError(f"the view {view.name!r} gave {type(changed).__name__} instead of images")
    return Message({}, {"images": changed, "random": draws.get_state()})


def _differentiable(
    answers: Answers, asked: Message, compute: Callable[[Mapping[str, Tensor]], Any], what: str
) -> Message:
    """Return a result, and the number under which its gradients are asked for; 0 where it has none."""
    wanted = asked.values["values"]["differentiate"]
    inputs = {name: asked.tensor(name) for name in asked.tensors}
    leaves = [inputs[name].requires_grad_() for name in wanted]
    found = compute(inputs)
    if not isinstance(found, Tensor):
        raise AftershockError(f"{what} gave {type(found).__name__} instead of a tensor")
    number = answers.graphs.keep([found], leaves) if found.requires_grad else 0
    return Message({"graph": number}, {"output/0": found.detach()})


def _surrogate(answers: Answers, asked: Message) -> Message:
    detector: Detector = answers.part(asked)
    about = asked.values["values"]

    def compute(inputs: Mapping[str, Tensor]) -> Any:
        live: LiveTrace = unpack_live(inputs, about["live"])
        with forked_rng(about["seed"]):
            return detector.surrogate(live)

    return _differentiable(answers, asked, compute, "surrogate()")


def _objective(answers: Answers, asked: Message) -> Message:
    detector: Detector = answers.part(asked)
    wanted = next(g for g in detector.gradients if g.name == asked.values["values"]["gradient"])
    return _differentiable(answers, asked, lambda inputs: wanted.objective(inputs["logits"]), "the objective")


def _ascent(answers: Answers, asked: Message) -> Message:
    detector: Detector = answers.part(asked)
    view = next(v for v in detector.views if v.name == asked.values["values"]["view"])

    def compute(inputs: Mapping[str, Tensor]) -> Any:
        if view.ascent is None:
            raise AftershockError(f"the view {view.name!r} has no ascent")
        return view.ascent.objective(inputs["logits"], inputs["reference"])

    return _differentiable(answers, asked, compute, "the objective")


KIND = Kind(
    lambda part, about: make_detector(part),
    facts,
    {
        "fit": _fit,
        "state": _state,
        "load state": _load_state,
        "score": _score,
        "rescore": _rescore,
        "transform": _transform,
        "surrogate": _surrogate,
        "objective": _objective,
        "ascent": _ascent,
    },
)
