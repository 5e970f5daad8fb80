"""The example of the protocol's page that recomputes the leaderboard from the tables gives what is published."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "recompute.py"
if not EXAMPLE.is_file():
    pytest.skip("the pages are in the repository, not in the source distribution", allow_module_level=True)


def test_the_published_tables_give_the_published_leaderboard(quick_run: Path) -> None:
    lines, tables = EXAMPLE.read_text(encoding="utf-8"), quick_run / "tables"
    assert lines.count('Path("runs/quick/tables")') == 1
    lines = lines.replace('Path("runs/quick/tables")', f"Path({str(tables)!r})")
    names: dict[str, dict[str, float]] = {}
    exec(lines, names)
    board = pd.read_csv(tables / "leaderboard.csv").query("model == 'cnn'").set_index("detector")
    assert len(board) > 2
    for detector, row in board.iterrows():
        assert names["robust"][str(detector)] == pytest.approx(row["robust_accuracy_at_fpr_5"], abs=1e-6)
        if detector != "none":
            assert names["undetected"][str(detector)] == pytest.approx(row["adaptive_undetected_at_fpr_5"], abs=1e-6)
    ranked = board["rank"].dropna()
    assert len(ranked) > 0
    assert names["places"] == {str(detector): int(rank) for detector, rank in ranked.items()}
