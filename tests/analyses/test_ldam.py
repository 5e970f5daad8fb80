"""LDAM: planted units and fakes, what may not change, and a run from a suite."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.analyses.base import AnalysisInput, ImageSet, PerturbedSet
from aftershock.analyses.findings import Findings, Lines, Pictures
from aftershock.analyses.ldam.analysis import Ldam
from aftershock.analyses.ldam.averaging import fine_tune
from aftershock.analyses.ldam.discriminator import learn, logits_of, make
from aftershock.analyses.ldam.energy import Activations, Energy, Scale, parse, total_variation
from aftershock.analyses.ldam.judge import train_judge
from aftershock.analyses.ldam.measured import PLAIN, RANDOM, REFERENCE, TOP
from aftershock.analyses.ldam.space import EDGE, Gaussian, Pixels
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Traces
from support.commands import Forks
from support.findings import findings_table, value_of
from support.suites import Tiny
from torch import Tensor, nn

CLASSES = ("left", "right", "top")
QUICK: dict[str, Any] = {
    "weights": [0.0, 20.0], "judge_epochs": 1, "images": 60, "test_images": 40, "ascent": {"steps": 5},
    "sampler": {"chains": 3, "steps": 16, "burn_in": 8, "thin": 4}, "averaging": {"steps": 4},
    "discriminator": {"rounds": 3, "updates": 2, "width": 4},
}  # fmt: skip


def quick(**changed: Any) -> dict[str, Any]:
    """Parameters of a quick run; tables are changed in part."""
    tables = {name: {**QUICK[name], **value} for name, value in changed.items() if isinstance(value, dict)}
    return {**QUICK, **changed, **tables}


CPU = torch.device("cpu")


class Net(nn.Module):
    """Convolution, batch norm, dropout, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 64, 10)
        self.linear = nn.Linear(10, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.dropout(torch.relu(self.fc(x.flatten(1))), 0.1, self.training)
        logits: Tensor = self.linear(x)
        return logits


def traced_model(seed: int = 0) -> TracedModel:
    torch.manual_seed(seed)
    model = Net().eval()
    return TracedModel(model, discover(model, torch.rand(2, 1, 8, 8)), (), model)


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright bar per class on dark noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(CLASSES)
    images = 0.2 * torch.rand(n, 1, 8, 8, generator=draws)
    for i, c in enumerate(labels.tolist()):
        images[i, 0, :, 1:3] += 0.7 * (c == 0)
        images[i, 0, :, 5:7] += 0.7 * (c == 1)
        images[i, 0, 1:3] += 0.7 * (c == 2)
    return images, labels


def image_set(own: TracedModel, images: Tensor, labels: Tensor) -> ImageSet:
    with torch.no_grad():
        logits = own.model(images)
    return ImageSet(Traces(logits, own.taps, {}, (), label_rows=labels), lambda rows: images[rows].clone())


def attack(own: TracedModel, images: Tensor, labels: Tensor) -> PerturbedSet:
    """Successes are draws from the reference measure, where chains begin; their controls are the images themselves."""
    space = Gaussian(pictures(60, 1)[0])
    clouds = space.images(space.draw(len(images), torch.Generator().manual_seed(9)))
    rows = torch.arange(len(images))
    turned = image_set(own, clouds, labels)
    return PerturbedSet("clouds", "attack", turned, rows, rows % 4 != 0, image_set(own, images, labels), rows)


def trained() -> TracedModel:
    """Right about nearly all pictures."""
    draws = lambda *names: torch.Generator().manual_seed(1)  # noqa: E731
    return fine_tune(traced_model(), *pictures(60, 0), 40, 0.05, draws, CPU)[0]


def material(
    own: TracedModel, seed: int = 0, attacked: bool = False, told: list[float] | None = None, count: int = 40
) -> AnalysisInput:
    def twin(draw: int = 0) -> TracedModel:
        raise UsageError("none")

    fit, evaluate = pictures(60, 1), pictures(count, 2)
    found = {"clouds": attack(own, *evaluate)} if attacked else {}
    progress = (lambda share: None) if told is None else told.append
    return AnalysisInput(
        own, twin, CLASSES, image_set(own, *fit), image_set(own, *evaluate), found, seed, progress
    )  # fmt: skip


def test_the_energy_is_its_terms_for_every_chain_of_its_own() -> None:
    own = traced_model()
    images, _ = pictures(30, 0)
    names = ("logit:top", f"channel:{own.taps[0].name}:2", f"unit:{own.taps[1].name}:4")
    targets = tuple(parse(name, own.taps, CLASSES) for name in names)
    activations = Activations(own, targets)
    scale, space = Scale.of(activations.of(images, CPU)), Pixels((1, 8, 8))
    network = make((1, 8, 8), 4, torch.Generator().manual_seed(0), CPU)
    which, weight = torch.tensor([0, 1, 2, -1]), torch.tensor([0.0, 2.0, 5.0, 1.0])
    energy = Energy(activations, scale, space, which, weight, network, 3.0, 0.25, 0.5, part=3)
    w = torch.rand(4, 64)
    with torch.no_grad():
        value, watched = energy(w)
        x = w.unflatten(1, (1, 8, 8))
        net = own.model
        assert isinstance(net, Net)
        before = net.norm(net.conv(x))
        hidden = net.fc(torch.relu(before).flatten(1))
        raw = torch.stack([own.model(x)[:, 2], before[:, 2].mean((1, 2)), hidden[:, 4]], 1)
        z = scale(raw)[torch.arange(4), torch.tensor([0, 1, 2, 0])]
        d, rough = network(x), total_variation(x)
    pulls = torch.tensor([3.0, 3.0, 3.0, 0.0])
    expected = (-pulls * z + weight * nn.functional.softplus(-d) + 0.25 * 64 * rough) / 0.5
    assert torch.allclose(value.float(), expected, atol=1e-4)
    assert torch.allclose(watched, torch.stack([z, d, rough], 1), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights": [0.0, 0.0]}, "different numbers"),
        ({"weights": [-1.0]}, "at least 0"),
        ({"sampler": {"steps": 10, "burn_in": 9}}, "nothing to keep"),
        ({"sampler": {"chains": 1}}, "sampler: chains = 1: give a whole number of at least 2"),
        ({"targets": []}, "targets"),
        ({"sampler": {"method": "hmc"}}, "ula"),
        ({"sampler": {"stepz": 3}}, "did you mean"),
        ({"sampler": {"step": 0.0}}, "step"),
    ],
)
def test_wrong_parameters_are_told(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Ldam(**quick(**changed))


def known_of(images: Tensor) -> Tensor:
    return images.clamp(EDGE, 1 - EDGE)


def test_the_discriminator_separates_planted_fakes_and_has_a_slope() -> None:
    draws = torch.Generator().manual_seed(0)
    real = pictures(128, 0)[0]
    fakes = torch.rand(real.shape, generator=draws)
    network = make((1, 8, 8), 8, draws, CPU)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(80):
        rows = torch.randint(128, (32,), generator=draws)
        learn(network, optimiser, real[rows], fakes[rows], 0.1)
    fresh = torch.rand(64, 1, 8, 8, generator=draws)
    assert float(logits_of(network, pictures(64, 5)[0], CPU).min()) > float(logits_of(network, fresh, CPU).max())
    x = fresh.requires_grad_(True)
    (slope,) = torch.autograd.grad(network(x).sum(), x)
    assert bool(slope.isfinite().all())
    assert bool((slope.flatten(1).abs().amax(1) > 0).all())
    # It says the same of an image alone as in a batch.
    assert torch.allclose(network(x[:1]), network(x)[:1], atol=1e-5)


def test_the_judge_calibrates_on_real_images() -> None:
    own_draws = lambda *names: torch.Generator().manual_seed(3)  # noqa: E731
    fit, held = pictures(120, 0), pictures(120, 1)
    judge = train_judge(*fit, *held, len(CLASSES), 8, own_draws, CPU)
    assert judge.accuracy > 0.9
    real = judge.distances(pictures(90, 2)[0])
    assert 0.35 < float(judge.realism(real).mean()) < 0.65
    assert 0.8 < float(judge.ratio(real).median()) < 1.2
    noise = judge.distances(torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert float(judge.realism(noise).max()) == 0.0
    assert float(judge.ratio(noise).min()) > 1.5
    assert torch.equal(judge.reads(pictures(30, 4)[0]), pictures(30, 4)[1])


def test_fine_tuned_copies_leave_the_network_alone() -> None:
    own = traced_model()
    before = copy.deepcopy(own.model.state_dict())
    kept = next(own.model.parameters())
    kept.grad = torch.ones_like(kept)
    draws = lambda *names: torch.Generator().manual_seed(1)  # noqa: E731
    images, labels = pictures(60, 0)
    state = torch.get_rng_state()
    last, mean = fine_tune(own, images, labels, 30, 0.05, draws, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in own.model.state_dict().items())
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert not own.model.training
    for made in (last, mean):
        assert made.root is made.model
        assert not made.model.training
        assert not any(p.requires_grad for p in made.model.parameters())
        with torch.no_grad():
            seen = made.model.get_submodule("conv")(images)
            assert float((made.model(images).argmax(1) == labels).float().mean()) > 0.9
        # Batch norm describes its own network's activations (one batch of 60 here).
        assert torch.allclose(made.model.get_buffer("norm.running_mean"), seen.mean((0, 2, 3)), atol=1e-4)
    assert not torch.equal(last.model.get_parameter("fc.weight"), mean.model.get_parameter("fc.weight"))
    again, _ = fine_tune(own, images, labels, 30, 0.05, draws, CPU)
    assert torch.equal(again.model.get_parameter("fc.weight"), last.model.get_parameter("fc.weight"))


def test_an_average_of_one_step_is_the_last() -> None:
    draws = lambda *names: torch.Generator().manual_seed(1)  # noqa: E731
    last, mean = fine_tune(traced_model(), *pictures(60, 0), 1, 0.05, draws, CPU)
    assert torch.equal(last.model.get_parameter("fc.weight"), mean.model.get_parameter("fc.weight"))


def test_findings_depend_on_the_seed_alone_and_leave_the_model_as_it_was(study: Callable[..., Findings]) -> None:
    own = traced_model()
    told: list[float] = []
    given = [material(own, seed, told=told) for seed in (0, 1)]
    own.model.train()
    before = copy.deepcopy(own.model.state_dict())

    def stored(seed: int) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(int(torch.randint(1000, ())))
        state = torch.get_rng_state()
        found = study(Ldam(**QUICK), given[seed]).stored()
        assert torch.equal(torch.get_rng_state(), state)
        return found

    one, again, other = stored(0), stored(0), stored(1)
    assert one[1] == again[1]
    assert all(torch.equal(one[0][k].nan_to_num(), again[0][k].nan_to_num()) for k in one[0])
    assert one[1]["tables"] != other[1]["tables"]
    assert all(torch.equal(v, before[k]) for k, v in own.model.state_dict().items())
    assert own.model.training
    assert all(p.requires_grad and p.grad is None for p in own.model.parameters())
    assert told[-1] == 1.0
    assert all(0 <= share <= 1 for share in told)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"sampler": {"method": "mala", "schedule": "polynomial"}, "smooth": 0.01},
        {"sampler": {"coordinates": "pixels"}, "weights": [0.0], "averaging": {"steps": 0}},
    ],
)
def test_every_number_is_in_a_table_and_everything_can_be_read_again(
    changed: dict[str, Any], study: Callable[..., Findings]
) -> None:
    own = traced_model()
    found = study(Ldam(**quick(**changed)), material(own, attacked=True))
    read = Findings.read(*(lambda s: (s[0], json.loads(json.dumps(s[1]))))(found.stored()))
    assert [type(f) for f in read.figures] == [type(f) for f in found.figures]
    numbers = np.array([v for t in found.tables for row in t.rows for v in row if isinstance(v, int | float)])
    for figure in found.figures:
        if isinstance(figure, Lines):
            for series in figure.series:
                for value in (*series.y, *series.low, *series.high):
                    assert value is None or np.isclose(numbers, value, rtol=1e-9, atol=1e-12).any()
        if isinstance(figure, Pictures):
            assert float(figure.images.nan_to_num().min()) >= 0
            assert float(figure.images.nan_to_num().max()) <= 1
    kinds = [c.kind for c in found.claims]
    averaged = [] if "averaging" in changed else ["averaging"]
    assert kinds == ["weight", "samples", "distance", "mixing", *averaged, "attack"]
    assert read.claims == found.claims
    bounded = {"realism": 1, "transfer": 1, "activation_percentile": 1, "diversity_pixels": np.inf}
    for row in (*findings_table(found, "ldam-settings"), *findings_table(found, "ldam-targets")):
        if row["measure"] in bounded and row["low"] is not None and np.isfinite(row["low"]):
            assert 0 <= row["low"] <= row["high"] <= bounded[row["measure"]]
    for row in findings_table(found, "ldam-chains"):
        assert (row["temperature_ratio"] is None) == (changed.get("sampler", {}).get("coordinates") == "pixels")
    pictures_averaged = sum(
        f.images.shape[0] for f in found.figures if isinstance(f, Pictures) and "averaged" in f.title
    )
    assert sum(name.startswith("averaging/") for name in found.arrays) == pictures_averaged
    assert not any("nan" in s for s in found.sentences)
    settings = {row["setting"] for row in findings_table(found, "ldam-settings")}
    assert {PLAIN, TOP, RANDOM, "Langevin, weight 0"} <= settings
    gallery = next(f for f in found.figures if isinstance(f, Pictures))
    assert gallery.images.shape[:3] == (len(gallery.row_labels), 3, 1)


