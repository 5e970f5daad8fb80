import aftershock
import torch
from aftershock import Guard
from sklearn.datasets import load_digits

model = aftershock.load_model("runs/quick", "cnn")
guard = Guard.load("mahalanobis.safetensors", model)

images = torch.tensor(load_digits().images[-8:], dtype=torch.float32)[:, None] / 16
logits, alarm, score = guard(images)
