"""The few things used last, and files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from aftershock.harness.core.files import remove_leftovers, replacing
from aftershock.harness.core.recent import Recent


def test_what_was_not_used_longest_goes_first() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        def upper() -> str:
            made.append(key)
            return key.upper()

        return recent.get_or_make(key, upper)

    recent: Recent[str, str] = Recent(2)
    assert [make(key) for key in "abacab"] == list("ABACAB")
    # a was used after b, so c took b's place.
    assert made == list("abcb") and "b" in recent and "a" in recent and "c" not in recent
    assert recent["a"] == "A"
    recent["d"] = "D"
    assert "b" not in recent and "a" in recent
    with pytest.raises(KeyError):
        recent["b"]


def test_what_is_weighed_stays_within_its_weight() -> None:
    recent: Recent[str, str] = Recent(5, len)
    recent["a"], recent["b"] = "xx", "yy"
    recent["a"] = "xxx"
    assert "a" in recent and "b" in recent
    recent["c"] = "z"
    assert "b" not in recent and recent["a"] == "xxx" and recent["c"] == "z"
    recent["much"] = "too much"
    assert "much" not in recent
    recent.discard("a")
    recent["d"] = "12345"
    assert recent["d"] == "12345"


def test_a_file_is_replaced_when_its_block_ends_well(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "a.csv", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    path.symlink_to(elsewhere)
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "precious"
    assert path.read_text() == "new" and not path.is_symlink() and elsewhere.read_text() == "precious"
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "elsewhere"]


def test_what_a_kill_leaves_is_removed(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.csv") as part:
        name = part.name
        part.write_text("x")
    (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
