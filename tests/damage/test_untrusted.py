"""A run directory or a guard from somebody else is damaged: a report, a model, a detector and a guard made from it.

Each is what the undamaged run gives, or a sentence; nothing hangs, and nothing is built that the files do not hold.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from aftershock import Guard
from aftershock.harness.core.errors import AftershockError
from aftershock.harness.core.formats import RUN_SCHEMA, seal
from aftershock.harness.models.weights import state_digest
from aftershock.harness.run.guard import export_guard
from aftershock.harness.run.load import load_detector, load_model
from aftershock.harness.run.result import load
from aftershock.harness.store.artifacts import Artifact
from aftershock.harness.store.ledger import Record
from aftershock.reports.answers.summaries import attack_numbers
from aftershock.reports.site.build import build_site
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.cells import artifact, ledger, lines, replace_record, tensors
from support.damage import Edits, Operation

FILES = (
    "run.json", "keys.txt", "cells:model", "cells:fit/mahalanobis", "cells:score/mahalanobis/calibrate",
    "cells:perturb/fgsm", "artifacts:perturb/fgsm", "artifacts:control/fgsm", "tables/attacks.csv",
    "artifacts:model", "artifacts:fit/mahalanobis", "artifacts:score/mahalanobis/calibrate", "tables/leaderboard.csv",
    "tables/metrics.csv", "tables/propagation.csv", "tables/scores.csv.gz", "analyses/*/findings.json",
    "analyses/*/arrays.safetensors", "analyses/*/rdm-pairs.csv", "site/index.html",
)  # fmt: skip
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@contextmanager
def seconds(count: int) -> Iterator[None]:
    """Ends what takes longer."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {count} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(count)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def report(run: Path, work: Path) -> Any:
    index = build_site([run], work / "report")
    return {p.name: p.read_bytes() for p in (index, *(work / "report" / "analyses").glob("*.html"))}


def model(run: Path, work: Path) -> Any:
    return state_digest(load_model(run))


def detector(run: Path, work: Path) -> Any:
    state = load_detector(run, "mahalanobis").state()
    return {name: v.tolist() if isinstance(v, torch.Tensor) else repr(v) for name, v in sorted(state.items())}


def guard(run: Path, work: Path) -> Any:
    made = Guard.load(export_guard(run, "mahalanobis", work / "g.safetensors"), load_model(run))
    return made.threshold, made(IMAGES).score.tolist()


def answers(run: Path, work: Path) -> Any:
    found = load(run)
    images = found.images("fgsm", outcome="all")
    arrays = (images.perturbed, images.clean, images.control, images.index, images.prediction, images.scores["msp"])
    frames = (attack_numbers(found.tables), found.compare("msp", "mahalanobis").frame)
    return [None if a is None else a.tobytes() for a in arrays], [frame.to_csv() for frame in frames], found.to_latex()


USES = (report, model, detector, guard, answers)


def target(run: Path, file: str) -> Path:
    part, colon, name = file.partition(":")
    if not colon:
        return next(run.glob(file))
    return (lines if part == "cells" else artifact)(run, entry_of(run, name).key)


def entry_of(run: Path, name: str) -> Record:
    """The entry of the cell of a name."""
    found = (record for _, record in sorted(ledger(run).items()))
    return next(record for record in found if str(record.name).startswith(f"digits/mlp/0/{name}"))


