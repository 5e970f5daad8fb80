"""The artifact of a cell: its tensors as one safetensors file holds them, made wherever the cell was computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..core.files import KIB

if TYPE_CHECKING:
    from torch import Tensor

DECIDES_NO_NUMBER = True

# Artifacts of at most so many bytes share files (packs); larger ones are files of their own.
SMALL = 64 * KIB


@dataclass(frozen=True)
class Artifact:
    """The bytes of a file, or a file that holds them and is given away.

    Attributes:
        digest: sha256 of the bytes; empty where there are none.
        size: their number.
        data: the bytes themselves, or
        path: a file on the receiver's file system, which is moved away.
    """

    digest: str = ""
    size: int = 0
    data: bytes = b""
    path: Path | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the artifact of some tensors; that of none is empty.

        Raises:
            ValueError, RuntimeError: for tensors that have no form on disk (sparse ones, say).
        """
        if not tensors:
            return cls()
        import safetensors.numpy
        import safetensors.torch

        try:
            # The same bytes in a quarter of the time.
            data = safetensors.numpy.save({n: t.detach().cpu().contiguous().numpy() for n, t in tensors.items()})
        except TypeError:
            # Types that NumPy lacks. Copies: tensors that share memory are refused, as a detector's attributes may.
            data = safetensors.torch.save({n: t.contiguous().clone() for n, t in tensors.items()})
        return cls(hashlib.sha256(data).hexdigest(), len(data), data)

    @property
    def small(self) -> bool:
        """Whether it shares a file with others."""
        return self.size <= SMALL

    def given(self, path: Path) -> Artifact:
        """Return what is handed to another process: a small artifact as it is, a large one in a new file.

        Args:
            path: of that file. Two cells may have the same bytes: each has its own file.
        """
        if self.small:
            return self
        path.write_bytes(self.data)
        return Artifact(self.digest, self.size, path=path)
