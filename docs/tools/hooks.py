"""Two hooks of the build: where the API pages find the package, and that no page asks another server for anything.

The repository's root is the package, whatever the checkout's folder is called. The tool that reads the source looks
for a folder called ``aftershock``; it gets one, in a temporary place, with the rooms and the front door.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[2]
ROOMS = ("analyses", "attacks", "detectors", "harness", "reports")
_LOG = logging.getLogger("mkdocs.hooks.aftershock")
# What a browser fetches by itself; a link that a reader may follow is none of this.
_FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]+)")
_temporary: list[tempfile.TemporaryDirectory[str]] = []


@event_priority(100)  # before the plugin that reads the paths
def on_config(config: Any) -> Any:
    """Point the Python handler at a copy of the package under its own name."""
    folder = tempfile.TemporaryDirectory(prefix="aftershock-docs-")
    _temporary.append(folder)
    package = Path(folder.name) / "aftershock"
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    shutil.copy2(ROOT / "__init__.py", package / "__init__.py")
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [folder.name]
    return config


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Warn, which a strict build takes for an error, where a page would fetch something from elsewhere."""
    for address in sorted(set(_FETCHED.findall(output))):
        _LOG.warning("%s would fetch %s", page.file.src_uri, address)
    return output


def on_shutdown() -> None:
    """Leave nothing behind."""
    while _temporary:
        _temporary.pop().cleanup()
