"""ClaDec: planted networks whose reconstructions are known, closed forms, and a run from a suite."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.analyses.base import AnalysisInput, ImageSet, PerturbedSet
from aftershock.analyses.cladec.analysis import ClaDec
from aftershock.analyses.cladec.causal import Causes, causes
from aftershock.analyses.cladec.measures import difference, estimate
from aftershock.analyses.cladec.networks import Decoder, changed_logits, chosen_taps, encode, fresh
from aftershock.analyses.cladec.report.tables import alpha_sum
from aftershock.analyses.findings import Findings, Lines, Pictures
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import TapInfo, Traces
from scipy.stats import binomtest, spearmanr, t
from support.commands import Forks
from support.findings import findings_table, value_of
from support.suites import Tiny
from torch import Tensor, nn

CLASSES = 3
DECODER = {"epochs": 3, "width": 4, "batch_size": 16, "learning_rate": 0.01}
QUICK: dict[str, Any] = {
    "taps": "all", "decoder": DECODER, "judge": {"epochs": 3}, "alphas": [0.0], "seeds": 1, "units": 0,
}  # fmt: skip


def decoder(**changed: Any) -> dict[str, Any]:
    return {**DECODER, **changed}


class Net(nn.Module):
    """A flat network with a tapped encoder."""

    def __init__(self, encoder: nn.Sequential, units: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.encoder(x).flatten(1))
        return logits


class InPlace(nn.Module):
    """Goes on in place after its taps, and counts what is called behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(4, CLASSES)
        self.behind = 0

    def forward(self, x: Tensor) -> Tensor:
        # Its backward pass, unlike ReLU's, does without the output.
        out = nn.functional.gelu(self.drop(self.norm(self.first(x))))
        out += 1
        self.behind += 1
        out = torch.relu(self.second(out))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def traced_model(model: nn.Module, modules: tuple[str, ...] = (), shape: tuple[int, ...] = (1, 8, 8)) -> TracedModel:
    model.eval()
    taps = discover(model, torch.rand(2, *shape), modules)
    return TracedModel(model, taps, modules, model)


