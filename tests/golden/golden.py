"""Whether a change of the code left every number as it was: one set of suites, computed by two trees, compared.

    python tests/golden/golden.py compute TREE FOLDER [SUITE...]   # TREE: a checkout; FOLDER: gets runs and a cache
    python tests/golden/golden.py compare FOLDER FOLDER [SUITE...]

Every table and every value of the findings is compared exactly, sentences and captions are not: both trees must be
computed on one machine, with one number of threads.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUITES = ("detectors", "attacks", "analyses")
# Digests say that something is as it was, keys and times are no numbers of a suite.
LEFT_OUT = ("protocol_digest", "series_digest", "seconds", "fit_seconds", "score_seconds", "peak_mb", "file")
TIMES = ("timings.csv",)


def compute(tree: Path, folder: Path, suites: Sequence[str] = SUITES) -> None:
    """Run the suites with the package that lies in ``tree``."""
    package = folder / "package"
    package.mkdir(parents=True, exist_ok=True)
    link = package / "aftershock"
    link.unlink(missing_ok=True)
    link.symlink_to(tree.resolve())
    environment = {**os.environ, "PYTHONPATH": str(package.resolve()), "OMP_NUM_THREADS": "1"}
    for name in suites:
        suite = folder / f"{name}.toml"
        text = (HERE / f"{name}.toml").read_text(encoding="utf-8")
        suite.write_text(text.replace("WEIGHTS", str((tree / "harness" / weights_of(tree)).resolve())))
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "aftershock", "run", str(suite), "--out", str(out), "--cache",
                   str(folder / "cache"), "--device", "cpu"]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
        print(f"{name}: status {done.returncode}")
        if done.returncode:
            print(done.stderr[-3000:])


def weights_of(tree: Path) -> str:
    """Where a tree keeps the weights of its own suites, below ``harness``."""
    return next(str(p.parent.relative_to(tree / "harness")) for p in (tree / "harness").rglob("digits-cnn.safetensors"))


def compare(one: Path, two: Path, suites: Sequence[str] = SUITES) -> int:
    """Print what differs and return how many files do."""
    different = 0
    for name in suites:
        left, right = dict(facts(one / name)), dict(facts(two / name))
        for key in sorted({*left, *right}):
            if key not in left or key not in right:
                print(f"{name}/{key}: only in {'the first' if key in left else 'the second'}")
                different += 1
                continue
            found = list(differences(left[key], right[key]))
            if found:
                different += 1
                print(f"{name}/{key}: {len(found)} differences, the first {found[:3]}")
        print(f"{name}: {len(left)} and {len(right)} files")
    return different


def facts(run: Path) -> Iterator[tuple[str, Any]]:
    """Every table and finding of a run, by name."""
    for path in sorted((run / "tables").iterdir()):
        if path.name in TIMES:
            continue
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        rows = [{k: v for k, v in row.items() if k not in LEFT_OUT} for row in csv.DictReader(io.StringIO(text))]
        yield f"tables/{path.name}", rows
    for path in sorted((run / "analyses").glob("*/*")):
        name = f"analyses/{path.parent.name}/{path.name}"
        if path.suffix == ".csv":
            yield name, list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        elif path.suffix == ".png":
            yield name, path.read_bytes()
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load

            yield name, {k: (str(v.dtype), v.tobytes()) for k, v in load(path.read_bytes()).items()}
    for path in sorted((run / "site").rglob("*.html")):
        yield f"site/{path.relative_to(run / 'site')}", True
    failures = json.loads((run / "run.json").read_text(encoding="utf-8"))["failures"]
    yield "failures", sorted((f["cell"], f["status"], f["reason"]) for f in failures)


def differences(one: Any, two: Any, at: str = "") -> Iterator[str]:
    """The places where two values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in {**one, **two}:
            if key not in one or key not in two:
                yield f"{at}/{key}: only in one"
            else:
                yield from differences(one[key], two[key], f"{at}/{key}")
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from differences(a, b, f"{at}/{number}")
    elif one != two and not (isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two)):
        yield f"{at}: {str(one)[:60]} and {str(two)[:60]}"


if __name__ == "__main__":
    what, first, second = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
    if what == "compute":
        compute(first, second, sys.argv[4:] or SUITES)
    else:
        sys.exit(compare(first, second, sys.argv[4:] or SUITES))
