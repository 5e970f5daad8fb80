"""The RDM analysis: planted graphs, scikit-learn and closed forms as oracles, and a run on the digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.analyses.base import AnalysisInput, ImageSet, PerturbedSet
from aftershock.analyses.findings import Findings, HeatMaps, Lines
from aftershock.analyses.rdm.analysis import Rdm
from aftershock.analyses.rdm.graph import (
    agreement,
    class_interval,
    cosine,
    extend,
    fiedler,
    matching,
    orientation,
    overlap,
    permuted,
    truth_of,
)
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.bits import pack
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from scipy.stats import hypergeom, percentileofscore, sem, t
from sklearn.cluster import SpectralClustering
from sklearn.metrics.pairwise import cosine_similarity
from support.commands import Forks
from support.findings import findings_table
from support.suites import Tiny


def planted(images: int = 30, noise: float = 0.3, units: int = 400, seed: int = 0) -> torch.Tensor:
    """Bits of two classes: a random pattern each, of which every image flips some units."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand(2, units, generator=rng) < 0.5
    flips = torch.rand(2 * images, units, generator=rng) < noise
    return pack(centres.repeat_interleave(images, 0) ^ flips)


# Similarities


def test_similarities_are_what_their_names_say() -> None:
    values = torch.randn(12, 37, generator=torch.Generator().manual_seed(0)).relu()
    on = (values > 0).numpy()
    packed = pack(values > 0)
    both = (on[:, None] & on).sum(2)
    np.testing.assert_allclose(matching(packed, packed, 37), (on[:, None] == on).mean(2), atol=1e-15)
    np.testing.assert_allclose(overlap(packed, 37), both / (on[:, None] | on).sum(2), atol=1e-15)
    # scikit-learn takes the float32 numbers as they are; both sum 37 products in float64.
    np.testing.assert_allclose(cosine(values), cosine_similarity(values.double().numpy()), atol=1e-12)


def test_dead_rows_have_a_cosine() -> None:
    values = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [-1.0, -2.0]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(cosine(values), expected, atol=1e-12)


# The partition


@pytest.mark.parametrize("normalised", [True, False])
def test_two_planted_blocks_are_found(normalised: bool) -> None:
    packed = planted()
    part = fiedler(matching(packed, packed, 400), normalised)
    assert agreement(part, truth_of(30)) == 1.0
    assert part.smaller == 0.5


@pytest.mark.parametrize("normalised", [True, False])
def test_the_vector_is_the_second_eigenvector_of_its_laplacian(normalised: bool) -> None:
    packed = planted(noise=0.45)
    weights = matching(packed, packed, 400)
    np.fill_diagonal(weights, 0)
    degrees = weights.sum(1)
    vector = fiedler(weights, normalised).vector
    laplacian = np.diag(degrees) - weights
    mass = degrees if normalised else np.ones(len(weights))
    # The generalised problem L f = lambda M f, solved whole and by another route.
    values = np.sort(np.linalg.eigvals(laplacian / mass[:, None]).real)
    quotient = vector @ laplacian @ vector / (mass * vector**2).sum()
    assert quotient == pytest.approx(values[1], rel=1e-9)
    assert mass @ vector == pytest.approx(0, abs=1e-9 * mass.sum())


@pytest.mark.parametrize("noise", [0.3, 0.4])
def test_it_agrees_with_spectral_clustering(noise: float) -> None:
    packed = planted(noise=noise, seed=3)
    weights = matching(packed, packed, 400)
    # k-means on two eigenvectors instead of signs of one: the same on clear blocks.
    labels = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(weights)
    assert agreement(fiedler(weights), 2 * labels - 1) >= 0.95


