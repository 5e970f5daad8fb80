"""Run directories as a report reads them: ``run.json`` and the small tables, checked, and nothing else.

A run directory may come from an untrusted source. Nothing in it is executed or unpickled; a file is read only when it
is a regular file inside the directory and below a size limit, and what cannot be read is one sentence that names the
file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from ...harness.core.errors import UsageError
from ...harness.core.files import MIB, RefusedFileError, file_digest, parse_json, read_if_there
from ...harness.core.formats import KEYS, RUN_JSON_LIMIT, RUN_SCHEMA, check_schema, is_sealed

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")

# The propagation table of 15 models and 45 perturbations on 19 taps takes 50 MiB.
TABLE_LIMIT = 256 * MIB
# Of the compressed table of scores.
SCORES_LIMIT = 2**30
_MOST = 10**12  # images; more is not a plausible count

_TEXT = "text"
_NUMBER = "number"
_COUNTS = "counts"


def _columns(text: str, number: str) -> dict[str, str]:
    return {**dict.fromkeys(text.split(), _TEXT), **dict.fromkeys(number.split(), _NUMBER)}


# The columns that the report reads (docs/architecture.md); a table may have more.
TABLES: Mapping[str, Mapping[str, str]] = {
    "leaderboard": _columns(
        "dataset model detector norm eps worst_perturbation surrogate flags seeds protocol_digest",
        "rank robust_accuracy_at_fpr_5 robust_accuracy_low robust_accuracy_high adaptive_undetected_at_fpr_5 "
        "worst_auroc mean_auroc_seen mean_auroc_unseen n_unseen control_flagged_at_fpr_5 benign_flagged_at_fpr_5 "
        "fpr_realised_5 seed_sd",
    ),
    "metrics": _columns(
        "dataset model seed perturbation kind family norm eps outcome detector fit_on seen negatives reason",
        "n_positive n_negative auroc auroc_low auroc_high tpr_at_fpr_5 undetected_success_at_fpr_5 "
        "control_flagged_at_fpr_5",
    ),
    "perturbations": _columns(
        "dataset model seed perturbation kind family library norm eps flags reason",
        "n success_rate mean_l0 mean_l2 mean_linf max_linf forwards_per_image backwards_per_image",
    ),
    "propagation": _columns(
        "dataset model seed perturbation population tap metric",
        "depth n mean q05 q95",
    ),
    "attacks": _columns(
        "dataset model seed perturbation group kind against norm detector",
        "eps n success_rate flagged_at_fpr_5 undetected_success_at_fpr_5",
    ),
    "rejection_curve": _columns("dataset model seed detector norm eps reason", "alpha share low high n"),
    "radii": _columns("dataset model seed detector", "index r0 rd reach"),
    "past_all": _columns("dataset model seed measure detector reason", "eps detectors n share low high"),
}
# Tables that older runs do not have.
ADDED = ("rejection_curve", "radii", "past_all")
# Columns that older runs do not have: all their cells are empty then. Counts are a JSON object of whole numbers.
OPTIONAL: Mapping[str, Mapping[str, str]] = {
    "leaderboard": _columns(
        "not_ranked_reason series_digest",
        "n_images robust_accuracy_is_upper_bound tpr_at_fpr_1 false_alarm_at_quarter_eps price price_low price_high "
        "n_price n_rd_censored accuracy_rank",
    ),
    "attacks": {
        **_columns("", "success_rate_8bit flagged_at_fpr_5_8bit undetected_success_at_fpr_5_8bit"),
        "parts": _COUNTS,
    },
}


@dataclass(frozen=True)
class Row:
    """One row of a table: text cells as strings (``""`` where empty), number cells as finite floats or ``None``."""

    texts: Mapping[str, str]
    numbers: Mapping[str, float | None]
    tallies: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def text(self, column: str) -> str:
        """Return a text cell."""
        return self.texts[column]

    def number(self, column: str) -> float | None:
        """Return a number cell; ``None`` where it is empty or not finite."""
        return self.numbers[column]

    def counts(self, column: str) -> Mapping[str, int]:
        """Return a cell of counts by name; empty where the cell is, or where the table has no such column."""
        return self.tallies.get(column, {})

    def relabelled(self, column: str, text: str) -> Row:
        """Return the same row with another text in one cell."""
        return Row({**self.texts, column: text}, self.numbers, self.tallies)


@dataclass(frozen=True)
class Run:
    """What a run directory says.

    Attributes:
        path: the directory, as it was named.
        facts: ``run.json``, empty where there is none.
        tables: the rows of every table that exists, by the table's name.
    """

    path: Path
    facts: Mapping[str, object] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The suite's name, or else the directory's."""
        return words(self.facts.get("name")) or words(self.suite.get("name")) or self.path.resolve().name

    @property
    def suite(self) -> Mapping[str, object]:
        """The resolved suite, empty where ``run.json`` has none."""
        return mapping(self.facts.get("suite"))

    @property
    def digest(self) -> str:
        """The protocol digest of ``run.json``, or an empty string."""
        return words(self.facts.get("protocol_digest"))

    def rows(self, table: str) -> Sequence[Row]:
        """Return the rows of a table, none where it is missing."""
        return self.tables.get(table, ())


