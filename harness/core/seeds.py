"""Seeds derived by name, and images that draw their own noise.

A draw depends on exactly the axes that are named for it, so adding a detector or changing a batch size changes
nothing else (docs/architecture.md, "The way of a number").
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *axes: str | int) -> int:
    """Return a 63-bit seed from the run's seed and the names of the axes that a draw depends on."""
    text = "\x1f".join([str(seed), *map(str, axes)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *axes: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded by :func:`derive_seed`."""
    made = torch.Generator(device=device)
    made.manual_seed(derive_seed(seed, *axes))
    return made


class Draws:
    """Random numbers for a batch in which every image has a generator of its own.

    Image ``i`` of a split draws the same numbers whatever else is in the batch, so noise and random starts do not
    depend on batch size, on the number of images or on which of them the model gets right.

    Args:
        seed: the seed of the perturbation.
        indices: one integer per image: its position in its split.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed = seed
        self.indices = tuple(int(i) for i in indices)
        self._generators = [generator(seed, "image", i) for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def normal(self, images: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of ``images``; advances every image's generator."""
        return self._stack(images, lambda shape, g: torch.randn(shape, generator=g))

    def uniform(self, images: Tensor) -> Tensor:
        """Return numbers uniform in [0, 1), like :meth:`normal`."""
        return self._stack(images, lambda shape, g: torch.rand(shape, generator=g))

    def signs(self, images: Tensor) -> Tensor:
        """Return random signs, −1 or +1 with equal chance, like :meth:`normal`."""
        return self._stack(images, lambda shape, g: torch.randint(0, 2, shape, generator=g).float().mul_(2).sub_(1))

    def take(self, positions: Sequence[int]) -> Draws:
        """Return the draws of some of the images; they go on drawing from the same generators."""
        part = object.__new__(Draws)
        part.seed = self.seed
        part.indices = tuple(self.indices[p] for p in positions)
        part._generators = [self._generators[p] for p in positions]
        return part

    def _stack(self, images: Tensor, draw: Callable[[tuple[int, ...], torch.Generator], Tensor]) -> Tensor:
        if len(images) != len(self):
            raise ValueError(f"{len(images)} images but draws for {len(self)}")
        if not len(self):
            return torch.empty_like(images)
        shape = tuple(images.shape[1:])
        return torch.stack([draw(shape, g) for g in self._generators]).to(images)


class Uniforms(Protocol):
    """Gives each image uniform numbers of its own."""

    def uniform(self, images: Tensor) -> Tensor: ...


class DrawsAhead:
    """Uniform numbers of a loop that draws as many for each image at every step, drawn for many steps at a time.

    The numbers are those that the images' generators would have given step by step, and :meth:`settle` leaves the
    generators as if they had.

    Args:
        draws: whose generators are used.
        steps: for how many steps numbers are drawn at a time.
    """

    def __init__(self, draws: Draws, steps: int = 64) -> None:
        self._generators = draws._generators
        self._steps, self._used = steps, 0
        self._before: list[Tensor] = []
        self._block: Tensor | None = None

    def uniform(self, images: Tensor) -> Tensor:
        """Return the next step's numbers, uniform in [0, 1), of the shape, dtype and device of ``images``."""
        if not self._generators:
            return torch.empty_like(images)
        if self._block is None or self._used == self._steps:
            self._before, self._used = [g.get_state() for g in self._generators], 0
            shape = (self._steps, *images.shape[1:])
            # One step after the other, as the generators would have been asked.
            self._block = torch.stack([torch.rand(shape, generator=g) for g in self._generators], 1).to(images)
        self._used += 1
        return self._block[self._used - 1]

    def keep(self, positions: Sequence[int]) -> None:
        """Go on with some of the images."""
        staying = set(positions)
        self._rewind([i for i in range(len(self._generators)) if i not in staying])
        self._generators = [self._generators[p] for p in positions]
        if self._block is not None:
            self._before = [self._before[p] for p in positions]
            self._block = self._block[:, torch.tensor(list(positions), dtype=torch.int64, device=self._block.device)]

    def settle(self) -> None:
        """Leave the generators of the images that are left as drawing step by step would have."""
        self._rewind(range(len(self._generators)))
        self._block = None

    def _rewind(self, positions: Iterable[int]) -> None:
        if self._block is None or self._used == self._steps:
            return
        for i in positions:
            self._generators[i].set_state(self._before[i])
            torch.rand((self._used, *self._block.shape[2:]), generator=self._generators[i])


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and ``random`` inside the block and put their states back afterwards, also on an error.

    Library attacks draw from global states, and some reset them; nothing of that may leak (dependencies: torchattacks).
    """
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    # `torch.manual_seed` formats a stack trace while CUDA sleeps, which is most of the cost of a small batch.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    device_states = [torch.cuda.get_rng_state(device) for device in devices]
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        for device, state in zip(devices, device_states, strict=True):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
