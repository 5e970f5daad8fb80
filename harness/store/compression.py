"""Smaller tensors, bit for bit the same when they are read: how large artifacts are written.

A compressed tensor is a row of bytes in the safetensors file, and the file's metadata says under ``compressed`` what it
was: its type, its shape, and how. In each case the bytes are a raw deflate stream, of

- ``strips``: bytes (n, m) in strips of 64 columns, (m / 64, n, 64), so that packed bits of neighbouring units, which
  are alike, share a code;
- ``sparse``: one bit for each element, set where it is not 0 (-0 is not), filled up to whole bytes, the first element
  in the highest bit; then the bytes of those elements, all first bytes, all second bytes and so on;
- ``plain``: the bytes as they are.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.files import KIB, TENSORS_LIMIT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DECIDES_NO_NUMBER = True

METADATA = "compressed"
# Less is not tried, and what is larger than that share of itself afterwards is left as it is: it would be slower to
# read for nothing.
_LEAST, _SHARE = 16 * KIB, 0.9
# What is tried first is so much of a tensor.
_SAMPLE = 32 * KIB
_PIECES = 16
_STRIP = 64
# No stream of deflate holds more than that many times its size.
_MOST = 1032
_TYPES = frozenset(("uint8", "float16", "float32", "float64", "int16", "int32", "int64"))


class DamagedTensorError(Exception):
    """Bytes that are no compressed tensor."""


def compress(array: NDArray[Any]) -> tuple[str, bytes] | None:
    """Return how an array is smaller, and its bytes then; ``None`` where it is not by much."""
    if array.nbytes < _LEAST or array.dtype.name not in _TYPES:
        return None
    sample = _sample(array)
    sizes = {how: len(_deflate(how, sample)) for how in _hows(array)}
    # Looking for what comes again takes longer than codes alone.
    how = min(sizes, key=lambda how: sizes[how] * (1.1 if how == "plain" else 1.0))
    if sizes[how] > _SHARE * sample.nbytes:
        return None
    return how, _deflate(how, array)


def decompress(data: bytes, about: Mapping[str, Any]) -> NDArray[Any]:
    """Return an array as :func:`compress` took it.

    Args:
        data: its bytes.
        about: ``how``, ``dtype`` and ``shape``.

    Raises:
        DamagedTensorError: for bytes that are no such array.
    """
    import numpy as np

    try:
        how, dtype, shape = _kind(about)
        most = _bytes(dtype, shape) + (math.prod(shape) + 7) // 8
        if most > min(TENSORS_LIMIT, _MOST * len(data) + _LEAST):
            raise ValueError("too large")
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        found = stream.decompress(data, most + 1)
        if not stream.eof:
            raise ValueError("of another size")
        return _READ[how](np.frombuffer(found, np.uint8), np.dtype(dtype), shape)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, zlib.error) as error:
        raise DamagedTensorError(str(error)[:80]) from error


def declared_size(about: Mapping[str, Any]) -> int:
    """Return the bytes of an array that :func:`decompress` gives back, if it gives any back.

    Raises:
        DamagedTensorError: for a type or a shape that it refuses.
    """
    try:
        _, dtype, shape = _kind(about)
        return _bytes(dtype, shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedTensorError(str(error)[:80]) from error


def _kind(about: Mapping[str, Any]) -> tuple[str, str, list[int]]:
    how, dtype, shape = str(about["how"]), str(about["dtype"]), [int(n) for n in about["shape"]]
    if dtype not in _TYPES or how not in _READ or any(n < 0 for n in shape):
        raise ValueError("unknown kind")
    return how, dtype, shape


def _bytes(dtype: str, shape: list[int]) -> int:
    import numpy as np

    return math.prod(shape) * np.dtype(dtype).itemsize


def read_metadata(text: str | None) -> dict[str, dict[str, Any]]:
    """Return what the metadata of a file says of its compressed tensors, by name.

    Raises:
        DamagedTensorError: if it is not well formed.
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedTensorError("metadata") from error
    if not isinstance(found, dict) or not all(isinstance(about, dict) for about in found.values()):
        raise DamagedTensorError("metadata")
    return found


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Return some of an array, from all of it: rows, or pieces of them where they are long."""
    if array.nbytes <= _SAMPLE:
        return array
    rows = max(1, _SAMPLE * len(array) // array.nbytes)
    if rows < _PIECES and array.dtype.name != "uint8" and array.size % _PIECES == 0:
        return array.reshape(_PIECES, -1)[:, : _SAMPLE // array.itemsize // _PIECES]
    return array[:: len(array) // rows]


def _hows(array: NDArray[Any]) -> tuple[str, ...]:
    if array.dtype.name != "uint8":
        return ("sparse", "plain")
    return ("strips", "plain") if array.ndim == 2 and array.shape[1] % _STRIP == 0 else ("plain",)


def _deflate(how: str, array: NDArray[Any]) -> bytes:
    import numpy as np

    if how == "plain":
        # Values that come again, as in images whose pixels have few.
        return _stream(zlib.Z_DEFAULT_STRATEGY, array.tobytes())
    if how == "strips":
        n, m = array.shape
        return _stream(zlib.Z_HUFFMAN_ONLY, *np.ascontiguousarray(array.reshape(n, m // _STRIP, _STRIP).swapaxes(0, 1)))
    flat = np.ascontiguousarray(array).reshape(-1)
    size = flat.dtype.itemsize
    there = flat.view(f"u{size}") != 0
    planes = flat[there].view(np.uint8).reshape(-1, size).T
    return _stream(zlib.Z_HUFFMAN_ONLY, np.packbits(there), *np.ascontiguousarray(planes))


def _stream(strategy: int, *parts: Any) -> bytes:
    """Return a deflate stream of some parts, each with codes of its own."""
    made = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return (
        b"".join(data for part in parts for data in (made.compress(part), made.flush(zlib.Z_SYNC_FLUSH))) + made.flush()
    )


def _plain(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    return data.view(dtype).reshape(shape).copy()


def _strips(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    import numpy as np

    n, m = shape
    if dtype != np.uint8:
        raise ValueError("of another type")
    return np.ascontiguousarray(data.reshape(m // _STRIP, n, _STRIP).swapaxes(0, 1)).reshape(n, m)


def _sparse(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    import numpy as np

    count, size = math.prod(shape), dtype.itemsize
    there = np.unpackbits(data[: (count + 7) // 8], count=count).view(bool)
    planes = data[(count + 7) // 8 :].reshape(size, -1)
    flat = np.zeros(count, dtype)
    flat[there] = np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
    return flat.reshape(shape)


_READ: Mapping[str, Callable[[NDArray[np.uint8], np.dtype[Any], list[int]], NDArray[Any]]] = {
    "plain": _plain, "strips": _strips, "sparse": _sparse,
}  # fmt: skip
