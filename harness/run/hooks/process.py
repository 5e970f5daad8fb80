"""The process of one hook: reads events from standard input, a JSON object a line, and calls its methods."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points

from .base import EVENTS, GROUP

DECIDES_NO_NUMBER = True


def main(name: str) -> None:
    """Load the hook called ``name`` and pass on what is told until the input ends."""
    [point] = [p for p in entry_points(group=GROUP) if p.name == name]
    hook = point.load()()
    for line in sys.stdin:
        told = json.loads(line)
        if told["event"] in EVENTS:
            getattr(hook, told["event"])(told["facts"])


if __name__ == "__main__":
    main(sys.argv[1])
