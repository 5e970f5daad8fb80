"""The artifact of a cell: its tensors as one safetensors file holds them, made wherever the cell was computed.

What takes much less place that way is compressed (:mod:`~aftershock.harness.store.compression`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.files import KIB, TENSORS_LIMIT
from .compression import METADATA, DamagedTensorError, compress, declared_size, decompress, read_metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
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
            arrays = {n: t.contiguous().numpy(force=True) for n, t in tensors.items()}
        except TypeError:
            # Types that NumPy lacks. Copies: tensors that share memory are refused, as a detector's attributes may.
            data = safetensors.torch.save({n: t.contiguous().clone() for n, t in tensors.items()})
        else:
            data = safetensors.numpy.save(*_compressed(arrays))
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


class ArtifactTensors:
    """The tensors of an artifact, by name.

    Attributes:
        names: of all of them.
        compressed: of those that are decompressed when they are read; the others are memory-mapped where they are in a
            file.

    Raises:
        DamagedTensorError: if what the artifact says of them is not well formed, or they have more than 4 GiB together.
    """

    def __init__(
        self, names: Iterable[str], get: Callable[[str], Tensor], metadata: Mapping[str, str] | None, size: int
    ) -> None:
        self.names = frozenset(names)
        self._get = get
        self._about = read_metadata((metadata or {}).get(METADATA))
        self.compressed = self._about.keys() & self.names
        if self.compressed:
            self._check_size(size)

    def _check_size(self, size: int) -> None:
        """Refuse more than a file may hold, before anything is decompressed; ``size`` is that of the file."""
        declared = sum(declared_size(self._about[name]) for name in self.compressed)
        if declared + size <= TENSORS_LIMIT:
            return
        plain = sum(self._get(name).nbytes for name in self.names - self.compressed)
        if declared + plain > TENSORS_LIMIT:
            raise DamagedTensorError("too large")

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """Return the tensors of a small artifact.

        Raises:
            SafetensorError: for bytes that are none.
        """
        import safetensors.torch

        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return cls(tensors, tensors.__getitem__, header.get("__metadata__"), len(data))

    @classmethod
    def of_file(cls, opened: Any, size: int) -> Self:
        """Return the tensors of a file of some bytes, as ``safetensors.safe_open`` gives it, while it is open."""
        return cls(opened.keys(), opened.get_tensor, opened.metadata(), size)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            DamagedTensorError: if it cannot be decompressed.
        """
        import torch

        found = self._get(name)
        if name not in self._about:
            return found
        array = decompress(found.numpy().tobytes(), self._about[name])
        # Who reads a tensor may write into it: not into bytes, which others may hold.
        return torch.from_numpy(array if array.flags.writeable else array.copy())


def _compressed(arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, str] | None]:
    """Return what is written of some arrays, and the metadata that say which of them are smaller than they were."""
    import numpy as np

    if sum(array.nbytes for array in arrays.values()) <= SMALL:
        return arrays, None
    written, about = {}, {}
    for name, array in arrays.items():
        smaller = compress(array)
        written[name] = array if smaller is None else np.frombuffer(smaller[1], np.uint8)
        if smaller is not None:
            about[name] = {"how": smaller[0], "dtype": array.dtype.name, "shape": array.shape}
    return written, {METADATA: json.dumps(about)} if about else None
