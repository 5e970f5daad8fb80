"""The built-in data sets: the name of each, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping

DECIDES_NO_NUMBER = True

BUILTIN: Mapping[str, str] = {
    "digits": "aftershock.harness.data.sets:digits",
    "mnist": "aftershock.harness.data.sets:mnist",
    "fashion-mnist": "aftershock.harness.data.sets:fashion_mnist",
    "cifar10": "aftershock.harness.data.sets:cifar10",
    "cifar100": "aftershock.harness.data.sets:cifar100",
    "svhn": "aftershock.harness.data.sets:svhn",
    "image-folder": "aftershock.harness.data.sets:image_folder",
    "npz": "aftershock.harness.data.sets:npz",
}
