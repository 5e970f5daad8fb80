"""How many images are computed at once, and that a device without room for them costs no result."""

from __future__ import annotations

import pytest
import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.native.pgd import PGD
from aftershock.harness.core.batches import OutOfMemoryError, batch_for, in_batches, smaller_batches
from aftershock.harness.tracing.recorder import discover, record
from aftershock.harness.tracing.traces import Need
from torch import Tensor, nn


class SmallDevice(nn.Module):
    """A network on a device that has room for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.room, self.passes = room, [0]
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        if len(x) > self.room:
            raise OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.inner(x)
        return logits


def test_rows_that_do_not_fit_are_done_again_in_halves_and_so_is_the_rest() -> None:
    done: list[slice] = []

    def work(rows: slice) -> None:
        if rows.stop - rows.start > 3:
            raise OutOfMemoryError("full")
        done.append(rows)

    in_batches(10, 8, work)
    assert [(r.start, r.stop) for r in done] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


def test_a_device_without_room_for_one_image_says_so() -> None:
    def work(rows: slice) -> None:
        raise OutOfMemoryError("full")

    with pytest.raises(OutOfMemoryError, match="full"):
        in_batches(5, 4, work)


def test_a_full_device_changes_neither_codes_nor_perturbed_images() -> None:
    images, labels = torch.rand(21, 3, 2, 2), torch.randint(0, 3, (21,))
    roomy, small = SmallDevice(100), SmallDevice(4)
    taps = discover(roomy, images[:1])
    needs = (Need("bits"), Need("pooled"), Need("full"))
    one, two = (record(model, images, taps, needs) for model in (roomy, small))
    torch.testing.assert_close(one.logits, two.logits)
    for code, found in one.codes.items():
        for tap, rows in found.items():
            torch.testing.assert_close(two.codes[code][tap], rows)
    assert max(small.passes[-5:]) <= 4

    # The check of the model itself takes eight images, for which there is room.
    small = SmallDevice(8)
    made = [perturb_batch(PGD(0.1, steps=3), model, images, labels, range(21), seed=3) for model in (roomy, small)]
    torch.testing.assert_close(made[0].images, made[1].images)
    assert made[0].forwards == made[1].forwards


def test_other_devices_take_more_small_images_and_as_few_large_ones() -> None:
    assert batch_for("cpu", (3, 32, 32)) == batch_for("cpu", (3, 224, 224)) == 128
    assert batch_for("cuda", (1, 8, 8)) == batch_for("cuda", (3, 32, 32)) == 2048
    assert batch_for("cuda", (3, 224, 224)) == 128


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_halved_in_a_block_and_never_empty(device: str) -> None:
    usual = batch_for(device, (3, 32, 32))
    with smaller_batches(2):
        assert batch_for(device, (3, 32, 32)) == usual // 4
        with smaller_batches(40):
            assert batch_for(device, (3, 32, 32)) == 1
    assert batch_for(device, (3, 32, 32)) == usual
