"""How long one piece of work takes beside another, in seconds of this process, so that neighbours count less."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def cpu_seconds(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each piece of work in each round, each first in turn, after a round uncounted."""
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.process_time()
            work[name]()
            if index:
                seconds[name].append(time.process_time() - began)
    return seconds


def beside(benchmark: Any, ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], rounds: int = 5) -> None:
    """Record the median seconds of all in ``extra_info``, and each peer's over ours as the median over rounds."""
    found = cpu_seconds({"ours": ours, **peers}, 1 if benchmark.disabled else rounds)
    for name, seconds in found.items():
        benchmark.extra_info[f"{name}_cpu_seconds"] = statistics.median(seconds)
        if name != "ours":
            ratios = [theirs / own for theirs, own in zip(seconds, found["ours"], strict=True)]
            benchmark.extra_info[f"{name}_over_ours"] = statistics.median(ratios)
            print(f"{name} / ours: median {statistics.median(ratios):.2f} of {rounds} rounds")
    # What pytest-benchmark shows in its own table.
    benchmark.pedantic(ours, rounds=1)