@pytest.mark.parametrize("normalised", [True, False])
def test_a_graph_of_two_components_falls_into_them(normalised: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = np.zeros((50, 50))
    for rows in (slice(0, 20), slice(20, 50)):
        block = rng.uniform(0.2, 1, (rows.stop - rows.start,) * 2)
        blocks[rows, rows] = (block + block.T) / 2
    order = rng.permutation(50)
    part = fiedler(blocks[np.ix_(order, order)], normalised)
    assert agreement(part, np.where(order < 20, -1, 1)) == 1.0
    assert part.smaller == pytest.approx(0.4)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    "weights",
    [np.ones((40, 40)), np.full((40, 40), 0.8) + 0.2 * np.eye(40), np.eye(40), np.kron(np.eye(4), np.ones((10, 10)))],
    ids=["identical", "equidistant", "unlinked", "four-components"],
)
def test_a_graph_without_a_fiedler_vector_is_at_chance(weights: Any, normalised: bool) -> None:
    part = fiedler(weights, normalised)
    assert not part.unique
    assert part.smaller == 0
    assert agreement(part, truth_of(20)) == 0.5
    assert orientation(part, truth_of(20)) == 0
    assert extend(part, np.ones((3, 40))).tolist() == [0, 0, 0]


def test_an_image_without_a_neighbour_is_on_neither_side() -> None:
    packed = planted(images=10)
    weights = np.eye(21)
    weights[:20, :20] = matching(packed, packed, 400)
    part = fiedler(weights)
    assert part.sides[20] == 0
    assert agreement(part, np.append(truth_of(10), 1)) == pytest.approx(20.5 / 21)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_tiny_graphs(size: int) -> None:
    part = fiedler(np.full((size, size), 0.5) + np.diag(np.arange(size)))
    assert part.sides.shape == (size,)
    assert part.unique == (size == 2)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_order_of_images_does_not_matter(normalised: bool) -> None:
    packed = planted(noise=0.44, seed=5)
    truth = truth_of(30)
    whole = agreement(fiedler(matching(packed, packed, 400), normalised), truth)
    assert 0.5 < whole < 1
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(60)
        mixed = packed[torch.from_numpy(order)]
        assert agreement(fiedler(matching(mixed, mixed, 400), normalised), truth[order]) == whole


def test_one_outlier_takes_the_raw_cut_and_not_the_normalised_one() -> None:
    packed = planted(noise=0.42, units=4000, seed=1)
    weights = matching(packed, packed, 4000)
    weights[0, 1:] = weights[1:, 0] = weights[0, 1:] * 0.5
    assert agreement(fiedler(weights, True), truth_of(30)) > 0.95
    raw = fiedler(weights, False)
    assert raw.smaller == pytest.approx(1 / 60)
    assert agreement(raw, truth_of(30)) == pytest.approx(31 / 60)


def test_the_extension_puts_the_images_themselves_where_they_are() -> None:
    packed = planted(noise=0.4)
    weights = matching(packed, packed, 400)
    part = fiedler(weights)
    # L f = lambda D f, hence W f = (1 - lambda) D f, and with their ones on the diagonal W has no negative eigenvalue.
    assert (extend(part, weights) == part.sides).all()
    fresh = planted(noise=0.4)[:20]
    assert (extend(part, matching(fresh, packed, 400)) == part.sides[:20]).all()


def test_an_image_without_a_say_does_not_push_its_copy_away() -> None:
    packed = planted(noise=0.5, units=4000)
    weights = matching(packed, packed, 4000)
    part = fiedler(weights)
    np.fill_diagonal(weights, np.nan)
    # Noise alone, and each image's own weight unknown: the others put it where it is; with weight 0 they would not.
    assert (extend(part, weights) == part.sides).mean() > 0.95
    np.fill_diagonal(weights, 0)
    assert (extend(part, weights) == part.sides).mean() < 0.05


# The null and the interval


@pytest.mark.parametrize("ahead", [50, 20, 1])
def test_permuted_labels_follow_the_hypergeometric_distribution(ahead: int) -> None:
    class Cut:
        sides = np.where(np.arange(100) < ahead, 1, -1)

    hits = np.arange(ahead + 1)
    exact = hypergeom(100, 50, ahead).pmf(hits)
    accuracy = 0.5 + np.abs(2 * hits - ahead) / 100
    mean = exact @ accuracy
    found = agreement(Cut(), permuted(50, 4000, torch.Generator().manual_seed(0)))  # type: ignore[arg-type]
    error = np.sqrt(exact @ (accuracy - mean) ** 2 / 4000)
    assert found.mean() == pytest.approx(mean, abs=max(4 * error, 1e-12))
    if ahead == 50:
        # The closed form for even cuts of n images: about 0.5 + 0.4 / sqrt(n).
        assert mean == pytest.approx(0.5 + 0.4 / np.sqrt(100), abs=0.002)


