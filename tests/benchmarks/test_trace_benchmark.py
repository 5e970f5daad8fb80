"""What tracing costs: one instrumented forward beside a plain one; nothing here asserts a time."""

from __future__ import annotations

import statistics
import time

import torch
from aftershock.harness.core.batches import BATCH
from aftershock.harness.models.architectures import resnet20
from aftershock.harness.tracing.recorder import Recording, discover, record
from aftershock.harness.tracing.traces import Need
from torch import Tensor

IMAGES, PAIRS = 256, 15


def test_an_instrumented_forward_beside_a_plain_one(benchmark) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = resnet20((3, 32, 32), 10).eval()
    images = torch.rand(IMAGES, 3, 32, 32)
    taps = discover(model, images[:1])
    needs = (Need("bits"), Need("pooled"))

    def plain() -> Tensor:
        with torch.no_grad():
            return torch.cat([model(images[start : start + BATCH]) for start in range(0, IMAGES, BATCH)])

    def instrumented() -> Recording:
        return record(model, images, taps, needs)

    # Whatever else the machine does changes from second to second: the two are timed in pairs, each first in turn.
    plain_seconds: list[float] = []
    ratios: list[float] = []

    def pair() -> None:
        took = {}
        for work in (plain, instrumented) if len(ratios) % 2 else (instrumented, plain):
            began = time.perf_counter()
            work()
            took[work] = time.perf_counter() - began
        plain_seconds.append(took[plain])
        ratios.append(took[instrumented] / took[plain])

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=2)
    # What comes before are the rounds of the warm-up.
    plain_seconds, ratios = plain_seconds[-PAIRS:], ratios[-PAIRS:]
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    benchmark.extra_info["plain_ms_per_image"] = 1000 * statistics.median(plain_seconds) / IMAGES
    print(f"instrumented / plain: median {statistics.median(ratios):.3f} of {len(ratios)} pairs")

    # Both must do the work, or the ratio would compare different things: a forward's logits, and the codes of 19 taps.
    recorded = instrumented()
    torch.testing.assert_close(recorded.logits, plain())
    assert len(taps) == 19
    assert {code: len(rows) for code, rows in recorded.codes.items()} == {"bits": 19, "pooled:mean": 19}
