"""What one batch tells of a model before anything is measured: its output, its gradient, and what it depends on."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.errors import UsageError
from ..core.model_state import device_of, state_kept, untouched
from ..core.seeds import forked_rng, generator
from ..tracing.logits import find_logits, is_single
from ..tracing.taps import refuse_hidden_calls
from .flags import BATCH_DEPENDENT, LOG_PROBABILITIES, PROBABILITIES, RANDOMISED_MODEL
from .weights import other_state

if TYPE_CHECKING:
    from ..data.types import ImageSplit
    from .classifier import Classifier

# Images of the data in the batch; as many of noise, and two that are flat.
IMAGES = 8
_HALF = (torch.float16, torch.bfloat16)
# Tolerance of a sum of probabilities, and of a sum of percentages as a share.
_SUM, _SUM_OF_HALF = 2e-3, 2e-2
_SAME_SUM = 1e-5
# Sums of exponentials that change by so small a share of what logits change by are made constant.
_CONSTANT = 1e-3
# Smoothing adds less than this to the sum of probabilities.
_SMOOTHED = 1.5
# The same batch twice: GPUs sum in another order.
_AGAIN, _AGAIN_OF_HALF = 1e-4, 1e-2
# Another batch: other kernels, on GPUs with fewer digits. Shares of the spread of the logits.
_SAME, _SAME_OF_HALF, _SAME_ON_GPU = 1e-3, 5e-2, 1e-2

# How torch says that statistics of a single image are not defined.
_SINGLE_IN_BATCH_NORM = "more than 1 value per channel"

Kind = Literal["", "probabilities", "log-probabilities", "one-hot", "between 0 and 1"]


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        taken: where in the network's output the logits were found; empty where the output is a tensor.
        single: it gives one logit for two classes.
        dtype: the type of its logits, as ``float32``.
        looks_like: what its outputs look like instead of logits; empty for logits.
        gradient: its logits can be differentiated with respect to the images.
        writes_input: its forward changes its input in place.
        batch_dependent: an image has other logits in another batch.
        randomised: the same images twice have other logits.
        other_state: names of what its state holds besides plain tensors.
        changed_state: names of buffers and attributes that its forward changes.
        backward_only: its gradients come through ``backward()``, not through ``torch.autograd.grad``.
    """

    taken: str = ""
    single: bool = False
    dtype: str = "float32"
    looks_like: Kind = ""
    gradient: bool = True
    writes_input: bool = False
    batch_dependent: bool = False
    randomised: bool = False
    other_state: tuple[str, ...] = ()
    changed_state: tuple[str, ...] = ()
    backward_only: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """What stands beside every row of the model."""
        log = self.looks_like == "log-probabilities"
        found = {
            PROBABILITIES: bool(self.looks_like) and not log,
            LOG_PROBABILITIES: log,
            BATCH_DEPENDENT: self.batch_dependent,
            RANDOMISED_MODEL: self.randomised,
        }
        return tuple(flag for flag, carried in found.items() if carried)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what is done so that the model can be used."""
        others, changed = ", ".join(self.other_state[:3]), ", ".join(self.changed_state[:3])
        found = {
            f"Its logits are {self.taken}.": bool(self.taken),
            "It gives one logit z for two classes: their logits are -z/2 and z/2.": self.single,
            f"Its logits are {self.dtype}: they are cast to float32.": self.dtype != "float32",
            "Its forward changes its input in place: it gets a copy.": self.writes_input,
            "It gives no gradient with respect to its input: attacks that follow it are left out, and those that only "
            "ask for answers remain.": not self.gradient and not self.backward_only,
            "Its gradients come through backward() alone, as with torch.utils.checkpoint and use_reentrant=True: "
            "attacks that follow them are left out; use_reentrant=False lets them run.": self.backward_only,
            f"Its forward changes its own state ({changed}), which was put back after this check: bring it into the "
            "state in which it is used before the run measures it, if its answers depend on that.": bool(changed),
            f"Its state holds more than plain tensors ({others}), as quantised modules do: it is not kept in the run "
            "but made again by its factory.": bool(others),
        }
        return tuple(text for text, holds in found.items() if holds)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what makes its numbers doubtful."""
        found = {
            f"Its outputs are not logits but look like {_LOOKS.get(self.looks_like, '')}. Energy, margins, gradients "
            "and losses read logits: leave out the last layer that makes them so.": bool(self.looks_like),
            "An image has other logits in another batch, so its results depend on its neighbours: check that batch "
            "normalisation follows eval(), that nothing is normalised over the batch, and that the first batch sets "
            "nothing.": self.batch_dependent,
            "It gives other logits when asked again: an attack that does not average over its answers is too weak. "
            "Check that dropout follows eval() if this is not meant.": self.randomised,
        }
        return tuple(text for text, holds in found.items() if holds)


