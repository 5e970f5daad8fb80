"""Make the pictures of README and docs from a run: ``python docs/tools/pictures.py RUN``.

RUN is a run directory of the suite ``quick``; its site is opened in Chromium (``AFTERSHOCK_CHROMIUM`` names another
program than ``/usr/bin/chromium``), which needs playwright. The pictures are PNG files of few colours in
``docs/figures``, below 200 kB each; they are shown in the README and on the first pages of the docs.
"""

from __future__ import annotations

import html
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aftershock.reports.site.build import build_site
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

FIGURES = Path(__file__).parents[1] / "figures"
WIDTH, MOST, COLOURS = 1180, 200_000, 256
# What a page has beside the figure that is shown.
_BARE = ".top, .figure-files, .files, footer { display: none } .page { padding: 0 }"
_TERMINAL = (
    "body{margin:0;background:#11161b;color:#e6ebef;font:15px/1.45 'DejaVu Sans Mono',monospace}"
    "pre{margin:0;padding:22px 26px}b{color:#6db3f2;font-weight:400}"
)


def pictures(run: Path, to: Path) -> list[Path]:
    """Make the pictures of a run and return their paths."""
    from playwright.sync_api import sync_playwright

    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = build_site([run], Path(folder) / "site").parent
        program = os.environ.get("AFTERSHOCK_CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1060})
        page.goto((site / "index.html").as_uri())
        made = [_saved(page.screenshot(), to / "report.png")]
        _only(page, "#propagation")
        made.append(_saved(page.locator("#propagation").screenshot(), to / "propagation.png"))
        page.goto((site / "index.html").as_uri())
        _only(page, "#images")
        made.append(_saved(page.locator("#images").screenshot(), to / "images.png"))
        # A page of its own: the site's policy allows no style but its own.
        page = browser.new_page(viewport={"width": 760, "height": 400})
        page.set_content(_terminal(run))
        made.append(_saved(page.locator("pre").screenshot(), to / "terminal.png"))
        browser.close()
    return made


def _only(page: Page, section: str) -> None:
    """Hide what is beside a section's figure."""
    page.evaluate(
        "([style, section]) => { const sheet = new CSSStyleSheet(); sheet.replaceSync(style);"
        "document.adoptedStyleSheets = [sheet]; document.querySelector(section).style.padding = '16px 24px'; }",
        [_BARE, section],
    )


def _terminal(run: Path) -> str:
    """Return what a question after the run prints, as a page."""
    question = ["show", str(run), "--model", "cnn"]
    done = subprocess.run(  # noqa: S603 - this package, on a run that is named
        [sys.executable, "-m", "aftershock", *question], env=os.environ | {"COLUMNS": "90"}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    said, asked = (text.replace(str(run), "runs/quick") for text in (done.stdout.rstrip(), " ".join(question)))
    return f"<style>{_TERMINAL}</style><pre><b>$ aftershock {asked}</b>\n{html.escape(said)}</pre>"


def _saved(content: bytes, path: Path) -> Path:
    """Write a picture in few colours; refuse one that is too large to be shown in a README."""
    packed = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    if packed.tell() > MOST:
        sys.exit(f"{path.name} has {packed.tell()} bytes, more than {MOST}: show less.")
    path.write_bytes(packed.getvalue())
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for made in pictures(Path(sys.argv[1]), FIGURES):
        sys.stdout.write(f"{made.name}: {made.stat().st_size} bytes\n")
