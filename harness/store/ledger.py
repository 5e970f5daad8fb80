"""The ledger: one line of JSON for each finished cell, readable without loading any tensor library.

A line begins with its checksum and with what says where the cell's artifact is (:class:`Head`), in a fixed order, so
that a hundred thousand lines are looked through in a second; the rest is read when it is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from ..core.cell_names import CellName
from ..core.files import MIB
from ..core.formats import is_sealed_line, line_json, package_version, seal_text

DECIDES_NO_NUMBER = True

SCHEMA = 4
# The largest entries hold the words and tables of an analysis.
RECORD_LIMIT = 64 * MIB
Status = Literal["done", "failed", "skipped"]
KEY = re.compile(r"^[0-9a-f]{64}$")
PACK = re.compile(r"^[0-9a-f]{16}$")

_HEAD = re.compile(
    rb'\{"checksum":"[0-9a-f]{64}","schema":([0-9]{1,9}),"key":"([0-9a-f]{64})","written":([0-9]{1,19}),'
    rb'"status":"(done|failed|skipped)","digest":"([0-9a-f]{64}|)","size":([0-9]{1,15}),"modified":([0-9]{1,19}),'
    rb'"pack":"([0-9a-f]{16}|)","offset":([0-9]{1,15}),'
)
_SCHEMA = re.compile(rb'\{"checksum":"[0-9a-f]{64}","schema":([0-9]{1,9}),')


class Held(Protocol):
    """What says where a cell's artifact is and what it was when it was written."""

    @property
    def key(self) -> str: ...
    @property
    def written(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def modified(self) -> int: ...
    @property
    def pack(self) -> str: ...
    @property
    def offset(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an entry; what each field means is told at :class:`Record`."""

    key: str
    written: int
    status: str
    digest: str
    size: int
    modified: int
    pack: str
    offset: int


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
        modified: modification time of the artifact's own file when it was written, in ns since 1970; saves hashing it
            again.
        pack: which pack holds the artifact, and
        offset: where in it; without a pack the artifact is a file of its own.
        written: when the entry was, in ns since 1970: of several entries the newest one counts.
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
    pack: str = ""
    offset: int = 0
    written: int = 0

    @property
    def kind(self) -> str:
        """What the cell does."""
        return self.name.kind

    def placed(self, written: int, pack: str, offset: int) -> Record:
        """Return the same entry with another time and place; a third of the time that ``replace`` takes."""
        return Record(
            self.key, self.name, self.status, self.reason, self.seconds, self.values, self.digest, self.size,
            self.modified, pack, offset, written,
        )  # fmt: skip


def dump_record(record: Record) -> bytes:
    """Return a ledger entry as it is written: a line with a checksum over everything in it.

    Raises:
        TypeError: for values that JSON has no form for.
        ValueError: for such values, and for an entry that is larger than what is read of one.
    """
    head = (
        f'{{"schema":{SCHEMA},"key":"{record.key}","written":{record.written},"status":"{record.status}",'
        f'"digest":"{record.digest}","size":{record.size},"modified":{record.modified},"pack":"{record.pack}",'
        f'"offset":{record.offset},'
    )
    rest = {
        "aftershock": package_version(), "name": record.name.as_json(), "reason": record.reason,
        "seconds": record.seconds, "values": record.values,
    }  # fmt: skip
    line = seal_text(head + line_json(rest)[1:])
    if len(line) > RECORD_LIMIT:
        raise ValueError(f"the values of {record.name} take {len(line)} bytes as JSON, at most {RECORD_LIMIT} are kept")
    return line


def parse_head(line: bytes) -> Head | None:
    """Return the beginning of an entry, or ``None`` where the line is damaged, edited, or of another schema."""
    found = _HEAD.match(line)
    if found is None or int(found[1]) != SCHEMA or not is_sealed_line(line):
        return None
    key, written, status, digest, size, modified, pack, offset = found.groups()[1:]
    return Head(
        key.decode(), int(written), status.decode(), digest.decode(), int(size), int(modified), pack.decode(),
        int(offset),
    )  # fmt: skip


def newer_schema(line: bytes) -> int:
    """Return the schema of an entry that a newer version of Aftershock wrote; 0 for any other line."""
    found = _SCHEMA.match(line)
    return int(found[1]) if found is not None and int(found[1]) > SCHEMA and is_sealed_line(line) else 0


def parse_record(line: bytes) -> Record | None:
    """Return a ledger entry, or ``None`` where the line is damaged, edited, or of another schema."""
    if parse_head(line) is None:
        return None
    try:
        value = json.loads(line)
        del value["checksum"], value["schema"], value["aftershock"]
        record = Record(**{**value, "name": CellName.from_json(value["name"])})
        return record if _well_typed(record) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _well_typed(record: Record) -> bool:
    return (
        record.status in get_args(Status)
        and isinstance(record.reason, str)
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
