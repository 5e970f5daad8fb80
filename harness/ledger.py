"""The ledger: one small JSON file per finished cell, readable without loading any tensor library."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

SCHEMA = 1
SUFFIX = ".safetensors"
Status = Literal["done", "failed", "skipped"]
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """What the ledger says of one cell.

    Attributes:
        key: the content key, 64 hex digits.
        name: a readable path, e.g. ``digits/cnn/0/perturb/pgd/evaluate/0``.
        status: done, failed (it raised) or skipped (it cannot work here).
        reason: why it failed or was skipped.
        seconds: what computing it took, when it was computed.
        values: the cell's small results (JSON).
        digest: sha256 of the artifact, empty where there is none.
        size: bytes of the artifact.
        modified: its modification time in ns when it was written; saves hashing it again.
    """

    key: str
    name: str
    kind: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    values: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    size: int = 0
    modified: int = 0


def dump_record(record: Record) -> bytes:
    """A ledger entry as it is written."""
    return (json.dumps({"schema": SCHEMA, **asdict(record)}, indent=1, sort_keys=True) + "\n").encode()


def read_record(path: Path) -> Record | None:
    """A ledger entry, or ``None`` where the file is missing, damaged, foreign or of another schema."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("schema") != SCHEMA or not _KEY.fullmatch(value["key"]) or path.stem != value["key"]:
            return None
        record = Record(**value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return record if _well_typed(record) else None


def _well_typed(record: Record) -> bool:
    texts = (record.name, record.kind, record.reason, record.digest)
    whole = (record.size, record.modified)
    return (
        record.status in get_args(Status)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in whole)
        and isinstance(record.seconds, int | float)
        and isinstance(record.values, dict)
    )


def checked_key(key: str) -> str:
    """The key, if it is one: file names are made of it.

    Raises:
        ValueError: for anything but 64 hex digits.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no content key")
    return key


def is_whole(path: Path, record: Record) -> bool:
    """Whether an artifact is as it was written; it is hashed only when size or time say that it was touched."""
    if not record.digest:
        return True
    try:
        state = path.stat()
        if state.st_size != record.size:
            return False
        return state.st_mtime_ns == record.modified or digest_of(path) == record.digest
    except OSError:
        return False


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """Whether a path that a person wrote is a file; a name that cannot be one (too long, no access) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the final name, then rename: a reader sees all or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
