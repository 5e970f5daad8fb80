from pathlib import Path

import numpy as np
import torch
from aftershock import Dataset, DataSource, ImageSplit, UsageError, channel_statistics, register_dataset


@register_dataset("two-files")
def two_files(root: Path, grey: bool = False) -> DataSource:
    """Images and labels from train.npz and test.npz under the data root."""
    files = (root / "train.npz", root / "test.npz")
    for file in files:
        if not file.is_file():
            raise UsageError(f"There is no {file}: name the folder that has it with --data.")

    def load() -> Dataset:
        train, test = (split(file, grey) for file in files)
        mean, std = channel_statistics(train)
        shape = tuple(train.images([0]).shape[1:])
        return Dataset("two-files", ("cat", "dog"), shape, train, test, mean, std)

    return DataSource("two-files", files, load, {"grey": grey})


def split(file: Path, grey: bool) -> ImageSplit:
    with np.load(file) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()
    return ImageSplit(images[:, :1] if grey else images, labels)
