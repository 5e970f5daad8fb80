"""From a question to the function that answers it, and the parts that were made so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.content_keys import canonical
from ...core.errors import AftershockError, UsageError, text_of
from ...core.parameters import bind, parameters
from ...core.plugin_files import load_plugin_file
from ...core.recent import Recent
from ...core.registry import MODELS, REGISTRIES, Entry, Origin, load_plugins_here
from ...suite.resolved import Part
from ..workers.channel import Channel, Message

# Maximum number of differentiable results whose graph is kept until a gradient is asked for.
_GRAPHS = 8


class Graphs:
    """Results that can still be differentiated, by number; only the last few are kept."""

    def __init__(self) -> None:
        self._kept: Recent[int, tuple[Sequence[Tensor], Sequence[Tensor]]] = Recent(_GRAPHS)
        self._count = 0

    def keep(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> int:
        """Keep the graph from some leaves to some outputs."""
        self._count += 1
        self._kept[self._count] = (outputs, leaves)
        return self._count

    def gradients(self, number: int, weights: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the weighted outputs with respect to each leaf; ``None`` where nothing depends on one."""
        if number not in self._kept:
            raise AftershockError(f"only the last {_GRAPHS} results can be differentiated")
        outputs, leaves = self._kept[number]
        pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if w is not None and o.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        found = torch.autograd.grad(
            [o for o, _ in pairs], list(leaves), [w.to(o) for o, w in pairs], retain_graph=True, allow_unused=True
        )
        return list(found)


@dataclass(frozen=True)
class Kind:
    """How the parts of one kind are made and asked.

    Attributes:
        make: an instance of a part, from its entry with checked parameters and all that the question says.
        facts: what an instance says about itself, as JSON values.
        answers: by question.
        given: parameters of the constructor that the question gives, not the part's own.
    """

    make: Callable[[Part, Mapping[str, Any]], Any]
    facts: Callable[[Any], dict[str, Any]]
    answers: Mapping[str, Callable[[Answers, Message], Message]]
    given: tuple[str, ...] = ()


class Answers:
    """Answers the questions of one owner.

    Args:
        channel: to the owner, who may be asked back.
        source: ``path`` of the plugin's file and name of its ``distribution``; both empty for built-in parts.
        kinds: of parts, by the name of their registry.
    """

    def __init__(self, channel: Channel, source: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
        self.channel, self.kinds, self._source = channel, kinds, source
        self.made: dict[int, Any] = {}
        self.count = 0
        self.graphs = Graphs()
        self._answers: dict[str, Callable[[Answers, Message], Message]] = {
            "bind": _bind,
            "make": _make,
            "backward": _backward,
        }
        for kind in kinds.values():
            self._answers.update(kind.answers)

    def load(self) -> list[dict[str, Any]]:
        """Import the plugin and describe its parts; none for built-in ones."""
        load_plugins_here()
        if self._source["path"]:
            origin = load_plugin_file(Path(self._source["path"]))
        elif self._source["distribution"]:
            origin = _load_distribution(self._source["distribution"])
        else:
            return []
        found = [(registry, entry) for registry in REGISTRIES.values() for entry in registry.of(origin)]
        return [{"kind": registry.kind, "name": entry.name, **_described(entry)} for registry, entry in found]

    @staticmethod
    def prepare(asked: Message) -> None:
        """Take the number of threads of the owner, before any part is called."""
        threads = int(asked.values["threads"])
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def answer(self, asked: Message) -> Message:
        """Answer one question, in the gradient mode of the owner."""
        for number in asked.values["drop"]:
            self.made.pop(number, None)
        with torch.set_grad_enabled(bool(asked.values["gradients"])):
            return self._answers[asked.values["question"]](self, asked)

    def part(self, asked: Message) -> Any:
        """Return the part that a question is about."""
        return self.made[asked.values["values"]["id"]]

    def call(self, name: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
        """Ask the owner back.

        Raises:
            AftershockError: with what went wrong there.
        """
        self.channel.send(Message({"call": name, "values": values}, tensors))
        found = self.channel.receive()
        if "error" in found.values:
            raise AftershockError(str(found.values["error"]))
        return found


def _load_distribution(name: str) -> Origin:
    """Import every entry point of a distribution."""
    from importlib.metadata import entry_points, version

    for registry in REGISTRIES.values():
        for point in entry_points(group=registry.group):
            if point.dist is not None and point.dist.name == name:
                registry.entry(point.name)
    return Origin(name, version(name))


def _described(entry: Entry) -> dict[str, Any]:
    """Return what is known of a part without making one; ``problem`` where it is none."""
    try:
        part = entry.load()
        info = getattr(part, "info", None)
        # A factory of models is trusted code, which its owner imports; only its name is needed.
        known = [] if entry is MODELS._entries.get(entry.name) else list(parameters(part, ("root",)))
        return {
            "doc": str(getattr(part, "__doc__", None) or ""),
            "info": json.loads(canonical(info)) if is_dataclass(info) else None,
            "missing": str(getattr(part, "missing", lambda: None)() or ""),
            "reads_perturbed": bool(getattr(part, "reads_perturbed", False)),
            "parameters": known,
            "problem": "",
        }
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {text_of(error)}"}


def _bind(answers: Answers, asked: Message) -> Message:
    about = asked.values["values"]
    factory = REGISTRIES[about["kind"]].get(about["name"])
    values, problems = bind(factory, about["params"], tuple(about["skip"]))
    return Message({"values": json.loads(canonical(values)), "problems": problems})


def _make(answers: Answers, asked: Message) -> Message:
    """Make a part, and say what of it the plan needs."""
    about = asked.values["values"]
    kind, name = answers.kinds[about["kind"]], about["name"]
    params, problems = bind(REGISTRIES[about["kind"]].get(name), about["params"], kind.given)
    if problems:
        raise UsageError("; ".join(problems.values()))
    made = kind.make(Part(name, name, params), about)
    facts = kind.facts(made)
    answers.count += 1
    answers.made[answers.count] = made
    return Message({"id": answers.count, "facts": facts})


def _backward(answers: Answers, asked: Message) -> Message:
    about = asked.values["values"]
    weights = [asked.tensors.get(f"weight/{n}") for n in range(about["outputs"])]
    found = answers.graphs.gradients(about["graph"], weights)  # type: ignore[arg-type]  # tensors, by how they were sent
    return Message({}, {f"gradient/{n}": g for n, g in enumerate(found) if g is not None})
