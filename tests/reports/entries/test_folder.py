"""Folders of entries from anybody: what can be read is used, what cannot is refused with its name."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aftershock.harness.cli.main import app
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.formats import seal
from aftershock.reports.entries import images
from aftershock.reports.entries.folder import place_in, read_folders, write_entry
from aftershock.reports.entries.images import digest_of
from aftershock.reports.entries.recomputed import Recomputed, differences, read_marks
from aftershock.reports.entries.schema import read_entry
from aftershock.reports.entries.verify import table_path, verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.entries import put, written
from typer.testing import CliRunner


def sealed(path: Path, field: str, value: object) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    del found["checksum"]
    *inner, last = field.split(".")
    at = found
    for step in inner:
        at = at[step]
    at[last] = value
    path.write_bytes(seal(found))


def raw(path: Path, old: str, new: str) -> None:
    """Change the text of an entry and seal it again, with what JSON as Python writes it does not hold."""
    _, rest = path.read_bytes().split(b'",', 1)
    text = rest.decode().replace(old, new, 1)
    assert text != rest.decode()
    import hashlib

    path.write_bytes(b'{\n "checksum": "' + hashlib.sha256(text.encode()).hexdigest().encode() + b'",' + text.encode())


def linked(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def piped(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def emptied(place: Path) -> None:
    place.unlink()
    place.mkdir()


SCRIPT = "<script>alert(1)</script>"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "script in a label": (lambda p: sealed(p, "detector", SCRIPT), "detector"),
    "path in a label": (lambda p: sealed(p, "model", "../../etc"), "model"),
    "formula in a label": (lambda p: sealed(p, "dataset", "=1+1"), "dataset"),
    "line breaks": (lambda p: sealed(p, "contributor", "a\nb"), "contributor"),
    "escape codes": (lambda p: sealed(p, "contributor", "\x1b[2J"), "contributor"),
    "right to left": (lambda p: sealed(p, "contributor", "a\u202eb"), "contributor"),
    "a long text": (lambda p: sealed(p, "claims.flags", "x" * 5000), "claims.flags"),
    "a number as text": (lambda p: sealed(p, "metrics.price", "1.2"), "metrics.price"),
    "text as a number": (lambda p: sealed(p, "suite", 7), "suite"),
    "a list for an object": (lambda p: sealed(p, "metrics", []), "metrics"),
    "null for an object": (lambda p: sealed(p, "protocol", None), "protocol"),
    "a share above 1": (lambda p: sealed(p, "metrics.robust_accuracy_at_fpr_5", 1.5), "robust_accuracy_at_fpr_5"),
    "a negative count": (lambda p: sealed(p, "metrics.n_images", -1), "metrics.n_images"),
    "a huge count": (lambda p: sealed(p, "metrics.n_images", 10**30), "metrics.n_images"),
    "true as a number": (lambda p: sealed(p, "metrics.price", True), "metrics.price"),
    "unknown fields": (lambda p: sealed(p, "verified", True), "verified"),
    "unknown norm": (lambda p: sealed(p, "threat.norm", "l7"), "threat.norm"),
    "a short digest": (lambda p: sealed(p, "protocol.digest", "12"), "protocol.digest"),
    "NaN": (lambda p: raw(p, '"price": 1.3', '"price": NaN'), "NaN"),
    "infinity": (lambda p: raw(p, '"price": 1.3', '"price": -Infinity'), "-Infinity"),
    "1e400": (lambda p: raw(p, '"price": 1.3', '"price": 1e400'), "1e400"),
    "a name twice": (lambda p: raw(p, '"price": 1.3', '"price": 1.3, "price": 2'), "'price' twice"),
    "deep nesting": (lambda p: raw(p, '"params": {}', '"params": {"a": ' + "[" * 100 + "]" * 100 + "}"), "deeply"),
    "deeper nesting": (lambda p: raw(p, '"params": {}', '"params": ' + "[" * 90_000 + "]" * 90_000), "JSON"),
    "a newer schema": (lambda p: sealed(p, "schema", 99), "schema 99"),
    "no schema": (lambda p: p.write_text("{}"), "no 'schema'"),
    "not JSON": (lambda p: p.write_bytes(b"\x80\x00"), "not valid JSON"),
    "empty": (lambda p: p.write_bytes(b""), "not valid JSON"),
    "a change without the checksum": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"Jane Doe", b"Jane Roe")), "checksum"),
    "too large": (lambda p: p.write_bytes(p.read_bytes() + b" " * 2**21), "larger than"),
    "a link": (lambda p: linked(p, p.rename(p.with_suffix(".real"))), "regular file"),
    "a link to outside": (lambda p: linked(p, Path("/etc/passwd")), "leads out of"),
    "a pipe": (lambda p: piped(p), "regular file"),
    "a folder": (lambda p: emptied(p), ""),
    "a table that is a link": (lambda p: linked(table_path(p), Path("/etc/passwd")), "leads out of"),
    "a table that is a device": (lambda p: piped(table_path(p)), "regular file"),
    "a table of rubbish": (lambda p: table_path(p).write_bytes(b"rubbish"), "no table of images"),
    "a table cut off": (
        lambda p: table_path(p).write_bytes(table_path(p).read_bytes()[:-100]), "no table of images"),
    "a table with formulas": (
        lambda p: rows(p, lambda line: line.replace("calibrate", "=cmd()", 1)), "column set"),
    "a table with NaN": (lambda p: rows(p, lambda line: cell(line, 4, "nan")), "column score"),
    "a table with 1e400": (lambda p: rows(p, lambda line: cell(line, 4, "1e400")), "column score"),
    "a table with underscores": (lambda p: rows(p, lambda line: cell(line, 4, "1_0")), "column score"),
    "a table with a negative index": (lambda p: rows(p, lambda line: cell(line, 2, "-4")), "column index"),
    "a table with other digits": (lambda p: rows(p, lambda line: cell(line, 2, "\u0664")), "column index"),
    "a table with too few cells": (lambda p: rows(p, lambda line: line.rsplit(",", 1)[0]), "cells"),
    "a table with a lying header": (lambda p: rows(p, lambda line: line, header="a,b"), "columns are not"),
}  # fmt: skip


def cell(line: str, at: int, value: str) -> str:
    cells = line.split(",")
    return ",".join([*cells[:at], value, *cells[at + 1 :]])


def rows(path: Path, change: Callable[[str], str], header: str = "") -> None:
    """Change the first row of a table."""
    table = table_path(path)
    head, first, *rest = gzip.decompress(table.read_bytes()).decode().splitlines()
    text = "\n".join([header or head, change(first), *rest, ""])
    table.write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize(("spoil", "named"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_the_rest_is_read(
    tmp_path: Path, spoil: Callable[[Path], object], named: str
) -> None:
    bad, good = put(tmp_path, written("msp", seeds=(0,)), written("energy", seeds=(0,)))
    spoil(bad)
    found = read_folders([tmp_path])
    assert [v.path for v in found.entries] == [good]
    if bad.is_dir():
        return
    [refused] = found.refused
    assert refused.path == bad
    assert named in refused.reason
    assert "\x1b" not in refused.reason
    assert len(refused.reason) < 700


def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = put(tmp_path, written())
    head, first, *_ = gzip.decompress(table_path(path).read_bytes()).decode().splitlines()
    table_path(path).write_bytes(gzip.compress(f"{head}\n".encode() + f"{first}\n".encode() * 400_000))
    monkeypatch.setattr(images, "_MOST_BYTES", 1_000_000)
    assert "unpacks to more" in str(verify(path).disagreements[0])
    monkeypatch.setattr(images, "_MOST_BYTES", 10**9)
    monkeypatch.setattr(images, "_MOST_ROWS", 1000)
    assert "more rows" in str(verify(path).disagreements[0])
    table_path(path).write_bytes(gzip.compress(head.encode() + b"\n" + b"1" * 10**6))
    assert "longer than" in str(verify(path).disagreements[0])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_refusal_or_a_disagreement(tmp_path: Path, data: st.DataObject) -> None:
    path = write_entry(written(seeds=(0,)), tmp_path, replace=True)
    target = data.draw(st.sampled_from([path, table_path(path)]))
    content = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            content[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut" and len(content) > 2:
            del content[at : at + data.draw(st.integers(1, 50))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        if not content:
            break
    changed = bytes(content) != target.read_bytes()
    target.write_bytes(bytes(content))
    found = read_folders([path.parent])
    assert bool(found.refused) == changed


def test_a_table_without_evaluate_images_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    for number, kept in enumerate((("seed,", "0,calibrate", "1,calibrate"), ("seed,",))):
        [path] = put(tmp_path / str(number), written())
        lines = gzip.decompress(table_path(path).read_bytes()).decode().splitlines()
        content = gzip.compress("".join(f"{line}\n" for line in lines if line.startswith(kept)).encode())
        table_path(path).write_bytes(content)
        import hashlib

        sealed(path, "images.sha256", hashlib.sha256(content).hexdigest())
        assert verify(path).disagreements


def test_an_entry_is_not_written_over_another_one_and_may_be_written_again(tmp_path: Path) -> None:
    [path] = put(tmp_path, written())
    assert put(tmp_path, written()) == [path]
    with pytest.raises(UsageError, match="--replace"):
        write_entry(written(passing=0.2), tmp_path)
    assert write_entry(written(passing=0.2), tmp_path, replace=True) == path
    assert verify(path).disagreements == []
    assert place_in(tmp_path, written()) == tmp_path / "digits" / "mlp"
    # Names that differ in their case alone, and two contributors of one row, have files of their own.
    stems = {written(name, who).entry.stem for name in ("msp", "MSP") for who in ("Jane", "jane")}
    assert len({stem.lower() for stem in stems}) == 4


def test_the_same_entry_twice_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path / "a", written())
    put(tmp_path / "b", written())
    found = read_folders([tmp_path])
    assert len(found.entries) == len(found.refused) == 1
    with pytest.raises(UsageError, match="no entries there"):
        read_folders([_empty(tmp_path)])
    with pytest.raises(UsageError, match="There is no"):
        read_folders([tmp_path / "gone"])


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_marks_name_entries_by_content_so_that_a_changed_one_loses_them(tmp_path: Path) -> None:
    [path] = put(tmp_path, written())
    marks, file = read_marks(tmp_path / "recomputed.json"), tmp_path / "recomputed.json"
    mark = Recomputed(by="A. Referee", date="2026-11-27", robust_accuracy_at_fpr_5=0.5)
    marks.with_mark(digest_of(path.read_bytes()), mark).write(file)
    assert list(read_marks(file).of_digest(digest_of(path.read_bytes()))) == [mark]
    write_entry(written(passing=0.2), tmp_path, replace=True)
    assert not read_marks(file).of_digest(digest_of(path.read_bytes()))
    file.write_text('{"ab": []}')
    with pytest.raises(UsageError, match=r"recomputed\.json"):
        read_marks(file)


def test_a_second_run_may_differ_by_two_images_and_not_by_more(tmp_path: Path) -> None:
    stated, same, other = written().entry, written().entry, written(passing=0.1).entry
    assert differences(stated, same) == []
    assert "metrics.robust_accuracy_at_fpr_5" in {d.field for d in differences(stated, other)}
    hidden = same.model_copy(update={"claims": same.claims.model_copy(update={"not_ranked_reason": "ties"})})
    assert [d.field for d in differences(stated, hidden)] == ["claims.not_ranked_reason"]
    assert [d.field for d in differences(stated, written("energy").entry)][:2] == ["detector", "part"]


def test_an_entry_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no entry"):
        read_entry(tmp_path / "gone.json")


def test_a_name_that_an_object_has_twice_is_found_at_once_among_many(tmp_path: Path) -> None:
    many = ",".join(f'"k{i}":0' for i in range(70_000))
    (tmp_path / "many.json").write_text(f'{{{many},"k69999":0}}', encoding="utf-8")
    began = time.process_time()
    [refused] = read_folders([tmp_path]).refused
    assert "'k69999' twice" in refused.reason
    assert time.process_time() - began < 5


@pytest.mark.skipif(os.name == "nt", reason="file names there are text")
@pytest.mark.parametrize("name", [b"\xff\xfe.json", b"\x1b[31mred.json", b"a\nb.json", "\u202egnp.json".encode()])
def test_a_file_name_that_no_page_or_terminal_takes_is_shown_without_it(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "entries"
    put(folder, written())
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("{}", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes no such name")
    said = CliRunner().invoke(app, ["board", str(folder), "--out", str(tmp_path / "site")])
    assert said.exit_code == 0, said.output
    assert "1 refused" in said.output
    page = (tmp_path / "site" / "entries.html").read_text(encoding="utf-8")
    for text in (said.output, page):
        assert all(c.isprintable() or c == "\n" for c in text)
    [refused] = read_folders([folder]).refused
    assert all(part.isprintable() for part in (*refused.published, str(refused)))


def test_nothing_is_written_through_a_link_out_of_a_board(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    board = tmp_path / "board"
    board.mkdir()
    (board / "digits").symlink_to(tmp_path / "outside", target_is_directory=True)
    one = written()
    with pytest.raises(UsageError, match="leads out"):
        write_entry(one, place_in(board, one), within=board)
    assert list((tmp_path / "outside").iterdir()) == []
