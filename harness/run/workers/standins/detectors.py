"""The stand-in for a plugin's detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .....detectors.base.detector import Detector, DetectorInfo, Surrogate
from ....core.errors import AftershockError
from ....core.process_state import own_code
from ....core.state import join_state, split_state
from ....tracing.extra_passes import Ascent, InputGradient, View
from ....tracing.rows import Rows
from ....tracing.traces import LiveTrace, Need, Traces
from ..channel import Message
from ..packing import pack_live, pack_traces, unpack_needs
from .part import LONG, SETTLING, Instance, PluginPart


class _Limited(TypedDict):
    """What a question may take, as :meth:`Instance.ask` is told."""

    cpu: float
    limit: str


class PluginDetector(Detector):
    """Asks a plugin's process for whatever a detector does.

    Labels reach it in ``fit`` alone; rows have numbers of their own in place of positions in a data set.

    Args:
        part: the plugin's class.
        params: of its constructor.
    """

    info: ClassVar[DetectorInfo] = DetectorInfo(title="a plugin's detector")

    def __init__(self, part: PluginPart, **params: Any) -> None:
        self._part = part
        # Before the instance is made: making it again puts the state back.
        self._learned: Any = None
        self._instance = Instance(part, "detectors", params, restore=self._restore)
        self.fit_seconds, self.score_seconds = LONG, 1.0
        # By how much the memory of its process rose while it was fitted.
        self.peak_bytes: int | None = None

    def __getattribute__(self, name: str) -> Any:
        # The class has an `info` of its own, since every detector has one.
        if name == "info":
            return object.__getattribute__(self, "_part").info
        return object.__getattribute__(self, name)

    @property
    def files(self) -> list[str]:
        """What the plugin opened beyond what is its own."""
        return list(dict.fromkeys((*self._part.files, *self._instance.files)))

    @property
    def programs(self) -> list[str]:
        """Programs that the plugin started; ``fork`` for copies of its process."""
        return list(dict.fromkeys((*self._part.programs, *self._instance.programs)))

    @property
    def changed(self) -> list[str]:
        """What state of its process the plugin left changed; it was put back."""
        return list(self._instance.changed)

    @property
    def spent(self) -> tuple[float, bool]:
        """Seconds that the last answer took there, as limits count them, and whether modules were imported for it."""
        return self._instance.spent

    @property
    def needs(self) -> tuple[Need, ...]:
        return unpack_needs(self._instance.facts["needs"])

    @property
    def supervised(self) -> bool:
        return bool(self._instance.facts["supervised"])

    @property
    def surrogate_kind(self) -> Surrogate:
        kind: Surrogate = self._instance.facts["surrogate_kind"]
        return kind

    @property
    def randomised(self) -> bool:
        return bool(self._instance.facts["randomised"])

    @property
    def made_of(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self._instance.facts["made_of"])

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(
            View(n, partial(self._transform, n), bool(d), ascent=a and Ascent(partial(self._ascent, n), **a))
            for n, d, a in self._instance.facts["views"]
        )

    @property
    def gradients(self) -> tuple[InputGradient, ...]:
        return tuple(InputGradient(n, partial(self._objective, n)) for n in self._instance.facts["gradients"])

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        clean, perturbed = _anonymous(clean, perturbed)
        tensors, described = pack_traces(clean)
        values: dict[str, Any] = {"clean": described, "perturbed": None, "seed": clean.generator.initial_seed()}
        if perturbed is not None:
            more, values["perturbed"] = pack_traces(perturbed)
            tensors |= {f"perturbed/{name}": rows for name, rows in more.items()}
        tensors["random"] = clean.generator.get_state()
        found = self._instance.ask("fit", values, tensors, cpu=self.fit_seconds, limit="fit_seconds")
        self._learned = _state_of(found)
        peak = found.values.get("peak_bytes")
        self.peak_bytes = int(peak) if isinstance(peak, int) else None
        return self

    def score(self, traces: Traces) -> Tensor:
        tensors, described = pack_traces(replace(traces, label_rows=None, source_rows=None))
        asked = {"traces": described, "seed": _draw()}
        return self._instance.ask("score", asked, tensors, **self._limited(len(traces))).tensor("score")

    def _limited(self, images: int) -> _Limited:
        """CPU seconds for some images, and where they come from."""
        limit = f"score_seconds = {self.score_seconds:g} for each image, and {SETTLING:g} s for what is done once"
        return {"cpu": SETTLING + self.score_seconds * images, "limit": limit}

    def surrogate(self, live: LiveTrace) -> Tensor:
        tensors, described = pack_live(live, [view.name for view in self.views])
        ask = partial(self._asked, "surrogate", {"live": described, "seed": _draw()}, list(tensors))
        found: Tensor = _Remote.apply(self._instance, list(tensors), ask, *tensors.values())
        return found

    def state(self) -> dict[str, Any]:
        if self._learned is None:
            self._learned = _state_of(self._instance.ask("state"))
        found: dict[str, Any] = self._learned
        return found

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._learned = dict(state)
        self._restore()

    def _restore(self) -> None:
        if self._learned is not None:
            tensors, state = split_state(self._learned)
            self._instance.ask("load state", {"state": state}, {f"state/{n}": t for n, t in tensors.items()})

    def _transform(self, name: str, images: Tensor, draws: torch.Generator) -> Tensor:
        given = {"images": images, "random": draws.get_state()}
        found = self._instance.ask("transform", {"view": name}, given, **self._limited(len(images)))
        draws.set_state(found.tensor("random"))
        return found.tensor("images")

    def _objective(self, name: str, logits: Tensor) -> Tensor:
        ask = partial(self._asked, "objective", {"gradient": name}, ["logits"])
        found: Tensor = _Remote.apply(self._instance, ["logits"], ask, logits)
        return found

    def _ascent(self, name: str, logits: Tensor, reference: Tensor) -> Tensor:
        names = ["logits", "reference"]
        found: Tensor = _Remote.apply(
            self._instance, names, partial(self._asked, "ascent", {"view": name}, names), logits, reference
        )
        return found

    def _asked(
        self, question: str, values: Mapping[str, Any], names: Sequence[str], given: Sequence[Tensor],
        wanted: list[str],
    ) -> Message:  # fmt: skip
        tensors: dict[str, Tensor | Rows] = {**dict(zip(names, given, strict=True))}
        return self._instance.ask(
            question, {**values, "differentiate": wanted}, tensors, **self._limited(max(1, len(given[0])))
        )


class _Remote(torch.autograd.Function):
    """Values that a plugin's process computes from tensors, with their gradients from there."""

    @staticmethod
    def forward(
        ctx: Any, instance: Instance, names: list[str], ask: Callable[[Sequence[Tensor], list[str]], Message],
        *given: Tensor,
    ) -> Tensor:  # fmt: skip
        wanted = [n for n, needed in zip(names, ctx.needs_input_grad[3:], strict=True) if needed]
        with torch.set_grad_enabled(bool(wanted)):
            found = ask([t.detach() for t in given], wanted)
        ctx.instance, ctx.graph, ctx.like = instance, found.values["graph"], [t.device for t in given]
        ctx.wanted = list(ctx.needs_input_grad[3:])
        return found.tensor("output/0").to(given[0].device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.graph:
            return (None, None, None, *[None] * len(ctx.wanted))
        values = {"graph": ctx.graph, "outputs": 1}
        found = ctx.instance.ask("backward", values, {"weight/0": weight}, cpu=LONG)
        gradients: list[Tensor | None] = []
        number = 0
        for needed, device in zip(ctx.wanted, ctx.like, strict=True):
            gradient = found.tensors.get(f"gradient/{number}") if needed else None
            gradients.append(gradient.to(device) if isinstance(gradient, Tensor) else None)
            number += needed
        return None, None, None, *gradients


def _anonymous(clean: Traces, perturbed: Traces | None) -> tuple[Traces, Traces | None]:
    """Sources numbered anew: which rows were made from one image stays known, which image it is does not."""
    if clean.sources is None:
        return clean, perturbed
    both = [clean.sources, *([] if perturbed is None or perturbed.sources is None else [perturbed.sources])]
    numbers = torch.unique(torch.cat(both), return_inverse=True)[1].split([len(part) for part in both])
    clean = replace(clean[:].alone() if clean.window != slice(None) else clean, source_rows=numbers[0])
    if perturbed is not None:
        perturbed = replace(perturbed, source_rows=numbers[1] if len(numbers) > 1 else None)
    return clean, perturbed


def _state_of(found: Message) -> dict[str, Any]:
    held = {name.removeprefix("state/"): found.tensor(name) for name in found.tensors if name.startswith("state/")}
    state = join_state(held, found.values["state"])
    if not isinstance(state, dict):
        raise AftershockError("state() must give a dictionary")
    return state


def _draw() -> int:
    """Return a seed for what the detector draws, from the generator that it would draw from in this process."""
    return int(torch.randint(2**62, ()))


def only_own_code(detector: Detector) -> bool:
    """Return whether a detector is of this package and asks no other: it works on traces where they lie, unchanged."""
    return own_code(detector) and not isinstance(detector, PluginDetector) and not detector.made_of
