"""Ways to damage a file, and what a run directory holds that must not differ afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.cells import raw_entry, replace_line
from support.commands import Forks
from support.damage import Differences, Edit, Edits, Operation
from support.suites import Tiny
from support.tables import whole_tables

# What may differ between two calls of one command.
_VOLATILE = ("checksum", "started", "finished", "seconds", "costs", "files", "packs")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _flip_unseen(path: Path) -> None:
    """Bit rot: neither size nor time tells of it."""
    state = path.stat()
    _flip(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _digit_unseen(path: Path) -> None:
    """One digit of a text becomes another one, and neither size nor time tells of it."""
    state, data = path.stat(), bytearray(path.read_bytes())
    digits = [i for i, byte in enumerate(data) if 48 <= byte < 57]
    if not digits:
        return _flip_unseen(path)
    data[digits[len(digits) // 3]] += 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


def _delete(path: Path) -> None:
    path.unlink()


def _swap(path: Path) -> None:
    """Another file of its kind takes its place."""
    others = [p for p in sorted(path.parent.iterdir()) if p != path and p.suffix == path.suffix and p.is_file()]
    data = others[0].read_bytes() if others else b"{}"
    path.write_bytes(data)


def _link(path: Path) -> None:
    outside = path.parent / f"moved-{path.name}"
    path.rename(outside)
    path.symlink_to(outside.name)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"{path.name[:80]}.s")
        Path(f"{path.name[:80]}.s").rename(path.name)
    finally:
        os.chdir(here)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def _sparse(path: Path) -> None:
    os.truncate(path, 6 * 2**30)


OPERATIONS: Mapping[str, Operation] = {
    f.__name__.removeprefix("_"): f
    for f in (_flip, _flip_unseen, _digit_unseen, _cut, _empty, _grow, _delete, _swap, _link, _endless, _pipe, _socket,
              _folder, _sparse)
}  # fmt: skip


@pytest.fixture(scope="session")
def operations() -> Mapping[str, Operation]:
    """What can happen to a file, by name."""
    return OPERATIONS


@pytest.fixture(scope="session")
def everything() -> bool:
    """Whether all damages are tried, and not only some of each kind."""
    return bool(os.environ.get("AFTERSHOCK_DAMAGE"))


@pytest.fixture(scope="session")
def counted() -> Iterator[dict[str, int]]:
    """Counts what was tried and how it ended; a summary is printed at the end (``-s``)."""
    counts: dict[str, int] = {}
    yield counts
    print("\nDamage:", json.dumps(counts, sort_keys=True))


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from _leaves(value[0], (*path, 0))


def _other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value[:-1]}{'a' if value[-1:] != 'a' else 'b'}"
    if isinstance(value, dict):
        return dict(list(value.items())[1:]) if value else {"more": 1}
    return value[1:] if value else [1] if isinstance(value, list) else 1


def edits_of(path: Path, key: str = "") -> list[tuple[str, Edit]]:
    """Every field of a JSON file, or of a cell's entry in a run directory, and a function that changes it; the file's
    form and time stay."""

    def read() -> Any:
        return raw_entry(path, key) if key else json.loads(path.read_text(encoding="utf-8"))

    def write(changed: Any) -> None:
        if key:
            line = json.dumps(changed, separators=(",", ":"), ensure_ascii=False) + "\n"
            return replace_line(path, key, line.encode())
        state = path.stat()
        path.write_text(json.dumps(changed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def edit(where: tuple[str | int, ...]) -> Callable[[], None]:
        def change() -> None:
            inner = changed = read()
            for step in where[:-1]:
                inner = inner[step]
            inner[where[-1]] = _other(inner[where[-1]])
            write(changed)

        return change

    return [("/".join(map(str, where)), edit(where)) for where in _leaves(read()) if where]


@pytest.fixture(scope="session")
def edits() -> Edits:
    """Lists what can be edited in a JSON file."""
    return edits_of


@pytest.fixture(scope="session")
def damaged_place(tmp_path_factory: pytest.TempPathFactory, forks: Forks, tiny: Tiny) -> Path:
    """A folder with a suite, its finished run ``run``, and its cache ``cache``, no file of which is shared."""
    folder = tmp_path_factory.mktemp("damage")
    detectors = [{"name": "msp"}, {"name": "mahalanobis"}]
    tiny(folder / "suite.toml", detectors=detectors)
    with (folder / "suite.toml").open("a") as suite:
        suite.write('\n[[analyses]]\nname = "rdm"\n')
    done = forks("run", "suite.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE="cache")
    assert done.status == 0, done.output
    for name in ("run", "cache"):
        # Copies have one name each, where run and cache would share files by hard links.
        shutil.copytree(folder / name, folder / f"{name}-copy")
        shutil.rmtree(folder / name)
        (folder / f"{name}-copy").rename(folder / name)
    return folder


def _facts(run: Path) -> dict[str, Any]:
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {k: v for k, v in facts.items() if k not in _VOLATILE}


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shown(run: Path, tables: Mapping[str, bytes]) -> dict[str, Any]:
    """All that a run directory shows, as far as two runs of one suite may not differ in it, but its pages."""
    timings = (run / "tables" / "timings.csv").read_text().splitlines()
    return {
        "facts": _facts(run),
        "tables": {name: data for name, data in tables.items() if not name.startswith("moved-")},
        "timings": [line.split(",")[:5] for line in timings],
        "analyses": {k: v for k, v in _contents(run / "analyses").items() if "moved-" not in k},
        "assets": {k: v for k, v in _contents(run / "site" / "assets").items() if "moved-" not in k},
    }


@pytest.fixture(scope="session")
def differences() -> Differences:
    """Tells in what one run directory differs from another one of the same suite; empty if it may pass for it."""

    def compare(run: Path, other: Path) -> list[str]:
        from aftershock.reports.site.build import build_site

        left, right = (shown(folder, whole_tables(folder)) for folder in (run, other))
        found = [name for name in left if left[name] != right[name]]
        pages = {name: (run / "site" / name).read_bytes() for name in ("index.html", *_pages(other))}
        if any((other / "site" / name).read_bytes() != page for name, page in pages.items()):
            # It was written again, with other times: as a report of what now lies there would be.
            copy = run.with_name(f"{run.name}-copy")
            shutil.copytree(run, copy, symlinks=True, ignore=shutil.ignore_patterns("site", "cells", "artifacts"))
            build_site([copy], copy / "site")
            found += [name for name, page in pages.items() if (copy / "site" / name).read_bytes() != page]
            shutil.rmtree(copy)
        for name in (n for n in left["tables"] if left["tables"][n] != right["tables"].get(n)):
            a, b = (s["tables"][name].decode().splitlines() for s in (left, right))
            found += [f"{name}: {x} instead of {y}" for x, y in zip(a, b, strict=False) if x != y][:3]
        return found + [str(p.relative_to(run)) for p in run.rglob("*") if p.name.endswith((".tmp", ".part"))]

    return compare


def _pages(run: Path) -> list[str]:
    return [f"analyses/{page.name}" for page in sorted((run / "site" / "analyses").iterdir())]
