"""Weights on disk: safetensors and torch checkpoints, read without running any code of the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UsageError

# What training scripts call the entry that holds the weights.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")


def load_weights(module: nn.Module, path: Path) -> str:
    """Read the weights of a network from safetensors or a torch checkpoint, without running any code of the file.

    Entries ``state_dict``, ``model_state_dict``, ``model`` and ``net`` are seen through, and so is one prefix before
    all names of the network, whatever it is (``module.``, ``model.``, ``net.backbone.``); ``_orig_mod.`` of
    ``torch.compile`` may stand anywhere. What lies beside such a prefix (the weight of a loss, metrics) is passed
    over; everything else must fit exactly.

    Args:
        module: the network (:attr:`~.classifier.Classifier.network`).

    Returns:
        a sentence that names the prefix and what was passed over; empty where nothing was.

    Raises:
        UsageError: if the file is missing, is not a checkpoint of plain tensors, or does not fit, or the network's
            names stand there more than once; with the first names, and the prefix.
    """
    if not path.is_file():
        raise UsageError(f"There are no weights at {path}.")
    own = module.state_dict()
    whole = _state_in(_read_checkpoint(path), path)
    if not any("_orig_mod." in k for k in own):
        whole = {k.replace("_orig_mod.", ""): v for k, v in whole.items()}
    prefix = _prefix(whole, own, path)
    state = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    # Quantised modules have states that hold more than tensors.
    odd = [k for k, v in state.items() if not isinstance(v, Tensor) and (k not in own or isinstance(own[k], Tensor))]
    if odd:
        raise UsageError(
            f"{path} holds {_first(odd)} beside or instead of weights: keep only model.state_dict(), as 'state_dict'."
        )
    complaints = _complaints(state, own)
    if complaints:
        read = f", read under the prefix {prefix!r}," if prefix else ""
        raise UsageError(f"The weights {path} do not fit the model: the file{read} {', '.join(complaints)}.")
    broken = [k for k, v in state.items() if isinstance(v, Tensor) and not _is_finite(v)]
    if broken:
        raise UsageError(f"The weights {path} hold NaN or infinity in {_first(broken)}.")
    try:
        module.load_state_dict({**own, **state})
    except Exception as error:  # a module may check or convert its own state
        raise UsageError(f"The weights {path} do not fit the model: {' '.join(str(error).split())[:200]}") from error
    beside = [k for k in whole if not k.startswith(prefix)]
    if not beside:
        return ""
    return f"Its weights are read under the prefix {prefix!r} of {path.name}, which holds {_first(beside)} besides."


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, for :func:`load_weights`."""
    from safetensors.torch import save_file

    # Clones: safetensors refuses tensors that share memory (tied weights).
    save_file(
        {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in module.state_dict().items()}, path
    )


# What torch and safetensors say of a file whose end is missing.
_CUT = (
    "central directory", "unexpected EOF", "Invalid argument", "header too small", "file not fully covered",
    # Safetensors before 0.6.
    "HeaderTooSmall", "MetadataIncompleteBuffer",
)  # fmt: skip


def _read_checkpoint(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, header and disk errors all mean that this file cannot be used
        if isinstance(error, EOFError) or any(sign in str(error) for sign in _CUT):
            raise UsageError(f"{path} is cut off or damaged: copy or download it again.") from error
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160] or type(error).__name__
        raise UsageError(
            f"{path} is not a checkpoint of plain tensors ({reason}): save model.state_dict() with torch.save or "
            "safetensors."
        ) from error


