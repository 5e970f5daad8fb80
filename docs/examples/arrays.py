import aftershock
import torch
from sklearn.datasets import load_digits
from torch import nn

pixels, digits = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(digits)

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimiser = torch.optim.Adam(network.parameters(), 0.01)
for _ in range(200):
    optimiser.zero_grad()
    nn.functional.cross_entropy(network(images[:900]), labels[:900]).backward()
    optimiser.step()


def darker(model, images, labels, eps=0.1):
    """Everything a little darker."""
    return images - eps


run = aftershock.evaluate(
    network,
    images[900:1100],
    labels[900:1100],
    fit=(images[:300], labels[:300]),
    calibrate=(images[1100:1400], labels[1100:1400]),
    eps=0.2,
    attacks=["pgd", darker],
    detectors=["energy", {"name": "mahalanobis", "layers": "last:1"}],
)
run.leaderboard[["detector", "robust_accuracy_at_fpr_5", "worst_auroc", "flags"]]