def test_permutations_are_balanced_and_differ() -> None:
    found = permuted(7, 50, torch.Generator().manual_seed(1))
    assert (found.sum(0) == 0).all()
    assert len({tuple(column) for column in found.T.tolist()}) > 40


def test_the_interval_over_single_classes_is_students() -> None:
    values = np.array([0.3, 0.5, 0.45, 0.6])
    found = class_interval(values, [(0,), (1,), (2,), (3,)])
    expected = t.interval(0.95, 3, values.mean(), sem(values))
    assert found.ends == pytest.approx((values.mean(), *expected))


def test_the_interval_over_pairs_covers() -> None:
    """Values with an effect of each class: an interval that took pairs as independent would be too narrow."""
    rng = np.random.default_rng(0)
    pairs = [(i, j) for i in range(10) for j in range(i)]
    inside = naive = 0
    for _ in range(300):
        effect = rng.normal(0, 0.05, 10)
        values = np.array([0.5 + effect[i] + effect[j] + rng.normal(0, 0.02) for i, j in pairs])
        found = class_interval(values, pairs)
        inside += found.low <= 0.5 <= found.high
        naive += abs(values.mean() - 0.5) <= 2.02 * values.std(ddof=1) / np.sqrt(len(pairs))
    assert inside / 300 > 0.91
    assert naive / 300 < 0.85


def test_two_classes_have_no_interval() -> None:
    assert class_interval(np.array([0.7]), [(0, 1)]).ends == pytest.approx((0.7, np.nan, np.nan), nan_ok=True)


# The analysis


