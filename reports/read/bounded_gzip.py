"""Compressed tables from anybody: a file may unpack to anything."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from ...harness.core.files import open_file

DECIDES_NO_NUMBER = True


class Digest(Protocol):
    """The sha256 of the packed bytes; whole once the stream was read to its end."""

    def hexdigest(self) -> str: ...


@contextmanager
def open_gzip(
    file: Path, within: Path | None, packed: int, unpacked: int, longest_line: int, follow: bool = True
) -> Iterator[tuple[IO[bytes], Digest]]:
    """Open a gzip file for reading.

    Args:
        file: the file.
        within: the folder that it belongs to.
        packed: its largest size, in bytes.
        unpacked: the most that is read of its content, in bytes.
        longest_line: the longest line of its content, in bytes.
        follow: ``False`` to refuse every link in the file's own place.

    Yields:
        the content, whose reading raises ``ValueError`` beyond these limits, and the digest of the file.

    Raises:
        FileNotFoundError: where there is nothing.
        RefusedFileError: for anything but a regular file of at most ``packed`` bytes in its folder.
        OSError: if it cannot be opened.
    """
    with open_file(file, packed, within=within, follow=follow) as raw:
        digested = _Digested(raw)
        with gzip.GzipFile(fileobj=io.BufferedReader(digested)) as opened:
            yield io.BufferedReader(_Bounded(opened, unpacked, longest_line)), digested.sha256


class _Digested(io.RawIOBase):
    """A file whose bytes are digested as they are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self.sha256.update(data)
        buffer[: len(data)] = data
        return len(data)


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it holds more than is sensible."""

    def __init__(self, stream: gzip.GzipFile, most: int, longest_line: int) -> None:
        self._stream, self._left, self._line, self._longest = stream, most, 0, longest_line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it unpacks to more than a report reads")
        end = data.rfind(b"\n")
        self._line = self._line + len(data) if end < 0 else len(data) - end - 1
        if self._line > self._longest:
            raise ValueError("it holds a line that is longer than a report reads")
        buffer[: len(data)] = data
        return len(data)
