"""Plugins that misbehave: a table of them, how a file is made of each, and runs with and without them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from support.cells import ledger
from support.commands import Forks
from support.suites import Tiny
from support.tables import whole_tables

VARIANTS = Path(__file__).parent / "variants"
# A process for each and one for the scores that are asked for again: more would only wait for each other.
SIZE = 5
# Honest parts of a suite, which misbehaving ones stand before.
NOISE, ATTACK = {"name": "gaussian", "std": 0.5}, {"name": "fgsm", "eps": 0.3}
ADAPTIVE = {"name": "adaptive-pgd", "eps": 0.3, "steps": 2, "restarts": 1}
DETECTORS = ({"name": "msp"}, {"name": "mahalanobis"}, {"name": "beside"})
ANALYSES = ({"name": "rdm"},)
# Small, so that nothing that hangs or grows takes long.
LIMITS = {
    "fit_seconds": 4,
    "score_seconds": 0.2,
    "seconds": 0.05,
    "analysis_seconds": 4,
    "idle_seconds": 4,
    "memory": 1,
}

# Of the leaderboard: what is about all rows, or about all noises together, of which a planted one is another.
OTHER = ("rank", "protocol_digest", "series_digest", "benign_flagged_at_fpr_5")

HEAD = '''
"""A plugin."""

import os

import torch
from dataclasses import dataclass, replace
from types import SimpleNamespace

from aftershock.attacks import Perturbation, PerturbationInfo
from aftershock.attacks import register as perturbation
from aftershock.detectors import Detector, DetectorInfo, Need, View, register
from aftershock.analyses.base import Analysis, AnalysisInfo
from aftershock.analyses.base import register as analysis
from aftershock.harness.data.types import DataSource
from aftershock.analyses.findings import Claim, Findings
from aftershock.harness.core.registry import DATASETS

LABEL, PLACE, MARKS = @LABEL@, @PLACE@, @MARKS@
# Folders are made, not files: the system's calls for them need no descriptor, and their use is no opened file.
_mkdir, _join, NOTHING = os.mkdir, "{}/{}".format, object()


def mark(text):
    try:
        _mkdir(_join(MARKS, text))
    except FileExistsError:
        pass


def deed(it):
@CODE@


def act(place, otherwise, **seen):
    """What the method returns: what the deed says, else what ``otherwise`` gives."""
    if place == PLACE:
        mark("began")
        found = deed(SimpleNamespace(**seen))
        mark("ended")
        if found is not None:
            return None if found is NOTHING else found
    return otherwise()
'''
PARTS = {
    "detector": """
@register(LABEL)
class Planted(Detector):
    info = DetectorInfo(title="planted", needs=(Need("pooled", taps="last:1"),), surrogate="exact")

    def __init__(self):
        act("constructor", lambda: None, self=self)

    @property
    def needs(self):
        return act("needs", lambda: type(self).info.needs, self=self)

    @property
    def views(self):
        return (View("same", self._transform),) if PLACE == "transform" else ()

    def _transform(self, images, draws):
        return act("transform", images.clone, self=self, images=images, draws=draws)

    def fit(self, clean, perturbed=None):
        self.mean = clean.pooled(clean.tap_names()[0]).mean(0)
        return act("fit", lambda: self, self=self, clean=clean, perturbed=perturbed)

    def state(self):
        return act("state", super().state, self=self)

    def score(self, traces):
        return act("score", lambda: self._value(traces), self=self, traces=traces)

    def surrogate(self, live):
        return act("surrogate", lambda: self._value(live), self=self, live=live)

    def _value(self, traces):
        return (traces.pooled(traces.tap_names()[0]) - self.mean).square().sum(1) - traces.logits.logsumexp(1)
""",
    "attack": """
@perturbation(LABEL)
class Planted(Perturbation):
    info = PerturbationInfo(title="planted", kind="noise", family="planted", gradients=False, stochastic=True)

    def __init__(self):
        act("constructor", lambda: None, self=self)

    def perturb(self, model, images, labels, draws):
        model(images)

        def noise():
            return (images + 0.5 * (2 * draws.uniform(images) - 1)).clamp(0, 1)

        return act("perturb", noise, self=self, model=model, images=images, labels=labels, draws=draws)
""",
    "analysis": """
@dataclass(frozen=True)
class Sentence:
    text: str


@analysis(LABEL)
class Planted(Analysis):
    info = AnalysisInfo(title="planted")
    needs = ()

    def __init__(self):
        act("constructor", lambda: None, self=self)

    def measure(self, given) -> Sentence:
        return act("measure", lambda: Sentence("One sentence."), self=self, given=given)

    def report(self, measured):
        return act("report", lambda: Findings([Claim("", sentence=measured.text)]), self=self, measured=measured)
