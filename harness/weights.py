"""Weights on disk: safetensors and torch checkpoints, read without running any code of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError

# What training scripts call the entry that holds the weights.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")


def load_weights(module: nn.Module, path: Path) -> None:
    """Read the weights of a network from safetensors or a torch checkpoint, without running any code of the file.

    Entries ``state_dict``, ``model_state_dict``, ``model`` and ``net``, and the prefixes of ``DataParallel`` and
    ``torch.compile`` are seen through; everything else must fit exactly.

    Args:
        module: the network (:attr:`Classifier.network`).

    Raises:
        UsageError: if the file is missing, is no checkpoint of plain tensors, or does not fit; with the first names.
    """
    if not path.is_file():
        raise UsageError(f"There are no weights at {path}.")
    state = _weights_in(_read_checkpoint(path), path)
    own = module.state_dict()
    state = _without_prefixes(state, own)
    # Checkpoints older than torch 0.4.1 lack these counters, which matter to no forward pass.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    different = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    complaints = [
        f"{what} {_first(names)}"
        for what, names in (("misses", missing), ("has unexpected", unexpected), ("has other shapes:", different))
        if names
    ]
    if complaints:
        raise UsageError(f"The weights {path} do not fit the model: the file {', '.join(complaints)}.")
    broken = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise UsageError(f"The weights {path} hold NaN or infinity in {_first(broken)}.")
    module.load_state_dict({**own, **state})


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, for :func:`load_weights`."""
    from safetensors.torch import save_file

    # Clones: safetensors refuses tensors that share memory (tied weights).
    save_file(
        {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in module.state_dict().items()}, path
    )


def _read_checkpoint(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, header and disk errors all mean that this file cannot be used
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160] or type(error).__name__
        raise UsageError(
            f"{path} is not a checkpoint of plain tensors ({reason}): save model.state_dict() with torch.save or "
            "safetensors."
        ) from error


def _weights_in(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _STATE_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise UsageError(f"{path} holds no weights by name, but {type(loaded).__name__}: save model.state_dict().")
    odd = [str(k) for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if odd:
        raise UsageError(
            f"{path} holds {_first(odd)} beside or instead of weights: keep only model.state_dict(), as 'state_dict'."
        )
    return dict(loaded)


def _without_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) taken off, unless the network has them itself."""
    if not any("_orig_mod." in k for k in own):
        state = {k.replace("_orig_mod.", ""): v for k, v in state.items()}
    while all(k.startswith("module.") for k in state) and not any(k in own for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def state_digest(network: nn.Module) -> str:
    """sha256, in hex, of the parameters and buffers of a network (names, types, shapes, bytes), wherever it lies."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked"):
            whole = value.detach().cpu().contiguous()
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\0".encode())
            digest.update(whole.flatten().view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return digest.hexdigest()
