"""Train the weights that the suite ``quick`` comes with: ``python docs/tools/train_quick_weights.py [FOLDER]``.

Each model of the suite is trained on the train split of scikit-learn's digits with the default recipe and seed 0, on
the CPU, and written as safetensors (float32). Two runs on one machine give the same bytes; another machine may round
differently, which is why the files are in the repository. After new weights the figures of the pages have to be
measured anew: ``python docs/tools/figures.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aftershock.harness.core.registry import DATASETS
from aftershock.harness.data.types import Dataset
from aftershock.harness.models.classifier import ModelSpec, accuracy, obtain
from aftershock.harness.models.weights import save_weights
from aftershock.harness.suite.resolve import load_suite

SEED = 0
WEIGHTS = Path(__file__).parents[2] / "harness" / "suite" / "builtin" / "weights"


def train_all(folder: Path) -> None:
    """Train every model of ``quick``, write its weights to ``folder`` and print size and accuracy."""
    suite = load_suite("quick")
    dataset: Dataset = DATASETS.get(suite.data.name)(folder).load()
    for part in suite.models:
        model = obtain(ModelSpec.from_entry(part.name, None, part.params), dataset, SEED)
        path = folder / Path(part.weights or f"{suite.data.name}-{part.name}.safetensors").name
        save_weights(model.network, path)
        right = accuracy(model, dataset.test)
        sys.stdout.write(
            f"{path.name}: {path.stat().st_size:,} bytes, {right:.2%} of {len(dataset.test)} test images\n"
        )


if __name__ == "__main__":
    train_all(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)
