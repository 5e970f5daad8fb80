"""Parts of others, as the text of their files."""

from __future__ import annotations

# A detector that looks at the logits alone.
PLUGGED = """
from aftershock import Detector, DetectorInfo, register_detector


@register_detector("plugged")
class Plugged(Detector):
    info = DetectorInfo(title="plugged")

    def fit(self, clean, perturbed=None):
        self.mean = clean.logits.mean(0)
        return self

    def score(self, traces):
        return (traces.logits - self.mean).norm(dim=1).double()
"""
# A network for the digits whose file says what else it does in ``before_pass()``; HERE is the file's folder.
NETWORK = """
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images):
        before_pass()
        return self.inner(images)


def network():
    return Network().eval()


"""
