"""What the adapters of attack libraries share; a further attack is a declaration and its explicit parameters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from ..harness.errors import UnavailableError, UsageError
from ..harness.seeds import Draws
from .base import CountingModel, Perturbation


class LibraryAttack(Perturbation):
    """An attack whose code is another distribution's (``info.library``), imported only when it runs.

    A subclass sets ``info`` and ``attack`` (the class's name in its library), may declare what the attack cannot do
    without, and lists its parameters with explicit defaults in ``__init__``: those of libraries are not comparable.

    Attributes:
        attack: the class's name in its library.
        channels: the only number of channels that it works on, if it is particular.
        settings: the library's keyword arguments.
    """

    attack: str
    channels: int | None = None

    def __init__(self, **settings: float | int | str | bool | None) -> None:
        self.settings = settings

    def library_version(self) -> str:
        """The version of the library as installed.

        Raises:
            UnavailableError: if it is not installed.
        """
        try:
            return version(self.info.library)
        except PackageNotFoundError:
            raise UnavailableError(
                f"{self.info.library} is not installed: run 'pip install {self.info.library}'."
            ) from None

    def unavailable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        try:
            self.library_version()
        except UnavailableError as error:
            return str(error)
        if self.channels is not None and shape[0] != self.channels:
            return f"{self.info.title} of {self.info.library} works on {self.channels} channels only, not {shape[0]}."
        if classes < 2:
            return f"{self.info.title} needs a model of at least two classes."
        return None

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        # foolbox checks by bare assertions, torchattacks after it has changed the model's mode: check before both.
        if images.dtype != torch.float32 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise UsageError(
                f"{self.info.title} takes float32 images (n, channels, height, width) and n labels, not {images.dtype} "
                f"of shape {tuple(images.shape)} and {tuple(labels.shape)}."
            )
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise UsageError(f"{self.info.title} takes images in [0, 1].")
        with quiet(), torch.enable_grad():
            return self.run(model, images, labels).detach()

    @abstractmethod
    def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        """Call the library; arguments and result as in :meth:`perturb`."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries' warnings and prints stay inside; the root logger keeps no handler that they provoke."""
    root = logging.getLogger()
    # foolbox calls logging.info(), which installs a handler on a root logger that has none.
    guard = logging.NullHandler()
    root.addHandler(guard)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(guard)
