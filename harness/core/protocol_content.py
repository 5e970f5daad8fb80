"""What rows of one model must share to be compared, published in full: whoever has it can make the digest again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .content_keys import PROTOCOL_VERSION, canonical

DECIDES_NO_NUMBER = True

# Characters of a digest.
_LENGTH = 16


@dataclass(frozen=True)
class ProtocolContent:
    """Data, weights, splits, perturbations and threat of one model of a suite.

    Attributes:
        content: JSON values by name.
        seeds: of the suite.
        version: the protocol's.
    """

    content: Mapping[str, Any]
    seeds: tuple[int, ...]
    version: int = PROTOCOL_VERSION

    @classmethod
    def of(cls, content: Mapping[str, object], seeds: tuple[int, ...]) -> ProtocolContent:
        """Return it for any values that may be part of a content key."""
        return cls(json.loads(canonical(content)), seeds)

    @property
    def digest(self) -> str:
        """Of content, seeds and version, 16 hexadecimal characters."""
        return self._digest("protocol", seeds=self.seeds)

    @property
    def series(self) -> str:
        """The same without the seeds: runs of single seeds of one series can be joined."""
        return self._digest("series")

    def _digest(self, kind: str, **more: object) -> str:
        whole = {"kind": kind, "protocol": self.version, **self.content, **more}
        return hashlib.sha256(canonical(whole).encode()).hexdigest()[:_LENGTH]

    def as_json(self) -> dict[str, Any]:
        """Return what ``run.json`` says of it."""
        return {"digest": self.digest, "series": self.series, "version": self.version, "content": dict(self.content)}


def positions_digest(split: str, positions: NDArray[np.int64]) -> str:
    """Return the sha256, in hex, of which images of a split are meant, in their order.

    Args:
        split: ``train`` or ``test``.
        positions: int64 (n,).
    """
    return hashlib.sha256(split.encode() + np.ascontiguousarray(positions, dtype="<i8").tobytes()).hexdigest()
