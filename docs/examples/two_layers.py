from aftershock import register_model
from torch import nn


@register_model("two-layers")
def two_layers(shape: tuple[int, int, int], classes: int, width: int = 64) -> nn.Module:
    """A perceptron with one hidden layer."""
    channels, height, side = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * side, width), nn.ReLU(), nn.Linear(width, classes))
