"""The propagation report against closed forms, Gram matrices, scikit-learn and planted shifts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from aftershock.analyses.propagation import encoders as learned
from aftershock.analyses.propagation.encoders import NEEDS, Encoders, fit_encoders
from aftershock.analyses.propagation.measured import Moved, Propagated
from aftershock.analyses.propagation.measures import METRICS, cka, measure
from aftershock.analyses.propagation.report.tables import Summary, summarise, tables
from aftershock.detectors.codes.som import fit_som as fit_map
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.state import decode, encode
from aftershock.harness.evaluation.csv_files import COLUMNS
from aftershock.harness.tracing.bits import pack
from aftershock.harness.tracing.traces import Need, TapInfo, Traces, pool, sampled_units
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor

TAPS = (TapInfo("a.relu", "relu", (6, 8, 8)), TapInfo("b.relu", "relu", (12, 2, 2)), TapInfo("b.relu:2", "relu", (9,)))
CLASSES = 3


def preactivations(n: int, seed: int, labels: Tensor) -> list[Tensor]:
    """A signal of the class at every tap, under noise; with an offset, so that no image silences the small tap."""
    g = torch.Generator().manual_seed(99)
    signals = [torch.randn(CLASSES, *tap.shape, generator=g) for tap in TAPS]
    g = torch.Generator().manual_seed(seed)
    return [
        0.7 + s[labels] + 0.4 * torch.randn(n, *tap.shape, generator=g) for s, tap in zip(signals, TAPS, strict=True)
    ]


def record(values: list[Tensor], labels: Tensor | None = None, predictions: Tensor | None = None) -> Traces:
    """Traces as a recorder leaves them, from pre-activations."""
    codes: dict[str, dict[str, Tensor]] = {need.code: {} for need in NEEDS}
    for tap, value in zip(TAPS, values, strict=True):
        after = value.relu()
        kept = sampled_units(tap, 256)
        full = after.flatten(1)
        codes["bits"][tap.name] = pack(value.flatten(1) > 0)
        codes["pooled:mean"][tap.name] = pool(after, "mean")
        codes["full:256"][tap.name] = full if kept is None else full[:, kept]
    n = len(values[0])
    predicted = labels if predictions is None else predictions
    logits = torch.eye(CLASSES)[torch.zeros(n, dtype=torch.int64) if predicted is None else predicted]
    return Traces(logits, TAPS, codes, NEEDS, label_rows=labels)


@pytest.fixture(scope="module")
def fit_values() -> list[Tensor]:
    return preactivations(300, 0, torch.arange(300) % CLASSES)


@pytest.fixture(scope="module")
def encoders(fit_values: list[Tensor]) -> Encoders:
    return fit_encoders(record(fit_values, torch.arange(300) % CLASSES))


@pytest.fixture(scope="module")
def clean_values() -> list[Tensor]:
    return preactivations(40, 1, torch.arange(40) % CLASSES)


@pytest.fixture(scope="module")
def moved_values(clean_values: list[Tensor]) -> list[Tensor]:
    g = torch.Generator().manual_seed(2)
    return [v + 0.7 * torch.randn(v.shape, generator=g) for v in clean_values]


def full_units(values: list[Tensor], depth: int) -> np.ndarray:
    kept = sampled_units(TAPS[depth], 256)
    flat = values[depth].relu().flatten(1)
    return (flat if kept is None else flat[:, kept]).double().numpy()


def pooled_means(values: list[Tensor], depth: int) -> np.ndarray:
    flat = values[depth].relu().double().numpy()
    return flat.reshape(*flat.shape[:2], -1).mean(2)


@pytest.mark.parametrize("depth", range(len(TAPS)))
class TestMeasuresAgainstTheirDefinitions:
    @pytest.fixture
    def found(
        self, encoders: Encoders, clean_values: list[Tensor], moved_values: list[Tensor], depth: int
    ) -> dict[str, np.ndarray]:
        values = measure(encoders, record(clean_values), record(moved_values))
        assert values.shape == (len(METRICS), 40, len(TAPS))
        assert values.dtype == torch.float32
        return {name: values[i, :, depth].numpy() for i, name in enumerate(METRICS)}

    def test_activations(
        self, found: dict[str, np.ndarray], clean_values: list[Tensor], moved_values: list[Tensor], depth: int
    ) -> None:
        h, moved = full_units(clean_values, depth), full_units(moved_values, depth)
        norm = np.linalg.norm
        np.testing.assert_allclose(found["relative_l2"], norm(moved - h, axis=1) / norm(h, axis=1), rtol=1e-5)
        cosine = (h * moved).sum(1) / norm(h, axis=1) / norm(moved, axis=1)
        np.testing.assert_allclose(found["cosine_distance"], 1 - cosine, rtol=1e-5)

    def test_bits(
        self, found: dict[str, np.ndarray], clean_values: list[Tensor], moved_values: list[Tensor], depth: int
    ) -> None:
        flipped = (clean_values[depth] > 0) != (moved_values[depth] > 0)
        np.testing.assert_allclose(found["bit_flip_rate"], flipped.flatten(1).double().mean(1).numpy(), rtol=1e-6)

    def test_map(
        self,
        found: dict[str, np.ndarray],
        encoders: Encoders,
        fit_values: list[Tensor],
        clean_values: list[Tensor],
        moved_values: list[Tensor],
        depth: int,
    ) -> None:
        scaler = StandardScaler().fit(pooled_means(fit_values, depth))
        som = encoders.taps[TAPS[depth].name].som
        assert (som.rows, som.columns) == (8, 8)
        places = []
        for values in (clean_values, moved_values):
            x = scaler.transform(pooled_means(values, depth))
            apart = ((x[:, None] - som.prototypes.double().numpy()) ** 2).sum(2)
            places.append(np.stack(np.unravel_index(apart.argmin(1), (8, 8)), 1))
        steps = np.linalg.norm(places[0] - places[1], axis=1)
        np.testing.assert_allclose(found["som_map_distance"], steps, rtol=1e-6)
        np.testing.assert_array_equal(found["som_unit_change"], steps > 0)
        assert found["som_unit_change"].mean() > 0

    def test_latent(
        self,
        found: dict[str, np.ndarray],
        fit_values: list[Tensor],
        clean_values: list[Tensor],
        moved_values: list[Tensor],
        depth: int,
    ) -> None:
        h = full_units(fit_values, depth)
        oracle = PCA(min(16, h.shape[1]), whiten=True, svd_solver="full").fit(h)
        shift = oracle.transform(full_units(moved_values, depth)) - oracle.transform(full_units(clean_values, depth))
        # Scikit-learn whitens by the standard deviation with n − 1.
        expected = np.linalg.norm(shift, axis=1) * math.sqrt(300 / 299)
        np.testing.assert_allclose(found["latent_distance"], expected, rtol=1e-3)

    def test_centroids(
        self,
        found: dict[str, np.ndarray],
        fit_values: list[Tensor],
        clean_values: list[Tensor],
        moved_values: list[Tensor],
        depth: int,
    ) -> None:
        scaler = StandardScaler().fit(pooled_means(fit_values, depth))
        x = scaler.transform(pooled_means(fit_values, depth))
        centroids = np.stack([x[np.arange(300) % CLASSES == c].mean(0) for c in range(CLASSES)])
        nearest = [
            np.linalg.norm(scaler.transform(pooled_means(v, depth))[:, None] - centroids, axis=2).argmin(1)
            for v in (clean_values, moved_values)
        ]
        np.testing.assert_array_equal(found["centroid_change"], nearest[0] != nearest[1])


def test_identical_traces_have_not_moved(encoders: Encoders, clean_values: list[Tensor]) -> None:
    clean = record(clean_values)
    assert measure(encoders, clean, record(clean_values)).count_nonzero() == 0
    np.testing.assert_allclose(cka(clean, record(clean_values)).numpy(), 1, rtol=1e-12)


def test_a_planted_shift_shows_at_its_tap_only(encoders: Encoders, clean_values: list[Tensor]) -> None:
    g = torch.Generator().manual_seed(3)
    shifted = [clean_values[0], clean_values[1] + 2 * torch.randn(12, 2, 2, generator=g), clean_values[2]]
    values = measure(encoders, record(clean_values), record(shifted))
    assert values[:, :, [0, 2]].count_nonzero() == 0
    assert (values[:, :, 1].mean(1) > 0.1).all()


def test_a_swap_of_classes_changes_every_centroid(encoders: Encoders, clean_values: list[Tensor]) -> None:
    n = len(clean_values[0])
    other = preactivations(n, 5, (torch.arange(n) + 1) % CLASSES)
    values = measure(encoders, record(clean_values), record(other))
    change = values[METRICS.index("centroid_change")]
    assert (change.mean(0) > 0.9).all()


def test_silent_taps_stay_finite(encoders: Encoders) -> None:
    silent = [torch.full((4, *tap.shape), -1.0) for tap in TAPS]
    loud = [torch.full((4, *tap.shape), 2.0) for tap in TAPS]
    both = measure(encoders, record(silent), record(silent))
    assert both.count_nonzero() == 0
    for before, after in ((silent, loud), (loud, silent)):
        values = measure(encoders, record(before), record(after))
        assert values.isfinite().all()
        for name in ("relative_l2", "cosine_distance", "bit_flip_rate"):
            assert (values[METRICS.index(name)] == 1).all(), name


def test_a_tap_that_never_varies_in_fit_is_measured(clean_values: list[Tensor]) -> None:
    dead = [clean_values[0], torch.full_like(clean_values[1], -1.0), clean_values[2]]
    labels = torch.arange(40) % CLASSES
    fitted = fit_encoders(record(dead, labels))
    values = measure(fitted, record(dead), record(clean_values))
    assert values.isfinite().all()
    # Nothing was learned about it, but what needs no encoder still sees the change.
    assert (values[METRICS.index("bit_flip_rate"), :, 1] > 0).all()
    tensors, state = encode(fitted)
    again = decode(Encoders, tensors, state)
    assert torch.equal(measure(again, record(dead), record(clean_values)), values)


def test_streaming_equals_the_whole(
    encoders: Encoders,
    fit_values: list[Tensor],
    clean_values: list[Tensor],
    moved_values: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean, moved = record(clean_values), record(moved_values)
    whole = measure(encoders, clean, moved)
    alignment = cka(clean, moved)
    plain = Traces.batches
    monkeypatch.setattr(Traces, "batches", lambda self, size=256: plain(self, 7))
    np.testing.assert_allclose(measure(encoders, clean, moved).numpy(), whole.numpy(), atol=1e-6)
    np.testing.assert_allclose(cka(clean, moved).numpy(), alignment.numpy(), rtol=1e-10)
    cut = fit_encoders(record(fit_values, torch.arange(300) % CLASSES))
    np.testing.assert_allclose(measure(cut, clean, moved).numpy(), whole.numpy(), rtol=1e-3, atol=1e-4)
    part = measure(encoders, clean[10:25], moved[10:25])
    np.testing.assert_allclose(part.numpy(), whole[:, 10:25].numpy(), atol=1e-6)


def test_a_long_fit_set_is_thinned_evenly_for_the_map(
    fit_values: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def fit_som(data: Tensor, rows: int, columns: int) -> object:
        seen.append(data)
        return fit_map(data, rows, columns)

    monkeypatch.setattr(learned, "fit_som", fit_som)
    monkeypatch.setattr(learned, "_SOM_IMAGES", 80)
    batches = Traces.batches
    monkeypatch.setattr(Traces, "batches", lambda self, size=256: batches(self, 37))
    found = fit_encoders(record(fit_values, torch.arange(300) % CLASSES))
    pooled = record(fit_values).pooled("a.relu", "mean")
    assert torch.equal(seen[0], found.taps["a.relu"].standardiser.apply(pooled)[::4])


def test_centroids_come_from_images_that_the_model_gets_right(fit_values: list[Tensor]) -> None:
    labels = torch.arange(300) % CLASSES
    predictions = labels.clone()
    # The model gets every second image of class 0 wrong and never gets class 2.
    predictions[::6] = 1
    predictions[labels == 2] = 0
    found = fit_encoders(record(fit_values, labels, predictions)).taps["a.relu"]
    x = StandardScaler().fit_transform(pooled_means(fit_values, 0))
    right = (labels == predictions).numpy()
    expected = [x[right & (labels == c).numpy()].mean(0) for c in (0, 1)]
    np.testing.assert_allclose(found.centroids.numpy(), expected, atol=1e-5)


def test_a_model_that_is_always_wrong_has_centroids_of_predicted_classes(fit_values: list[Tensor]) -> None:
    labels = torch.arange(300) % CLASSES
    predictions = (labels + 1) % CLASSES
    found = fit_encoders(record(fit_values, labels, predictions)).taps["a.relu"]
    x = StandardScaler().fit_transform(pooled_means(fit_values, 0))
    expected = [x[(predictions == c).numpy()].mean(0) for c in range(CLASSES)]
    np.testing.assert_allclose(found.centroids.numpy(), expected, atol=1e-5)


def test_a_cap_on_the_recorded_bits_is_the_rates_denominator(encoders: Encoders, clean_values: list[Tensor]) -> None:
    def capped(value: float) -> Traces:
        traces = record(clean_values)
        bits = {tap.name: pack(torch.full((40, min(100, tap.units)), value > 0)) for tap in TAPS}
        needs = (Need("bits", units=100), *NEEDS[1:])
        return replace(traces, codes={**traces.codes, "bits:100": bits}, needs=needs)

    rate = measure(encoders, capped(1.0), capped(-1.0))[METRICS.index("bit_flip_rate")]
    assert (rate == 1).all()


@pytest.mark.parametrize("n", [0, 1])
def test_few_images_are_measured(encoders: Encoders, clean_values: list[Tensor], n: int) -> None:
    clean, moved = record(clean_values)[:n], record([v + 1 for v in clean_values])[:n]
    values = measure(encoders, clean, moved)
    assert values.shape == (len(METRICS), n, len(TAPS))
    assert values.isfinite().all()
    alignment = cka(clean, moved)
    assert alignment.shape == (len(TAPS),)
    assert alignment.isnan().all()
    rows = rows_of([t.name for t in TAPS], {"success": Moved(values, alignment)})
    assert len(rows) == (len(METRICS) + 1) * len(TAPS) * n


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_images_are_enough_to_fit(clean_values: list[Tensor], n: int) -> None:
    few = record([v[:n] for v in clean_values], torch.arange(n) % CLASSES)
    fitted = fit_encoders(few)
    assert all(tap.som.units <= n for tap in fitted.taps.values())
    assert measure(fitted, record(clean_values), record([v + 1 for v in clean_values])).isfinite().all()


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix H, as in the paper's equations 2 and 3."""
    h = np.eye(len(x)) - 1 / len(x)
    k, m = x @ x.T, y @ y.T

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ h @ b @ h))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


