"""Depth of departure: images whose way through the taps is planted, scikit-learn and SciPy as oracles, and a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.analyses.base import AnalysisInput, ImageSet, PerturbedSet
from aftershock.analyses.common.recording import pooled_rows
from aftershock.analyses.departure.analysis import Departure
from aftershock.analyses.departure.events import (
    beyond,
    compare,
    cumulative,
    departed,
    first_change,
    half,
    means,
    readable,
    settled,
)
from aftershock.analyses.departure.probes import fit_reader, spread
from aftershock.analyses.findings import Claim, Findings, HeatMaps, Lines, Pictures
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Need, TapInfo, Traces
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, wilcoxon
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from support.commands import Forks
from support.findings import findings_table, value_of
from support.suites import Tiny

TAPS = ("a", "b", "c", "d", "e")
INFO = tuple(TapInfo(name, "relu", (4,)) for name in TAPS)
NEED = (Need("pooled"),)
NONE = len(TAPS)

# Events


def ways(*rows: Sequence[int]) -> Any:
    return np.array(rows, dtype=np.int64)


@pytest.mark.parametrize(
    ("read", "first", "good", "arrived"),
    [
        ((0, 0, 1, 1, 1), 2, 2, 2),  # swaps once
        ((1, 0, 1, 0, 1), 0, 4, 4),  # flickers
        ((0, 0, 0, 0, 0), NONE, NONE, NONE),  # only at the output, or never
        ((0, 2, 2, 1, 1), 1, 1, 3),  # goes through a third class
        ((1, 1, 1, 1, 0), 0, NONE, NONE),  # comes back
        ((1, 1, 1, 1, 1), 0, 0, 0),
    ],
)
def test_planted_ways(read: tuple[int, ...], first: int, good: int, arrived: int) -> None:
    own, usable = np.array([0]), np.ones(5, dtype=bool)
    judged = readable(own, ways((0,) * 5), usable)
    assert first_change(own, ways(read), judged).tolist() == [first]
    assert departed(own, ways(read), judged).tolist() == [good]
    assert settled(np.array([1]), ways(read), usable).tolist() == [arrived]


def test_only_taps_that_can_judge_count() -> None:
    own, read = np.array([0, 0, 0]), ways((1, 1, 1, 1, 1), (0, 0, 1, 1, 0), (1, 1, 1, 1, 1))
    clean = ways((1, 2, 0, 0, 0), (0, 0, 0, 0, 2), (1, 1, 1, 1, 1))
    usable = np.ones(5, dtype=bool)
    judged = readable(own, clean, usable)
    # Not before its clean code is read as its class; the last tap, which misreads it, has no say; none can judge it.
    assert first_change(own, read, judged).tolist() == [2, 2, -1]
    assert departed(own, read, judged).tolist() == [2, 2, -1]
    usable[2] = False
    judged = readable(own, clean, usable)
    assert departed(own, read, judged).tolist() == [3, 3, -1]
    assert settled(np.ones(3, dtype=np.int64), read, usable).tolist() == [0, NONE, 0]
    assert settled(np.ones(3, dtype=np.int64), read, np.zeros(5, dtype=bool)).tolist() == [-1, -1, -1]


@given(st.integers(1, 6).flatmap(lambda t: st.lists(st.tuples(*[st.integers(0, 2)] * (2 * t)), min_size=1, max_size=8)))
def test_events_are_what_a_loop_finds(rows: list[tuple[int, ...]]) -> None:
    both = np.array(rows, dtype=np.int64)
    taps = both.shape[1] // 2
    clean, read = both[:, :taps], both[:, taps:]
    own, goal, usable = np.zeros(len(both), np.int64), np.ones(len(both), np.int64), np.ones(taps, dtype=bool)
    judged = readable(own, clean, usable)
    for i in range(len(both)):
        at = [t for t in range(taps) if clean[i, t] == 0]
        away = [t for t in at if read[i, t] != 0]
        gone = [t for t in at if all(read[i, s] != 0 for s in at if s >= t)]
        there = [t for t in range(taps) if all(read[i, t:] == 1)]
        missing = taps if at else -1
        assert first_change(own, read, judged)[i] == (away[0] if away else missing)
        assert departed(own, read, judged)[i] == (gone[0] if gone else missing)
        assert settled(goal, read, usable)[i] == (there[0] if there else taps)
        if at:
            assert first_change(own, read, judged)[i] <= departed(own, read, judged)[i]


def test_cumulative_shares_have_wilsons_band() -> None:
    events = np.array([0, 0, 2, 2, 2, 5, 5, -1, -1])
    found = cumulative(events, 5)
    assert [v.value * 7 for v in found] == pytest.approx([2, 2, 5, 5, 5])
    z, n = 1.959963984540054, 7
    for share, low, high in (v.ends for v in found):
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        width = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        assert (low, high) == pytest.approx((middle - width, middle + width))


def test_paired_shares_cover() -> None:
    """Images that two marks share: the true difference lies in the interval about 95 times in 100."""
    rng = np.random.default_rng(4)
    chances = np.array([[0.5, 0.3], [0.1, 0.02], [0.9, 0.0], [0.2, 0.2], [0.0, 0.0]])
    draws = rng.random((1000, 30, 5))
    inside = np.zeros(5)
    for one in draws:
        # One draw decides both marks, so they go together.
        found = beyond(one < chances[:, 0], one < chances[:, 1], np.ones((30, 5), dtype=bool))
        apart = chances[:, 0] - chances[:, 1]
        inside += [v.low <= d <= v.high for (_, v), d in zip(found, apart, strict=True)]
        assert all(-1 <= v.low <= v.value <= v.high <= 1 for _, v in found)
    assert (inside / 1000 > 0.93).all()


def test_paired_shares_by_hand() -> None:
    mark, other = (np.array(v, dtype=bool)[:, None] for v in ([1] * 8 + [0] * 4, [1] * 2 + [0] * 9 + [1]))
    among = np.ones((12, 1), dtype=bool)
    # Newcombe's discordant cells: 6 and 1 of 12; (7 - 2) / 14 and its standard error.
    n, gap = beyond(mark, other, among)[0]
    value, low, high = gap.ends
    error = np.sqrt((9 / 14 - (5 / 14) ** 2) / 14)
    assert n == 12 and value == pytest.approx(5 / 12)
    assert [low, high] == pytest.approx([5 / 14 - 1.959964 * error, 5 / 14 + 1.959964 * error])
    assert np.isnan(beyond(mark, other, ~among)[0][1].ends).all()


def test_means_have_students_interval() -> None:
    values = np.random.default_rng(5).normal(1, 2, (40, 2)).astype(np.float32)
    values[:39, 1] = np.nan
    found = means(values)
    reach = ttest_1samp(values[:, 0].astype(float), 0).confidence_interval()
    assert found[0].ends == pytest.approx((values[:, 0].astype(float).mean(), reach.low, reach.high))
    assert np.isnan(found[1].ends).all()


def test_half_is_the_tap_by_which_half_have_left() -> None:
    assert half(np.array([1, 1, 3, 5])).median == 1
    assert half(np.array([1, 3, 3, 5, -1])).median == 3
    assert half(np.array([-1, -1])).images == 0
    events = np.random.default_rng(0).integers(0, 6, 200)
    found = half(events)
    assert found.low is not None
    assert found.high is not None
    assert found.median is not None
    # Binomial: the 86th and the 115th of 200, or one further out.
    ordered = np.sort(events)
    assert ordered[84] <= found.low <= ordered[86]
    assert ordered[113] <= found.high <= ordered[115]


def test_comparisons_are_wilcoxons() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 8, 60)
    b = a + rng.integers(-1, 3, 60)
    found = compare("x", "y", a, b)
    assert found.p_value == pytest.approx(wilcoxon(a, b, zero_method="pratt", method="approx").pvalue)
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert (found.earlier, found.later) == (int((a < b).sum()), int((a > b).sum()))
    assert found.difference == pytest.approx((a - b).mean())
    assert compare("x", "y", a, a).p_value == 1.0
    assert compare("x", "y", a[:9], b[:9]).p_value is None


def test_the_same_depths_under_two_names_differ_no_more_often_than_chance() -> None:
    rng = np.random.default_rng(2)
    wrong = [compare("x", "y", *rng.integers(0, 6, (2, 40))).p_value for _ in range(300)]
    # 5 % of 300, and four standard errors.
    assert sum(p is not None and p < 0.05 for p in wrong) <= 15 + 4 * np.sqrt(300 * 0.05 * 0.95)


# Readers


def clouds(n: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=rng)
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    return 5 + centres[labels] + 1.2 * torch.randn(n, 6, generator=rng), labels


def test_readers_agree_with_scikit_learn() -> None:
    (codes, labels), (fresh, truth) = clouds(), clouds(400, seed=1)
    scaler = StandardScaler().fit(codes.numpy())
    x, y = scaler.transform(codes.numpy()), scaler.transform(fresh.numpy())
    for kind, model in (
        ("centroid", NearestCentroid()),
        ("neighbours", KNeighborsClassifier(7)),
        ("linear", LogisticRegression(max_iter=200)),
    ):
        expected = model.fit(x, labels.numpy()).predict(y)
        read = fit_reader(kind, codes, labels, 7).read(fresh).numpy()  # type: ignore[arg-type]
        # float32 here and there: an image between two classes may fall on the other side.
        assert (read == expected).mean() > 0.99
        assert 0.6 < (read == truth.numpy()).mean() < 1


def test_the_margin_is_1_at_home_and_minus_1_at_the_other_class() -> None:
    codes, labels = clouds()
    labels = labels * 2  # classes 0, 2 and 4
    reader = fit_reader("centroid", codes, labels, 1)
    centres = torch.stack([codes[labels == c].mean(0) for c in (0, 2, 4)])
    own, reached = torch.tensor([0, 0, 0]), torch.tensor([4, 4, 4])
    at = torch.stack([centres[0], (centres[0] + centres[2]) / 2, centres[2]])
    # float32 codes around 5.
    assert reader.margin(at, own, reached).tolist() == pytest.approx([1, 0, -1], abs=1e-5)
    everywhere = reader.margin(codes, torch.zeros(200, dtype=torch.long), torch.full((200,), 2))
    assert float(everywhere.abs().max()) <= 1
    nearer = reader.standardiser.apply(codes).double()
    gap = (nearer - reader.centroids[1]).norm(dim=1) - (nearer - reader.centroids[0]).norm(dim=1)
    assert (everywhere.sign() == gap.float().sign()).all()
    # A class without an image, and one class twice.
    assert reader.margin(at, torch.tensor([1, 0, 0]), torch.tensor([4, 3, 0])).isnan().all()


def test_a_constant_tap_has_no_margin() -> None:
    reader = fit_reader("centroid", torch.ones(10, 3), torch.arange(10) % 2, 1)
    assert reader.margin(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([1, 1])).isnan().all()


def test_codes_are_read_in_any_order() -> None:
    rows = torch.arange(1000).float().unsqueeze(1).expand(-1, 4).contiguous()
    traces = Traces(torch.zeros(1000, 3), INFO, {"pooled:mean": {"a": rows}}, NEED)
    where = torch.tensor([999, 3, 3, 500, 256, 255, 0])
    assert pooled_rows(traces, "a", where)[:, 0].tolist() == where.tolist()
    assert len(pooled_rows(traces, "a", where[:0])) == 0


def test_thinned_taps_keep_both_ends() -> None:
    assert spread(list("abcdefghi"), 3) == [0, 4, 8]
    assert spread(list("abc"), 7) == [0, 1, 2]
    assert spread(list("abc"), 1) == [2]


# The analysis, on planted codes


def coded(read: Any, seed: int = 0, deaf: Sequence[int] = ()) -> dict[str, dict[str, torch.Tensor]]:
    """Pooled means (n, 4) at each tap that are read as ``read`` (n, taps); at deaf taps they are noise."""
    rng = torch.Generator().manual_seed(seed)
    read = torch.as_tensor(read)
    found = {}
    for t, tap in enumerate(TAPS):
        codes = 0.05 * torch.randn(len(read), 4, generator=rng)
        if t not in deaf:
            codes += torch.nn.functional.one_hot(read[:, t], 4)
        found[tap] = codes
    return {"pooled:mean": found}


def image_set(read: Any, labels: torch.Tensor, predictions: torch.Tensor, seed: int, deaf: Sequence[int]) -> ImageSet:
    logits = 4.0 * torch.nn.functional.one_hot(predictions, 3) + torch.nn.functional.one_hot(labels, 3)
    images = torch.rand(len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    traces = Traces(logits.float(), INFO, coded(read, seed, deaf), NEED, label_rows=labels)
    return ImageSet(traces, lambda rows: images[rows])


SWAP, FLICKER, OUTPUT, THIRD, BLIND = (
    (0, 0, 1, 1, 1), (1, 0, 1, 0, 1), (0, 0, 0, 0, 0), (0, 2, 2, 1, 1), (1, 1, 1, 1, 1),
)  # fmt: skip


def planted(deaf: Sequence[int] = (), each: int = 12) -> AnalysisInput:
    """Evaluate images of class 0 that go these ways, as many of each; then images of classes 1 and 2."""
    fit_labels = torch.arange(90) % 3
    fit = image_set(fit_labels[:, None].expand(-1, 5), fit_labels, fit_labels, 1, deaf)
    moves = (SWAP, FLICKER, OUTPUT, THIRD, BLIND)
    n = each * len(moves)
    labels = torch.cat([torch.zeros(n, dtype=torch.long), torch.arange(40) % 2 + 1])
    clean = labels[:, None].repeat(1, 5)
    clean[n - each : n] = 2  # no tap reads these as their class
    evaluate = image_set(clean, labels, labels, 2, deaf)
    rows = torch.arange(n)
    own, reached = labels[:n], torch.ones(n, dtype=torch.long)
    moved = torch.tensor(moves).repeat_interleave(each, 0)
    control = image_set(clean[: n - 2], own[: n - 2], own[: n - 2], 3, deaf)
    made = {
        "planted[eps=1]": PerturbedSet(
            "planted[eps=1]", "attack", image_set(moved, own, reached, 4, deaf), rows,
            torch.ones(n, dtype=torch.bool), control, rows[: n - 2],
        ),
        "early": PerturbedSet(
            "early", "attack", image_set(torch.ones(n, 5, dtype=torch.long), own, reached, 5, deaf), rows,
            torch.ones(n, dtype=torch.bool), control, rows[: n - 2],
        ),
        "weak": PerturbedSet(
            "weak", "noise", image_set(clean[:n], own, own, 6, deaf), rows,
            torch.zeros(n, dtype=torch.bool), image_set(clean[:0], own[:0], own[:0], 7, deaf), rows[:0],
        ),
    }  # fmt: skip

    def untrained(draw: int = 0) -> TracedModel:
        raise UsageError("This model is a file of weights and code.")

    own_model = TracedModel(torch.nn.Identity(), INFO)
    return AnalysisInput(own_model, untrained, ("cat", "dog", "owl"), fit, evaluate, made, seed=0)


def claim(findings: Findings, kind: str) -> Claim:
    return next(c for c in findings.claims if c.kind == kind)


def figure(findings: Findings, title: str) -> Any:
    return next(f for f in findings.figures if f.title == title)


@pytest.fixture(scope="module", params=["centroid", "neighbours", "linear"])
def found(request: pytest.FixtureRequest, study: Callable[..., Findings]) -> Findings:
    return study(Departure(reader=request.param), planted())


def test_every_planted_image_has_its_depths(found: Findings) -> None:
    expected = {0: (3, 3, 3), 12: (1, 5, 5), 24: (6, 6, 6), 36: (2, 2, 4), 48: (None, None, 1)}
    rows = {
        (r["perturbation"], r["population"], r["image"]): (r["first_change"], r["left"], r["arrived"])
        for r in findings_table(found, "departure-images")
    }
    for start, depths in expected.items():
        for image in range(start, start + 12):
            assert rows["planted[eps=1]", "success", image] == depths
            if image < 48:
                assert rows["early", "success", image] == (1, 1, 1)
                assert rows["planted[eps=1]", "control", image] == (6, 6, None)
                assert rows["weak", "failed", image] == (6, 6, None)


def test_the_distribution_and_its_middle(found: Findings) -> None:
    rows = {(r["perturbation"], r["population"], r["event"]): r for r in findings_table(found, "departure-depths")}
    left = rows["planted[eps=1]", "success", "left for good"]
    assert (left["images"], left["judged"], left["unjudged"], left["never"]) == (60, 48, 12, 12)
    assert (left["median_depth"], left["median_tap"]) == (3, "c")
    assert rows["planted[eps=1]", "control", "left for good"]["median_tap"] == "none"
    assert rows["planted[eps=1]", "target-class", "arrived"]["median_depth"] == 1
    shares = [
        (r["here"], r["share"])
        for r in findings_table(found, "departure-shares")
        if (r["perturbation"], r["population"], r["event"]) == ("planted[eps=1]", "success", "left for good")
    ]
    assert shares == [(0, 0), (12, 0.25), (12, 0.5), (0, 0.5), (12, 0.75)]
    curve = figure(found, "Left for good, by depth").series[0]
    assert (curve.name, curve.y) == ("planted[eps=1]", [0, 0.25, 0.5, 0.5, 0.75])
    changed = figure(found, "Read as another class, tap by tap: planted[eps=1]")
    assert changed.series[0].y == [0.25, 0.25, 0.75, 0.5, 0.75]
    assert changed.series[1].y == [0.0] * 5
    assert changed.series[1].style == "dashed"
    more = figure(found, "Read as another class, beyond noise of the same size")
    assert more.series[0].y == [0.25, 0.25, 0.75, 0.5, 0.75]
    assert all(low > 0 for low in more.series[0].low)
    # From a margin of about 0.8 to -0.8, but for a fifth that is read as the third class when it is clean.
    pushed = figure(found, "Moved towards the predicted class, beyond noise of the same size")
    assert all(1.2 < y < 1.5 for y in pushed.series[1].y)
    assert claim(found, "beyond-noise").estimates == {"planted[eps=1]": 1, "early": 1}
    assert claim(found, "half-left").estimates == {"early": 1, "planted[eps=1]": 3}
    assert value_of(claim(found, "left-for-good"), "planted[eps=1]") == 3


def test_the_pair_is_compared_on_the_same_images(found: Findings) -> None:
    rows = {(r["first"], r["second"]): r for r in findings_table(found, "departure-order")}
    row = rows["planted[eps=1]", "early"]
    assert (row["images"], row["earlier"], row["later"], row["same"]) == (48, 0, 48, 0)
    assert row["mean_difference"] == pytest.approx((2 + 4 + 5 + 1) / 4)
    assert row["p_holm"] < 1e-6
    assert rows["early", "weak"]["p_value"] is None
    order = claim(found, "order")
    assert order.verdict == "different"
    assert order.estimates == {"early before planted[eps=1]": pytest.approx(3)}


def test_few_images_are_said_and_not_drawn(found: Findings) -> None:
    assert claim(found, "few-images").estimates == {"weak": 0}
    weak = figure(found, "Depth of departure: weak")
    assert [s.name for s in weak.series] == ["failed: left for good"]
    assert not any(f.title == "Between the true and the predicted class: weak" for f in found.figures)


def test_the_map_is_sorted_by_departure(found: Findings) -> None:
    maps: HeatMaps = next(f for f in found.figures if isinstance(f, HeatMaps))
    panel = maps.panels[0].values
    assert panel.shape == (60, 5)
    assert panel[:12].tolist() == [[0, 0.5, 0.5, 1, 1]] * 12
    assert panel[12:24].tolist() == [[0, 0, 1, 1, 1]] * 12
    # No tap can judge the last ones.
    assert panel[48:].isnan().all()
    assert maps.panels[1].name == "planted[eps=1]: noise"
    assert maps.panels[1].values[:48].abs().max() == 0
    assert maps.panels[1].values[48:].isnan().all()


def test_margins_have_their_sign(found: Findings) -> None:
    rows = {
        (r["perturbation"], r["population"], r["tap"]): r["mean"] for r in findings_table(found, "departure-margins")
    }  # fmt: skip
    # The fourth map is noise, which standardised counts as much as the others.
    assert rows["early", "success", "a"] < -0.7
    assert rows["early", "target-class", "a"] < -0.7
    # A fifth of the clean images are read as a third class, half-way between the two.
    assert rows["early", "clean", "a"] == pytest.approx(-0.8 * rows["early", "success", "a"], abs=0.05)
    assert 0.5 < rows["early", "control", "a"] < 0.9


def test_examples_run_from_the_earliest_to_the_latest(found: Findings) -> None:
    rows = [r for r in findings_table(found, "departure-examples") if r["perturbation"] == "planted[eps=1]"]
    picked = {r["example"]: r["image"] for r in rows}
    assert 36 <= picked["earliest"] < 48
    assert 24 <= picked["latest"] < 36
    assert [r["read_as"] for r in rows if r["example"] == "earliest"] == ["cat", "owl", "owl", "dog", "dog"]
    pictures: Pictures = figure(found, "Pictures of the single images: planted[eps=1]")
    given, index = planted(), picked["earliest"]
    clean, moved, apart, noise = pictures.images[0]
    made = given.perturbed["planted[eps=1]"]
    assert torch.equal(clean, given.evaluate.read(slice(index, index + 1))[0])
    assert torch.equal(moved, made.images.read(slice(index, index + 1))[0])
    assert torch.equal(noise, made.control.read(slice(index, index + 1))[0])
    assert float((apart - 0.5).abs().max()) == pytest.approx(0.5)
    assert torch.equal((apart - 0.5).sign(), (moved - clean).sign())


def test_what_is_found_can_be_stored(found: Findings) -> None:
    again = Findings.read(*found.stored())
    assert again.claims == found.claims and all(c.sentence for c in again.claims)
    read = again.arrays["planted[eps=1].success.read"]
    assert read.tolist()[:12] == [list(SWAP)] * 12
    for table in again.tables:
        assert table.rows
        assert len(set(table.columns)) == len(table.columns)


def test_a_tap_that_knows_nothing_says_nothing(study: Callable[..., Findings]) -> None:
    found = study(Departure(), planted(deaf=(0, 2)))
    readers = {r["tap"]: r for r in findings_table(found, "departure-readers")}
    assert [readers[t]["used"] for t in TAPS] == [0, 1, 0, 1, 1]
    rows = {
        r["image"]: r
        for r in findings_table(found, "departure-images")
        if (r["perturbation"], r["population"]) == ("planted[eps=1]", "success")
    }
    assert rows[0]["left"] == 4
    assert (rows[12]["first_change"], rows[12]["left"]) == (5, 5)
    maps: HeatMaps = next(f for f in found.figures if isinstance(f, HeatMaps))
    assert maps.panels[0].values[:, [0, 2]].isnan().all()
    assert not maps.panels[0].values[:48, [1, 3, 4]].isnan().any()
    assert claim(found, "readers").estimates["left out"] == 2


def test_deaf_everywhere_is_one_claim(study: Callable[..., Findings]) -> None:
    found = study(Departure(), planted(deaf=range(5)))
    assert [(c.kind, c.verdict) for c in found.claims] == [("readers", "none better than chance")]
    Findings.read(*found.stored())


def test_bounds_are_kept(study: Callable[..., Findings]) -> None:
    found = study(Departure(images=20, taps=2, examples=0, perturbations=["early"]), planted())
    rows = findings_table(found, "departure-images")
    assert {r["image"] for r in rows} == set(range(20))
    assert {r["perturbation"] for r in rows} == {"early"}
    assert [r["tap"] for r in findings_table(found, "departure-readers")] == ["a", "e"]
    assert [r["depth"] for r in findings_table(found, "departure-readers")] == [1, 5]
    assert not any(isinstance(f, Pictures) for f in found.figures)


def test_two_successes_are_the_earliest_and_the_latest(study: Callable[..., Findings]) -> None:
    given = planted()
    one = given.perturbed["planted[eps=1]"]
    success = torch.zeros_like(one.success)
    success[[13, 30]] = True
    few = replace(one, success=success)
    found = study(Departure(), replace(given, perturbed={"few": replace(few, label="few")}))
    picked = {(r["example"], r["image"], r["population"]) for r in findings_table(found, "departure-examples")}
    assert picked == {("earliest", 13, "success"), ("latest", 30, "success")}
    assert claim(found, "few-images").estimates == {"few": 2}
    assert not any(f.title == "Left for good, by depth" for f in found.figures)


def test_chosen_images_are_shown_and_others_are_told(study: Callable[..., Findings]) -> None:
    given = planted()
    found = study(Departure(indices=[3, 62]), given)
    rows = findings_table(found, "departure-examples")
    assert {(r["perturbation"], r["image"]) for r in rows} == {(p, 3) for p in given.perturbed}
    weak = [r for r in rows if r["perturbation"] == "weak"]
    assert {r["population"] for r in weak} == {"failed"}
    assert all(r["noise_margin"] is None for r in weak)
    assert claim(found, "not-shown").subject == "62"


def test_images_that_are_not_there_are_told(study: Callable[..., Findings]) -> None:
    with pytest.raises(UsageError, match="no evaluate image 100"):
        study(Departure(indices=[3, 100]), planted())
    with pytest.raises(UsageError, match="'typo'"):
        study(Departure(perturbations=["typo"]), planted())
    with pytest.raises(UsageError, match="perturbations"):
        study(Departure(), replace(planted(), perturbed={}))
    given = planted()
    wrong = replace(given.fit.traces, label_rows=(given.fit.traces.labels + 1) % 3)
    with pytest.raises(UsageError, match=r"data\.fit"):
        study(Departure(), replace(given, fit=replace(given.fit, traces=wrong)))


def test_draws_depend_on_the_seed_alone(study: Callable[..., Findings]) -> None:
    one, two = (study(Departure(), planted()) for _ in range(2))
    assert one.stored()[1] == two.stored()[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"reader": "oracle"}, {"images": 0}, {"fit": 1}, {"layers": ""}, {"taps": 0}, {"neighbours": 0},
        {"examples": -1}, {"indices": [-1]},
    ],
)  # fmt: skip
def test_wrong_parameters_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Departure(**wrong)


def test_the_untrained_network_is_read_on_the_same_images(study: Callable[..., Findings]) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    given = planted()
    twin = TracedModel(net.eval(), discover(net, torch.zeros(1, 1, 4, 4)), (), net)
    tap = twin.taps[0].name
    info = (replace(INFO[0], name=tap, shape=(4, 2, 2)),)

    def cut(images: ImageSet) -> ImageSet:
        codes = {"pooled:mean": {tap: images.traces.codes["pooled:mean"]["e"]}}
        return replace(images, traces=replace(images.traces, taps=info, codes=codes))

    perturbed = {k: replace(p, images=cut(p.images), control=cut(p.control)) for k, p in given.perturbed.items()}
    given = replace(
        given, fit=cut(given.fit), evaluate=cut(given.evaluate), perturbed=perturbed, untrained=lambda draw=0: twin
    )
    found = study(Departure(fit=50), given)
    rows = {r["network"]: r for r in findings_table(found, "departure-readers")}
    sets = [net[:2](s.read(slice(0, n))).mean((2, 3)).detach() for s, n in ((given.fit, 50), (given.evaluate, 100))]
    reader = fit_reader("centroid", sets[0], given.fit.traces.labels[:50], 1)
    expected = (reader.read(sets[1]) == given.evaluate.traces.labels).float().mean()
    assert rows["untrained"]["accuracy"] == pytest.approx(float(expected))
    # Images of pure noise tell no class; the planted codes do, but for the 12 that are misread.
    assert rows["untrained"]["accuracy"] < 0.6
    assert rows["trained"]["accuracy"] == pytest.approx(0.88)


def test_a_run_on_digits(tmp_path: Path, forks: Forks, tiny: Tiny, of_run: Callable[..., Findings]) -> None:
    suite = tiny(tmp_path / "suite.toml", model={"epochs": 8}, detectors=[{"name": "msp"}])
    suite.write_text(suite.read_text() + '\n[[analyses]]\nname = "departure"\nimages = 40\n')
    done = forks("run", suite, "--out", tmp_path / "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    found = of_run(tmp_path / "run", Departure(), "departure")
    readers = findings_table(found, "departure-readers")
    assert {r["network"] for r in readers} == {"trained", "untrained"}
    trained = [r["accuracy"] for r in readers if r["network"] == "trained"]
    assert trained[-1] > 0.8
    images = findings_table(found, "departure-images")
    assert {r["perturbation"] for r in images} == {"gaussian", "fgsm"}
    assert all(r["image"] < 40 for r in images)
    assert all(r["first_change"] is None or r["first_change"] <= r["left"] for r in images)
    assert any(isinstance(f, Lines) and f.title == "Left for good, by depth" for f in found.figures)
