"""The verdict on a leaderboard: its kind, the detectors that it names, and its reason."""

from __future__ import annotations

import pytest
from aftershock.harness.evaluation.verdict import Standing, sentence, verdict


def rows(**ranks: float | None) -> list[Standing]:
    """Rows by detector; one without a rank has the reason ``reason of NAME``."""
    return [Standing(d, rank, "" if rank is not None else f"reason of {d}") for d, rank in ranks.items()]


def test_one_detector_alone_on_the_first_rank_is_the_winner() -> None:
    found = verdict(rows(best=1, second=2, third=2, none=4, weak=None))
    assert (found.kind, found.best, found.ranked, found.reason) == ("winner", ("best",), 3, "")
    words = sentence(found)
    assert "best" in words
    assert not any(name in words for name in ("second", "third", "weak"))


def test_detectors_that_share_the_first_rank_are_all_named() -> None:
    found = verdict(rows(one=1, other=1, none=2, third=2))
    assert (found.kind, found.best, found.ranked) == ("shared", ("one", "other"), 3)
    words = sentence(found)
    assert "one and other" in words
    assert "third" not in words
    # A row that shares the first rank need not be significantly better than none: only ranks are compared.
    assert "significantly" not in words


def test_many_names_are_shortened() -> None:
    found = verdict(rows(a1=1, a2=1, a3=1, a4=1, a5=1, none=6))
    assert len(found.best) == 5
    assert "a1, a2, a3 and 2 more" in sentence(found)
    assert not any(name in sentence(found) for name in ("a4", "a5"))
    three = verdict(rows(a1=1, a2=1, a3=1, none=4))
    assert "a1, a2 and a3 share" in sentence(three)


@pytest.mark.parametrize("none", [1, 1.0])
def test_no_detector_is_named_where_none_shares_the_first_rank(none: float) -> None:
    found = verdict(rows(left=1, right=1, third=2, none=none))
    assert (found.kind, found.ranked, found.reason) == ("no-better", 3, "")
    words = sentence(found)
    assert "None of the 3" in words
    assert not any(name in words for name in ("left", "right", "third"))
    alone = verdict(rows(one=1, none=none, weak=None))
    assert (alone.kind, alone.ranked) == ("no-better", 1)
    assert "The ranked detector is not" in sentence(alone)


def test_detectors_below_none_are_no_better() -> None:
    assert verdict(rows(none=1, one=2, other=2)).kind == "no-better"


def test_without_a_rank_of_none_nothing_is_better_than_it_and_the_reason_is_said() -> None:
    found = verdict(rows(one=1, other=2, none=None))
    assert (found.kind, found.ranked, found.reason) == ("no-better", 2, "reason of none")
    assert "reason of none" in sentence(found)
    # It was not tested, so it must not be said as the result of a test.
    assert "significantly" not in sentence(found)
    missing = verdict(rows(one=1, other=2))
    assert missing.kind == "no-better"
    assert "missing" in sentence(missing)
    assert verdict([Standing("one", 1.0), Standing("none", None)]).reason


def test_where_no_detector_is_ranked_the_first_reason_is_said() -> None:
    found = verdict(rows(none=1, weak=None, blind=None))
    assert (found.kind, found.best, found.ranked, found.reason) == ("unranked", (), 0, "reason of weak")
    assert "reason of weak" in sentence(found)
    assert verdict(rows(none=None)).kind == "unranked"
    assert verdict([]).kind == "unranked"
    assert sentence(verdict([Standing("old", None)])).endswith("ranked.")