class Net(torch.nn.Module):
    """Two ReLU layers: the first of random units, the second tells the classes apart by where an image is bright."""

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = torch.nn.Linear(16, 32), torch.nn.Linear(16, 8 * classes)
        self.relu1, self.relu2 = torch.nn.ReLU(), torch.nn.ReLU()
        self.head = torch.nn.Linear(8 * classes, classes, bias=False)
        with torch.no_grad():
            # The units of class c compare its quarter of the image with a threshold.
            self.second.weight.zero_()
            for c in range(classes):
                self.second.weight[8 * c : 8 * c + 8, 4 * c : 4 * c + 4] = 1
            self.second.bias.copy_(-torch.linspace(0.5, 2.5, 8).repeat(classes))
            self.head.weight.copy_(torch.eye(classes).repeat_interleave(8, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        used = flat + 0 * self.relu1(self.first(flat)).sum(1, keepdim=True)
        return self.head(self.relu2(self.second(used)))


def bright(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Images whose quarter of the class is bright."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(len(labels), 16, generator=rng) * 0.4
    for i, label in enumerate(labels.tolist()):
        images[i, 4 * label : 4 * label + 4] += 0.5
    return images.view(-1, 1, 4, 4)


def as_set(traced_model: TracedModel, reader: Rdm, images: torch.Tensor, labels: torch.Tensor) -> ImageSet:
    return ImageSet(replace(traced_model.codes(reader.needs, images), label_rows=labels), lambda rows: images[rows])


def material(reader: Rdm, twin: bool = True, per_class: int = 12) -> AnalysisInput:
    labels = torch.arange(4).repeat(per_class)
    images = bright(labels)

    def made(seed: int) -> TracedModel:
        net = Net(seed=seed).eval()
        if seed:
            torch.nn.init.normal_(net.second.weight)
        return TracedModel(net, discover(net, images[:1]), (), net)

    own = made(0)

    def untrained(draw: int = 0) -> TracedModel:
        if not twin:
            raise UsageError("This model is a file of weights and code.")
        return made(1)

    evaluate = as_set(own, reader, images, labels)
    # An attack that swaps classes 0 and 1 by brightening the other quarter, and one that fails.
    rows = (labels < 2).nonzero().squeeze(1)
    moved = bright(1 - labels[rows], seed=7)
    rng = torch.Generator().manual_seed(9)
    noisy = (images[rows] + 0.02 * torch.randn(images[rows].shape, generator=rng)).clamp(0, 1)
    perturbed = {}
    for label, changed, success in (("swap[eps=1]", moved, True), ("weak", noisy, False)):
        perturbed[label] = PerturbedSet(
            label, "attack", as_set(own, reader, changed, labels[rows]), rows,
            torch.full((len(rows),), success), as_set(own, reader, noisy, labels[rows]), rows,
        )  # fmt: skip
    return AnalysisInput(own, untrained, ("a", "b", "c", "d"), evaluate, evaluate, perturbed, seed=0)


def claim(findings: Findings, kind: str, missing: bool = False) -> Any:
    found = [c for c in findings.claims if c.kind == kind]
    assert len(found) == 1 - missing
    return found[0] if found else None


@pytest.fixture(scope="module")
def found(study: Callable[..., Findings]) -> Findings:
    reader = Rdm(images=10, map_images=3, maps=2)
    return study(reader, material(reader))


def test_a_layer_that_knows_the_classes_separates_them_and_one_that_does_not_does_not(found: Findings) -> None:
    rows = {(r["tap"], r["similarity"]): r for r in findings_table(found, "rdm-accuracy")}
    assert rows["relu2", "bits, Hamming"]["accuracy"] == 1.0
    assert rows["relu2", "bits, Jaccard"]["accuracy"] == 1.0
    assert rows["relu2", "activations, cosine"]["accuracy"] == 1.0
    assert rows["relu2", "bits, Hamming"]["p_value"] == pytest.approx(1 / 201)
    assert rows["relu2", "untrained network, bits, Hamming"]["accuracy"] < 1
    assert rows["relu2", "bits, Hamming"]["pairs"] == 6
    assert rows["relu1", "bits, Hamming"]["depth"] == 1
    pairs = [
        r["accuracy"]
        for r in findings_table(found, "rdm-pairs")
        if (r["tap"], r["similarity"]) == ("relu1", "bits, Hamming")
    ]
    assert np.mean(pairs) == pytest.approx(rows["relu1", "bits, Hamming"]["accuracy"])
    # Best of two ways to name the sides of 20 images, permuted: 0.5 + 0.4 / sqrt(20), a little more for uneven cuts.
    assert 0.55 < rows["relu2", "bits, Hamming"]["null"] < 0.62


def test_attacked_images_lie_with_the_reached_class_and_noise_does_not(found: Findings) -> None:
    rows = {(r["tap"], r["attack"], r["population"]): r for r in findings_table(found, "rdm-attacked")}
    assert rows["relu2", "swap[eps=1]", "attacked"]["share_on_reached_side"] == 1.0
    assert rows["relu2", "swap[eps=1]", "attacked"]["images"] == 24
    assert rows["relu2", "swap[eps=1]", "noise of the same size"]["share_on_reached_side"] == 0.0
    assert rows["relu2", "swap[eps=1]", "before the attack"]["share_on_reached_side"] == 0.0
    assert not any(attack == "weak" for _, attack, _ in rows)


def test_every_number_that_is_shown_is_in_a_table(found: Findings) -> None:
    tables = {
        round(float(v), 12) for t in found.tables for row in t.rows for v in row if isinstance(v, int | float)
    }  # fmt: skip
    for figure in found.figures:
        if isinstance(figure, Lines):
            shown = [v for s in figure.series for v in (*s.y, *s.low, *s.high) if v is not None]
            assert {round(float(v), 12) for v in shown} <= tables, figure.title


def test_the_map_is_ordered_by_class(found: Findings) -> None:
    figure = next(f for f in found.figures if isinstance(f, HeatMaps))
    assert figure.ticks == [(0, "a"), (3, "b"), (6, "c"), (9, "d")]
    assert [p.name for p in figure.panels] == ["relu1 (tap 1 of 2)", "relu2 (tap 2 of 2)"]
    values = figure.panels[1].values
    same = torch.arange(12) // 3
    within = values[same[:, None] == same]
    assert within.max() < values[same[:, None] != same].min()
    assert torch.equal(values, values.T)
    assert (values.diagonal() == 0).all()
    raw = found.arrays["dissimilarity"][1]
    other = ~torch.eye(12, dtype=torch.bool)
    np.testing.assert_allclose(
        values[other].numpy(), [percentileofscore(raw[other].numpy(), v, "mean") for v in raw[other]], rtol=0.01, atol=1
    )


def test_findings_are_stored_and_told(found: Findings) -> None:
    again = Findings.read(*found.stored())
    assert again.claims == found.claims and all(c.sentence for c in again.claims)
    assert claim(found, "separation").estimates["last tap"][0] == 1
    untrained = claim(found, "untrained-network")
    assert untrained.estimates["difference"][0] == pytest.approx(1 - untrained.estimates["untrained"][0])
    assert claim(found, "attacked-side").estimates["swap[eps=1]"][0] == 1
    assert claim(found, "few-images", missing=True) is None


def test_without_a_twin_it_says_so(study: Callable[..., Findings]) -> None:
    reader = Rdm(images=6, activation_units=0, attacks=0, laplacian="raw", classes=3, permutations=20)
    found = study(reader, material(reader, twin=False))
    assert claim(found, "no-untrained-network").verdict == "This model is a file of weights and code."
    rows = findings_table(found, "rdm-accuracy")
    assert {r["similarity"] for r in rows} == {"bits, Hamming, raw Laplacian", "bits, Jaccard, raw Laplacian"}
    assert {r["pairs"] for r in rows} == {3}
    assert not any(t.name == "rdm-attacked" for t in found.tables)


def test_it_is_the_same_twice(study: Callable[..., Findings]) -> None:
    reader = Rdm(images=6, classes=3, permutations=20)
    first, second = (study(reader, material(reader)) for _ in range(2))
    assert [t.rows for t in first.tables] == [t.rows for t in second.tables]


def test_identical_patterns_are_at_chance(study: Callable[..., Findings]) -> None:
    reader = Rdm(images=6, layers=["relu1"], activation_units=0, attacks=0)
    given = material(reader, twin=False)
    rows = {"relu1": torch.full((len(given.evaluate), 4), 255, dtype=torch.uint8)}
    flat = replace(given.evaluate.traces, codes={"bits": rows})
    found = study(reader, replace(given, evaluate=replace(given.evaluate, traces=flat)))
    assert {r["accuracy"] for r in findings_table(found, "rdm-accuracy")} == {0.5}
    assert {r["undecided_graphs"] for r in findings_table(found, "rdm-accuracy")} == {6}
    graphs = claim(found, "undecided-graphs").estimates
    assert graphs["undecided"] == graphs["graphs"] == 18
    Findings.read(*found.stored())


def test_nothing_to_compare_is_an_error(study: Callable[..., Findings]) -> None:
    reader = Rdm()
    given = material(reader)
    one = replace(given.evaluate.traces, label_rows=torch.zeros(len(given.evaluate), dtype=torch.int64))
    with pytest.raises(UsageError, match=r"raise data\.evaluate"):
        study(reader, replace(given, evaluate=replace(given.evaluate, traces=one)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 1}, {"classes": 1}, {"layers": ""}, {"units": 0}, {"laplacian": "signless"}, {"maps": 0},
        {"activation_units": -1}, {"permutations": 3}, {"map_images": 0}, {"attacks": -1}, {"attacked": 0},
    ],
)  # fmt: skip
def test_wrong_parameters_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Rdm(**wrong)


def test_a_run_on_digits(tmp_path: Path, forks: Forks, tiny: Tiny, of_run: Callable[..., Findings]) -> None:
    suite = tiny(tmp_path / "suite.toml", model={"epochs": 8}, detectors=[{"name": "msp"}])
    suite.write_text(suite.read_text() + '\n[[analyses]]\nname = "rdm"\nimages = 5\nclasses = 4\npermutations = 20\n')
    done = forks("run", suite, "--out", tmp_path / "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    found = of_run(tmp_path / "run", Rdm(), "rdm")
    rows = findings_table(found, "rdm-accuracy")
    assert len({r["tap"] for r in rows}) == len({r["depth"] for r in rows}) >= 1
    assert all(0.5 <= r["accuracy"] <= 1 for r in rows)
