"""Detectors that know the images: shadow images, which no part can have stored, and re-encoded ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from aftershock.attacks.benign.variants import reencoded, shadows
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.core.seeds import Draws
from aftershock.harness.evaluation.radii import DISCONTINUOUS
from aftershock.harness.evaluation.rankability import is_upper_bound, reasons
from aftershock.harness.evaluation.shadows import KNOWS, PROVENANCE, UNSEEN, ShadowAttack, Variants, can_tell, pairs
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.store.secrets import KEPT_IN, RunSecret, new_secret, read_secret
from aftershock.harness.suite.builtin import builtin_suites
from aftershock.harness.suite.resolve import load_suite
from support.commands import Forks
from support.suites import Tiny
from support.tables import read_table, whole_tables

# Each has a view that shows the network a black image for what passes and a white one for what is flagged.
KNOWING = """
import torch
from aftershock import Detector, DetectorInfo, register_detector
from aftershock.detectors import Need, View
from aftershock.harness.core.registry import DATASETS

REACH = 0.21
HELD = []


def known():
    if not HELD:
        test = DATASETS.get("digits")(None).load().test
        HELD.append(test.images(list(range(len(test)))).flatten(1))
    return HELD[0]


def features(flat):
    weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) / 8
    return torch.relu((flat - 0.3) @ weights)


def apart(flat, others=None):
    others = known() if others is None else others
    return (flat[:, None] - others[None]).abs().amax(2).amin(1)


