"""Messages between two processes: JSON and tensors over a socket. Nothing is unpickled on either side.

A message is the length of its JSON (8 bytes), the JSON, and the bytes of the tensors that it lists, one after the
other. What comes from the other side is checked before memory is given to it.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...core.errors import AftershockError, text_of
from ...tracing.rows import Rows

_LENGTH = 8
# More than any header of ours.
_HEADER_LIMIT = 64 * 2**20
# Approximate size in bytes of the parts in which rows are read and sent.
_PART = 8 * 2**20
# Smaller messages are sent in one piece.
_AT_ONCE = 2**20
# Larger tensors lie in a file that is mapped, so that a set larger than memory can be received.
_MAPPED = 128 * 2**20
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
        torch.int64, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip


class ChannelError(AftershockError):
    """The other side is gone, or what it sent is not a message."""


@dataclass(frozen=True, eq=False)
class Message:
    """JSON values, and tensors (or rows that are read while they are sent) by name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor | Rows] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of a message that was received; raises :class:`ChannelError` where it is missing."""
        found = self.tensors.get(name)
        if not isinstance(found, Tensor):
            raise ChannelError(f"an answer without {name!r}")
        return found


class Channel:
    """One end of a connection.

    Args:
        connection: a connected stream socket.
        seconds: how long the other side may stop in the middle of a message; ``None`` for as long as it likes.
        limit: bytes of tensors that one message may hold; ``None`` for as many as there are.
        folder: where large tensors are put that are received; ``None`` keeps all in memory.
    """

    def __init__(
        self, connection: socket.socket, seconds: float | None = None, limit: float | None = None,
        folder: str | None = None,
    ) -> None:  # fmt: skip
        self._socket, self._limit, self._folder = connection, limit, folder
        self._process = os.getpid()
        connection.settimeout(seconds)

    def fileno(self) -> int:
        """Return the descriptor, for ``select``."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, message: Message) -> None:
        """Send a message; raises :class:`ChannelError` if the other side is gone, and in a fork of the process."""
        self._check_process()
        listed = [[name, _name_of(rows), list(rows.shape)] for name, rows in message.tensors.items()]
        # Before anything is sent: what has no bytes must not leave half a message behind.
        parts = [_bytes(rows) if isinstance(rows, Tensor) else rows for rows in message.tensors.values()]
        header = json.dumps({**message.values, "tensors": listed}).encode()
        try:
            start = len(header).to_bytes(_LENGTH, "big") + header
            if sum(_size(part) for part in parts) <= _AT_ONCE:
                # Each piece that is sent alone may wake the other side, which then waits for the next.
                self._socket.sendall(b"".join([start, *(_whole(part) for part in parts)]))
                return
            self._socket.sendall(start)
            for part in parts:
                self._send_part(part)
        except OSError as error:
            raise ChannelError(f"the other process takes nothing ({error})") from error

    def receive(self) -> Message:
        """Return the next message; raises :class:`ChannelError` if there is none, or it is none, and in a fork."""
        self._check_process()
        try:
            length = int.from_bytes(self._read(_LENGTH), "big")
            if length > _HEADER_LIMIT:
                raise ChannelError("a header of impossible length")
            header = self._read(length)
            values = json.loads(header)
            if b"\\ud" in header:
                # Half of a surrogate pair has no encoding: no file or terminal would take it.
                values = _encodable(values)
            listed = [(str(name), _DTYPES[dtype], _shape(shape)) for name, dtype, shape in values.pop("tensors")]
            size = sum(prod(shape) * dtype.itemsize for _, dtype, shape in listed)
            if self._limit is not None and size > self._limit:
                raise ChannelError(f"{size} bytes of tensors, more than it may hold")
            return Message(values, {name: self._tensor(dtype, shape) for name, dtype, shape in listed})
        except (OSError, EOFError) as error:
            raise ChannelError(f"the other process does not answer ({error})") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
            raise ChannelError(f"what the other process sent is not a message ({type(error).__name__})") from error

    def _check_process(self) -> None:
        # What a part's forks say or take would be another question's.
        if os.getpid() != self._process:
            raise ChannelError("this process is a copy of the one that is asked")

    def _send_part(self, rows: memoryview | Rows) -> None:
        if isinstance(rows, memoryview):
            self._socket.sendall(rows)
            return
        row = max(1, prod(rows.shape[1:]) * rows[0:0].dtype.itemsize)
        step = max(1, _PART // row)
        for start in range(0, len(rows), step):
            self._socket.sendall(_bytes(rows[start : start + step]))

    def _tensor(self, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        count = prod(shape)
        if self._folder is not None and count * dtype.itemsize > _MAPPED:
            # The mapping keeps the file, which has no name any more, until the tensor is gone.
            with tempfile.NamedTemporaryFile(dir=self._folder) as file:
                file.truncate(count * dtype.itemsize)
                flat = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
        else:
            flat = torch.empty(count, dtype=dtype)
        self._fill(_memory(flat))
        return flat.reshape(tuple(shape))

    def _read(self, size: int) -> bytearray:
        found = bytearray(size)
        self._fill(memoryview(found))
        return found

    def _fill(self, view: memoryview) -> None:
        while len(view):
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError("it has ended")
            view = view[got:]


def _encodable(value: Any) -> Any:
    """Return a JSON value whose texts all have an encoding."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(inner) for name, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, list) else value


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 1:
        # A single number counts as contiguous whatever its stride.
        flat = flat.clone(memory_format=torch.contiguous_format)
    return _memory(flat)


def _memory(flat: Tensor) -> memoryview:
    """Return the memory of a tensor of one dimension, to be read or written."""
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _size(part: memoryview | Rows) -> int:
    return len(part) if isinstance(part, memoryview) else prod(part.shape) * part[0:0].dtype.itemsize


def _whole(part: memoryview | Rows) -> memoryview:
    return part if isinstance(part, memoryview) else _bytes(part[0 : len(part)])


def _name_of(rows: Tensor | Rows) -> str:
    dtype = rows.dtype if isinstance(rows, Tensor) else rows[0:0].dtype
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES or (isinstance(rows, Tensor) and (rows.is_sparse or rows.device.type == "meta")):
        raise AftershockError(f"a tensor of type {dtype} on {getattr(rows, 'device', 'cpu')} cannot be sent")
    return name


def _shape(shape: Any) -> tuple[int, ...]:
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise ValueError("a shape holds whole numbers")
    return tuple(shape)


def error_message(error: BaseException) -> tuple[str, list[str]]:
    """An exception as it is sent to the owner: its text in one line, if it has one, and the names of its types."""
    return text_of(error), [kind.__name__ for kind in type(error).__mro__]
