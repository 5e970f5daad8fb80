"""Attacks of foolbox: how they are called, and DeepFool; the others are declared in the modules next to this one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ....harness.core.ranges import Count, NotNegative
from ....harness.core.seeds import Draws, derive_seed, forked_rng
from ...base import parameters as checks
from ...base.geometry import per_image
from ...base.perturbation import CountingModel, Norm, PerturbationInfo, norms
from ..declare import LibraryAttack, Value
from .patches import repair

# Settings of ours, not of the library's constructors.
_OURS = ("eps", "distance", "init", "init_steps")

# Uniform noise that is tried for each image before the search for a starting point is given up.
_DIRECTIONS = 100


class FoolboxAttack(LibraryAttack):
    """An attack class of foolbox.

    Every image draws from a generator of its own wherever the library draws per image; what it draws once for a batch
    is the same in every batch. Where a minimising attack finds nothing, the image comes back as it was.

    Attributes:
        batch_invariant: an image's result does not depend on its neighbours (up to rounding).
        fragile: the library gives up on a whole batch for a single image's sake; that image is then found by halving,
            and comes back as it was (or as its starting point, where there is one).
        fixed: library settings that are no parameters.
        shared: what the library draws belongs to no single image, although its shape may look so.
        first: the first image that fools is the result; the library goes on from it and may end in NaN.
    """

    batch_invariant: bool = True
    fragile: bool = False
    fixed: Mapping[str, Value] = {}
    shared: bool = False
    first: bool = False
    _draws: Draws

    @property
    def norm(self) -> Norm | None:
        """The norm of ``eps``: some attacks minimise, or are measured in, one of several."""
        chosen = self.settings.get("distance", self.settings.get("constraint", self.info.norm))
        return cast(Norm | None, chosen)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        # A copy, since `run` has no place for the draws and the instance may serve several calls.
        call = copy.copy(self)
        call._draws = draws
        return super(FoolboxAttack, call).perturb(model, images, labels, draws)

    def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        result, starts = images.clone(), None
        waiting = [torch.arange(len(images), device=images.device)]
        if "init" in self.settings:
            starts = self._starting_points(model, images, labels)
            with torch.no_grad():
                waiting = [(model(starts).argmax(1) != labels).nonzero().squeeze(1)]
        while waiting:
            rows = waiting.pop()
            if not len(rows):
                continue
            begun = None if starts is None else starts[rows]
            try:
                result[rows] = self._call(model, images[rows], labels[rows], rows.tolist(), begun)
            except (AssertionError, RuntimeError, ValueError) as error:
                if not (self.fragile and _raised_by_foolbox(error)):
                    raise
                if len(rows) > 1:
                    waiting += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
                elif begun is not None:
                    result[rows] = self._limited(begun, images[rows])
        return result

    def _call(
        self, model: CountingModel, images: Tensor, labels: Tensor, rows: Sequence[int], starts: Tensor | None
    ) -> Tensor:
        foolbox = _library()
        keeping = _FirstFound(model, images, labels)
        seen = foolbox.PyTorchModel(keeping if self.first else model, bounds=(0, 1), device=images.device)
        settings = {name: value for name, value in self.settings.items() if name not in _OURS}
        attack = getattr(foolbox.attacks, self.attack)(**settings, **self.fixed)
        repair(self.attack, attack, len(images))
        more = {} if starts is None else {"starting_points": starts}
        goal = foolbox.criteria.Misclassification(labels)
        with self._drawing("attack", rows):
            if not self.info.minimises:
                _, made, _ = attack(seen, images, goal, epsilons=self.eps, **more)
                # A direction of length 0 has been divided by its length.
                return torch.where(per_image(made.isfinite().flatten(1).all(1), made), made, images)
                # No attack uses the budget in its search, so it is left to `_limited` (the library cannot limit l0).
            _, made, success = attack(seen, images, goal, epsilons=None, **more)
        if self.first:
            return self._limited(keeping.images, images)
        if self.info.kind == "attack":
            # What stands in where nothing was found is a black image with some attacks.
            found = success & made.isfinite().flatten(1).all(1)
            made = torch.where(per_image(found, made), made, images)
        return self._limited(made, images)

    def _limited(self, made: Tensor, images: Tensor) -> Tensor:
        """``made`` within the budget as the library limits it: shortened, its direction kept; l0 all or nothing."""
        if self.eps is None or self.norm is None:
            return made
        if self.norm == "l0":
            return torch.where(per_image(norms(made - images)["l0"] <= self.eps, made), made, images)
        return _tensor(getattr(_library().distances, self.norm).clip_perturbation(images, made, self.eps))

    def _starting_points(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        """Return images that fool the model, far away perhaps; not all of them do."""
        foolbox = _library()
        steps = self.settings["init_steps"]
        if self.settings["init"] == "salt-and-pepper":
            attack = foolbox.attacks.SaltAndPepperNoiseAttack(steps=steps)
        else:
            attack = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=_DIRECTIONS, steps=steps)
        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        with self._drawing("init", range(len(images)), shared=False):
            return _tensor(attack.run(seen, images, foolbox.criteria.Misclassification(labels)))

    def _drawing(self, phase: str, rows: Sequence[int], shared: bool | None = None) -> _ImageDraws:
        seed = derive_seed(self._draws.seed, phase)
        # New ones for every call, so that a call that is repeated with half the images draws the same for each.
        draws = Draws(seed, [self._draws.indices[row] for row in rows])
        return _ImageDraws(draws, self.shared if shared is None else shared)


class _FirstFound(nn.Module):
    """The model, and for each image what fooled it first; from then on the image stays what it was then."""

    def __init__(self, model: CountingModel, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.model, self.images, self.training = model, images, model.training
        self._labels, self._found = labels, torch.zeros_like(labels, dtype=torch.bool)

    def forward(self, images: Tensor) -> Tensor:
        usable = images.isfinite().flatten(1).all(1) & ~self._found
        images = torch.where(per_image(usable, images), images, self.images)
        logits: Tensor = self.model(images)
        new = usable & (logits.detach().argmax(1) != self._labels)
        self._found = self._found | new
        self.images = torch.where(per_image(new, images), images.detach(), self.images)
        return logits


class _ImageDraws(TorchFunctionMode):
    """``torch.rand`` and ``torch.randn`` of one number block per image draw each block from the image's generator.

    Everything else (one direction for all images; NumPy's numbers) comes from global states, which are seeded the same
    for every batch, and put back at the end.
    """

    def __init__(self, draws: Draws, shared: bool) -> None:
        super().__init__()
        self._draws, self._shared = draws, shared
        self._forked = forked_rng(derive_seed(draws.seed, "shared"))

    def __enter__(self) -> _ImageDraws:
        self._forked.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._forked.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.rand, torch.randn) or self._shared or "generator" in kwargs:
            return func(*args, **kwargs)
        shape = tuple(args[0]) if args and not isinstance(args[0], int) else tuple(args)
        n = len(self._draws)
        # HopSkipJump draws (steps, images, channels, height, width).
        axis = 1 if len(shape) == 5 and shape[1] == n else 0
        if len(shape) < 2 or shape[axis] != n:
            return func(*args, **kwargs)
        like = torch.empty(shape, dtype=kwargs.get("dtype"), device=kwargs.get("device")).movedim(axis, 0)
        draw = self._draws.uniform if func is torch.rand else self._draws.normal
        return draw(like).movedim(0, axis)


def _library() -> Any:
    # Without it the import fails where there is no git executable (it imports GitPython).
    name = "GIT_PYTHON_REFRESH"
    before = os.environ.get(name)
    os.environ[name] = before or "quiet"
    try:
        import foolbox
    finally:
        if before is None:
            del os.environ[name]
    return foolbox


def _tensor(value: Tensor) -> Tensor:
    # Where a library is untyped, this is where its results get their type.
    return value


def _raised_by_foolbox(error: BaseException) -> bool:
    """Return whether the exception comes from the library's own checks, not from the model or a tensor operation."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("foolbox.")


class _DeepFool(FoolboxAttack):
    def __init__(
        self,
        steps: Count = 50,
        candidates: Annotated[int, Ge(2)] = 10,
        overshoot: NotNegative = 0.02,
        loss: Literal["logits", "crossentropy"] = "logits",
        eps: float | None = None,
    ) -> None:
        if eps is not None:
            self.eps = checks.budget(eps, self.info.norm or "")
        super().__init__(
            steps=steps,
            candidates=candidates,
            overshoot=overshoot,
            loss=loss,
        )


class L2DeepFool(_DeepFool):
    """DeepFool in L2: to the nearest boundary of the linearised model, again and again.

    Args:
        steps: linearisations, at most.
        candidates: how many of the likeliest classes are considered, the present one included.
        overshoot: the share by which the perturbation goes beyond the boundary.
        loss: whether boundaries are those of ``logits`` or of ``crossentropy``.
        eps: the budget; ``None`` limits nothing.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="DeepFool (L2)",
        kind="attack",
        family="deepfool",
        norm="l2",
        library="foolbox",
        paper="Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv:1511.04599",
        minimises=True,
        cost="medium",
        summary="A small L2 perturbation that just crosses the nearest boundary.",
    )
    attack = "L2DeepFoolAttack"


class LinfDeepFool(_DeepFool):
    """DeepFool in L-inf; parameters and errors as in :class:`L2DeepFool`."""

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="DeepFool (L-inf)",
        kind="attack",
        family="deepfool",
        norm="linf",
        library="foolbox",
        paper="Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv:1511.04599",
        minimises=True,
        cost="medium",
        summary="A small L-inf perturbation that just crosses the nearest boundary.",
    )
    attack = "LinfDeepFoolAttack"