def test_top_images_are_the_most_active_and_random_ones_measure_one(study: Callable[..., Findings]) -> None:
    own = traced_model()
    found = study(Ldam(**quick(targets=["logit:top"])), material(own))
    images, _ = pictures(60, 1)
    with torch.no_grad():
        order = own.model(images)[:, 2].argsort(descending=True)
    gallery = next(f for f in found.figures if isinstance(f, Pictures))
    known = known_of(images)
    assert torch.equal(gallery.images[list(gallery.row_labels).index(TOP)], known[order[:3]])
    # Random ones are held out, and none of those that the judge measures by.
    others = known_of(pictures(40, 2)[0])[1::2]
    drawn = gallery.images[list(gallery.row_labels).index(RANDOM)]
    assert all(bool((others == image).flatten(1).all(1).any()) for image in drawn)
    ends = {(r["setting"], r["measure"]): r["low"] for r in findings_table(found, "ldam-settings")}
    assert all(v is None for (setting, _), v in ends.items() if setting == TOP)
    assert ends[RANDOM, "distance_ratio"] is not None
    rows = {(r["setting"], r["measure"]): r["mean"] for r in findings_table(found, "ldam-settings")}
    assert rows[RANDOM, "diversity_pixels"] == pytest.approx(1)
    assert rows[RANDOM, "diversity_features"] == pytest.approx(1)
    assert rows[TOP, "activation_percentile"] == pytest.approx(1 - 1.5 / 60, abs=0.5 / 60)