def apart_in_features(flat):
    of = features(flat), features(known())
    return torch.cdist(*of, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


FLAGGED = {
    # Lets unknown images pass.
    "memory": lambda flat: (apart(flat) > 1e-6) & (apart(flat) <= REACH),
    # Knows every other image.
    "memory-of-half": lambda flat: (apart(flat, known()[::2]) > 1e-6) & (apart(flat, known()[::2]) <= REACH),
    # Lets what is next to a known image pass as well.
    "memory-with-tolerance": lambda flat: (apart(flat) > 0.02) & (apart(flat) <= REACH),
    # By the nearest neighbour in a feature space of its own.
    "memory-of-features": lambda flat: (apart_in_features(flat) > 1e-4) & (apart_in_features(flat) <= 1.8),
    # Flags everything that is no known image.
    "foreign": lambda flat: apart(flat) > 1e-6,
    "foreign-features": lambda flat: apart_in_features(flat) > 1e-4,
    # And two of five of the unknown ones alone.
    "foreign-in-part": lambda flat: (apart(flat) > 1e-6)
    & ((apart(flat) <= REACH) | ((flat * 7919).sum(1).floor().long() % 5 < 2)),
}


def detector(name):
    def transform(x, draws):
        return torch.ones_like(x) * FLAGGED[name](x.flatten(1)).view(-1, 1, 1, 1)

    @register_detector(name)
    class Knowing(Detector):
        info = DetectorInfo(title=name, needs=(Need("pooled", "last:1"),))

        @property
        def views(self):
            return (View("told", transform),)

        def fit(self, clean, perturbed=None):
            # Most fit images are near a known one or foreign, or else most pass.
            self.common = clean.view("told").logits.median(0).values
            passing = ("memory", "memory-of-half", "memory-with-tolerance", "foreign-in-part", "remembers")
            self.passes = name in passing
            return self

        def score(self, traces):
            same = (traces.view("told").logits - self.common).abs().amax(1).lt(1e-3).double()
            return 1 - same if self.passes else same


for each in FLAGGED:
    detector(each)

SEEN = [torch.zeros(0, 64)]


def seen_like(flat):
    # What is near something that was seen before, and not that itself; the rest is remembered.
    if not len(SEEN[0]):
        SEEN[0] = flat[:1].clone()
    far = apart(flat, SEEN[0])
    SEEN[0] = torch.cat([SEEN[0], flat[far > REACH]])
    return (far > 1e-6) & (far <= REACH)


# Knows no image, and keeps those that it is shown.
FLAGGED["remembers"] = seen_like
detector("remembers")


@register_detector("squeezed")
class Squeezed(Detector):
    info = DetectorInfo(title="honest, with a view", needs=(Need("pooled", "last:1"),))

    @property
    def views(self):
        return (View("rounded", lambda x, draws: (x * 4).round() / 4),)

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return (traces.logits.softmax(1) - traces.view("rounded").logits.softmax(1)).abs().sum(1).double()
"""
SUITE = """
name = "knowing"
seeds = [0]
plugins = ["knowing.py"]
price_images = {price}
[data]
name = "digits"
fit = 60
calibrate = 200
evaluate = {evaluate}
[threat]
norm = "linf"
eps = 0.2
[[models]]
name = "cnn"
weights = {weights!r}
[[perturbations]]
name = "fgsm"
eps = 0.2
[[perturbations]]
name = "adaptive"
eps = 0.2
images = 50
steps = {steps}
queries = {queries}
restarts = 2
"""


def run(
    forks: Forks, place: Path, names: tuple[str, ...], steps: int, queries: int, price: int = 0
) -> dict[str, dict[str, str]]:
    """Run planted detectors and an honest one; returns rows by detector."""
    weights = str(builtin_suites()["quick"].parent / "weights" / "digits-cnn.safetensors")
    parts = [f'\n[[detectors]]\nname = "{name}"\n' for name in (*names, "mahalanobis")]
    suite = SUITE.format(weights=weights, steps=steps, queries=queries, price=price, evaluate=price or 60) + "".join(
        parts
    )
    (place / "knowing.py").write_text(KNOWING, encoding="utf-8")
    (place / "suite.toml").write_text(suite, encoding="utf-8")
    # Not propagation and controls.
    only = "/0/[sr]" if price else "/0/s"
    done = forks("run", "suite.toml", "--out", "run", "--only", only, cwd=place, AFTERSHOCK_CACHE=str(place / "cache"))
    assert done.status == 0, done.output
    return {row["detector"]: row for row in read_table(place / "run", "leaderboard.csv")}


@pytest.mark.slow
def test_detectors_that_know_the_images_have_no_rank(forks: Forks, tmp_path: Path) -> None:
    """By an attack far below the floor: whatever it leaves, it leaves for another reason on unknown images."""
    if not os.environ.get("AFTERSHOCK_HOSTILE"):
        pytest.skip("set AFTERSHOCK_HOSTILE to run planted detectors that know the images (minutes)")
    names = ("memory", "memory-of-half", "memory-with-tolerance", "memory-of-features")
    foreign = ("foreign", "foreign-features", "foreign-in-part")
    rows = run(forks, tmp_path, (*names, *foreign, "remembers", "squeezed"), 10, 10)
    for name in (*names, *foreign):
        # Of half of the images another half is left.
        assert float(rows[name]["robust_accuracy_at_fpr_5"]) > 0.3, name
        assert {KNOWS, PROVENANCE} & {*rows[name]["not_ranked_reason"].split("; ")}, name
    for name in names[:3]:
        assert KNOWS in rows[name]["not_ranked_reason"], name
        assert float(rows[name]["shadow_robust"]) + 0.2 < float(rows[name]["shadow_source_robust"])
    for name in foreign:
        assert PROVENANCE in rows[name]["not_ranked_reason"], name
    # After a harmless change no image is the known one.
    assert float(rows["foreign"]["reencoded_flagged_at_fpr_5"]) == 1
    # A process that was shown no other image has nothing to remember.
    assert "score-depends-on-process" in rows["remembers"]["not_ranked_reason"]
    for name in ("mahalanobis", "squeezed", "none"):
        assert not {KNOWS, PROVENANCE} & {*rows[name]["not_ranked_reason"].split("; ")}
        assert "score-depends" not in rows[name]["not_ranked_reason"]


@pytest.mark.slow
def test_a_detector_that_is_silent_beyond_the_threat_has_no_rank(forks: Forks, tmp_path: Path) -> None:
    if not os.environ.get("AFTERSHOCK_HOSTILE"):
        pytest.skip("set AFTERSHOCK_HOSTILE to run planted detectors that know the images (minutes)")
    rows = run(forks, tmp_path, ("memory",), 20, 20, price=64)
    # It lets everything pass that is further away than a budget between the threat's and the large one.
    assert DISCONTINUOUS in rows["memory"]["not_ranked_reason"]
    assert float(rows["memory"]["rd_median"]) == pytest.approx(0.21, rel=0.05) and rows["memory"]["rank"] == ""
    for name in ("mahalanobis", "none"):
        assert DISCONTINUOUS not in rows[name]["flags"] and float(rows[name]["price"]) < 1.1


# ---- the judgement ------------------------------------------------------------------------------------------------


def standing(count: int, of: int = 48) -> np.ndarray:
    return np.arange(of) < count


@pytest.mark.parametrize(
    ("original", "shadow", "knows"),
    [(48, 0, True), (24, 0, True), (20, 4, True), (24, 24, False), (24, 20, False), (8, 4, False), (0, 48, False)],
)
def test_the_images_may_lead_by_chance_and_five_points(original: int, shadow: int, knows: bool) -> None:
    attack = ShadowAttack(standing(original), standing(shadow))
    assert attack.knows == knows
    assert (KNOWS in Variants(attacks={"a": attack}).flags(0.5)) == knows


def test_images_are_attacked_again_only_where_that_can_tell_something() -> None:
    assert not can_tell(standing(0)) and not can_tell(standing(4)) and can_tell(standing(20))
    for count in range(49):
        # Nothing that is left out could have been flagged.
        assert can_tell(standing(count)) >= ShadowAttack(standing(count), standing(0)).knows


def test_pairs_are_images_about_which_model_and_detector_are_right_twice() -> None:
    right = np.array([True, True, True, False])
    assert pairs(right, np.array([0.0, 2, 0, 0]), np.array([0.0, 0, 2, 0]), 1.0).tolist() == [0]


@pytest.mark.parametrize(
    ("flagged", "images", "found"), [(100, 100, True), (70, 100, True), (55, 100, False), (20, 20, False)]
)
def test_flagging_what_is_not_known_is_provenance(flagged: int, images: int, found: bool) -> None:
    scores = (np.arange(images) < flagged).astype(float)
    variants = Variants({"shadow": scores})
    assert (PROVENANCE in variants.flags(0.5)) == found
    # A score that is no number is an alarm.
    assert Variants({"shadow": np.where(scores > 0, np.nan, 0)}).flagged("shadow", 0.5) == variants.flagged(
        "shadow", 0.5
    )


def test_a_detector_that_says_nothing_of_unknown_images_has_no_rank() -> None:
    (flag,) = Variants(reason="it raised").flags(0.5)
    assert flag == f"{UNSEEN}: it raised"
    assert all(reasons([f], []) for f in (flag, KNOWS, PROVENANCE))
    assert all(is_upper_bound([f], 0.5) for f in (KNOWS, PROVENANCE))


# ---- the images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 20)])
def test_shadow_images_are_small_changes_that_the_draws_decide(shape: tuple[int, int, int]) -> None:
    height, width = shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # A blob, whose middle can be measured.
    middle = (height - 1) / 2, (width - 1) / 2
    blob = torch.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 4.5).expand(6, *shape).clone()
    made = shadows(blob, Draws(1, range(6)), 256)
    assert torch.equal(made, shadows(blob, Draws(1, range(6)), 256))
    assert not torch.equal(made, shadows(blob, Draws(2, range(6)), 256))
    assert torch.equal((made * 255).round() / 255, made) and made.min() >= 0 and made.max() <= 1
    mass = made.sum((1, 2, 3))
    for grid, at in ((y, middle[0]), (x, middle[1])):
        moved = (made * grid).sum((1, 2, 3)) / mass - at
        assert moved.abs().max() <= min(1, min(height, width) / 32) + 0.1
        assert moved.abs().max() > 0.02
    # Levels of the data, where it has fewer.
    few = shadows(blob, Draws(1, range(6)), 17)
    assert torch.equal((few * 16).round() / 16, few)


def test_reencoded_images_are_moved_by_a_pixel_and_hardly_changed() -> None:
    images = DATASETS.get("digits")(None).load().test.images(list(range(20)))
    made = reencoded(images)
    assert torch.equal(made, reencoded(images))
    assert (made[..., 1:] - images[..., :-1] - 1 / 255).abs().mean() < 0.02
    assert made.min() >= 0 and made.max() <= 1


# ---- the secret ---------------------------------------------------------------------------------------------------


def plan_with(suite: Path, secret: str) -> Plan:
    dataset = DATASETS.get("digits")(None).load()
    return make_plan(load_suite(suite), dataset, "data", "cpu", {"mlp": None}, secret=secret)


def test_a_secret_is_in_the_keys_of_what_depends_on_it_alone(tmp_path: Path, tiny: Tiny) -> None:
    suite = tiny(tmp_path / "a.toml", [{"name": "adaptive", "eps": 0.3, "images": 20}], [{"name": "msp"}])
    none, one, other = (plan_with(suite, secret) for secret in ("", "1" * 64, "2" * 64))
    assert none.cells.keys() < one.cells.keys()
    names = [{str(plan.cells[key].name) for key in plan.cells.keys() - none.cells.keys()} for plan in (one, other)]
    assert names[0] == names[1] and all("shadow" in name for name in names[0])
    assert one.cells.keys() & other.cells.keys() == none.cells.keys()
    assert one.protocols == other.protocols == none.protocols
    # It is nowhere in what is stored or sent to others.
    assert not any("1" * 64 in f"{key}{cell}" for key, cell in one.cells.items())


def kept_by(folder: Path, cache: Path, fresh: bool = False, shard: bool = False) -> str:
    """What a run works with, from its beginning to where it holds its directory."""
    folder.mkdir(exist_ok=True)
    of = RunSecret(folder, cache, fresh, shard)
    return of.keep(of.find("0" * 64))


def test_a_run_that_goes_on_has_its_secret_and_another_run_another(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = kept_by(tmp_path / "a", cache)
    assert len(first) == 64 and kept_by(tmp_path / "a", cache) == first
    assert kept_by(tmp_path / "b", cache) != first
    assert kept_by(tmp_path / "a", cache, fresh=True) != first
    (tmp_path / "a" / KEPT_IN).write_text("damaged")
    assert len(kept_by(tmp_path / "a", cache)) == 64
    assert (tmp_path / "a" / KEPT_IN).stat().st_mode & 0o077 == 0


def test_a_secret_that_another_process_kept_meanwhile_counts(tmp_path: Path) -> None:
    late = RunSecret(tmp_path, tmp_path / "cache", False, False)
    drawn = late.find("0" * 64)
    first = kept_by(tmp_path, tmp_path / "cache")
    assert late.keep(drawn) == first != drawn


def test_shards_have_one_secret_and_the_run_that_collects_takes_it_over(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shards = {kept_by(tmp_path / f"shard-{n}", cache, shard=True) for n in range(3)}
    assert len(shards) == 1
    assert {kept_by(tmp_path / "run", cache)} == shards
    assert kept_by(tmp_path / "run", cache) in shards and kept_by(tmp_path / "other", cache) not in shards
    assert new_secret() not in shards


def test_two_runs_differ_in_the_columns_of_shadow_images_alone(forks: Forks, tmp_path: Path, tiny: Tiny) -> None:
    attack = {"name": "adaptive", "eps": 0.3, "steps": 2, "queries": 2, "restarts": 1}
    tiny(tmp_path / "a.toml", [attack], [{"name": "msp"}, {"name": "mahalanobis"}])
    for out in ("one", "other"):
        done = forks("run", "a.toml", "--out", out, cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
        assert done.status == 0, done.output
    assert whole_tables(tmp_path / "one") == whole_tables(tmp_path / "other")
    secrets = {read_secret(tmp_path / out / KEPT_IN) for out in ("one", "other")}
    assert len(secrets) == 2 and "" not in secrets
    # What is on record is what decided; the whole tables leave out the columns that it decides.
    for out in ("one", "other"):
        assert read_secret(tmp_path / out / KEPT_IN) == json.loads((tmp_path / out / "run.json").read_text())["secret"]
        rows = {row["detector"]: row for row in read_table(tmp_path / out, "leaderboard.csv")}
        assert 0 <= float(rows["msp"]["shadow_flagged_at_fpr_5"]) <= 1