@pytest.fixture(scope="module")
def undamaged(damaged_place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("undamaged")
    return {use.__name__: use(damaged_place / "run", work) for use in USES}


class Uses:
    """Makes everything that can be made of a run, and compares it with what the undamaged run gives."""

    def __init__(self, origin: Path, folder: Path, undamaged: Mapping[str, Any], counts: dict[str, int]) -> None:
        self.origin, self.folder, self.undamaged, self.counts = origin, folder, undamaged, counts

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        shutil.copytree(self.origin, self.folder / "run")
        return self.folder / "run"

    def judge(self, run: Path, what: str) -> None:
        for use in USES:
            try:
                with seconds(30):
                    found = use(run, self.folder)
            except AftershockError as error:
                assert "\n" not in str(error) and 0 < len(str(error)) < 1000, what
                end = "untrusted: a sentence"
            else:
                wanted = self.undamaged[use.__name__]
                said = use is report and "cannot be shown" in found["index.html"].decode()
                assert said or found == wanted, f"{what}: {use.__name__} differs"
                end = "untrusted: a sentence on the page" if said else "untrusted: same output"
            for name in ("untrusted: tried", end):
                self.counts[name] = self.counts.get(name, 0) + 1


@pytest.fixture
def uses(damaged_place: Path, tmp_path: Path, undamaged: dict[str, Any], counted: dict[str, int]) -> Uses:
    return Uses(damaged_place / "run", tmp_path / "work", undamaged, counted)


@pytest.mark.parametrize("number", range(len(FILES)), ids=FILES)
def test_files_of_a_run(number: int, uses: Uses, operations: Mapping[str, Operation], everything: bool) -> None:
    if not everything and number % 3:
        pytest.skip("set AFTERSHOCK_DAMAGE to try every file")
    names = list(operations)
    for name in names if everything else [names[(5 * number + 2) % len(names)]]:
        run = uses.fresh()
        operations[name](target(run, FILES[number]))
        uses.judge(run, f"{name} {FILES[number]}")


@pytest.mark.parametrize("file", ["run.json", "cells:model", "cells:fit/mahalanobis", "analyses/*/findings.json"])
def test_every_field_of_a_json_file(file: str, uses: Uses, edits: Edits, everything: bool) -> None:
    if not everything and file not in ("run.json", "cells:model"):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every file")

    def editable(run: Path) -> tuple[Path, str]:
        part, colon, name = file.partition(":")
        return (run, entry_of(run, name).key) if colon else (target(run, part), "")

    names = [name for name, _ in edits(*editable(uses.origin))]
    for name in names[:: 1 if everything and len(names) < 80 else max(1, len(names) // (80 if everything else 3))]:
        run = uses.fresh()
        dict(edits(*editable(run)))[name]()
        uses.judge(run, f"edit {file}: {name}")


# What a run says of itself, as it comes from JSON.
Facts = dict[str, Any]


def rewrite(run: Path, change: Callable[[Facts], None]) -> None:
    """Edit ``run.json`` as somebody does who knows its checksum."""
    facts = json.loads((run / "run.json").read_text())
    del facts["checksum"]
    change(facts)
    (run / "run.json").write_bytes(seal(facts))


def rewrite_model(run: Path, change: Callable[[Facts], None]) -> None:
    """Edit what a run says of its model, with a right checksum."""
    record = entry_of(run, "model")
    values = json.loads(json.dumps(dict(record.values)))
    change(values)
    replace_record(run, replace(record, values=values))


def entry(facts: Facts) -> Facts:
    """What a run says of its first model."""
    found: Facts = facts["resolved"]["models"][0]
    return found


HUGE: Mapping[str, Callable[[Facts], None]] = {
    "vit": lambda f: entry(f).update(name="vit_h_14", params={}),
    "vit of large images": lambda f: entry(f).update(name="vit_b_16", params={"image_size": 160_000}),
    "wide": lambda f: entry(f).update(name="resnet56", params={"width": 4000}),
    "wider": lambda f: entry(f)["params"].update(width=10**9),
    "widest": lambda f: entry(f)["params"].update(width=10**30),
    "deep": lambda f: entry(f)["params"].update(depth=10**9, width=1),
    "dense": lambda f: entry(f).update(name="densenet121", params={"block_config": [10**9]}),
    "regnet": lambda f: entry(f).update(name="regnet_y_128gf", params={}),
    "swin": lambda f: entry(f).update(name="swin_t", params={"window_size": [4000, 4000]}),
    "nested": lambda f: f["resolved"]["detectors"][1].update(name="combination", params={"of": nested(300)}),
    "members": lambda f: f["resolved"]["detectors"][1].update(name="combination", params={"of": ["msp"] * 10**6}),
    "bits": lambda f: entry(f).update(bits_per_tap=-1),
    "modules": lambda f: entry(f).update(tap_modules=["x"] * 10**6),
}


def nested(depth: int) -> list[Any]:
    found: list[Any] = ["msp"]
    for _ in range(depth):
        found = [{"name": "combination", "of": found}]
    return found


@pytest.mark.parametrize("name", HUGE)
def test_what_a_run_asks_to_be_built_is_bounded(name: str, uses: Uses, everything: bool) -> None:
    if not everything and name not in ("vit", "wide", "regnet", "nested", "bits"):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every size")
    run = uses.fresh()
    rewrite(run, HUGE[name])
    about_detector = name in ("nested", "members", "bits", "modules")
    with seconds(20), pytest.raises(AftershockError) as caught:
        load_detector(run, "mahalanobis") if about_detector else load_model(run)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 10**6, 10**6]}, {"shape": [1, 8]}, {"shape": [-1, 8, 8]}, {"classes": 10**9}, {"classes": 0},
        {"classes": 7}, {"classes": "ten"}, {"taps": [["a", "relu", [4]]] * 20_000}, {"normalise": {"mean": [0.0]}},
        {"normalise": {"mean": ["x"], "std": [1.0]}}, {"digest": 7},
    ],
    ids=lambda change: f"{change}"[:40],
)  # fmt: skip
def test_what_a_run_says_of_its_model_is_checked(change: Facts, uses: Uses, everything: bool) -> None:
    if not everything and not {"shape", "taps"} & set(change):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every field")
    run = uses.fresh()
    rewrite_model(run, lambda values: values.update(change))
    with seconds(20), pytest.raises(AftershockError) as caught:
        guard(run, uses.folder)
    assert "\n" not in str(caught.value)


