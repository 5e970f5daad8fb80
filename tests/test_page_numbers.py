"""The numbers that pages state are those of the code; figures of long runs say which suite they are of, and when."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from aftershock.attacks.adaptive import worst_case
from aftershock.attacks.adaptive.surrogate import MarginAttack
from aftershock.attacks.benign.equal_norm_control import equal_norm_control
from aftershock.attacks.libraries.foolbox.gradient import EPS
from aftershock.harness.cli.main import INTERRUPTED
from aftershock.harness.conformance import models as model_checks
from aftershock.harness.conformance.perturbations import COSTS
from aftershock.harness.core import bounded, content_keys, files, formats
from aftershock.harness.evaluation import consistency, rankability, sanity, seed_scores
from aftershock.harness.models.classifier import is_near_chance
from aftershock.harness.plan.alarms import ALARM_IMAGES
from aftershock.harness.plan.past_all import PAST_IMAGES
from aftershock.harness.plan.perturbations import CHECK_IMAGES
from aftershock.harness.run import evaluate
from aftershock.harness.statistics.detection import ALPHAS, MIN_IMAGES, threshold_reason
from aftershock.harness.store import cells, ledger
from aftershock.harness.suite.builtin import builtin_suites
from aftershock.harness.suite.instances import make_detector
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.suite.schema import LimitsEntry
from aftershock.reports.findings import files as findings
from aftershock.reports.read import gallery, run_directory, scores

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the pages are in the repository, not in the source distribution", allow_module_level=True)
MIB, GIB = 2**20, 2**30
FLOOR = rankability.FLOOR
TRIES = inspect.signature(equal_norm_control).parameters["tries"].default
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "seven": 7, "eight": 8, "ten": 10, "twice": 2, "half": 0.5}


def fewest_calibrate(rate: str) -> int:
    """The fewest calibrate images with which a threshold at this rate is set."""
    return next(n for n in range(1, 1000) if not threshold_reason(n, ALPHAS[rate]))


def images_apart(rows: int) -> int:
    """By how many images a row must lead another to stand above it: McNemar's test, Holm's first step."""
    return next(k for k in range(1, 100) if 2 * 0.5**k <= 0.05 / (rows * (rows - 1) / 2))


def large(eps: float) -> float:
    return MarginAttack(eps).large_eps


def bound(package: str) -> float:
    """The lower bound that the project declares for a dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["torchattacks"]]
    (found,) = {m[1] for d in declared if (m := re.match(rf"{package}>=(\d+(?:\.\d+)?)", d))}
    return float(found)


