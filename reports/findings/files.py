"""The files of an analysis: one folder per result in the run directory, written by the harness and read by the site.

``analyses/<dataset>-<model>-<seed>-<label>/`` holds ``findings.json`` (who was studied, and the findings), the tensors
in ``arrays.safetensors``, a CSV file per table and a PNG file per figure of pictures. A run directory may come from an
untrusted source: what is read is limited in size, never followed through a link, and never executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...harness.core.errors import UsageError
from ...harness.core.files import MIB, file_digest, is_regular, open_tensors, read_file
from ...harness.core.formats import check_schema, package_version
from ...harness.evaluation.csv_files import write_csv
from ..read.run_directory import check_published, mapping, words

if TYPE_CHECKING:
    from torch import Tensor

    from ...analyses.findings import Figure, Findings, Table

FOLDER = "analyses"
SCHEMA = 1
JSON_LIMIT = 16 * MIB
ARRAYS_LIMIT = 512 * MIB
FILE_LIMIT = 512 * MIB
RESULTS_LIMIT = 500
OWN = ("findings.json", "arrays.safetensors")
WHO = ("dataset", "model", "seed", "label")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST = 200  # file systems end at 255 bytes, and a name gets a prefix while it is written
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, eq=False)
class Result:
    """One analysis of one model and seed, as its folder tells it.

    Attributes:
        folder: the folder's name; empty where the trouble is with all of them.
        head: dataset, model, seed, label, name, title, paper, and what else the harness told.
        findings: ``None`` where they cannot be read.
        problem: why not, in one sentence.
        files: name and bytes of the tables, pictures and arrays beside it.
        digest: of ``findings.json``; two copies of one result share it.
    """

    folder: str
    head: Mapping[str, object] = field(default_factory=dict)
    findings: Findings | None = None
    problem: str = ""
    files: tuple[tuple[str, int], ...] = ()
    digest: str = ""

    def text(self, key: str) -> str:
        """Return a fact of the head as one line."""
        return words(self.head.get(key))


def findings_folder(run: Path, head: Mapping[str, object]) -> Path:
    """Return where a result belongs.

    Raises:
        UsageError: if data set, model, seed or label could lead anywhere else.
    """
    return Path(run) / FOLDER / _folder_name(head)


def _folder_name(head: Mapping[str, object]) -> str:
    for key in WHO:
        if not _LABEL.fullmatch(words(head.get(key))):
            raise UsageError(
                f"{words(head.get(key))[:80]!r} cannot name an analysis' folder: a {key} has letters, digits, dots, "
                "hyphens and underscores, and begins with a letter or a digit."
            )
    name = "-".join(words(head[key]) for key in WHO)
    if len(name) > _LONGEST:
        raise UsageError(f"The folder {name[:40]}... would have {len(name)} letters: choose shorter labels.")
    return name


def file_names(names: Sequence[str], suffix: str, taken: Iterable[str] = OWN) -> list[str]:
    """Return one file name for each title, label or table name, made of letters, digits, hyphens and underscores.

    No two are alike on a file system that does not tell capitals from small letters, and none is ``taken``.
    """
    taken = {name.casefold() for name in taken}
    made = []
    for number, name in enumerate(names, 1):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:80] or f"unnamed-{number}"
        found, count = f"{stem}{suffix}", 2
        while found.casefold() in taken:
            found, count = f"{stem}-{count}{suffix}", count + 1
        taken.add(found.casefold())
        made.append(found)
    return made


def table_files(tables: Sequence[Table]) -> list[str]:
    """Return the CSV file of each table."""
    return file_names([t.name for t in tables], ".csv")


def picture_files(figures: Sequence[Figure]) -> dict[int, str]:
    """Return the PNG file of each figure of pictures, by the figure's position."""
    from ...analyses.findings import Pictures

    positions = [i for i, f in enumerate(figures) if isinstance(f, Pictures)]
    names = file_names([figures[i].title.lower() for i in positions], ".png")
    return dict(zip(positions, names, strict=True))