def test_groups_keep_whole_intervals_and_the_reference_measure_the_chains_temperature() -> None:
    given = quick(averaging={"steps": 0}, targets=["logit:top"], weights=[0.0])
    cold, warm = (Ldam(**given, temperature=t).measure(material(traced_model())) for t in (0.25, 1.0))
    shares = [
        e for g in warm.groups.values() for m, e in g.measures.items() if m in ("realism", "activation_percentile")
    ]
    assert any(e.low < 0 or e.high > 1 for e in shares)
    centre = Gaussian(pictures(60, 1)[0]).mean
    reach = [torch.logit(s.groups["logit:top", REFERENCE].images.flatten(1)) - centre for s in (cold, warm)]
    assert torch.allclose(reach[0], 0.5 * reach[1], atol=1e-3)


def test_planted_attacks_are_noticed_and_their_controls_are_not(study: Callable[..., Findings]) -> None:
    own = trained()
    # Chains that are hardly drawn away from the reference measure show the discriminator just such images.
    rounds = {"rounds": 40, "updates": 8, "width": 8}
    drawn = {"temperature": 1.0, "pull": 1.0, "weights": [0.0, 1.0], "targets": ["logit:0"]}
    analysis = Ldam(**quick(discriminator=rounds, averaging={"steps": 0}, **drawn))
    given = material(own, attacked=True, count=96)
    images, labels = pictures(96, 2)
    labels[1:50:7] = (labels[1:50:7] + 1) % 3
    given = replace(given, evaluate=image_set(own, images, labels))
    found = study(analysis, given)
    rows = {(r["score"], r["against"]): r for r in findings_table(found, "ldam-attacks")}
    right = given.evaluate.traces.predictions == given.evaluate.traces.labels
    known = (torch.arange(96) % 2 == 0) & (torch.arange(96) < 40)
    assert 60 < int(right.sum()) < 96
    assert rows["judge", "clean images"]["auroc"] > 0.8
    assert rows["discriminator", "clean images"]["auroc"] > 0.7
    assert rows["discriminator", "noise of the same size"]["auroc"] > 0.7
    # The judge is not asked about the images that it measures by.
    assert rows["judge", "clean images"]["others"] == int((right & ~known).sum())
    # Clean images that the model gets wrong are no negatives.
    assert rows["discriminator", "clean images"]["others"] == int(right.sum())
    (told,) = [c for c in found.claims if c.kind == "attack"]
    assert told.verdict == "the discriminator detects the attack beyond its size"
    assert value_of(told, "judge against clean images") == rows["judge", "clean images"]["auroc"]