def test_scores_without_a_number_make_no_guard(uses: Uses) -> None:
    run = uses.fresh()
    record = entry_of(run, "score/mahalanobis/calibrate")
    made = Artifact.of({n: torch.full(t.shape, torch.nan) for n, t in tensors(run, record.key).items()})
    pack = artifact(run, record.key)
    offset = pack.stat().st_size
    with pack.open("ab") as stream:
        stream.write(made.data)
    replace_record(run, replace(record, digest=made.digest, size=made.size, offset=offset))
    with pytest.raises(AftershockError, match="finite"):
        export_guard(run, "mahalanobis", uses.folder / "g.safetensors")


def described(path: Path) -> Facts:
    with safe_open(path, "pt") as stream:
        found: Facts = json.loads(stream.metadata()["guard"])
    return found


GUARDS: Mapping[str, Callable[[Facts], None]] = {
    "bits": lambda a: a["model"].update(bits_per_tap=-1),
    "classes": lambda a: a["model"].update(classes=7),
    "shape": lambda a: a["model"].update(shape=[1, 9, 9]),
    "large": lambda a: a["model"].update(shape=[3, 10**5, 10**5]),
    "taps": lambda a: a["model"].update(taps=a["model"]["taps"] * 10_000),
    "other taps": lambda a: a["model"].update(taps=a["model"]["taps"][:-1]),
    "future": lambda a: a.update(format=9),
    "nested": lambda a: a.update(detector="combination", params={"of": nested(300)}),
    "wide": lambda a: a.update(detector="latent", params={"hidden": [10**6, 10**6]}),
    "state": lambda a: a.update(state={"mean": {"$tensor": "nowhere"}}),
}


@pytest.mark.parametrize("name", GUARDS)
def test_guards_of_somebody_are_checked(name: str, uses: Uses, everything: bool) -> None:
    if not everything and name not in ("bits", "classes", "shape", "taps", "future"):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every guard")
    from aftershock.harness.run.guard import _checksum

    run = uses.fresh()
    path = export_guard(run, "mahalanobis", uses.folder / "g.safetensors")
    about, tensors = described(path), load_file(path)
    GUARDS[name](about)
    text = json.dumps(about)
    save_file(tensors, path, {"guard": text, "checksum": _checksum(text, tensors)})
    with seconds(20), pytest.raises(AftershockError) as caught:
        Guard.load(path, load_model(run))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    if name == "future":
        assert "written by aftershock" in str(caught.value) and "schema 9" in str(caught.value)


def test_a_damaged_guard_is_refused(uses: Uses, operations: Mapping[str, Operation], everything: bool) -> None:
    made, network = export_guard(uses.fresh(), "mahalanobis", uses.folder / "g.safetensors"), load_model(uses.origin)
    for name in operations if everything else ("flip_unseen", "pipe", "endless", "sparse"):
        path = uses.folder / f"{name}.safetensors"
        shutil.copy(made, path)
        operations[name](path)
        if name == "link":
            continue  # a user's own path may be a link
        with seconds(20), pytest.raises(AftershockError) as caught:
            Guard.load(path, network)
        assert "\n" not in str(caught.value), name
    for place in range(0, made.stat().st_size, 1 if made.stat().st_size < 200 else made.stat().st_size // 40):
        data = bytearray(made.read_bytes())
        data[place] ^= 2
        (uses.folder / "bit.safetensors").write_bytes(data)
        with pytest.raises(AftershockError):
            Guard.load(uses.folder / "bit.safetensors", network)


def test_a_newer_schema_is_refused_with_the_version_that_wrote_it(uses: Uses) -> None:
    for schema in (7, 1):
        run = uses.fresh()
        rewrite(run, partial(dict.update, schema=schema, versions={"aftershock": "4.2"}))
        with pytest.raises(AftershockError, match=rf"written by aftershock 4\.2, schema {schema}"):
            load_model(run)
    with pytest.raises(AftershockError, match=f"reads up to {RUN_SCHEMA}"):
        rewrite(run, lambda f: f.update(schema=7, versions={"aftershock": "4.2"}))
        build_site([run], uses.folder / "site")


def test_nothing_is_written_through_a_link_in_a_run(uses: Uses) -> None:
    run = uses.fresh()
    outside = uses.folder / "outside"
    outside.mkdir()
    for link in (run / "x", run / "deep" / "y"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
        for out in (link, link / "site", link / "a" / "b"):
            with pytest.raises(AftershockError, match="is a link"):
                build_site([run], out)
        with pytest.raises(AftershockError, match="is a link"):
            export_guard(run, "mahalanobis", link / "g.safetensors")
    assert not list(outside.iterdir())
    # A user's own link to a folder elsewhere is followed.
    (uses.folder / "own").symlink_to(outside)
    assert build_site([run], uses.folder / "own" / "site").is_file()
