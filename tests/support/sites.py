"""The pages of a report as tests read them."""

from __future__ import annotations

import re
from pathlib import Path


def pages_of(site: Path) -> dict[str, str]:
    """Every page of a site, by its path from the site's folder."""
    return {p.relative_to(site).as_posix(): p.read_text("utf-8") for p in sorted(site.rglob("*.html"))}


def models_of(site: Path) -> list[str]:
    """The pages of models, in the order of the front page."""
    index = (site / "index.html").read_text("utf-8")
    paths = dict.fromkeys(re.findall(r'href="(models/[^"]+)"', index))
    return [(site / path).read_text("utf-8") for path in paths if not path.endswith("/index.html")]
