"""Content keys: the same for the same content, different for everything that matters."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from aftershock.harness.core import content_keys as keys
from aftershock.harness.core.code_digests import code_digest, part_digest
from aftershock.harness.core.content_keys import FileDigests, canonical, content_key, versions
from aftershock.harness.core.files import file_digest
from aftershock.harness.core.plugin_files import load_plugin_file
from aftershock.harness.core.registry import DETECTORS, Entry, Origin
from aftershock.harness.store.ledger import checked_key
from hypothesis import given
from hypothesis import strategies as st

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Point:
    x: int
    name: str


@given(plain)
def test_canonical_json_says_the_same(value: object) -> None:
    assert json.loads(canonical(value)) == value


def test_canonical_json_has_one_form() -> None:
    assert canonical({"b": 1, "a": [1, 2]}) == canonical({"a": (1, 2), "b": 1}) == '{"a":[1,2],"b":1}'
    assert canonical(Point(1, "p")) == '{"name":"p","x":1}'
    assert canonical({"s": frozenset({3, 1, 2}), "p": Path("/a/b")}) == '{"p":"/a/b","s":[1,2,3]}'


@pytest.mark.parametrize("value", [object(), {"x": print}, b"bytes"])
def test_what_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be part of a content key"):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_equals_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical(value)


def test_keys_are_file_names() -> None:
    assert checked_key(content_key("model", a=1)) == content_key("model", a=1)


def test_keys_differ_by_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        content_key("a"), content_key("b"), content_key("a", x=1), content_key("a", x="1"), content_key("a", x=None),
        content_key("a", y=1), content_key("a", x=[1]), content_key("a", x=[[1]]), content_key("a", x=1.5),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert content_key("a", x=1, y=2) == content_key("a", y=2, x=1)
    monkeypatch.setattr(keys, "PROTOCOL_VERSION", keys.PROTOCOL_VERSION + 1)
    assert content_key("a") not in found


def test_versions_of_what_is_there_and_what_is_not() -> None:
    from importlib.metadata import version

    assert versions("torch", "no-such-distribution") == {"torch": version("torch"), "no-such-distribution": "absent"}


def test_a_part_is_known_by_its_code(tmp_path: Path) -> None:
    assert part_digest(DETECTORS.entry("msp"), "detectors.base.detector") == code_digest("detectors.logits.baselines")
    path = tmp_path / "part.py"
    text = "from aftershock.harness.core.registry import DETECTORS\n@DETECTORS.register('keyed')\nclass A: value = 1\n"
    found = set()
    for number in range(3):
        path.write_text(text.replace("1", str(number)))
        load_plugin_file(path)
        found.add(part_digest(DETECTORS.entry("keyed"), "detectors.base.detector"))
    assert len(found) == 3
    # The file's content, not its place.
    other = tmp_path / "moved.py"
    other.write_text(path.read_text())
    moved = Entry("keyed", object, Origin("file", "", str(other)))
    assert part_digest(moved, "detectors.base.detector") == part_digest(
        DETECTORS.entry("keyed"), "detectors.base.detector"
    )


def test_what_a_session_registered_is_known_by_its_source() -> None:
    class One:
        value = 1

    class Two:
        value = 2

    digests = {part_digest(Entry("x", part, Origin("session")), "detectors.base.detector") for part in (One, Two)}
    assert len(digests) == 2
    assert part_digest(Entry("x", One, Origin("session")), "detectors.base.detector") in digests


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "data.bin", tmp_path / "memory" / "digests.json"
    path.write_bytes(b"one")
    first = FileDigests(memory).of([path])
    hashed: list[Path] = []

    def digest(file: Path) -> str:
        hashed.append(file)
        return file_digest(file)

    monkeypatch.setattr(keys, "file_digest", digest)
    assert FileDigests(memory).of([path]) == first
    assert hashed == []
    path.write_bytes(b"two")
    assert FileDigests(memory).of([path]) != first
    assert hashed == [path]


def test_digests_are_of_contents_in_order(tmp_path: Path) -> None:
    for name, data in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (tmp_path / n for n in "abc")
    digests = FileDigests(None)
    assert digests.of([a, b]) == digests.of([c, b])
    assert digests.of([a, b]) != digests.of([b, a])
    assert digests.of([a]) != digests.of([a, a])


def test_a_changed_file_of_the_same_size_and_time_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"one")
    digests = FileDigests(tmp_path / "m.json")
    first = digests.of([path])
    state = path.stat()
    replacement = tmp_path / "new"
    replacement.write_bytes(b"two")
    os.utime(replacement, ns=(state.st_atime_ns, state.st_mtime_ns))
    replacement.replace(path)
    assert digests.of([path]) != first


@pytest.mark.parametrize(
    "damage", ["", "[]", "null", "{", '{"x": 3}', "[[[", "\x00", "here", '{"HERE": [1, 2, 3]}', '{"HERE": [STAMP, 5]}']
)
def test_a_damaged_memory_is_forgotten(damage: str, tmp_path: Path) -> None:
    path, memory = tmp_path / "data.bin", tmp_path / "digests.json"
    path.write_bytes(b"one")
    state = path.stat()
    stamp = f"{state.st_size}, {state.st_mtime_ns}, {state.st_ino}"
    memory.write_text(damage.replace("HERE", str(path.resolve())).replace("STAMP", stamp))
    assert FileDigests(memory).of([path]) == FileDigests(None).of([path])


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"one")
    (tmp_path / "file").write_text("")
    assert FileDigests(tmp_path / "file" / "digests.json").of([path]) == FileDigests(None).of([path])