def read_run(path: Path) -> Run:
    """Read one run directory.

    Raises:
        UsageError: if it is not a run directory, or a file in it is malformed, too large, leads out of it, was written
            by a newer version, or is not the one that the run wrote.
    """
    check_run_directory(path)
    tables = {}
    facts = read_facts(path)
    for name, columns in TABLES.items():
        file = f"tables/{name}.csv"
        content = read_if_there(path / file, TABLE_LIMIT, within=path)
        check_published(path, facts, file, None if content is None else hashlib.sha256(content).hexdigest())
        if content is not None:
            tables[name] = _read_table(path / "tables" / f"{name}.csv", content, columns, OPTIONAL.get(name, {}))
    return Run(path, facts, tables)


def check_run_directory(path: Path) -> None:
    """Refuse a path that is no run directory, or one of a run that has not ended."""
    if not path.is_dir():
        raise UsageError(f"There is no run directory {path}: name a directory that `aftershock run` wrote.")
    if (path / "run.json").exists() or (path / "tables").exists():
        return
    if (path / "cells").is_dir():
        raise UsageError(f"The run in {path} has not ended: wait for it, or run its suite again to finish it.")
    raise UsageError(f"{path} is not a run directory: it has neither run.json nor tables/.")


def read_facts(path: Path) -> Mapping[str, object]:
    """Return the ``run.json`` of a run directory, empty where it has none; errors are those of :func:`read_run`."""
    file = path / "run.json"
    content = read_if_there(file, RUN_JSON_LIMIT, within=path)
    # A run writes its keys after its run.json. Tables alone, or with a few facts written by hand, may be reported.
    whole = os.path.lexists(path / KEYS)
    if content is None:
        if whole:
            raise UsageError(f"{path} has lost its run.json: run the suite again to write it anew.")
        return {}
    try:
        facts = parse_json(content, file)
    except RefusedFileError as error:
        raise UsageError(f"{error} Run the suite again to write it anew.") from error
    if not isinstance(facts, dict):
        raise UsageError(f"{file} holds no JSON object: run the suite again to write it anew.")
    schema = facts.get("schema", 1)
    check_schema(file, schema, RUN_SCHEMA, mapping(facts.get("versions")).get("aftershock"))
    if (whole or schema == RUN_SCHEMA or "checksum" in facts) and not is_sealed(content):
        raise UsageError(f"{file} was changed or damaged after the run wrote it: run the suite again to write it anew.")
    return cast("dict[str, object]", facts)


def check_published(run: Path, facts: Mapping[str, object], name: str, digest: str | None) -> None:
    """Refuse a file that is not the one that its run wrote.

    Args:
        run: the run directory.
        facts: its ``run.json``; where that does not list the file, there is nothing to compare with.
        name: the file's path in the run directory.
        digest: its sha256, ``None`` where it is missing.

    Raises:
        UsageError: if the run lists another one.
    """
    wanted = mapping(facts.get("files")).get(name)
    if wanted is not None and digest != wanted:
        what = "is missing" if digest is None else "was changed or damaged after the run wrote it"
        raise UsageError(f"{run / name} {what}: run the suite again to write it anew.")