def pictures(n: int, seed: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """One bright quadrant per class on noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = 0.3 * torch.rand(n, 1, 8, 8, generator=draws)
    for i, c in enumerate(labels.tolist()):
        images[i, :, 4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] += 0.6 * strength
    return images, labels


def image_set(own: TracedModel, images: Tensor, labels: Tensor) -> ImageSet:
    with torch.no_grad():
        logits = own.model(images)
    return ImageSet(Traces(logits, own.taps, {}, (), label_rows=labels), lambda rows: images[rows].clone())


def material(
    own: TracedModel, untrained: TracedModel | None, fit: tuple[Tensor, Tensor], evaluate: tuple[Tensor, Tensor],
    perturbed: Callable[[], PerturbedSet] | None = None, seed: int = 0, told: list[float] | None = None,
) -> AnalysisInput:  # fmt: skip
    def twin(draw: int = 0) -> TracedModel:
        if untrained is None:
            raise UsageError("there is no untrained one")
        return untrained

    found = {} if perturbed is None else {"moved": perturbed()}
    names = tuple("abcdefghij"[:CLASSES])
    progress = (lambda share: None) if told is None else told.append
    return AnalysisInput(
        own, twin, names, image_set(own, *fit), image_set(own, *evaluate), found, seed, progress
    )  # fmt: skip


def summary(found: Findings, tap: str | None, source: str, alpha: float | None = None) -> dict[str, Any]:
    rows = findings_table(found, "cladec-summary")
    return next(r for r in rows if (r["tap"], r["source"]) == (tap, source) and alpha in (None, r["alpha"]))


def planted(constant: bool = False) -> TracedModel:
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU()), 24)
    if constant:
        with torch.no_grad():
            net.get_parameter("encoder.1.weight").zero_()
            net.get_parameter("encoder.1.bias").fill_(1.0)
    return traced_model(net)


def test_an_invertible_encoder_reaches_near_zero_error(study: Callable[..., Findings]) -> None:
    torch.manual_seed(0)
    own = traced_model(Net(nn.Sequential(), 64), ("encoder",))
    found = study(
        ClaDec(**{**QUICK, "decoder": decoder(epochs=12, width=6)}),
        material(own, None, pictures(192, 1), pictures(60, 2)),
    )
    error = summary(found, "encoder", "cladec")["squared_error"]
    assert error < 0.05 * summary(found, None, "mean image")["squared_error"]


def test_a_constant_encoder_gives_the_mean_image_and_the_refae_does_not(study: Callable[..., Findings]) -> None:
    fit, evaluate = pictures(192, 1), pictures(90, 2)
    own = planted(constant=True)
    found = study(ClaDec(**{**QUICK, "decoder": decoder(epochs=10)}), material(own, planted(), fit, evaluate))
    variance = float((evaluate[0] - evaluate[0].mean(0)).square().mean())
    assert summary(found, None, "mean image")["squared_error"] == pytest.approx(variance, rel=0.05)
    tap = own.taps[0].name
    ours, reference = summary(found, tap, "cladec"), summary(found, tap, "refae")
    assert ours["squared_error"] == pytest.approx(variance, rel=0.05)
    # No class information at all: one reading for every image.
    assert ours["own_accuracy"] == pytest.approx(1 / CLASSES, abs=1e-6)
    assert reference["squared_error"] < 0.5 * variance
    assert reference["fresh_accuracy"] > 0.9


def test_alpha_trades_error_for_class(study: Callable[..., Findings]) -> None:
    # The class moves its quadrant a little and the classifier sees it from afar; the squared error hardly does.
    fit, evaluate = pictures(300, 1, 0.1), pictures(90, 2, 0.1)
    net = Net(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES + 1), nn.ReLU()), CLASSES + 1)
    with torch.no_grad():
        weight = net.get_parameter("encoder.1.weight")
        weight.zero_()
        for c in range(CLASSES):
            block = torch.zeros(8, 8)
            block[4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] = 1 / 16
            weight[c] = block.flatten()
        # Takes most of the code's variance and says nothing of the class.
        weight[CLASSES, ::2] = 0.1
        net.get_parameter("encoder.1.bias").zero_()
        net.linear.weight.copy_(60 * torch.eye(CLASSES, CLASSES + 1))
        net.linear.bias.zero_()
    analysis = ClaDec(**{**QUICK, "alphas": [0.0, 1.0], "decoder": decoder(epochs=5)})
    found = study(analysis, material(traced_model(net), None, fit, evaluate))
    tap = traced_model(net).taps[0].name
    plain, faithful = summary(found, tap, "cladec", 0.0), summary(found, tap, "cladec", 1.0)
    assert faithful["own_cross_entropy"] < 0.5 * plain["own_cross_entropy"]
    assert faithful["own_accuracy"] > plain["own_accuracy"]
    assert faithful["squared_error"] > plain["squared_error"]


def test_results_depend_on_the_seed_alone_and_leave_the_model_as_it_was(study: Callable[..., Findings]) -> None:
    fit, evaluate = pictures(32, 1), pictures(30, 2)
    own, untrained = traced_model(InPlace()), traced_model(InPlace())
    before = copy.deepcopy(own.model.state_dict())
    untouched = copy.deepcopy(untrained.model.state_dict())
    analysis = ClaDec(
        **{
            **QUICK,
            "alphas": [0.0, 0.2],
            "judge": {"images": 16, "epochs": 1, "retrain": True},
            "units": 3,
            "seeds": 2,
            "decoder": decoder(epochs=1),
        }
    )
    told: list[float] = []

    def stored(seed: int) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(int(torch.randint(1000, ())))
        return study(analysis, material(own, untrained, fit, evaluate, seed=seed, told=told)).stored()

    one, again = stored(0), stored(0)
    state = torch.get_rng_state()
    other = study(analysis, material(own, untrained, fit, evaluate, seed=1, told=told)).stored()
    assert torch.equal(torch.get_rng_state(), state)
    assert one[1] == again[1]
    assert all(torch.equal(one[0][k], again[0][k]) for k in one[0])
    assert one[1]["tables"] != other[1]["tables"]
    for model, kept in ((own.model, before), (untrained.model, untouched)):
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        assert not model.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert told[-1] == 1.0
    assert all(0 <= share <= 1 for share in told)


def moved(own: TracedModel, really: bool) -> Callable[[], PerturbedSet]:
    """Images of the next class under the old label; or the old images, as if they had turned."""

    def made() -> PerturbedSet:
        images, labels = pictures(30, 2)
        shown = pictures(31, 5)[0][1:] if really else images
        now = image_set(own, shown, labels)
        said = nn.functional.one_hot((labels + 1) % CLASSES, CLASSES).float()
        now = ImageSet(Traces(said, own.taps, {}, (), label_rows=labels), now.read)
        success = torch.arange(30) >= 2
        rows = torch.arange(30)
        control = image_set(own, images[5:], labels[5:])
        return PerturbedSet("moved", "attack", now, rows, success, control, rows[5:])

    return made


@pytest.mark.parametrize("really", [True, False])
def test_a_turned_image_is_followed_beside_its_control(really: bool, study: Callable[..., Findings]) -> None:
    own = planted()
    analysis = ClaDec(**{**QUICK, "decoder": decoder(epochs=12), "judge": {"epochs": 8}, "attacked": 25})
    found = study(analysis, material(own, planted(), pictures(192, 1), pictures(30, 2), moved(own, really)))
    rows = findings_table(found, "cladec-perturbed")

    def share(source: str, images: str, measure: str) -> float:
        (row,) = [r for r in rows if (r["source"], r["images"], r["measure"]) == (source, images, measure)]
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["count"] == (25 if images == "turned" else 22)
        return float(row["mean"])

    for source in ("undecoded", "cladec", "refae"):
        reached, true = share(source, "turned", "reached"), share(source, "turned", "true")
        assert (reached > 0.9 and true < 0.1) if really else (reached < 0.1 and true > 0.9)
        assert share(source, "noise control", "reached") < 0.1
    assert (share("cladec", "turned", "nearer") > 0.9) == really
    assert share("cladec", "noise control", "nearer") < 0.1
    told = next(c for c in found.claims if (c.kind, c.subject) == ("perturbed", "moved"))
    assert told.verdict == (f"read as the predicted class from {own.taps[0].name} on" if really else "at no depth")
    assert told.estimates["images"] == 25
    assert value_of(told, "undecoded: reached") == share("undecoded", "turned", "reached")
    gallery = next(f for f in found.figures if isinstance(f, Pictures) and f.title.startswith("moved"))
    assert torch.equal(gallery.images[0], pictures(30, 2)[0][2:10])


def test_without_an_untrained_network_small_cnns_judge(study: Callable[..., Findings]) -> None:
    own = planted()
    found = study(ClaDec(**QUICK), material(own, None, pictures(64, 1), pictures(30, 2)))
    assert (found.claims[0].kind, found.claims[0].verdict) == ("class-information", "no untrained network")
    table = next(t for t in found.tables if t.name == "cladec-summary")
    assert {row[2] for row in table.rows} == {"original", "mean image", "cladec"}


def test_every_curve_is_in_a_table_and_everything_can_be_read_again(study: Callable[..., Findings]) -> None:
    own = planted()
    more = {"alphas": [0.001, 0.0], "judge": {"epochs": 3, "retrain": True}, "seeds": 2, "units": 6, "gallery": 4}
    analysis = ClaDec(**{**QUICK, **more})
    found = study(analysis, material(own, planted(), pictures(64, 1), pictures(30, 2), moved(own, True)))
    read = Findings.read(*(lambda s: (s[0], json.loads(json.dumps(s[1]))))(found.stored()))
    assert [type(f) for f in read.figures] == [type(f) for f in found.figures]
    numbers = np.array([v for table in found.tables for row in table.rows for v in row if isinstance(v, float)])
    curves = [f for f in found.figures if isinstance(f, Lines)]
    assert len(curves) == 7
    for figure in curves:
        for series in figure.series:
            if "Learning" in figure.title:
                continue  # means of the table's repetitions
            for value in (*series.y, *series.low, *series.high):
                if value is None:
                    continue
                assert np.isclose(numbers, value, rtol=1e-9, atol=1e-12).any()
    kinds = [c.kind for c in found.claims]
    assert kinds == ["class-information", "error", "trade-off", "perturbed", "used", "limits"]
    assert read.claims == found.claims and all(c.sentence for c in found.claims)
    gallery = next(f for f in found.figures if isinstance(f, Pictures))
    assert gallery.images.shape == (6, 4, 1, 8, 8)
    names = list(gallery.row_labels)
    ours, reference = gallery.images[names.index("ClaDec, α = 0")], gallery.images[names.index("RefAE")]
    assert torch.equal(gallery.images[names.index("|ClaDec − RefAE|")], (ours - reference).abs())


def test_encode_gives_the_live_activations_and_stops() -> None:
    torch.manual_seed(0)
    net = InPlace()
    own = traced_model(net)
    images = torch.rand(5, 1, 8, 8)
    names = [tap.name for tap in own.taps]
    live = own.live((), images, also=names)
    calls = net.behind
    (first,) = encode(own, images, names[:1]).values()
    assert net.behind == calls
    assert torch.equal(first, live.activations[names[0]])
    both = encode(own, images, names)
    assert torch.equal(both[names[1]], live.activations[names[1]])
    assert not any(m._forward_hooks for m in net.modules())


def test_changed_logits_replace_what_the_network_goes_on_with() -> None:
    torch.manual_seed(0)
    own = planted()
    tap = own.taps[0].name
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(changed_logits(own, images, tap, lambda a: a), own.model(images).detach())
    nothing = changed_logits(own, images, tap, torch.zeros_like)
    assert torch.allclose(nothing, own.model.get_parameter("linear.bias").expand(5, -1))


def test_causes_tell_what_is_used_from_what_is_decodable() -> None:
    torch.manual_seed(0)
    own = planted()
    with torch.no_grad():
        own.model.get_parameter("linear.weight")[:, 3:] = 0
    tap = own.taps[0]
    images = pictures(40, 3)[0]
    decoder = Decoder(tap.shape, images.mean(0), 4)
    *_, last = (m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    nn.init.normal_(last.weight)
    found = causes(own, decoder, images, tap.name, 24, torch.Generator().manual_seed(0))
    used = found.units < 3
    assert bool((found.on_output[~used] == 0).all())
    assert bool((found.on_image > 0).all())
    # One unit by hand.
    code = encode(own, images, (tap.name,))[tap.name].detach()
    draws = torch.Generator().manual_seed(0)
    torch.randperm(len(found.units), generator=draws)
    order = torch.randperm(40, generator=draws)
    unit = int(found.units[0])
    mixed = code.clone()
    mixed[:, unit] = code[order, unit]
    linear = own.model.get_submodule("linear")
    shift = linear(mixed).softmax(1) - linear(code).softmax(1)
    assert float(found.on_output[0]) == pytest.approx(float(shift.detach().abs().sum(1).mean() / 2), rel=1e-5)


def test_the_rank_correlation_is_scipys() -> None:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=12), draws.normal(size=12)
    found = Causes(torch.arange(12), torch.from_numpy(x), torch.from_numpy(y)).correlation()
    assert found is not None
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    same = torch.arange(12.0, dtype=torch.float64)
    assert Causes(torch.arange(12), same, same * 0).correlation() is None


@pytest.mark.parametrize("right", [0, 13, 37, 40])
def test_the_interval_of_a_share_is_wilsons(right: int) -> None:
    found = estimate((torch.arange(40) < right).float()[None], True)
    low, high = binomtest(right, 40).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((right / 40, low, high), abs=1e-9)


def test_the_interval_over_seeds_is_students() -> None:
    means = torch.tensor([1.0, 2.0, 4.0])
    found = estimate(means[:, None].expand(3, 50), False)
    reach = t.ppf(0.975, 2) * float(means.std()) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - reach, 7 / 3 + reach))


def test_intervals_cover() -> None:
    draws = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        seeds, images = torch.randn(3, 1, generator=draws), 3 * torch.randn(1, 40, generator=draws)
        found = difference(seeds + images + torch.randn(3, 40, generator=draws), False)
        covered += found.low <= 0 <= found.high
    # Three standard errors below 95 %.
    assert covered / 400 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


def test_equal_readings_do_not_count_as_certain() -> None:
    found = difference(torch.zeros(3, 30), True)
    assert found.low < 0 < found.high
    assert not found.differs


def test_fresh_weights_are_the_same_numbers_elsewhere() -> None:
    own = planted()
    made = fresh(own, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert made.root is made.model
    for a, b in zip(own.model.parameters(), made.model.parameters(), strict=True):
        assert a.data_ptr() != b.data_ptr()
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert not torch.equal(own.model.get_parameter("linear.weight"), made.model.get_parameter("linear.weight"))


def test_taps_spread_by_depth() -> None:
    taps = tuple(TapInfo(f"t{i}", "relu", (4,)) for i in range(7))
    names = [[x.name for x in chosen_taps(s, taps)] for s in ("spread:3", "spread:1", "spread:9", "last:2", ["t2"])]
    assert names == [["t0", "t3", "t6"], ["t6"], [f"t{i}" for i in range(7)], ["t5", "t6"], ["t2"]]
    with pytest.raises(UsageError, match="spread:N"):
        chosen_taps("spread:x", taps)
    with pytest.raises(UsageError, match="no tap 'x'"):
        chosen_taps(["x"], taps)


@pytest.mark.parametrize("code", [(11,), (5, 8, 8), (5, 4, 4), (7, 1, 1), (6, 9), (3, 16, 24), (3, 5, 3)])
@pytest.mark.parametrize("image", [(1, 8, 8), (3, 17, 12)])
def test_decoders_start_as_the_mean_image(code: tuple[int, ...], image: tuple[int, int, int]) -> None:
    mean = 0.1 + 0.8 * torch.rand(image, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(code, mean, 4)
    with torch.no_grad():
        assert torch.allclose(decoder(torch.rand(2, *code)), mean.expand(2, *image), atol=1e-6)


def test_a_code_too_long_for_a_dense_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="choose other taps"):
        Decoder((10_000_000,), torch.rand(3, 32, 32), 32)


def test_alphas_of_summed_and_mean_errors() -> None:
    # papers: alpha_sum = .99 at 784 values equals alpha_mean of about .11; .001 equals about .44.
    assert alpha_sum(0.112, 784) == pytest.approx(0.99, abs=5e-4)
    assert alpha_sum(0.001, 784) == pytest.approx(0.44, abs=5e-3)
    assert (alpha_sum(0, 784), alpha_sum(1, 784)) == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"decoder": {"epochs": 0}}, "decoder: epochs"), ({"decoder": {"learning_rate": 0.0}}, "learning_rate"),
        ({"judge": {"epoch": 3}}, "did you mean"), ({"seeds": 0}, "seeds"), ({"alphas": []}, "alphas"),
        ({"alphas": [1.5]}, "alphas"), ({"alphas": [0.1, 0.1]}, "alphas"), ({"target": "x"}, "target"),
        ({"taps": ""}, "taps"), ({"taps": []}, "taps"), ({"units": -1}, "units"), ({"images": 0}, "images"),
        ({"alphas": [math.nan]}, "alphas"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ClaDec(**wrong)


def test_a_suite_runs_it(forks: Forks, tiny: Tiny, tmp_path: Path, of_run: Callable[..., Findings]) -> None:
    suite = tiny(tmp_path / "s.toml")
    text = "\n".join([
        "[[analyses]]", 'name = "cladec"', "decoder = { epochs = 2, width = 4 }", "judge = { epochs = 2 }", "seeds = 2",
        "images = 64", "test_images = 40", "attacked = 10", "alphas = [0.0, 0.1]", "units = 5",
    ])  # fmt: skip
    suite.write_text(f"{suite.read_text(encoding='utf-8')}\n{text}\n", encoding="utf-8")
    ended = forks("run", suite, "--out", tmp_path / "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert ended.status == 0, ended.output
    found = of_run(tmp_path / "run", ClaDec(), "cladec")
    assert {t.name for t in found.tables} >= {"cladec-summary", "cladec-perturbed", "cladec-causes"}
    perturbed = next(t for t in found.tables if t.name == "cladec-perturbed")
    assert {row[perturbed.columns.index("perturbation")] for row in perturbed.rows} == {"gaussian", "fgsm"}
    assert summary(found, None, "original")["own_accuracy"] > 0.5