class TestCka:
    # 8 images: fewer than the maps of two taps; 40: more than those of any.
    @pytest.mark.parametrize("n", [4, 8, 40])
    def test_is_the_formula_on_centred_gram_matrices(
        self, clean_values: list[Tensor], moved_values: list[Tensor], n: int
    ) -> None:
        found = cka(record(clean_values)[:n], record(moved_values)[:n])
        expected = [gram_cka(pooled_means(clean_values, d)[:n], pooled_means(moved_values, d)[:n]) for d in range(3)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
        assert (found < 0.9999).all()

    @pytest.mark.parametrize("step", [2, 7])
    def test_chosen_images_are_those_images(
        self, clean_values: list[Tensor], moved_values: list[Tensor], step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = Traces.batches
        monkeypatch.setattr(Traces, "batches", lambda self, size=256: plain(self, 9))
        chosen = torch.arange(40) % step == 0
        found = cka(record(clean_values), record(moved_values), chosen)
        direct = cka(record([v[chosen] for v in clean_values]), record([v[chosen] for v in moved_values]))
        np.testing.assert_allclose(found.numpy(), direct.numpy(), rtol=1e-10)

    def test_a_rotated_scaled_and_moved_copy_is_the_same(self, clean_values: list[Tensor]) -> None:
        rotation = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0))).Q
        clean, copy = record(clean_values), record(clean_values)
        turned = {**copy.codes["pooled:mean"], "b.relu:2": 3 * copy.pooled("b.relu:2") @ rotation + 5}
        copy = replace(copy, codes={**copy.codes, "pooled:mean": turned})
        np.testing.assert_allclose(cka(clean, copy).numpy(), 1, rtol=1e-5)

    def test_a_set_that_does_not_vary_has_none(self, clean_values: list[Tensor]) -> None:
        same = [clean_values[0], torch.full_like(clean_values[1], 0.1), clean_values[2]]
        for pair in ((same, clean_values), (clean_values, same)):
            found = cka(record(pair[0]), record(pair[1]))
            assert found.isnan().tolist() == [False, True, False]

    def test_fewer_than_four_have_none(self, clean_values: list[Tensor], moved_values: list[Tensor]) -> None:
        assert cka(record(clean_values)[:3], record(moved_values)[:3]).isnan().all()
        assert not cka(record(clean_values)[:4], record(moved_values)[:4]).isnan().any()
        none = torch.zeros(40, dtype=torch.bool)
        assert cka(record(clean_values), record(moved_values), none).isnan().all()