QUICK = load_suite("quick")
(LATENT,) = (part for part in QUICK.detectors if part.label == "latent")
# A page, its words with a group for each number, and the numbers of the code.
STATED: list[tuple[str, str, list[float]]] = [
    ("../README.md", r"attacks (\w+) small models", [len(QUICK.models)]),
    ("../README.md", r"fits (\w+) detectors", [len(QUICK.detectors)]),
    ("../README.md", r"with a probability of at most (\d+) %", [100 * ALPHAS["5"]]),
    ("../README.md", r"needs at least (\d+) successful images", [MIN_IMAGES]),
    ("../README.md", r"(\d+) interrupted", [INTERRUPTED]),
    ("../README.md", r"installed torch ([\d.]+) or newer", [bound("torch")]),
    ("index.md", r"attacks (\w+) small models", [len(QUICK.models)]),
    ("index.md", r"fits (\w+) detectors", [len(QUICK.detectors)]),
    ("install.md", r"\(torch ([\d.]+) with torchvision ([\d.]+) or newer\)", [bound("torch"), bound("torchvision")]),
    (
        "install.md",
        r"torch ([\d.]+), NumPy ([\d.]+), pandas ([\d.]+), SciPy ([\d.]+), scikit-learn ([\d.]+) "
        r"and pydantic ([\d.]+)\. ",
        [bound(p) for p in ("torch", "numpy", "pandas", "scipy", "scikit-learn", "pydantic")],
    ),
    (
        "afternoon.md",
        r"floor for a rank is (\d+) steps, (\d+) restarts, (\d+) queries and (\d+) images",
        [FLOOR.steps, FLOOR.restarts, FLOOR.queries, rankability.FLOOR_IMAGES],
    ),
    ("afternoon.md", r"(\d+) are enough for a rank", [fewest_calibrate("5")]),
    ("suite.md", r"a rank needs (\d+)", [fewest_calibrate("5")]),
    ("tables.md", r"fewer than (\d+) (?:positives|controls|images)", [MIN_IMAGES]),
    (
        "tables.md",
        r"or ([\d,]+) calibrate images \| \| `tpr_at_fpr_5` \|.*?or (\d+) calibrate images \| \| `tpr_at_fpr_10` \|.*?"
        r"or (\d+) calibrate images",
        [10 / ALPHAS["1"], fewest_calibrate("5"), fewest_calibrate("10")],
    ),
    ("tables.md", r"submits an image (\d+) times", [consistency.EVALUATIONS]),
    ("troubleshooting.md", r"needs (\d+) calibrate images", [fewest_calibrate("5")]),
    (
        "troubleshooting.md",
        r"`steps = (\d+)`, `restarts = (\d+)`, `queries = (\d+)`, `images = (\d+)`",
        [FLOOR.steps, FLOOR.restarts, FLOOR.queries, rankability.FLOOR_IMAGES],
    ),
    ("troubleshooting.md", r"Fewer than (\d+) images could be checked", [MIN_IMAGES]),
    ("troubleshooting.md", r"held more than (\d+) GiB", [LimitsEntry().memory]),
    ("arrays.md", r"\(at most ([\d,]+)\) are set aside", [evaluate.CALIBRATE]),
    (
        "arrays.md",
        r'"steps": (\d+), "restarts": (\d+), "queries": (\d+), "images": (\d+)}` is the least',
        [FLOOR.steps, FLOOR.restarts, FLOOR.queries, rankability.FLOOR_IMAGES],
    ),
    ("guard.md", r"\(`quick` has (\d+)\)", [vars(make_detector(LATENT))["latent"]]),
    ("own-detector.md", r"waited for (\d+) s without computing", [LimitsEntry().idle_seconds]),
    ("own-detector.md", r"majority of (\d+) evaluations", [consistency.EVALUATIONS]),
    (
        "own-model.md",
        r"on images of (\d+), (\d+), (\d+), (\d+) and (\d+) pixels",
        [side for _, side, _ in model_checks.SHAPES],
    ),
    ("perturbations.md", r"\((8/255) in L∞, ([\d.]+) in L2, (\d+) in L1\)", [EPS["linf"], EPS["l2"], EPS["l1"]]),
    ("perturbations.md", r"low up to (\d+), medium up to ([\d,]+),", [COSTS["low"], COSTS["medium"]]),
    ("leaderboard.md", r"AUROC needs (\d+) successful images, a threshold at (\d) % needs (\d+) calibrate",
     [MIN_IMAGES, 5, fewest_calibrate("5")]),
    ("leaderboard.md", r"No flag is set from fewer than (\d+) images", [MIN_IMAGES]),
    ("leaderboard.md", r"one-sided sign test at (\d) %", [100 * sanity._LEVEL]),
    ("leaderboard.md", r"among (\w+) rows and 50 images a row must keep at least (\d+) images", [8, images_apart(8)]),
    ("protocol.md", r"k = floor\((0\.\d+) \(n \+ 1\)\)", [ALPHAS["5"]]),
    ("protocol.md", r"If more than (\d) % of the calibrate scores equal", [100 * seed_scores.TIED]),
    ("protocol.md", r"again up to (\w+) times until", [TRIES]),
    ("protocol.md", r"on the first (\d+) evaluate images that are right and pass", [ALARM_IMAGES]),
    ("leaderboard.md", r"share of the first (\d+) evaluate images \(fewer", [ALARM_IMAGES]),
    ("protocol.md", r"looks on the first (\d+) evaluate images for one change", [PAST_IMAGES]),
    ("protocol.md", r"\((\w+) times eps; for L∞ at most ([\d.]+),", [large(0.01) / 0.01, large(0.3)]),
    ("protocol.md", r"on every one of the first (\d+) images", [CHECK_IMAGES]),
    ("protocol.md", r"Fewer than (\d+) such images", [MIN_IMAGES]),
    ("protocol.md", r"At least (\d+) images of every set", [consistency.SAMPLE]),
    (
        "protocol.md",
        r"past (\d) % of the calibrate scores, of more than (\w+) images and (\d) % of a set",
        [100 * consistency._PLACES, consistency._ROWS, 100 * consistency._SHARE],
    ),
    ("protocol.md", r"majority of (\d+) evaluations", [consistency.EVALUATIONS]),
    ("protocol.md", r"rates of (\d+) evaluations must agree .*? at (\.\d+)\)",
     [consistency.EVALUATIONS, consistency._LEVEL]),
    (
        "protocol.md",
        r"(\d+) steps, (\d+) restarts and (\d+) queries for each image that .*?, on at least (\d+) images",
        [FLOOR.steps, FLOOR.restarts, FLOOR.queries, rankability.FLOOR_IMAGES],
    ),
    ("protocol.md", r"last quarter continues, (\w+) at most", [worst_case._FURTHER]),
    ("results.md", r"What version (\d) of the protocol changes", [content_keys.PROTOCOL_VERSION]),
    ("files.md", r"at most (\w+) times as many bytes \(and (\d) MiB more\)", [bounded._WIDER, bounded._SLACK / MIB]),
    (
        "files.md",
        r"at most ([\d,]+) tensors\. Images have at most ([\d,]+) numbers, a model at most ([\d,]+) classes "
        r"and ([\d,]+) taps, and the parameters of a detector at most ([\d,]+) values, nested at most (\d+) deep",
        [
            bounded.MOST_TENSORS, bounded.LARGEST_IMAGE, bounded.MOST_CLASSES, bounded.MOST_TAPS, bounded.MOST_VALUES,
            bounded.DEEPEST,
        ],
    ),
    (
        "files.md",
        r"(\d+) MiB of `run\.json`, (\d+) MiB of a table \((\d) GiB of `scores\.csv\.gz`, compressed\), (\d+) MiB "
        r"of a gallery's index and\s+(\d+) MiB of each of its pictures, (\d+) MiB of an analysis' `findings\.json`, "
        r"(\d+) MiB of its arrays, (\d+) MiB of a ledger entry, (\d+) MiB of a pack, (\d) GiB of an artifact",
        [
            formats.RUN_JSON_LIMIT / MIB, run_directory.TABLE_LIMIT / MIB, scores._MOST_PACKED / GIB,
            gallery._INDEX_LIMIT / MIB, gallery._PICTURE_LIMIT / MIB, findings.JSON_LIMIT / MIB,
            findings.ARRAYS_LIMIT / MIB, ledger.RECORD_LIMIT / MIB,
            (cells._MOST_BYTES + ledger.RECORD_LIMIT) / MIB, files.TENSORS_LIMIT / GIB,
        ],
    ),
]  # fmt: skip


