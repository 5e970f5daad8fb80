"""Parts of plugins that misbehave, in every way that we could think of, beside honest ones.

Each costs its own cells at most: the rows of all others are, byte for byte, those of a run without it, the cache serves
them afterwards, and nothing is left behind. With ``AFTERSHOCK_HOSTILE`` set, all variants are tried; otherwise some of
each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aftershock.harness.core.formats import is_sealed
from support.tables import share_secret, whole_tables

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_misbehaving_part_costs_itself_alone(
    group: Sequence[Any], arena: Any, undisturbed: Callable[[str], dict[str, Any]],
    rows: Callable[[Path, Sequence[Any]], dict[str, Any]], matches: Callable[[str, Iterable[str]], bool],
    tmp_path: Path,
) -> None:  # fmt: skip
    data = "copied" if group[0].part == "dataset" else "digits"
    ran = arena(arena.suite(tmp_path, "suite.toml", group, data), "run")
    end = group[0].end
    marks = {v.name: {m.name for m in (tmp_path / "marks" / v.name).iterdir()} for v in group}
    print(f"{ran.seconds:.1f} s", ran.status, marks, ran.output, sep="\n")
    for variant in group:
        assert {"began", *variant.marks} <= marks[variant.name]
    assert ran.status == {"fine": 0, "fails": 1, "refused": 2}[end]
    assert "Traceback" not in ran.output
    assert not ran.left
    if end == "refused":
        assert matches(group[0].says, [ran.output]) and not (ran.out / "run.json").exists()
        return
    assert is_sealed((ran.out / "run.json").read_bytes())
    assert ran.facts["status"] == ("done" if end == "fine" else "failed")
    expected, found = undisturbed(data), rows(ran.out, group)
    for name, lines in expected.items():
        # An analysis that was given a planted attack's images is another one.
        assert found.get(name, b"") in (lines, b""), name
    for variant in group:
        ours = [f for f in ran.facts["failures"] if variant.named_in(f["cell"])]
        failed = [f["reason"] for f in ours if f["status"] == "failed"]
        if variant.end == "fails":
            assert failed and matches(variant.says, failed), (variant.name, failed)
        elif variant.part != "dataset":
            lines = b"\n".join(whole_tables(ran.out).values()).decode().splitlines()
            told = [text for text in (*lines, *ran.facts["notes"]) if variant.named_in(text)]
            assert not failed and (not variant.says or matches(variant.says, told)), (variant.name, failed)
    others = [f for f in ran.facts["failures"] if not any(v.named_in(f["cell"]) for v in group)]
    # An analysis of all perturbed images has none where an attack failed.
    assert all(f["reason"].startswith("needs ") and "/analysis/" in f["cell"] for f in others), others
    assert not others or any(v.part == "attack" for v in group)
    # The cache has nothing of it: a run without it finds all that it needs there, and it is what it always was.
    if data == "digits":
        cached = ran.cached()
        share_secret(ran.out, tmp_path / "again")
        again = arena(arena.suite(tmp_path, "clean.toml"), "again")
        assert again.status == 0 and rows(again.out, ()) == expected
        new = {kind for key, kind in again.cached().items() if key not in cached}
        assert new <= ({"analysis"} if any(v.part == "attack" for v in group) else set())


def test_the_table_has_ten_kinds_of_eight(all_variants: Sequence[Any]) -> None:
    kinds = Counter(v.kind for v in all_variants)
    assert len(kinds) == 10 and min(kinds.values()) >= 8
    assert len({v.name for v in all_variants}) == len(all_variants) >= 80
    ordinary = [v for v in all_variants if v.ordinary]
    assert len(ordinary) == 12 and {v.kind for v in ordinary} == {v.kind for v in all_variants}
    assert len({(v.part, v.at) for v in all_variants}) >= 14
