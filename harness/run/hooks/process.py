"""The process of one hook: reads events from standard input, a JSON object a line, and calls its methods."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint

from .base import EVENTS, GROUP

DECIDES_NO_NUMBER = True


def main(name: str, target: str) -> None:
    """Load the hook that an entry point names, and pass on what is told until the input ends.

    Args:
        name: of the entry point; two distributions may use one name.
        target: ``module:class``.
    """
    hook = EntryPoint(name, target, GROUP).load()()
    for line in sys.stdin:
        told = json.loads(line)
        if told["event"] in EVENTS:
            getattr(hook, told["event"])(told["facts"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