""",
    "dataset": """
@DATASETS.register("copied")
def copied(root):
    source = DATASETS.get("digits")(root)

    def load():
        return act("load", lambda: replace(source.load(), name="copied"), source=source)

    act("find", lambda: None, root=root, source=source)
    return DataSource("copied", source.files, load, dict(source.fingerprint))
""",
}
TAIL = '\n\nact("import", lambda: None)\n'


@dataclass(frozen=True)
class Variant:
    """One misbehaviour.

    Attributes:
        kind: which of the ten.
        name: unique.
        part: what kind of part it is.
        at: the method, or ``import``, where it acts.
        does: Python; ``it`` has what the method was given, and what is returned is what the method returns.
        end: what becomes of it: its cells have numbers, or reasons, or the command is refused before work.
        says: a regular expression for its flags and notes, its reasons, or the output.
        marks: what it has to have noted besides that it began.
        ordinary: in every run of the tests.
        alone: in a run of its own.
    """

    kind: str
    name: str
    part: Literal["detector", "attack", "analysis", "dataset"]
    at: str
    does: str
    end: Literal["fine", "fails", "refused"] = "fine"
    says: str = ""
    marks: Sequence[str] = ()
    ordinary: bool = False
    alone: bool = False

    @property
    def label(self) -> str:
        """The part's name in suites and tables."""
        return f"planted-{self.name}"

    def named_in(self, text: str) -> bool:
        """Whether a line of a table or a cell's name is about it."""
        return re.search(rf"{self.label}(?![\w-])", text) is not None

    def write(self, folder: Path) -> Path:
        """Write the plugin; its marks will be folders in ``marks/<name>``."""
        marks = folder / "marks" / self.name
        marks.mkdir(parents=True)
        return write_plugin(folder / f"{self.name.replace('-', '_')}.py", self, str(marks))


def write_plugin(path: Path, variant: Variant, marks: str) -> Path:
    """Write the plugin of a variant."""
    head = HEAD.lstrip().replace("@LABEL@", repr(variant.label)).replace("@PLACE@", repr(variant.at))
    head = head.replace("@MARKS@", repr(marks)).replace("@CODE@", textwrap.indent(variant.does.strip(), "    "))
    path.write_text(f"{head}\n{PARTS[variant.part]}{TAIL}", encoding="utf-8")
    return path


def read_variants() -> list[Variant]:
    """All of the table, by kind."""
    return [
        Variant(kind=path.stem, **{"name": name, **entry})
        for path in sorted(VARIANTS.glob("*.toml"))
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items()
    ]


def groups() -> list[tuple[Variant, ...]]:
    """Variants that stand in one suite: of one outcome, whatever their kinds; data sets and mistakes each alone."""
    chosen = [v for v in read_variants() if v.ordinary or os.environ.get("AFTERSHOCK_HOSTILE")]
    found: list[tuple[Variant, ...]] = []
    for end in ("fine", "fails", "refused"):
        ours = [v for v in chosen if v.end == end]
        single = [v for v in ours if v.alone or v.part == "dataset" or end == "refused"]
        found += [(v,) for v in single]
        together = [v for v in ours if v not in single]
        found += [tuple(together[i : i + SIZE]) for i in range(0, len(together), SIZE)]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "group" in metafunc.fixturenames:
        found = groups()
        metafunc.parametrize("group", found, ids=["+".join(v.name for v in group) for group in found])


def read_rows(run: Path, tables: Mapping[str, bytes], planted: Sequence[Variant]) -> dict[str, Any]:
    """What a run shows of all but the planted parts: lines of tables, of the leaderboard all but some columns.

    What honest analyses found is among it, unless they were given the images of a planted attack.
    """
    found: dict[str, Any] = {}
    for name, data in tables.items():
        text = data.decode()
        if name == "leaderboard.csv":
            rows = [
                row
                for row in csv.DictReader(io.StringIO(text))
                if not any(v.named_in(row["detector"]) for v in planted)
            ]
            kept = ({k: v for k, v in row.items() if k not in OTHER} for row in rows)
            found[name] = sorted(kept, key=lambda row: row["detector"])
        else:
            found[name] = [line for line in text.splitlines() if not any(v.named_in(line) for v in planted)]
    for file in sorted((run / "analyses").glob("*/*")):
        if not any(v.part == "attack" or v.named_in(str(file)) for v in planted):
            found[f"{file.parent.name}/{file.name}"] = file.read_bytes()
    return found