def _state_in(loaded: Any, path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds by name: tensors, and whatever else lies between them."""
    for key in _STATE_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise UsageError(f"{path} holds no weights by name, but {type(loaded).__name__}: save model.state_dict().")
    nameless = [str(k) for k in loaded if not isinstance(k, str)]
    if nameless or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise UsageError(
            f"{path} holds {_first(nameless or list(loaded))} beside or instead of weights: keep only "
            "model.state_dict(), as 'state_dict'."
        )
    return dict(loaded)


def _needed(own: Mapping[str, Any]) -> list[str]:
    """Return the names without which a network is not read.

    Checkpoints older than torch 0.4.1 lack the counters of batches, which matter to no forward pass.
    """
    return [k for k in own if not k.endswith("num_batches_tracked")]


def _prefix(state: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> str:
    """The one prefix under which a state holds all names of a network; else that under which it holds most of them.

    Raises:
        UsageError: if several do, and shapes do not tell which is meant.
    """
    needed = _needed(own)
    if not needed or all(k in state for k in needed):
        return ""
    names: dict[str, int] = dict.fromkeys(needed, 0)
    held: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                held["".join(f"{part}." for part in parts[:cut])] += 1
    whole = [prefix for prefix, count in held.items() if count == len(needed)]
    same = [p for p in whole if not _complaints({k: state[p + k] for k in needed}, own)]
    if len(same) > 1 or (len(whole) > 1 and not same):
        raise UsageError(
            f"{path} holds the names of the network under several prefixes, {', '.join(map(repr, same or whole))}: "
            "keep the weights that are meant, and save them alone."
        )
    if whole:
        return (same or whole)[0]
    best, count = max(held.items(), key=lambda item: item[1], default=("", 0))
    # A name or two (`weight`, `bias`) are found under many prefixes that have nothing to do with the network.
    return best if 2 * count > len(needed) and count > held[""] else ""


def _complaints(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return what a state lacks or has too much of for a network, in words."""
    missing = [k for k in _needed(own) if k not in state]
    unexpected = [k for k in state if k not in own]
    different = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if isinstance(v, Tensor) and isinstance(state.get(k), Tensor) and state[k].shape != v.shape
    ]
    found = (("misses", missing), ("has unexpected", unexpected), ("has other shapes:", different))
    return [f"{what} {_first(names)}" for what, names in found if names]


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def other_state(network: nn.Module) -> list[str]:
    """The entries of a network's state that no safetensors file can hold: quantised or sparse tensors, objects."""
    return [k for k, v in network.state_dict().items() if not _is_plain(v)]


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def state_digest(network: nn.Module) -> str:
    """sha256, in hex, of a network's state (names, types, shapes, bytes), wherever it lies.

    Quantised tensors count with their scales, what is not a tensor (the packed weights of quantised modules) by its
    parts.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        if _is_plain(value):
            _add(digest, name, value)
        else:
            _add_other(digest, name, value)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, value: Tensor) -> None:
    whole = value.detach().cpu().contiguous()
    digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\0".encode())
    digest.update(whole.flatten().view(torch.uint8).numpy().tobytes() if whole.numel() else b"")


def _add_other(digest: hashlib._Hash, name: str, value: Any) -> None:
    digest.update(f"{name} {type(value).__name__}\0".encode())
    if _is_plain(value):
        _add(digest, name, value)
    elif isinstance(value, Tensor):
        _add(digest, name, value.dequantize() if value.is_quantized else value.to_dense())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _add_other(digest, f"{name}.{key}", part)
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value):
            _add_other(digest, f"{name}.{number}", part)
    elif isinstance(value, str | int | float | torch.dtype | None):
        digest.update(repr(value).encode())


def network_digest(network: nn.Module) -> str:
    """sha256, in hex, of all that decides what a network computes, besides its code.

    Beyond :func:`state_digest`: buffers that are not saved, and numbers and truth values that its modules hold as
    attributes.
    """
    digest = hashlib.sha256(state_digest(network).encode())
    state = network.state_dict()
    for name, buffer in network.named_buffers():
        if name not in state:
            _add_other(digest, name, buffer)
    for name, module in network.named_modules():
        held = {k: v for k, v in vars(module).items() if type(v) in (bool, int, float) and k != "training"}
        digest.update(f"{name} {type(module).__qualname__} {sorted(held.items())}\0".encode())
    return digest.hexdigest()
