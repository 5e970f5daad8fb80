"""The state of torch: what numbers are computed with, and the modes and hooks that calls pass through.

The functions are taken when this module is imported, so that replacements made later are not used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import autograd
from torch.nn.modules import module as nn_module

from .probe import Probe, identical

DECIDES_NO_NUMBER = True

_C: Any = torch._C
_DEVICES = ("cpu", "cuda")
# Which there are depends on the version of torch.
_HOOKS_OF: tuple[dict[Any, Any], ...] = tuple(
    value for name, value in vars(nn_module).items() if name.startswith("_global_") and isinstance(value, dict)
)
_SUBNORMAL = sys.float_info.min
# Leaving inference mode is undone when the object that left it is deleted: such an object stays.
_LEFT: list[Any] = []


def _stack(kind: str) -> tuple[Callable[[], list[Any]], Callable[[Sequence[Any]], None]]:
    """Return how the stack of function or dispatch modes is read and written."""
    length, at = getattr(_C, f"_len_torch_{kind}_stack"), getattr(_C, f"_get_{kind}_stack_at")
    pop, push = getattr(_C, f"_pop_torch_{kind}_stack"), getattr(_C, f"_push_on_torch_{kind}_stack")
    # Modes of torch's own have keys of their own; those that others write have none.
    key = (None,) if kind == "dispatch" else ()

    def read() -> list[Any]:
        return [at(i) for i in range(length())]

    def write(modes: Sequence[Any]) -> None:
        while length():
            pop(*key)
        for mode in modes:
            push(mode)

    return read, write


_read_functions, _write_functions = _stack("function")
_read_dispatch, _write_dispatch = _stack("dispatch")
_device_context: Any = torch._GLOBAL_DEVICE_CONTEXT


def _read_modes() -> list[Any]:
    # torch.set_default_device is a mode of the same stack, and remembers which.
    return [getattr(_device_context, "device_context", None), *_read_functions()]


def _write_modes(found: Sequence[Any]) -> None:
    _write_functions(found[1:])
    _device_context.device_context = found[0]


_deeper, _shallower = torch.autocast_increment_nesting, torch.autocast_decrement_nesting


def _read_autocast() -> tuple[Any, ...]:
    _deeper()
    depth = _shallower()
    each = [(_autocast_on(d), _autocast_dtype(d)) for d in _DEVICES]
    return (*each, _autocast_cache(), depth)


def _write_autocast(found: tuple[Any, ...]) -> None:
    *each, cache, depth = found
    for device, (enabled, dtype) in zip(_DEVICES, each, strict=True):
        _set_autocast(device, enabled)
        _set_autocast_dtype(device, dtype)
    _set_autocast_cache(cache)
    now = _deeper()
    while now > depth:
        now = _shallower()
    while now < depth:
        now = _deeper()
    # Weights that were cast would be used again.
    _clear_autocast()


_autocast_on, _set_autocast = torch.is_autocast_enabled, torch.set_autocast_enabled
_autocast_dtype, _set_autocast_dtype = torch.get_autocast_dtype, torch.set_autocast_dtype
_autocast_cache, _set_autocast_cache = torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
_clear_autocast = torch.clear_autocast_cache


def _write_inference(enabled: bool) -> None:
    mode = _C._InferenceMode(enabled)
    mode.__enter__()
    _LEFT.append(mode)


_get_dtype, _set_dtype, _set_type = torch.get_default_dtype, torch.set_default_dtype, _C._set_default_tensor_type


def _write_dtype(found: tuple[torch.dtype, str]) -> None:
    dtype, device = found
    if _C._get_default_device() != device:
        _set_type(vars(torch if device == "cpu" else torch.cuda)["FloatTensor"])
    _set_dtype(dtype)


def _pairs(*names: str) -> Probe:
    """Switches of ``torch._C`` with a getter ``_get_X`` and a setter ``_set_X``, as one probe."""
    both = [(getattr(_C, f"_get_{n}"), getattr(_C, f"_set_{n}")) for n in names if hasattr(_C, f"_set_{n}")]

    def write(found: Sequence[Any]) -> None:
        for (_, setter), value in zip(both, found, strict=True):
            # Some getters give a pair that their setter takes as two arguments.
            setter(*value) if isinstance(value, tuple) else setter(value)

    return Probe("backend settings", lambda: [getter() for getter, _ in both], write)


def _sdp_names() -> list[str]:
    return [n for n in ("flash", "mem_efficient", "math", "cudnn") if hasattr(_C, f"_set_sdp_use_{n}")]


_SDP = [(getattr(_C, f"_get_{n}_sdp_enabled"), getattr(_C, f"_set_sdp_use_{n}")) for n in _sdp_names()]


def _write_each(setters: Sequence[Callable[[Any], object]], found: Sequence[Any]) -> None:
    for setter, value in zip(setters, found, strict=True):
        setter(value)


_deterministic = (torch.are_deterministic_algorithms_enabled, torch.is_deterministic_algorithms_warn_only_enabled)
_set_deterministic = _C._set_deterministic_algorithms
_anomaly = (torch.is_anomaly_enabled, torch.is_anomaly_check_nan_enabled)
_set_anomaly = autograd.set_detect_anomaly


def _read_hooks() -> list[dict[Any, Any]]:
    return [dict(hooks) for hooks in _HOOKS_OF]


def _write_hooks(found: Sequence[dict[Any, Any]]) -> None:
    for hooks, before in zip(_HOOKS_OF, found, strict=True):
        hooks.clear()
        hooks.update(before)


# Torch before 2.7 cannot tell which hooks are in force.
_saved_hooks = getattr(_C._autograd, "_top_saved_tensors_default_hooks", None)
_pop_saved_hooks = _C._autograd._pop_saved_tensors_default_hooks


def _saved_hook_probes() -> tuple[Probe, ...]:
    if _saved_hooks is None:
        return ()
    read: Callable[[], Any] = partial(_saved_hooks, True)

    def write(found: Any) -> None:
        while (top := read()) is not None and top != found:
            _pop_saved_hooks()

    return (Probe("saved tensor hooks", read, write),)


def _read_rng() -> list[torch.Tensor]:
    states = [torch.default_generator.get_state()]
    if torch.cuda.is_initialized():
        states += [generator.get_state() for generator in torch.cuda.default_generators]
    return states


def _write_rng(found: Sequence[torch.Tensor]) -> None:
    generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
    for generator, state in zip(generators, found, strict=False):
        generator.set_state(state)


# Modes come first: the calls that read and write the others would pass through them.
PROBES = (
    Probe("function modes", _read_modes, _write_modes, same=identical),
    Probe("dispatch modes", _read_dispatch, _write_dispatch, same=identical),
    Probe("inference mode", torch.is_inference_mode_enabled, _write_inference),
    Probe("gradient mode", torch.is_grad_enabled, _C._set_grad_enabled),
    Probe("autocast", _read_autocast, _write_autocast),
    Probe("default dtype", lambda: (_get_dtype(), _C._get_default_device()), _write_dtype),
    Probe(
        "deterministic algorithms", lambda: [read() for read in _deterministic],
        lambda found: _set_deterministic(found[0], warn_only=found[1]),
    ),
    # Before the backend settings, some of which older versions of torch derive from it.
    Probe("matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _pairs(
        "cudnn_enabled", "cudnn_deterministic", "cudnn_benchmark", "cudnn_allow_tf32", "cublas_allow_tf32",
        "cublas_allow_fp16_reduced_precision_reduction", "cublas_allow_bf16_reduced_precision_reduction",
        "cublas_allow_fp16_accumulation", "mkldnn_enabled", "mkldnn_deterministic", "nnpack_enabled",
        "deterministic_fill_uninitialized_memory",
    ),
    Probe(
        "attention kernels", lambda: [read() for read, _ in _SDP],
        lambda found: _write_each([write for _, write in _SDP], found),
    ),
    Probe(
        "anomaly mode", lambda: [read() for read in _anomaly], lambda found: _set_anomaly(*found), effect="disturbs"
    ),
    Probe("threads", torch.get_num_threads, torch.set_num_threads),
    # Python's own arithmetic is subject to the same flag of the processor.
    Probe("flush denormal", lambda: _SUBNORMAL * 0.5 == 0, torch.set_flush_denormal),
    Probe("module hooks", _read_hooks, _write_hooks, same=lambda a, b: a == b),
    *_saved_hook_probes(),
    Probe("random state of torch", _read_rng, _write_rng, effect="none", same=lambda a, b: False),
)  # fmt: skip
