import aftershock
import torch
from aftershock import Guard
from sklearn.datasets import load_digits

guard = Guard.load("latent.safetensors", aftershock.load_model("runs/my-suite"))
points, classes = guard.landmarks()  # fit images that the model gets right: draw them once, coloured by class

images = torch.tensor(load_digits().images[-8:], dtype=torch.float32)[:, None] / 16
guard.positions(images)  # (n, 3): where these images lie among them