def test_encoders_are_deterministic_and_draw_nothing(fit_values: list[Tensor], encoders: Encoders) -> None:
    before = torch.get_rng_state()
    again = fit_encoders(record(fit_values, torch.arange(300) % CLASSES))
    assert torch.equal(torch.get_rng_state(), before)
    first, second = encode(encoders), encode(again)
    assert first[1] == second[1]
    assert all(torch.equal(first[0][k], second[0][k]) for k in first[0])


def test_encoders_go_through_safetensors_and_json(
    encoders: Encoders, clean_values: list[Tensor], moved_values: list[Tensor], tmp_path: Path
) -> None:
    tensors, state = encode(encoders)
    save_file(tensors, tmp_path / "encoders.safetensors")
    again = decode(Encoders, load_file(tmp_path / "encoders.safetensors"), json.loads(json.dumps(state)))
    assert list(again.taps) == list(encoders.taps)
    clean, moved = record(clean_values), record(moved_values)
    assert torch.equal(measure(again, clean, moved), measure(encoders, clean, moved))


def test_a_summary_is_numpys() -> None:
    values = torch.randn(101, generator=torch.Generator().manual_seed(0))
    found = summarise(values)
    assert found.n == 101
    expected = [values.double().mean().item(), *np.quantile(values.double().numpy(), [0.05, 0.5, 0.95])]
    assert [found.mean, found.q05, found.q50, found.q95] == pytest.approx(expected, rel=1e-9)
    assert summarise(torch.tensor([2.0])) == Summary(1, 2.0, 2.0, 2.0, 2.0)
    assert summarise(torch.empty(0)) == Summary(0)


