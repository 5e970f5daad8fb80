"""An entry: what one detector did on one data set and model, as a small JSON file that anybody may send.

Every field is checked when a file is read; what cannot be is named with its place. ``metrics`` can be computed again
from the table of images beside the entry (:mod:`.images`), ``claims`` cannot.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ...harness.core.content_keys import canonical
from ...harness.core.errors import UsageError
from ...harness.core.files import MIB, RefusedFileError, parse_strict_json, read_file
from ...harness.core.formats import check_schema, is_sealed, seal
from ...harness.core.protocol_content import ProtocolContent
from ...harness.suite.schema import LABEL

DECIDES_NO_NUMBER = True

SCHEMA = 1
SUFFIX = ".json"
TABLE_SUFFIX = ".csv.gz"
# What an entry with the protocol of a large suite takes is 20 KiB.
ENTRY_LIMIT = MIB
_LONGEST_TEXT = 2000
_LONGEST_LABEL = 120


def _label(value: str) -> str:
    # A model behind a countermeasure is called cnn+jpeg.
    if len(value) > _LONGEST_LABEL or not all(LABEL.fullmatch(part) for part in value.split("+")):
        raise ValueError("a label starts with a letter or digit and holds only letters, digits, '.', '_' and '-'")
    return value


def _text(value: str) -> str:
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"a text has at most {_LONGEST_TEXT} characters")
    if not value.isprintable():
        raise ValueError("a text holds no control characters and no line breaks")
    return value


def _date(value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("a date is written as 2026-12-31, with or without a time") from None
    return _text(value)


def _hexadecimal(length: int) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
            raise ValueError(f"a digest has {length} hexadecimal characters")
        return value

    return AfterValidator(check)


Label = Annotated[str, AfterValidator(_label)]
Text = Annotated[str, AfterValidator(_text)]
Date = Annotated[str, AfterValidator(_date)]
Digest = Annotated[str, _hexadecimal(64)]
ShortDigest = Annotated[str, _hexadecimal(16)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0, le=1e12)]
Number = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Threat(_Part):
    """What the figures are about."""

    norm: Literal["linf", "l2", "l1", "l0"]
    # Budgets are multiplied up to the reach: what is too small to multiply would never get there.
    eps: Annotated[float, Field(ge=1e-9, le=1e9)]


class Protocol(_Part):
    """What rows must share to be compared, in full, so that the digests can be made again."""

    version: Number
    digest: ShortDigest
    series: ShortDigest
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)]
    content: dict[str, Any]
    floor: dict[str, Number]

    def whole(self) -> ProtocolContent:
        """Return what the digests are made of."""
        return ProtocolContent(self.content, tuple(self.seeds), self.version)


class Part(_Part):
    """The detector: its name, its parameters and what it learned from."""

    name: Text
    params: dict[str, Any] = {}
    fit_on: list[Text] = []
    fit_negatives: list[Text] = []


class Metrics(_Part):
    """Columns of the leaderboard that follow from the table of images; see docs/protocol.md for each."""

    n_images: Number
    robust_accuracy_at_fpr_5: Share | None = None
    robust_accuracy_low: Share | None = None
    robust_accuracy_high: Share | None = None
    adaptive_undetected_at_fpr_5: Share | None = None
    fpr_realised_5: Share | None = None
    seed_sd: Positive | None = None
    price: Positive | None = None
    price_low: Positive | None = None
    price_high: Positive | None = None
    r0_median: Positive | None = None
    rd_median: Positive | None = None
    n_price: Number | None = None
    n_rd_censored: Number | None = None
    n_r0_censored: Number | None = None


class Claims(_Part):
    """Columns of the leaderboard that only another run can check, and the model's accuracy on clean images."""

    clean_accuracy: Share | None = None
    surrogate: Text = ""
    flags: Text = ""
    not_ranked_reason: Text = ""
    robust_accuracy_is_upper_bound: Annotated[int, Field(ge=0, le=1)] | None = None
    worst_auroc: Share | None = None
    worst_perturbation: Text = ""
    mean_auroc_seen: Share | None = None
    mean_auroc_unseen: Share | None = None
    n_unseen: Number | None = None
    tpr_at_fpr_1: Share | None = None
    control_flagged_at_fpr_5: Share | None = None
    benign_flagged_at_fpr_5: Share | None = None
    false_alarm_at_quarter_eps: Share | None = None


class Images(_Part):
    """The table of images beside the entry."""

    sha256: Digest
    rows: Number
    reach: Positive | None = None


class Challenge(_Part):
    """Images that somebody else found and that lowered the number."""

    by: Text
    date: Date
    images: Annotated[int, Field(ge=1, le=10**9)]
    before: Share


class Entry(_Part):
    """One row of a board. ``images`` is ``None`` where there is no table: the row is listed, not ranked."""

    checksum: Digest | None = None
    schema_version: Annotated[int, Field(alias="schema")] = SCHEMA
    created: Date
    contributor: Text = ""
    suite: Text = ""
    dataset: Label
    model: Label
    detector: Label
    part: Part | None = None
    threat: Threat
    protocol: Protocol
    data_digest: Digest | None = None
    weights_digest: Digest | None = None
    metrics: Metrics
    claims: Claims
    images: Images | None = None
    images_missing: Text = ""
    challenges: list[Challenge] = []
    versions: dict[Text, Text] = {}
    hardware: dict[Text, Text] = {}

    @property
    def identity(self) -> str:
        """The sha256, in hex, of what the entry is about: two entries that differ in it do not share a file."""
        about = [self.dataset, self.model, self.detector, self.threat.norm, self.threat.eps, self.protocol.digest,
                 self.contributor]  # fmt: skip
        return hashlib.sha256(canonical(about).encode()).hexdigest()

    @property
    def stem(self) -> str:
        """The name of its files without their suffixes, also on file systems that do not tell ``A`` from ``a``."""
        return f"{self.dataset}-{self.model}-{self.detector}"[:100].lower() + f"-{self.identity[:8]}"

    def encode(self) -> bytes:
        """Return the content of its file."""
        return seal(self.model_dump(mode="json", by_alias=True, exclude={"checksum"}))


def parse_entry(content: bytes, path: Path) -> Entry:
    """Return the entry in a file's content.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        UsageError: naming the file, and the field where there is one.
    """
    value = parse_strict_json(content, path)
    if not isinstance(value, dict) or "schema" not in value:
        raise RefusedFileError(f"{path} is no entry: it has no 'schema'. Make one with 'aftershock entry RUN'.")
    writer = value.get("versions")
    check_schema(path, value["schema"], SCHEMA, writer.get("aftershock") if isinstance(writer, dict) else None)
    try:
        entry = Entry.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])[:120]
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {where}: {said[0].lower()}{said[1:200]}.") from error
    if not is_sealed(content):
        raise UsageError(f"{path} was changed after it was written: its checksum is another one.")
    return entry


def read_entry(path: Path, within: Path | None = None) -> Entry:
    """Return an entry from a file; errors are those of :func:`parse_entry` and :func:`read_content`."""
    return parse_entry(read_content(path, within), path)


def read_content(path: Path, within: Path | None = None) -> bytes:
    """Return the content of an entry's file; links and special files are refused.

    Raises:
        UsageError: if it is no regular file of at most 1 MiB.
    """
    try:
        return read_file(path, ENTRY_LIMIT, within, follow=False)
    except FileNotFoundError as error:
        raise UsageError(f"There is no entry {path}.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def rounded(value: float | None) -> float | None:
    """Return a metric as entries hold it, with six significant digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
