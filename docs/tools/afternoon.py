"""Record the table that the page ``afternoon.md`` shows: ``python docs/tools/afternoon.py [RUN]``.

It runs the suite of the page with the sizes below, which take some ten minutes, and keeps the leaderboard in
``docs/figures``. It needs CIFAR-10 and the weights under ``AFTERSHOCK_DATA``. RUN, a run directory of that suite, takes
the place of the run.
"""

from __future__ import annotations

import csv
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aftershock
from aftershock.harness.cli.scaffold import new_package

DOCS = Path(__file__).parents[1]
# The sizes of the record, by table of the suite; the attack is the least that has a rank.
PRICE_IMAGES = 16
IMAGES = {"fit": 500, "calibrate": 200, "evaluate": 60}
ATTACK = {"restarts": 2, "queries": 100, "images": 60}


def trial() -> dict[str, Any]:
    """Return the suite of the page with the sizes of the record."""
    page = (DOCS / "afternoon.md").read_text(encoding="utf-8")
    found = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (suite,) = (tomllib.loads(block) for block in found if "[data]" in block)
    suite["price_images"] = PRICE_IMAGES
    suite["data"] |= IMAGES
    for perturbation in suite["perturbations"]:
        if perturbation["name"] == "adaptive":
            perturbation |= ATTACK
    return suite


def main(arguments: Sequence[str]) -> None:
    """Run the suite if no run is given, record its leaderboard and write the pages anew."""
    import tables

    with tempfile.TemporaryDirectory() as name:
        run = Path(arguments[0]) if arguments else Path(name) / "run"
        if not arguments:
            package, _ = new_package("detector", "my-detector", Path(name) / "my-detector")
            found = aftershock.run(trial(), out=run, device="cpu", plugins=[package / "my_detector.py"])
            if found.failed:
                raise SystemExit(f"The record stays as it was: {found.failed}")
        with (run / "tables" / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
            rows = [{k: v for k, v in row.items() if not k.endswith("_digest")} for row in csv.DictReader(stream)]
    with (DOCS / "figures" / "afternoon-leaderboard.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    tables.main()


if __name__ == "__main__":
    main(sys.argv[1:])
