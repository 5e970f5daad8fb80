"""What a registry holds for a plugin's part, and the instances that are made of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from ....core.content_keys import canonical
from ....core.errors import UsageError
from ....core.parameters import SelfBinding
from ....core.registry import StandIn
from ....tracing.rows import Rows
from ..channel import Message
from ..packing import unpack_needs
from ..pool import POOL, Role
from ..process import Callback, Source, WorkerEndedError, json_values

# CPU seconds of a question about a part itself: its parameters, its constructor.
ABOUT = 60.0
# CPU seconds beside those that a suite allows for each image: imports, and what else is done once.
SETTLING = 30.0
# CPU seconds of work that has no limit of its own in a suite.
LONG = 3600.0


@dataclass(frozen=True)
class Kind:
    """What stands in for the parts of one kind.

    Attributes:
        make: the instance of a part, from the part and the parameters of its constructor.
        info: the class of what a part says about itself; ``None`` where it says nothing.
    """

    make: Callable[..., Any]
    info: type[Any] | None


class PluginPart(SelfBinding, StandIn):
    """A class or function of a plugin, known by what its process says about it.

    Args:
        source: the plugin.
        described: ``kind``, ``name`` and what the process says of the part.
        kind: of parts: what is made of it.
    """

    def __init__(self, source: Source, described: Mapping[str, Any], kind: Kind) -> None:
        self._kind = kind
        self.source, self.kind, self.name = source, str(described["kind"]), str(described["name"])
        self.problem = str(described.get("problem", ""))
        self.__doc__ = str(described.get("doc", ""))
        self.reads_perturbed = bool(described.get("reads_perturbed", False))
        self._info, self._missing = described.get("info"), str(described.get("missing", ""))
        # What the plugin opened and started when it was imported.
        self.files = tuple(str(name) for name in described.get("files", ()))
        self.programs = tuple(str(name) for name in described.get("programs", ()))

    def __call__(self, *given: Any, **params: Any) -> Any:
        if self.problem:
            raise UsageError(f"it cannot be used: {self.problem}")
        return self._kind.make(self, *given, **params)

    @cached_property
    def info(self) -> Any:
        """What the part's ``info`` says; ``None`` where it has none.

        Raises:
            AttributeError: for a part that says nothing that can be read.
        """
        if self._info is None or self._kind.info is None:
            raise AttributeError(f"{self.name} has no info")
        return self._kind.info(**_known(self._kind.info, self._info))

    def missing(self) -> str | None:
        """As :meth:`aftershock.attacks.base.perturbation.Perturbation.missing`."""
        return self._missing or None

    def bind(self, values: Mapping[str, Any], skip: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
        """As :func:`aftershock.harness.core.parameters.bind`, by the part's own signature."""
        about = {"kind": self.kind, "name": self.name, "params": json_values(dict(values)), "skip": list(skip)}
        found = self.ask("bind", about).values
        return dict(found["values"]), {str(k): str(v) for k, v in found["problems"].items()}

    def ask(self, question: str, values: Mapping[str, Any], cpu: float = ABOUT) -> Message:
        """Ask the process about the part itself."""
        return POOL.worker(self.source, "detectors").ask(question, values, cpu=cpu)


class Instance:
    """A part that was made in its plugin's process, and is made again where that had to be started again.

    Args:
        part: what it is made of.
        role: which of the plugin's processes has it.
        params: of the constructor, and
        given: what else making it takes.
        restore: puts back what it had learned.
    """

    def __init__(
        self, part: PluginPart, role: Role, params: Mapping[str, Any], given: Mapping[str, Any] | None = None,
        restore: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self.part, self.role = part, role
        self._about = {"kind": part.kind, "name": part.name, "params": json_values(dict(params)), **(given or {})}
        self._restore = restore
        self._number, self._generation = 0, -1
        # Over all questions: what it opened and started, and what state of its process it left changed (each put back
        # there).
        self.files: dict[str, None] = {}
        self.programs: dict[str, None] = {}
        self.changed: dict[str, None] = {}
        # Seconds that the last answer took there, and whether modules were imported for it.
        self.spent = (0.0, False)
        self.facts = self._make()

    def ask(
        self, question: str, values: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | Rows] | None = None, cpu: float = ABOUT, limit: str = "",
        calls: Mapping[str, Callback] | None = None,
    ) -> Message:  # fmt: skip
        """Ask about this instance; see :meth:`~..process.Worker.ask`."""
        with self._ends_counted(question):
            worker = POOL.worker(self.part.source, self.role)
            if worker.generation != self._generation or not worker.running:
                self._make()
                self._restore()
            found = worker.ask(
                question, {**(values or {}), "id": self._number}, tensors, cpu=cpu, limit=limit, calls=calls
            )
        self._note(found)
        return found

    def restore_by(self, restore: Callable[[], object]) -> None:
        """Put back by ``restore`` what it learned, whenever it is made again."""
        self._restore = restore

    def _note(self, found: Message) -> None:
        seconds, imported = found.values["spent"]
        self.spent = (float(seconds), bool(imported))
        self.files |= dict.fromkeys(str(name) for name in found.values.get("files", ()))
        self.programs |= dict.fromkeys(str(name) for name in found.values.get("programs", ()))
        self.changed |= dict.fromkeys(str(name) for name in found.values.get("changed", ()))

    @contextmanager
    def _ends_counted(self, question: str) -> Iterator[None]:
        """Ask nothing that has ended the process too often, and remember what ends it."""
        same = (self.part.source, self.role, canonical(self._about), question)
        POOL.refuse(*same)
        try:
            yield
        except WorkerEndedError as error:
            POOL.ended(error, *same)
            raise

    def _make(self) -> Mapping[str, Any]:
        worker = POOL.worker(self.part.source, self.role)
        with self._ends_counted("make"):
            found = worker.ask("make", self._about, cpu=ABOUT)
        self._number, self._generation = int(found.values["id"]), worker.generation
        self._note(found)
        weakref.finalize(self, worker.forget, self._number, self._generation)
        facts: Mapping[str, Any] = found.values["facts"]
        return facts


def _known(described: type[Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``info`` as its class takes them."""
    names = {f.name for f in fields(described)}
    found = {name: value for name, value in info.items() if name in names}
    if "needs" in found:
        found["needs"] = unpack_needs(found["needs"])
    return found