@dataclass(frozen=True)
class Ran:
    """A command that has ended, and what it left."""

    folder: Path
    out: Path
    status: int
    output: str
    seconds: float
    left: Sequence[str]

    def cached(self) -> dict[str, str]:
        """The kinds of all cells in the cache, by key."""
        return {key: record.kind for key, record in ledger(self.folder / "cache").items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says."""
        found: dict[str, Any] = json.loads((self.out / "run.json").read_bytes())
        return found


class Arena:
    """Suites with and without parts that misbehave, and commands on them."""

    def __init__(self, tiny: Tiny, forks: Forks) -> None:
        self._tiny, self._forks, self._count = tiny, forks, 0

    def suite(self, folder: Path, name: str, planted: Iterable[Variant] = (), data: str = "digits") -> Path:
        """Write a suite with the honest parts after the planted ones."""
        planted = list(planted)
        plugins = [v.write(folder).name for v in planted]
        if data == "copied" and not plugins:
            plugins = [write_plugin(folder / "copied.py", Variant("", "copied", "dataset", "", "pass"), "").name]
        beside = folder / "beside.py"
        if not beside.exists():
            write_plugin(beside, Variant("", "beside", "detector", "", "pass"), "")
            beside.write_text(beside.read_text().replace("'planted-beside'", "'beside'"))
        ours = {kind: [{"name": v.label} for v in planted if v.part == kind] for kind in PARTS}
        path = self._tiny(
            folder / name, (*ours["attack"], NOISE, ATTACK, ADAPTIVE), (*ours["detector"], *DETECTORS),
            data={"name": data}, plugins=[*plugins, beside.name],
        )  # fmt: skip
        tables: list[tuple[str, Mapping[str, Any]]] = [
            ("[limits]", LIMITS),
            *(("[[analyses]]", entry) for entry in (*ours["analysis"], *ANALYSES)),
        ]
        text = "\n".join(
            f"{header}\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in e.items()) for header, e in tables
        )
        path.write_text(f"{path.read_text()}\n{text}")
        return path

    def __call__(self, suite: Path, out: str) -> Ran:
        """Run a suite with the cache beside it, and wait a moment for processes that it may have left."""
        self._count += 1
        folder, sign = suite.parent, f"PLANTED={os.getpid()}-{self._count}"
        temporary = folder / f"tmp-{out}"
        temporary.mkdir()
        began = time.monotonic()
        done = self._forks(
            "run", suite.name, "--out", out, "--device", "cpu", cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"),
            TMPDIR=str(temporary), PLANTED=sign.partition("=")[2],
        )  # fmt: skip
        seconds = time.monotonic() - began
        # Torch makes a folder for its compiler's cache when that is imported, whoever does it.
        left = [str(p.relative_to(temporary)) for p in temporary.rglob("*") if not p.name.startswith("torchinductor_")]
        return Ran(folder, folder / out, done.status, done.output, seconds, [*left, *_running(sign)])


def _running(sign: str, seconds: float = 5.0) -> list[str]:
    """Processes whose environment has a variable, once those that are ending have ended."""
    until = time.monotonic() + seconds
    while True:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"\0{sign}\0".encode() in b"\0" + (place / "environ").read_bytes():
                    found.append(f"{place.name}: {(place / 'cmdline').read_bytes()[:60]!r}")
            except OSError:
                continue
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


@pytest.fixture(scope="session")
def arena(tiny: Tiny, forks: Forks) -> Arena:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc, to see what is left running")
    return Arena(tiny, forks)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, arena: Arena) -> Callable[[str], dict[str, Any]]:
    """The rows of a run without any planted part, by data set; each is made once."""
    made: dict[str, dict[str, Any]] = {}

    def rows(data: str) -> dict[str, Any]:
        if data not in made:
            folder = tmp_path_factory.mktemp(f"undisturbed-{data}")
            ran = arena(arena.suite(folder, "clean.toml", data=data), "run")
            assert ran.status == 0, ran.output
            made[data] = read_rows(ran.out, whole_tables(ran.out), ())
        return made[data]

    return rows


@pytest.fixture(scope="session")
def rows() -> Callable[[Path, Sequence[Variant]], dict[str, Any]]:
    """Reads what a run shows of all but some parts."""
    return lambda run, planted: read_rows(run, whole_tables(run), planted)


@pytest.fixture(scope="session")
def matches() -> Callable[[str, Iterable[str]], bool]:
    return lambda pattern, texts: any(re.search(pattern, text) for text in texts)


@pytest.fixture(scope="session")
def all_variants() -> list[Variant]:
    return read_variants()