def number(text: str) -> float:
    if text in WORDS:
        return WORDS[text]
    numerator, _, denominator = text.replace(",", "").partition("/")
    return float(numerator) / float(denominator or 1)


@pytest.mark.parametrize(("name", "words", "numbers"), STATED, ids=[f"{n}: {w[:40]}" for n, w, _ in STATED])
def test_a_page_states_the_number_of_the_code(name: str, words: str, numbers: list[float]) -> None:
    text = " ".join((DOCS / name).read_text(encoding="utf-8").split())
    found = re.findall(words, text)
    assert found, f"{name} no longer says {words!r}"
    for groups in found:
        stated = [number(group) for group in ([groups] if isinstance(groups, str) else groups)]
        assert stated == pytest.approx(numbers), f"{name}: {words}"


def test_near_chance_is_what_the_page_of_models_says() -> None:
    text = " ".join((DOCS / "models.md").read_text(encoding="utf-8").split())
    assert "Less than a quarter of the way from chance to 1" in text and "below three times chance" in text
    # Two classes: three times chance is never reached, a quarter of the way is 0.625. A hundred: three times 0.01.
    assert [is_near_chance(a, 2) for a in (0.62, 0.63)] == [True, False]
    assert [is_near_chance(a, 100) for a in (0.029, 0.031)] == [True, False]


def test_results_say_where_and_when_they_were_measured() -> None:
    sections = re.split(r"^#{2,3} ", (DOCS / "results.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    measured = re.compile(r"^[^\n]+\n\n\*Measured on 20\d\d-\d\d-\d\d(?:, protocol versions? [^:]+)?: ([^\n]+)\.\*\n")
    studies = [path for path in (DOCS / "studies").iterdir() if path.suffix in (".py", ".toml")]
    known = {*builtin_suites(), *(f"docs/studies/{path.name}" for path in studies)}
    for section in sections:
        title = section.partition("\n")[0]
        # Of what is published beside ours, the figures of ours stand in the tables above.
        if not re.search(r"^\| ", section, re.MULTILINE) or title == "Published beside ours":
            continue
        found = measured.match(section)
        assert found, f"{title}: name the suite or study, and the date"
        sources = re.findall(r"`([^`]+)`", found[1])
        assert sources and set(sources) <= known, title
