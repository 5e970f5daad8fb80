"""A run with users' models: what the probe found stands in its files, and two spellings of a network agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
from aftershock import Guard
from aftershock.harness.run.api import run
from aftershock.harness.run.guard import export_guard
from aftershock.harness.store.stored_traces import tap_infos
from aftershock.harness.tracing.traces import TapInfo
from support.cells import ledger
from torch import nn

MODELS = """
import torch
from pathlib import Path
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, last=False):
        super().__init__()
        self.last = last
        self.stem, self.mlp, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(128, 10)
        if (Path(__file__).parent / "net.pt").exists():
            self.load_state_dict(torch.load(Path(__file__).parent / "net.pt"))
    def forward(self, x):
        x = self.stem(x)
        if self.last:
            x = F.relu(self.mlp(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        else:
            x = F.relu(F.conv2d(x, self.mlp.weight[:, :, None, None], self.mlp.bias))
        return {"logits": self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))}

def first(): return Net()
def last(): return Net(last=True)
def packed(): return torch.ao.quantization.quantize_dynamic(Net(), {"head"})
def untrained():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10), nn.Softmax(1))
"""
SUITE = """name = "mine"

[data]
name = "digits"
fit = 120
calibrate = 200
evaluate = 60

[threat]
norm = "linf"
eps = 0.2

[[perturbations]]
name = "fgsm"
eps = 0.2

[[detectors]]
name = "mahalanobis"

"""


def train(folder: Path) -> None:
    """Write the weights of the network after a few steps on the digits."""
    from aftershock.harness.data.sets import digits

    scope: dict[str, Callable[[], nn.Module]] = {"__file__": str(folder / "mine.py")}  # type: ignore[dict-item]
    exec(MODELS, scope)
    torch.manual_seed(0)
    net, data = scope["first"](), digits(folder).load().train
    images, labels = data.images(slice(None)), data.labels(slice(None))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images)["logits"], labels).backward()
        optimiser.step()
    torch.save(net.state_dict(), folder / "net.pt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "mine.py").write_text(MODELS)
    train(folder)
    labels = ("first", "last", "untrained")
    entries = "".join(f'\n[[models]]\nfactory = "mine.py:{f}"\nlabel = "{f}"\nnormalise = false\n' for f in labels)
    (folder / "suite.toml").write_text(SUITE + entries)
    found = run(folder / "suite.toml", folder / "run", device="cpu", cache=folder / "cache", data=folder)
    assert not found.failed
    return folder / "run"


def board(made: Path) -> pandas.DataFrame:
    return pandas.read_csv(made / "tables" / "leaderboard.csv", keep_default_na=False)


def test_two_spellings_of_a_network_have_the_same_numbers(made: Path) -> None:
    rows = board(made)
    numbers = [c for c in rows.columns if c not in ("model", "protocol_digest", "series_digest")]
    first, last = (rows[rows["model"] == label][numbers].reset_index(drop=True) for label in ("first", "last"))
    assert float(first[first["detector"] == "mahalanobis"]["worst_auroc"].iloc[0]) > 0.5
    for name in ("robust_accuracy_at_fpr_5", "worst_auroc", "fpr_realised_5"):
        assert pandas.to_numeric(first[name]).to_list() == pytest.approx(
            pandas.to_numeric(last[name]).to_list(), abs=0.02, nan_ok=True
        )


def test_what_the_probe_found_stands_in_the_run_and_in_all_rows(made: Path) -> None:
    facts = json.loads((made / "run.json").read_text(encoding="utf-8"))
    rows = board(made)
    assert any(w.startswith("untrained: ") and "probabilities" in w for w in facts["warnings"])
    assert any(w.startswith("untrained: ") and "no weights were given" in w for w in facts["warnings"])
    assert len(facts["warnings"]) == 2
    for label in ("first", "last"):
        assert any(n.startswith(f"{label}: ") and "mapping" in n for n in facts["notes"])
    untrained = rows[rows["model"] == "untrained"]
    assert untrained["not_ranked_reason"].str.startswith("no-weights").all()
    assert (untrained["rank"] == "").all()
    assert untrained["flags"].str.startswith("probabilities-for-logits; no-weights").all()
    assert not rows[rows["model"] == "first"]["flags"].str.contains("no-weights|probabilities").any()
    page = (made / "site" / "index.html").read_text(encoding="utf-8")
    assert "no weights were given" in page


def test_where_channels_lie_is_kept_and_older_lists_of_taps_are_read(made: Path) -> None:
    axes = {}
    for record in ledger(made).values():
        if record.kind == "model":
            axes[record.name.model] = [t.channel_axis for t in tap_infos(record.values)]
    assert (axes["first"], axes["last"]) == ([1], [3])
    assert tap_infos({"taps": [["a", "relu", [3, 4, 4]]]}) == (TapInfo("a", "relu", (3, 4, 4)),)


def test_a_guard_around_a_channels_last_network_reads_what_was_fitted(made: Path) -> None:
    scope: dict[str, Callable[[], nn.Module]] = {"__file__": str(made.parent / "mine.py")}  # type: ignore[dict-item]
    exec(MODELS, scope)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = []
    for label in ("first", "last"):
        file = export_guard(made, "mahalanobis", made.parent / f"{label}.safetensors", label)
        scores.append(Guard.load(file, scope[label]())(x).score)
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no quantised kernels here")
def test_a_quantised_network_is_measured_and_its_state_made_again(made: Path) -> None:
    folder = made.parent
    entry = '\n[[models]]\nfactory = "mine.py:packed"\nlabel = "packed"\nnormalise = false\n'
    (folder / "packed.toml").write_text(
        SUITE.replace('name = "fgsm"\neps = 0.2', 'name = "square"\neps = 0.2\nqueries = 20\nlabel = "fgsm"') + entry
    )
    found = run(folder / "packed.toml", folder / "packed", device="cpu", cache=folder / "cache", data=folder)
    assert not found.failed
    rows = board(folder / "packed")
    assert rows["flags"].str.contains("black-box-only").all()
    assert (rows[rows["detector"] != "none"]["fpr_realised_5"] != "").all()
