"""What cells took on this machine: remembered in the cache, so that the next run says at once how long it takes."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ..core.files import MIB, parse_json, read_if_there, write_atomic
from ..store.cache import RATES

DECIDES_NO_NUMBER = True

_SCHEMA = 1
# Groups of cells that are remembered, the newest ones: a suite has some hundreds.
_MOST = 5000
_LIMIT = 4 * MIB
# What was measured before counts half as much with every run: machines and versions change.
_FADING = 0.5


class Rates:
    """Seconds per image by group of cells (:meth:`.expected.Expectation.like`); how each kind compares with typical.

    All of it is best effort: a file that cannot be read or written costs an estimate.
    """

    def __init__(self) -> None:
        # By digest: images, seconds and bytes; by kind: typical seconds, those measured, and bytes.
        self._likes: dict[str, tuple[float, float, float]] = {}
        self._kinds: dict[str, tuple[float, float, float]] = {}

    @classmethod
    def read(cls, cache: Path) -> Self:
        """Return what a cache remembers; nothing where it has no such file, or one that is damaged."""
        made = cls()
        with suppress(Exception):
            content = read_if_there(cache / RATES, _LIMIT, within=cache)
            value: Any = parse_json(content, cache / RATES) if content is not None else {}
            if value.get("schema") == _SCHEMA:
                made._likes, made._kinds = _triples(value["likes"]), _triples(value["kinds"])
        return made

    def measured(self, like: str) -> float | None:
        """Return seconds per image of a group, ``None`` where none was measured."""
        found = self._likes.get(like)
        return None if found is None else found[1] / found[0]

    def bytes_per_image(self, like: str) -> float | None:
        """Return what is stored for each image of a group, ``None`` where none was measured."""
        found = self._likes.get(like)
        return None if found is None else found[2] / found[0]

    def factor(self, kind: str) -> float | None:
        """Return how many times longer than typical cells of a kind took; ``None`` where none was measured."""
        found = self._kinds.get(kind)
        return None if found is None else found[1] / found[0]

    def add(self, like: str, kind: str, images: int, seconds: float, typical: float, size: int = 0) -> None:
        """Note what a cell took, and how many bytes it left."""
        for known, name, of in ((self._likes, like, max(1, images)), (self._kinds, kind, typical)):
            before = known.pop(name, (0.0, 0.0, 0.0))
            # Taken out and put in again: the newest ones stand last.
            known[name] = (before[0] + of, before[1] + seconds, before[2] + size)

    def faded(self) -> Self:
        """Return the same rates with less weight beside what is measured from now on."""
        made = type(self)()
        for old, new in ((self._likes, made._likes), (self._kinds, made._kinds)):
            new.update({k: (a * _FADING, b * _FADING, c * _FADING) for k, (a, b, c) in old.items()})
        return made

    def write(self, cache: Path) -> None:
        """Keep the rates in a cache that exists."""
        likes = dict(list(self._likes.items())[-_MOST:])
        value = {"schema": _SCHEMA, "likes": likes, "kinds": self._kinds}
        with suppress(OSError):
            write_atomic(cache / RATES, json.dumps(value, separators=(",", ":")).encode())


def _triples(value: Any) -> dict[str, tuple[float, float, float]]:
    """Return triples of finite numbers by name, the first of them positive; anything else is left out."""
    found = {}
    for name, (of, seconds, size) in value.items():
        triple = (float(of), float(seconds), float(size))
        if triple[0] > 0 and min(triple) >= 0 and math.isfinite(sum(triple)):
            found[str(name)] = triple
    return found