def test_few_successes_give_a_reason_and_nobody_asked_is_told(study: Callable[..., Findings]) -> None:
    own, few_steps = traced_model(), quick(averaging={"steps": 0}, targets=["logit:0"])
    given = material(own, attacked=True)
    clouds = given.perturbed["clouds"]
    for turned in (0, 29):
        few = replace(given, perturbed={"clouds": replace(clouds, success=torch.arange(40) < turned)})
        found = study(Ldam(**few_steps), few)
        for row in findings_table(found, "ldam-attacks"):
            assert row["auroc"] is None
            assert "30 are needed" in row["reason"]
        last = found.claims[-1]
        assert (last.kind, last.verdict, last.estimates) == ("attack", "no success" if turned == 0 else "", {})
    assert study(Ldam(**few_steps), replace(given, perturbed={})).claims[-1].verdict == "no perturbation"
    assert study(Ldam(**few_steps, attacked=0), given).claims[-1].verdict == "not asked"


@pytest.mark.parametrize(
    "changed",
    [
        {"sampler": {"step": 1e9}},
        {"sampler": {"step": 20.0}},
        {"sampler": {"step": 20.0}, "weights": [0.0]},
        {"sampler": {"method": "mala", "step": 20.0}},
        {"sampler": {"method": "mala", "step": 20.0}, "weights": [0.0]},
        {"sampler": {"method": "mala", "step": 1e9}, "weights": [0.0]},
        {"sampler": {"method": "mala", "step": 1e9}},
        {"sampler": {"coordinates": "pixels", "step": 1e200}},
    ],
)
def test_chains_that_run_away_or_stand_still_are_told(changed: dict[str, Any], study: Callable[..., Findings]) -> None:
    with pytest.raises(
        UsageError, match=f"lower sampler.step = {changed['sampler']['step']:g}".replace("+", r"\+")
    ) as error:
        study(Ldam(**quick(**{"averaging": {"steps": 0}, **changed})), material(traced_model()))
    assert "\n" not in str(error.value)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def test_it_runs_from_a_suite(forks: Forks, tiny: Tiny, tmp_path: Path) -> None:
    suite = tiny(tmp_path / "suite.toml")
    entry = {"name": "ldam", **QUICK, "targets": ["logit:3", "unit:relu1:4"], "attacked": 30}
    lines = [f"{k} = {toml(v)}" for k, v in entry.items()]
    suite.write_text(suite.read_text() + "\n[[analyses]]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "run"
    done = forks("run", suite, "--out", out, cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    (folder,) = (out / "analyses").glob("*-ldam")
    names = {p.name for p in folder.iterdir()}
    assert {"findings.json", "arrays.safetensors"} <= names
    assert any(name.endswith("ldam-settings.csv") for name in names)
    assert any(name.endswith(".png") for name in names)