def check_scores(path: Path, facts: Mapping[str, object]) -> None:
    """Refuse a table of scores that is not the one that the run wrote; errors are those of :func:`check_published`."""
    name = "tables/scores.csv.gz"
    if name in mapping(facts.get("files")):
        there = os.path.lexists(path / name)
        digest = file_digest(path / name, SCORES_LIMIT, within=path) if there else None
        check_published(path, facts, name, digest)


def _read_table(file: Path, content: bytes, columns: Mapping[str, str], optional: Mapping[str, str]) -> list[Row]:
    import io

    import pandas as pd

    try:
        content.decode("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns when a row is longer than the header
            frame = pd.read_csv(
                io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False, encoding="utf-8"
            ).fillna("")
    except (ValueError, Warning) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} is not a table that can be read ({why}): run the suite again.") from error
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise UsageError(f"{file} has no column {', '.join(missing)}: run the suite again with this version.")
    for column in optional:
        if column not in frame.columns:
            frame[column] = ""
    kinds = {**columns, **optional}
    texts = {c: _each(frame[c], unguarded) for c in kinds if kinds[c] == _TEXT}
    numbers = {c: _numbers(frame[c], file) for c in kinds if kinds[c] == _NUMBER}
    tallies = {c: [_counts(v, file, c, line) for line, v in enumerate(frame[c], 2)]
               for c in kinds if kinds[c] == _COUNTS}  # fmt: skip

    def rows(columns: Mapping[str, list[_T]]) -> Iterator[dict[str, _T]]:
        """Return the cells of each row; a dictionary each, and one of its own where there is no column."""
        if not columns:
            return ({} for _ in range(len(frame)))
        return (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))

    return [Row(*parts) for parts in zip(rows(texts), rows(numbers), rows(tallies), strict=True)]


def _each(column: pd.Series[str], change: Callable[[str], str]) -> list[str]:
    """Return a column of texts, changed; each different text once, for few are different."""
    import numpy as np

    codes, different = column.factorize()
    changed = np.array([change(text) for text in different], dtype=object)
    return list(changed[codes]) if len(codes) else []


def _numbers(column: pd.Series[str], file: Path) -> list[float | None]:
    """Return a column of numbers: all at once where they are plain, one by one to say which is none."""
    import numpy as np

    # Blanks are no number, and so are read one by one.
    empty = (column == "").to_numpy()
    try:
        found = column.where(~empty, "nan").to_numpy(dtype=object).astype(np.float64)
    except ValueError:
        return [_number(v, file, str(column.name), line) for line, v in enumerate(column, 2)]
    cells: list[float | None] = found.tolist()
    for place in np.flatnonzero(~np.isfinite(found)):
        cells[place] = None
    return cells


def unguarded(cell: str) -> str:
    """A text cell without the apostrophe that keeps spreadsheets from running it, and without control characters."""
    if len(cell) > 1 and cell[0] == "'" and cell[1] in "=+-@\t\r\n":
        cell = cell[1:]
    return "".join(c for c in cell if c.isprintable() or c in " \n\t").strip()


def _number(cell: str, file: Path, column: str, line: int) -> float | None:
    if not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError as error:
        raise UsageError(
            f"{file} has {cell[:40]!r} in column {column}, row {line}, where a number belongs: run the suite again."
        ) from error
    return value if math.isfinite(value) else None


def _counts(cell: str, file: Path, column: str, line: int) -> Mapping[str, int]:
    if not cell.strip():
        return {}
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MOST for n in found.values()
    ):
        raise UsageError(
            f"{file} has {cell[:40]!r} in column {column}, row {line}, where a JSON object of counts belongs: "
            "run the suite again."
        )
    return {words(name): n for name, n in found.items() if n}


def mapping(value: object) -> Mapping[str, object]:
    """Return the value if it is a JSON object, else an empty one: facts from an untrusted source may have any shape."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def objects(value: object) -> list[Mapping[str, object]]:
    """Return the JSON objects in a list; anything else is left out."""
    return [mapping(v) for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def listed(value: object) -> list[object]:
    """Return the value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def words(value: object) -> str:
    """Return a JSON scalar as text, one line; an empty string for ``null``, lists and objects."""
    if value is None or isinstance(value, (list, dict)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def quantity(value: object) -> float | None:
    """Return a JSON number as a finite float, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
