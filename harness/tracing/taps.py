"""Taps: where a model's activations are read.

Every ReLU-like call is a tap in execution order, however it is written: a ``TorchFunctionMode`` sees modules,
functions, methods and in-place forms alike, eager and compiled. What it cannot know to be an activation
(``clamp(min=0)``, ``maximum``, ``x * (x > 0)``) can be tapped as a named module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..core.errors import UsageError

# Function name to the position of its ``inplace`` argument (None: it has no such argument).
INPLACE_POSITION: Mapping[str, int | None] = {
    "relu": 1,
    "relu6": 1,
    "hardtanh": 3,
    "threshold": 3,
    "leaky_relu": 2,
    "prelu": None,
    "rrelu": 4,
    "elu": 2,
    "selu": 1,
    "celu": 2,
    "gelu": None,
    "silu": 1,
    "mish": 1,
    "hardswish": 1,
}
# Here the sign of the output need not be the sign of the input (a slope may be negative).
SIGN_FROM_INPUT = frozenset({"prelu", "leaky_relu", "rrelu"})


@dataclass(frozen=True, eq=False)
class TapCall:
    """One activation call, as a visitor sees it while the value is fresh.

    Attributes:
        name: the tap's name.
        kind: the function's name, ``relu`` for ``relu_``; ``module`` for a named module.
        activation: the output, (n, ...). It may be overwritten after the visitor returns.
        positive: booleans, the sign of the pre-activation, where the output does not tell and it is asked for; else
            ``None``.
        preactivation: the input, a clone where the call is in place; ``None`` where it is not kept.
    """

    name: str
    kind: str
    activation: Tensor
    positive: Tensor | None = None
    preactivation: Tensor | None = None


Visitor = Callable[[TapCall], None]


class Taps(TorchFunctionMode):
    """While active, every activation call of ``model`` is shown to ``visit``, in execution order.

    Args:
        model: what will be called inside the block. Its hooks are removed at the end, also when it raises.
        visit: called once per tap and forward pass.
        modules: names of modules whose outputs are tapped besides.
        signs: names of the taps whose signs are read; ``None`` for all.
        preactivations: names of the taps whose pre-activations are kept.

    Raises:
        UsageError: for models that hide their calls (scripted, DataParallel) and for unknown module names.
    """

    def __init__(
        self,
        model: nn.Module,
        visit: Visitor,
        modules: Sequence[str] = (),
        signs: Collection[str] | None = None,
        preactivations: Collection[str] = (),
    ) -> None:
        super().__init__()
        refuse_hidden_calls(model)
        self._visit = visit
        self._signs, self._preactivations = signs, preactivations
        self._model = model
        # torch.compile wraps the model as `_orig_mod`; names stay those of the model inside.
        self._paths = {path.removeprefix("_orig_mod").removeprefix("."): m for path, m in model.named_modules()}
        unknown = [name for name in modules if name not in self._paths or name == ""]
        if unknown:
            raise UsageError(f"The model has no module {', '.join(map(repr, unknown))} to tap.")
        self._named = tuple(modules)
        self._owners: list[tuple[str, nn.Module]] = []
        self._calls: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for path, module in self._paths.items():
            self._handles.append(module.register_forward_pre_hook(self._entering(path)))
            self._handles.append(module.register_forward_hook(self._leaving(path)))
        super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # as above
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._owners.clear()

    def _entering(self, path: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if path == "":
                # A new forward pass: ordinals start again, and what a raised pass left behind goes.
                self._calls.clear()
                self._owners.clear()
            self._owners.append((path, module))

        return hook

    def _leaving(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._owners:
                self._owners.pop()
            if path in self._named:
                if not isinstance(output, Tensor):
                    raise UsageError(f"The module {path!r} does not return a tensor, so it cannot be a tap.")
                name, shown = self._name(path), _dequantised(output)
                positive = shown > 0 if self._reads_sign(name) else None
                kept = output if name in self._preactivations else None
                self._visit(TapCall(name, "module", shown, positive, kept))

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name not in INPLACE_POSITION or not args or not is_activation(name, args, kwargs):
            return func(*args, **kwargs)
        source, tap = args[0], self._name(self._owner(name))
        positive = source > 0 if name in SIGN_FROM_INPUT and self._reads_sign(tap) else None
        kept = None
        if tap in self._preactivations:
            kept = source.clone() if _is_in_place(func, name, args, kwargs) else source
        output = func(*args, **kwargs)
        self._visit(TapCall(tap, name, _dequantised(output), positive, kept))
        return output

    def _reads_sign(self, tap: str) -> bool:
        return self._signs is None or tap in self._signs

    def _owner(self, function: str) -> str:
        path, module = self._owners[-1] if self._owners else ("", self._model)
        if type(module).__module__ == "torch.nn.modules.activation" and path:
            return path
        return f"{path}.{function}" if path else function

    def _name(self, base: str) -> str:
        self._calls[base] = call = self._calls.get(base, 0) + 1
        return base if call == 1 else f"{base}:{call}"


def _is_in_place(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call overwrites its input: ``relu_``, or an argument ``inplace``."""
    position = INPLACE_POSITION[name]
    given = len(args) > position and args[position] if position is not None else False
    return getattr(func, "__name__", "").endswith("_") or bool(kwargs.get("inplace", given))


def _dequantised(activation: Tensor) -> Tensor:
    return activation.dequantize() if activation.is_quantized else activation


def is_activation(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call is ReLU-like: ``hardtanh`` only with minimum 0 (ReLU6), ``threshold`` only as a ReLU."""
    if not isinstance(args[0], Tensor):
        return False
    if name == "hardtanh":
        return float(args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0.0
    if name == "threshold":
        rest = [*args[1:3], *(kwargs[k] for k in ("threshold", "value") if k in kwargs)]
        return [float(v) for v in rest] == [0.0, 0.0]
    return True


def refuse_hidden_calls(model: nn.Module) -> None:
    """Refuse models whose activation calls cannot be seen.

    Raises:
        UsageError: for scripted or traced sub-modules, for DataParallel, and for compiled ones before torch 2.6, with
            what to do instead.
    """
    compiled_hides = not hasattr(torch.compiler, "set_stance")
    for path, module in model.named_modules():
        where = f"The module {path!r}" if path else "The model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{where} is scripted, which hides its activations: give the original nn.Module.")
        if compiled_hides and hasattr(module, "_orig_mod"):
            raise UsageError(
                f"{where} is compiled, which hides its activations before torch 2.6: give the model as it was before "
                "torch.compile, or update torch."
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise UsageError(f"{where} is wrapped in {type(module).__name__}: give the model inside it (`.module`).")