def write_findings(folder: Path, head: Mapping[str, object], findings: Findings) -> None:
    """Write a result's folder; a reader sees the old one or the new one, never half of it.

    Args:
        folder: from :func:`findings_folder`, with the same ``head``.
        head: ``dataset``, ``model``, ``seed``, ``label``, and for the page ``name``, ``title``, ``paper`` and
            ``parameters`` (a mapping); ``without`` (a list), the perturbations that failed; JSON values.
        findings: what was found. Numbers that are not finite become empty.

    Raises:
        UsageError: if the folder's name is not the head's, the folder of all analyses is a link, another analysis
            lies there, or the findings hold what no file can.
    """
    from safetensors.torch import save

    from .figures import sheet

    folder = Path(folder)
    if folder.name != _folder_name(head):
        raise UsageError(f"The folder {folder} is not that of {_folder_name(head)}.")
    if folder.parent.is_symlink():
        raise UsageError(f"{folder.parent} is a link: remove it, results are written into the run directory only.")
    _refuse_another(folder, head)
    sound = _sound(findings)
    tensors, value = sound.stored()
    text = json.dumps(
        _finite({"schema": SCHEMA, "aftershock": package_version(), **head, "findings": value}),
        allow_nan=False,
        ensure_ascii=False,
        sort_keys=True,
    )
    folder.parent.mkdir(exist_ok=True)
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    _remove(part)
    part.mkdir()
    try:
        (part / "findings.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        # Clones: safetensors refuses tensors that share memory, as views of one array do.
        (part / "arrays.safetensors").write_bytes(save({k: v.clone() for k, v in tensors.items()}))
        for table, name in zip(sound.tables, table_files(sound.tables), strict=True):
            columns = [f"'{c}" if c.startswith(_FORMULA) else c for c in table.columns]
            write_csv(part / name, columns, table.rows, digits=9)
        for position, name in picture_files(sound.figures).items():
            picture = sheet(sound.figures[position])
            if picture is not None:
                (part / name).write_bytes(picture)
        _remove(old)
        if folder.exists() or folder.is_symlink():
            folder.replace(old)
        part.replace(folder)
    finally:
        _remove(part)
        _remove(old)


def remove_others(run: Path, keep: Sequence[Path]) -> None:
    """Remove results that a run directory holds from an earlier suite; only folders that hold findings are touched."""
    root = Path(run) / FOLDER
    if root.is_symlink() or not root.is_dir():
        return
    names = {path.name for path in keep}
    for folder in sorted(root.iterdir()):
        if folder.name not in names and not folder.is_symlink() and (folder / "findings.json").is_file():
            shutil.rmtree(folder)


def _refuse_another(folder: Path, head: Mapping[str, object]) -> None:
    """``a-b`` of ``c`` and ``a`` of ``b-c`` share a name: the second must not take the first one's place."""
    try:
        known = json.loads(read_file(folder / "findings.json", JSON_LIMIT, follow=False))
    except (OSError, UsageError, ValueError, RecursionError):
        return  # nothing there, or nothing that is worth keeping
    if any(words(mapping(known).get(key)) != words(head[key]) for key in WHO):
        raise UsageError(f"{folder} holds another analysis of the same name: choose other labels for the two.")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _sound(findings: Findings) -> Findings:
    """Return the findings as plain numbers that can be read back, whatever an analysis computed."""
    from ...analyses.findings import HeatMaps, Lines
    from .figures import colour_range

    figures: list[Figure] = []
    for figure in findings.figures:
        if isinstance(figure, HeatMaps) and not (math.isfinite(figure.low) and math.isfinite(figure.high)):
            low, high = colour_range(figure)
            figure = replace(figure, low=low, high=high)
        if isinstance(figure, Lines):
            ends = figure.y_range
            figure = replace(
                figure,
                x=[str(x) if isinstance(x, float) and not math.isfinite(x) else x for x in figure.x],
                y_range=ends if ends and all(math.isfinite(y) for y in ends) else None,
            )
        figures.append(figure)
    tables = [replace(t, rows=[[_cell(v) for v in row] for row in t.rows]) for t in findings.tables]
    for table in tables:
        if any(len(row) != len(table.columns) for row in table.rows):
            raise UsageError(f"The table {table.name!r} has rows that are not as long as its header.")
    return replace(findings, figures=figures, tables=tables)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else words(str(value))


def read_findings(run: Path, arrays: bool = True, facts: Mapping[str, object] | None = None) -> list[Result]:
    """Every result of a run directory, by folder name; what is damaged says so in its ``problem``.

    Args:
        run: the run directory.
        arrays: also read :attr:`Findings.arrays`, which no page shows.
        facts: the run's ``run.json``; a result with a file that is not the one listed there is damaged.
    """
    listed = mapping((facts or {}).get("files"))
    root = Path(run) / FOLDER
    if root.is_symlink():
        return [Result("", problem=f"{root} is a link, which a report does not follow: replace it by the folder.")]
    there = [f.name for f in root.iterdir() if not f.name.startswith(".")] if root.is_dir() else []
    lost = [parts[1] for parts in (name.split("/") for name in listed) if len(parts) == 3 and parts[0] == FOLDER]
    folders = sorted({*there, *lost})
    found = [_result(root / name, arrays, {"files": listed}) for name in folders[:RESULTS_LIMIT]]
    if len(folders) > RESULTS_LIMIT:
        found.append(Result("", problem=f"{root} has {len(folders)} entries; the first {RESULTS_LIMIT} were read."))
    return found


def _result(folder: Path, arrays: bool, facts: Mapping[str, object]) -> Result:
    where = f"{FOLDER}/{words(folder.name)[:_LONGEST]}"
    try:
        _check_files(folder, facts)
        return _read_result(folder, arrays)
    except UsageError as error:
        # A page does not say where on this machine the run lies.
        reason = words(str(error).replace(f"{folder}{os.sep}", ""))
    except (ValueError, TypeError, KeyError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        reason = words(repr(error))  # RuntimeError: also too deep a nesting, and tensors of the wrong kind
    return Result(folder.name, problem=f"{where} cannot be shown: {reason[:300]}")


def _check_files(folder: Path, facts: Mapping[str, object]) -> None:
    """Refuse a result of which a file is not the one that the run wrote."""
    run, start = folder.parent.parent, f"{FOLDER}/{folder.name}/"
    for name in mapping(facts["files"]):
        if name.startswith(start):
            try:
                digest = file_digest(run / name, FILE_LIMIT, within=run)
            except (FileNotFoundError, NotADirectoryError):
                digest = None
            check_published(run, facts, name, digest)


def _read_result(folder: Path, arrays: bool) -> Result:
    from ...analyses.findings import Findings

    if folder.is_symlink() or not folder.is_dir():
        raise UsageError("it is not a folder")
    try:
        content = read_file(folder / "findings.json", JSON_LIMIT, follow=False)
    except FileNotFoundError:
        raise UsageError("there is no findings.json") from None
    whole = mapping(json.loads(content))
    head = {k: v for k, v in whole.items() if k not in ("schema", "aftershock", "findings")}
    check_schema("findings.json", whole.get("schema"), SCHEMA, whole.get("aftershock"))
    if _folder_name(head) != folder.name:
        raise UsageError(f"findings.json is about {_folder_name(head)}")
    value = dict(mapping(whole.get("findings")))
    if not arrays and isinstance(value.get("arrays"), dict):
        value["arrays"] = {}
    files = tuple(
        (f.name, f.lstat().st_size) for f in sorted(folder.iterdir())
        if re.fullmatch(r"[A-Za-z0-9_-]+\.(csv|png|safetensors)", f.name) and is_regular(f)
    )  # fmt: skip
    try:
        with open_tensors(folder / "arrays.safetensors", ARRAYS_LIMIT, follow=False) as stream:
            found = Findings.read(_Tensors(stream), value)
    except FileNotFoundError:
        raise UsageError("there is no arrays.safetensors") from None
    return Result(folder.name, head, found, "", files, hashlib.sha256(content).hexdigest())


class _Tensors(Mapping[str, "Tensor"]):
    """The tensors of an open file, each read when it is asked for and then kept."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._read = stream, dict[str, "Tensor"]()
        self._keys = set(stream.keys())

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        if key not in self._read:
            # A copy: the file may be replaced while the page is made.
            self._read[key] = self._stream.get_tensor(key).clone()
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
