"""What is common to the JSON files that Aftershock writes: a checksum over their content, and a schema with its writer.

The checksum finds damage and careless edits; it does not prove where a file comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .errors import UsageError
from .files import MIB

DECIDES_NO_NUMBER = True

RUN_SCHEMA = 3
# The keys of all cells of a run, a line each; a million of them take 62 MiB.
KEYS = "keys.txt"
# A run.json of 200,000 cells takes some 100 KiB; what fails or is skipped has a line each.
RUN_JSON_LIMIT = 32 * MIB

_HEAD = b'{\n "checksum": "'
_START = len(_HEAD) + 64
_LINE = b'{"checksum":"'
_LINE_START = len(_LINE) + 64
_ENCODE_LINE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def seal(value: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """Return a JSON object as text whose first entry, ``checksum``, is the sha256 of all that follows it.

    Args:
        value: not empty.
        default: what to write for a value that JSON has no form for.

    Raises:
        TypeError: for such a value where there is no ``default``.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, default=default).removeprefix("{")
    rest = f"{text}\n".encode(errors="surrogatepass")
    return _HEAD + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


def is_sealed(content: bytes) -> bool:
    """Return whether a text is as :func:`seal` wrote it."""
    rest = content[_START + 2 :]
    return content.startswith(_HEAD) and content[len(_HEAD) : _START] == hashlib.sha256(rest).hexdigest().encode()


def line_json(value: Mapping[str, Any]) -> str:
    """Return a JSON object as text without line breaks.

    Raises:
        TypeError: for a value that JSON has no form for.
    """
    return _ENCODE_LINE(value)


def seal_text(text: str) -> bytes:
    """Return a JSON object as one line, sealed like :func:`seal`, with its line break.

    Args:
        text: of an object that is not empty, without line breaks.
    """
    rest = f"{text[1:]}\n".encode(errors="surrogatepass")
    return _LINE + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


def is_sealed_line(line: bytes) -> bool:
    """Return whether a line, with its line break, is as :func:`seal_text` wrote it."""
    rest = line[_LINE_START + 2 :]
    return line.startswith(_LINE) and line[len(_LINE) : _LINE_START] == hashlib.sha256(rest).hexdigest().encode()


@cache
def package_version() -> str:
    """Return the version of Aftershock that runs."""
    try:
        return version("aftershock")
    except PackageNotFoundError:
        return "unknown"


def check_schema(where: object, found: object, newest: int, writer: object = None, oldest: int = 1) -> None:
    """Refuse a file of a schema that this version does not read.

    Args:
        where: the file, for the message.
        found: its schema.
        newest: the newest schema that is read.
        writer: the version of Aftershock that the file says it was written by.
        oldest: the oldest one that is read.

    Raises:
        UsageError: if it is not from ``oldest`` to ``newest``.
    """
    if isinstance(found, int) and not isinstance(found, bool) and oldest <= found <= newest:
        return
    by = "an unknown version of aftershock"
    if isinstance(writer, str):
        by = f"aftershock {' '.join(writer.split())[:40]}"
    schema = " ".join(repr(found).split())[:20]
    reads = f"up to {newest}" if oldest == 1 else str(newest) if oldest == newest else f"{oldest} to {newest}"
    older = isinstance(found, int) and not isinstance(found, bool) and found < oldest
    advice = "make it again with this version" if older else "use the version that wrote it, or a newer one"
    raise UsageError(f"{where} was written by {by}, schema {schema}; this version reads {reads}: {advice}.")
