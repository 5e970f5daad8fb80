"""What one worker of a Ray cluster takes, and how many of them there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...suite.resolved import Suite

DECIDES_NO_NUMBER = True

_GIB = 2**30
# Torch, the data set, two models, and the activations of a batch.
_WORKER = 2 * _GIB
# A suite with plugins has a few processes beside each worker, about 300 MB each.
_PLUGINS = 1 * _GIB


@dataclass(frozen=True)
class Share:
    """The workers of a cluster.

    Attributes:
        count: how many there are.
        cpus: processors of each, which is the number of threads that it computes with.
        gpus: graphics processors of each.
        memory: bytes of each.
    """

    count: int
    cpus: int
    gpus: int
    memory: int

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus} and {self.memory / _GIB:.1f} GiB"


def needed_memory(suite: Suite) -> int:
    """Return the bytes that a worker needs for a suite, with the processes of its plugins."""
    return _WORKER + (min(_PLUGINS, int(suite.limits.memory * _GIB)) if suite.plugins else 0)


def share_out(
    nodes: Sequence[Mapping[str, float]], memory: int, gpu: bool, workers: int | None, threads: int | None
) -> Share:
    """Return how many workers there are, and what each takes.

    Args:
        nodes: resources of each node as Ray counts them: ``CPU``, ``GPU``, and ``memory`` in bytes.
        memory: bytes that a worker needs; less where no node has as much.
        gpu: each needs a graphics processor.
        workers: how many there are to be; ``None`` for as many as the nodes have room for.
        threads: of each; ``None`` for a fair share of the processors.
    """
    largest = max((int(node.get("memory", 0)) for node in nodes), default=0)
    memory = min(memory, largest) if largest else memory
    fit = [_fit(node, memory, gpu, threads or 1) for node in nodes]
    if workers is not None:
        total = sum(int(node.get("CPU", 0)) for node in nodes)
        most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        return Share(workers, threads or max(1, min(most, total // workers)), int(gpu), memory)
    each = [int(node.get("CPU", 0)) // count for node, count in zip(nodes, fit, strict=True) if count]
    return Share(max(1, sum(fit)), threads or max(1, min(each, default=1)), int(gpu), memory)


def _fit(node: Mapping[str, float], memory: int, gpu: bool, cpus: int) -> int:
    """Return how many workers a node has room for."""
    counts = [int(node.get("CPU", 0)) // cpus]
    if memory:
        counts.append(int(node.get("memory", 0)) // memory)
    if gpu:
        counts.append(int(node.get("GPU", 0)))
    return min(counts)