_LOOKS = {
    "probabilities": "probabilities (no number is negative, all rows have the same sum), as after a softmax",
    "log-probabilities": "log-probabilities (their exponentials sum to 1), as after a log-softmax",
    "one-hot": "classes written as 0 and 1",
    "between 0 and 1": "probabilities of single classes (all numbers lie between 0 and 1), as after a sigmoid",
}


def probe_images(split: ImageSplit | None, shape: tuple[int, int, int]) -> Tensor:
    """The batch of a probe, float32 (n, channels, height, width) in [0, 1]: images of a split, noise, and flat ones.

    Args:
        split: its images are evenly spaced; ``None`` where none are at hand.
        shape: of one image.
    """
    noise = torch.rand(IMAGES, *shape, generator=generator(0, "probe"))
    flat = torch.stack([torch.zeros(shape), torch.ones(shape)])
    if split is None:
        return torch.cat([noise, flat])
    count = min(IMAGES, len(split))
    own = split.images([place * len(split) // count for place in range(count)]) if count else noise[:0]
    return torch.cat([own, noise, flat])


def probe(model: Classifier, images: Tensor) -> Probe:
    """Send one batch through a model a few times; the model and the global generators stay as they are.

    Args:
        model: ready for use.
        images: float32 in [0, 1], at least 2, on any device (:func:`probe_images`).

    Raises:
        UsageError: if the model cannot take the images, gives no logits or hides its calls.
    """
    refuse_hidden_calls(model.network)
    images = images.to(device_of(model))
    watch = _Watch(model)
    try:
        with untouched(model), state_kept(model) as changed, forked_rng(0), torch.no_grad(), watch:
            logits, again = model(images), model(images)
    except UsageError:
        raise
    except Exception as error:  # whatever the network raises, it cannot take these images
        raise UsageError(
            f"it cannot take a batch of {len(images)} images: {' '.join(str(error).split())}{_hint(model)}"
        ) from error
    if len(logits) != len(images):
        raise UsageError(f"it must return logits of each image, not {len(logits)} rows for {len(images)} images")
    found, taken = find_logits(watch.output)
    found = found.dequantize() if found.is_quantized else found
    half = watch.half or found.dtype in _HALF
    same = _SAME_OF_HALF if half else _SAME if images.device.type == "cpu" else _SAME_ON_GPU
    randomised = not _same(logits, again, _AGAIN_OF_HALF if half else _AGAIN)
    gradient, backward_only = _gradient(model, images)
    return Probe(
        taken=taken,
        single=is_single(found, model.classes),
        dtype=str(found.dtype).removeprefix("torch."),
        looks_like=looks_like(found.reshape(len(images), -1), _SUM_OF_HALF if half else _SUM),
        gradient=gradient,
        writes_input=watch.wrote,
        batch_dependent=not randomised and depends_on_batch(model, images, same),
        randomised=randomised,
        other_state=tuple(other_state(model.network)),
        changed_state=tuple(name.removeprefix("network.") for name in changed),
        backward_only=backward_only,
    )


def _hint(model: Classifier) -> str:
    """Return what to do about weights of another type than that of the images."""
    types = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype.is_floating_point}
    odd = sorted(types - {"float32"})
    return f" (its weights are {', '.join(odd)}, images are float32: return network.float())" if odd else ""


class _Watch:
    """While active, notes a network's output as it is, whether it wrote into its input, and half precision anywhere."""

    def __init__(self, model: Classifier) -> None:
        self.output: Any = None
        self.wrote = False
        self.half = any(p.dtype in _HALF for p in model.parameters())
        self._model = model
        self._input: tuple[Tensor, Tensor] | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> None:
        network = self._model.network
        self._hooks = [module.register_forward_hook(self._notice_type) for module in network.modules()]
        self._hooks += [network.register_forward_pre_hook(self._before), network.register_forward_hook(self._after)]

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self._input = given[0], given[0].clone()

    def _after(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        self.output = output
        self.wrote = self.wrote or (self._input is not None and not torch.equal(*self._input))

    def _notice_type(self, module: nn.Module, given: Any, output: Any) -> None:
        self.half = self.half or (isinstance(output, Tensor) and output.dtype in _HALF)


def looks_like(outputs: Tensor, close: float = _SUM) -> Kind:
    """Return what outputs for several different images look like, where it is not logits.

    Logits are seldom all positive, and their rows have different sums: all images must agree.

    Args:
        outputs: as the network gives them, (n, classes), or (n, 1) of one logit for two classes.
        close: how far sums of probabilities may be from 1.
    """
    z = outputs.detach().double().cpu()
    # The logarithm of a probability of 0 is not a fault.
    if len(z) < 2 or not bool((z < torch.inf).all()):
        return ""
    total = z.sum(1)
    if z.shape[1] > 1 and bool(((z == 0) | (z == 1)).all()) and bool((total == 1).all()):
        return "one-hot"
    change = float((z - z[:1]).abs().nan_to_num().max())
    if change == 0:
        return ""
    if z.shape[1] > 1:
        sums = z.exp().sum(1)
        # What is added to probabilities before the logarithm is the same for every image.
        constant = float(sums.max() - sums.min()) <= min(close, _CONSTANT * change)
        smoothed = constant and 1 <= float(sums.mean()) <= _SMOOTHED
        if smoothed or (bool((z <= close).all()) and float((sums - 1).abs().max()) <= close):
            return "log-probabilities"
        # Of logits that hardly change, as untrained networks give, sums hardly change either.
        same = float((total - total[0]).abs().max()) <= _SAME_SUM * min(float(total[0]), 100 * change)
        if bool((z >= -close).all()) and (same or float((total - 1).abs().max()) <= close):
            return "probabilities"
    # Networks that end in ReLU and are hardly trained give small numbers; a sigmoid gives one half for 0.
    return "between 0 and 1" if bool(((z >= 0) & (z <= 1)).all()) and float(z.max()) >= 0.5 else ""


def depends_on_batch(model: nn.Module, images: Tensor, tolerance: float = _SAME) -> bool:
    """Whether images have other logits alone, in reverse order, or beside others, beyond a share of their spread.

    Args:
        model: images to logits (n, classes).
        images: at least 2, on its device; the last serves as another neighbour of the first.
        tolerance: of the spread of all logits.

    Raises:
        UsageError: if the model cannot take a single image.
    """

    def ask(given: Tensor) -> Tensor:
        # Each from the same state: what the first batch sets would hold for all.
        with untouched(model), state_kept(model), forked_rng(0), torch.no_grad():
            found: Tensor = model(given)
        return found

    whole = ask(images)
    reverse = ask(images.flip(0)).flip(0)
    beside = images[-1:].repeat(len(images) - 1, 1, 1, 1)
    crowded = torch.cat([ask(torch.cat([image[None], beside]))[:1] for image in images[:2]])
    try:
        alone = torch.cat([ask(image[None]) for image in images[:2]])
    except Exception as error:
        if _SINGLE_IN_BATCH_NORM in str(error):
            return True
        raise UsageError(f"it cannot take a single image: {' '.join(str(error).split())}") from error
    if len(alone) != 2:
        raise UsageError("it gives no logits for a single image as for several: squeeze no dimension of the batch")
    spread = float(whole.max() - whole.min())
    return not (
        _same(whole, reverse, tolerance)
        and _same(whole[:2], crowded, tolerance, spread)
        and _same(whole[:2], alone, tolerance, spread)
    )


def _same(one: Tensor, other: Tensor, tolerance: float, spread: float | None = None) -> bool:
    """Return whether logits agree up to a share of their spread, by default of the first's own; NaN agrees with NaN."""
    scale = float(one.max() - one.min()) if spread is None else spread
    apart = (one.nan_to_num() - other.nan_to_num()).abs().max()
    return bool(apart <= max(tolerance * scale, 1e-6)) if math.isfinite(scale) else torch.equal(one, other)


def _gradient(model: nn.Module, images: Tensor) -> tuple[bool, bool]:
    """Whether there is a gradient for ``torch.autograd.grad``, and whether there is one for ``backward()`` alone."""
    given = images.detach().clone().requires_grad_(True)
    with (
        untouched(model), state_kept(model), forked_rng(0), torch.enable_grad(), warnings.catch_warnings()
    ):  # fmt: skip
        # What torch says of operations without a derivative is what is asked here.
        warnings.simplefilter("ignore")
        try:
            logits = model(given)
            if not logits.requires_grad:
                return False, False
            (gradient,) = torch.autograd.grad(logits.square().sum(), given, allow_unused=True)
        except (RuntimeError, TypeError, ValueError):
            # Inference mode, an operation without a derivative, or one that leaves torch.
            return False, _goes_back(model, given)
    return gradient is not None and bool((gradient != 0).any()), False


def _goes_back(model: nn.Module, given: Tensor) -> bool:
    """Return whether ``backward()`` gives a gradient of the images."""
    try:
        model(given).square().sum().backward()
    except (RuntimeError, TypeError, ValueError):
        return False
    return given.grad is not None and bool((given.grad != 0).any())
