"""The built-in models: the name of each, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping

DECIDES_NO_NUMBER = True

BUILTIN: Mapping[str, str] = {
    "mlp": "aftershock.harness.models.architectures:mlp",
    "cnn": "aftershock.harness.models.architectures:cnn",
    **{f"resnet{n}": f"aftershock.harness.models.architectures:resnet{n}" for n in (20, 32, 44, 56)},
    "smallcnn": "aftershock.harness.models.architectures:smallcnn",
    "resnet4b": "aftershock.harness.models.architectures:resnet4b",
}
