"""A run's own site is made from its directory, as ``aftershock report`` makes one: the pages are equal."""

from __future__ import annotations

import json
from pathlib import Path

from aftershock import run
from aftershock.reports.site.build import build_site, site_files
from support.suites import Tiny

BAD = """
from aftershock.detectors import Detector, DetectorInfo, register


@register("same-site-bad")
class Bad(Detector):
    info = DetectorInfo(title="a detector that cannot be fitted", needs=())

    def fit(self, clean, perturbed=None):
        raise ValueError("no")

    def score(self, traces):
        return traces.logits[:, 0].double()
"""


def pages(site: Path) -> dict[str, bytes]:
    return {str(path.relative_to(site)): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


def test_the_pages_of_a_run_are_those_of_a_report(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    suite = tiny(
        tmp_path / "a.toml",
        [{"name": "fgsm", "eps": 0.3}],
        [{"name": "msp"}, {"name": "same-site-bad"}],
        plugins=["bad.py"],
    )  # fmt: skip
    suite.write_text(suite.read_text() + '\n[[analyses]]\nname = "rdm"\n')
    made = run(suite, tmp_path / "run", cache=tmp_path / "cache", device="cpu")
    assert any("/fit/same-site-bad" in name for name in made.failed)
    site = tmp_path / "run" / "site"
    own = pages(site)
    assert {
        "index.html",
        "analyses/digits-mlp-rdm.html",
        "assets/plotly-cartesian.min.js",
        "models/digits-mlp.html",
    } <= own.keys()
    # What lies there and is nobody's page is left alone, and is not the run's.
    (site / "mine.txt").write_text("kept")
    (site / "analyses" / "mine.html").write_text("<p>kept</p>")
    assert build_site([tmp_path / "run"], site) == made.report
    kept = {"mine.txt": b"kept", "analyses/mine.html": b"<p>kept</p>"}
    assert pages(site) == own | kept
    assert {str(path.relative_to(site)) for path in site_files(site)} == own.keys()
    listed = json.loads((tmp_path / "run" / "run.json").read_text())["files"]
    assert {name for name in listed if name.startswith("site/")} == {f"site/{name}" for name in own}