def rows_of(taps: list[str], populations: dict[str, Moved]) -> list[dict[str, object]]:
    (table,) = tables(Propagated(taps, {"pgd": populations}))
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_rows_have_the_tables_columns() -> None:
    values = torch.arange(len(METRICS) * 5 * 2.0).reshape(len(METRICS), 5, 2)
    rows = rows_of(["x", "y"], {"failed": Moved(values, torch.tensor([0.25, math.nan]))})
    assert all(("dataset", "model", "seed", *row) == COLUMNS["propagation"] for row in rows)
    assert len(rows) == 2 * (len(METRICS) + 1)
    assert {row["perturbation"] for row in rows} == {"pgd"}
    flips = next(r for r in rows if r["metric"] == "bit_flip_rate" and r["tap"] == "y")
    own = values[METRICS.index("bit_flip_rate"), :, 1]
    assert (flips["population"], flips["depth"], flips["n"], flips["mean"]) == ("failed", 1, 5, float(own.mean()))
    whole = [r for r in rows if r["metric"] == "cka"]
    assert [(r["mean"], r["q05"], r["q50"], r["q95"], r["n"]) for r in whole] == [
        (0.25, None, None, None, 5),
        (None, None, None, None, 5),
    ]


def test_mistakes_say_what_to_do(encoders: Encoders, clean_values: list[Tensor]) -> None:
    clean = record(clean_values)
    with pytest.raises(UsageError, match=r"raise fit in \[data\]"):
        fit_encoders(record(clean_values, torch.arange(40) % CLASSES)[:0])
    with pytest.raises(ValueError, match="40 clean images but 39 others"):
        measure(encoders, clean, clean[:39])
    with pytest.raises(UsageError, match="other taps"):
        measure(encoders, replace(clean, taps=TAPS[:2]), clean)
    with pytest.raises(ValueError, match="same images"):
        cka(clean, clean[:39])
    with pytest.raises(UsageError, match="different taps"):
        cka(clean, replace(clean, taps=TAPS[:2]))
    with pytest.raises(ValueError, match="do not fit"):
        Moved(torch.zeros(len(METRICS), 3, 2), torch.zeros(1))
