"""Artifacts in the object store of a Ray cluster: from there they go to nodes that do not see the run directory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ...store.artifacts import Artifact
from ...store.run_directory import Store
from ..work import Result
from .ray_worker import Carried

DECIDES_NO_NUMBER = True

# Of the cluster's object store, for artifacts that nodes may be sent again, and at most that many bytes.
_REFERENCED, _MOST_REFERENCED = 0.25, 4 * 2**30


class SentArtifacts:
    """Artifacts in Ray's object store, for nodes that do not see the run directory; those not used longest are dropped.

    Args:
        store: of the run, where all of them are.
        nodes: resources of the cluster's nodes as Ray counts them.

    Attributes:
        needed: there is such a node.
    """

    def __init__(self, store: Store, nodes: Sequence[Mapping[str, float]]) -> None:
        self._store, self._limit, self._size = store, _room(nodes), 0
        self._references: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self.needed = False

    def carried(self, key: str) -> Carried:
        """Return a finished cell, to be sent; raises ``AftershockError`` if it cannot be read."""
        record = self._store.record(key)
        if record.digest and key not in self._references:
            self._add(key, ray.put(self._store.artifact(key).data), record.size)
        reference = None
        if record.digest:
            reference = self._references[key][0]
            self._references.move_to_end(key)
        artifact = Artifact(record.digest, record.size)
        return Carried(key, record.name, record.values, record.seconds, artifact, reference)

    def keep(self, result: Result, reference: Any) -> None:
        """Remember where the cluster has an artifact that came from it."""
        if self.needed and result.artifact.digest:
            self._add(result.key, reference, result.artifact.size)

    def forget(self, keys: Sequence[str]) -> None:
        """Forget references that may lead nowhere."""
        for key in keys:
            _, size = self._references.pop(key, (None, 0))
            self._size -= size

    def _add(self, key: str, reference: Any, size: int) -> None:
        self.forget([key])
        self._references[key] = (reference, size)
        self._size += size
        while self._size > self._limit and len(self._references) > 1:
            _, (_, dropped) = self._references.popitem(last=False)
            self._size -= dropped


def _room(nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the bytes of artifacts to which references are kept."""
    store = sum(node.get("object_store_memory", 0) for node in nodes)
    return min(_MOST_REFERENCED, int(_REFERENCED * store))
