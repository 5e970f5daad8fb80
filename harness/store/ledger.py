"""The ledger: one small JSON file per finished cell, readable without loading any tensor library."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.cell_names import CellName
from ..core.errors import UsageError
from ..core.files import MIB, file_digest, read_file
from ..core.formats import check_schema, is_sealed, package_version, seal

DECIDES_NO_NUMBER = True

SCHEMA = 3
SUFFIX = ".safetensors"
# The largest entries hold the words and tables of an analysis.
RECORD_LIMIT = 64 * MIB
Status = Literal["done", "failed", "skipped"]
KEY = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Record:
    """What the ledger says of one cell.

    Attributes:
        key: the content key, 64 hex digits.
        name: what the cell is about, e.g. ``digits/cnn/0/perturb/pgd/evaluate/0``: in a run directory as that run
            calls it, in the cache as the run that computed it did.
        status: done, failed (it raised) or skipped (it cannot work here).
        reason: why it failed or was skipped.
        seconds: what computing it took, when it was computed.
        values: the cell's small results (JSON).
        digest: sha256 of the artifact, empty where there is none.
        size: bytes of the artifact.
        modified: its modification time in ns when it was written; saves hashing it again.
    """

    key: str
    name: CellName
    status: Status
    reason: str = ""
    seconds: float = 0.0
    values: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    size: int = 0
    modified: int = 0

    @property
    def kind(self) -> str:
        """What the cell does."""
        return self.name.kind


def dump_record(record: Record) -> bytes:
    """Return a ledger entry as it is written: with a checksum over everything in it."""
    return seal({"schema": SCHEMA, "aftershock": package_version(), **asdict(record), "name": record.name.as_json()})


def read_record(path: Path) -> Record | None:
    """Return a ledger entry, or ``None`` where the file is missing, damaged, edited, foreign or of an older schema.

    Raises:
        UsageError: if a newer version of Aftershock wrote it.
    """
    try:
        content = read_file(path, RECORD_LIMIT, follow=False)
    except (OSError, UsageError):
        return None
    if not is_sealed(content):
        return None
    try:
        value = json.loads(content)
        del value["checksum"]
        schema, writer = value.pop("schema"), value.pop("aftershock")
        if schema == SCHEMA:
            record = Record(**{**value, "name": CellName.from_json(value["name"])})
            own = KEY.fullmatch(record.key) and path.stem == record.key
            return record if own and _well_typed(record) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if isinstance(schema, int) and schema > SCHEMA:
        check_schema(path, schema, SCHEMA, writer)
    return None


def _well_typed(record: Record) -> bool:
    texts = (record.reason, record.digest)
    whole = (record.size, record.modified)
    return (
        record.status in get_args(Status)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in whole)
        and isinstance(record.seconds, int | float)
        and isinstance(record.values, dict)
    )


def checked_key(key: str) -> str:
    """Return the key, if it is one: file names are made of it.

    Raises:
        ValueError: for anything but 64 hex digits.
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a content key")
    return key


def is_whole(path: Path, record: Record, hashed: bool = True) -> bool:
    """Return whether an artifact is as it was written.

    Args:
        path: the artifact.
        record: its entry in the ledger.
        hashed: read all of it; otherwise it is hashed only when size or time say that it was touched.
    """
    if not record.digest:
        return True
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_size != record.size:
            return False
        return (not hashed and state.st_mtime_ns == record.modified) or file_digest(path, record.size) == record.digest
    except (OSError, UsageError):
        return False
