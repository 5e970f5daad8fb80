"""The pages of a report as tests read them."""

from __future__ import annotations

import html
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


def assert_whole(site: Path) -> None:
    """Fail where a link leads nowhere or out of the site, a page loads anything else, or its policy would let it."""
    for path, page in pages_of(site).items():
        ids = re.findall(r'\sid="([^"]+)"', page)
        assert len(ids) == len(set(ids)), path
        for target in re.findall(r"""(?:src|href)="([^"]*)\"""", page):
            if target == "data:,":
                continue
            file, _, anchor = html.unescape(target).partition("#")
            goal = (site / path).parent / file if file else site / path
            assert goal.resolve().is_relative_to(site.resolve()), f"{path}: {target}"
            assert goal.is_file(), f"{path}: {target}"
            if anchor and "=" not in anchor:
                assert f'id="{anchor}"' in goal.read_text("utf-8"), f"{path}: {target}"
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
        assert policy, path
        assert policy[1].startswith("default-src 'none'; script-src 'self'; style-src 'self'"), path
        # plotly sets styles of its own; no other page needs more than its style sheet.
        assert ("unsafe-inline" in policy[1]) == ("assets/plotly" in page), path
        assert not re.search(r"<[^>]*\sstyle=|<style", page), path
