"""The built-in networks: an MLP, small CNNs and ResNets with and without batch norm, torchvision's classifiers by name.

Every function is ``f(shape, classes, **params) -> nn.Module`` and gives a network on normalised input, randomly
initialised from the global generator (:mod:`.classifier` seeds it).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UsageError

Shape = tuple[int, int, int]


def mlp(shape: Shape, classes: int, width: int = 128, depth: int = 2, dropout: float = 0.0) -> nn.Module:
    """A multilayer perceptron of ``depth`` hidden layers with ``width`` ReLU units each."""
    _at_least_one(width=width, depth=depth)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = math.prod(shape)
    for number in range(1, depth + 1):
        layers[f"fc{number}"] = nn.Linear(inputs, width)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = width
    if dropout:
        layers["dropout"] = _dropout(dropout)
    layers["linear"] = nn.Linear(inputs, classes)
    return _initialised(nn.Sequential(layers))


def cnn(shape: Shape, classes: int, width: int = 16, hidden: int = 128, dropout: float = 0.0) -> nn.Module:
    """A small CNN: twice (two 3 x 3 convolutions with ReLU, max pooling), one hidden layer, and the classes.

    The convolutions have ``width`` maps before the first pooling and twice as many after it. Large images are averaged
    down to 8 x 8 before the hidden layer, so that its size stays bounded.

    Raises:
        UsageError: for images smaller than 4 x 4.
    """
    _at_least_one(width=width, hidden=hidden)
    channels, height, wide = shape
    if min(height, wide) < 4:
        raise UsageError(f"The model cnn needs images of at least 4 x 4 pixels, not {height} x {wide}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, maps in ((1, width), (2, 2 * width)):
        for number in (2 * stage - 1, 2 * stage):
            layers[f"conv{number}"] = nn.Conv2d(channels, maps, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            channels = maps
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        height, wide = height // 2, wide // 2
    if max(height, wide) > 8:
        height, wide = min(height, 8), min(wide, 8)
        layers["average"] = nn.AdaptiveAvgPool2d((height, wide))
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels * height * wide, hidden)
    layers["relu5"] = nn.ReLU()
    if dropout:
        layers["dropout"] = _dropout(dropout)
    layers["linear"] = nn.Linear(hidden, classes)
    return _initialised(nn.Sequential(layers))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        # Published checkpoints have the new maps half before and half after the old ones.
        before = (outputs - inputs) // 2
        self.new_maps = (before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or any(self.new_maps):
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.new_maps))
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """The ResNets for small images (He et al. 2015, section 4.2): 6 ``blocks`` + 2 layers with weights."""

    def __init__(self, channels: int, classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def resnet20(shape: Shape, classes: int, width: int = 16) -> nn.Module:
    """ResNet-20 for small images (He et al. 2015, section 4.2; option-A shortcuts)."""
    return _resnet(shape, classes, 3, width)


def resnet32(shape: Shape, classes: int, width: int = 16) -> nn.Module:
    """ResNet-32 for small images; see :func:`resnet20`."""
    return _resnet(shape, classes, 5, width)


def resnet44(shape: Shape, classes: int, width: int = 16) -> nn.Module:
    """ResNet-44 for small images; see :func:`resnet20`."""
    return _resnet(shape, classes, 7, width)


def resnet56(shape: Shape, classes: int, width: int = 16) -> nn.Module:
    """ResNet-56 for small images; see :func:`resnet20`."""
    return _resnet(shape, classes, 9, width)


def _resnet(shape: Shape, classes: int, blocks: int, width: int) -> nn.Module:
    _at_least_one(width=width)
    return _initialised(CifarResNet(shape[0], classes, blocks, width))


class SmallCNN(nn.Module):
    """The CNN for MNIST of Carlini and Wagner (2017): two stages of convolutions without padding, two hidden layers.

    Its names are those of the checkpoints that were published with TRADES.
    """

    def __init__(self, channels: int, classes: int, features: int, dropout: float) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for stage, maps in ((1, 32), (2, 64)):
            for number in (2 * stage - 1, 2 * stage):
                layers[f"conv{number}"] = nn.Conv2d(channels, maps, 3)
                layers[f"relu{number}"] = nn.ReLU()
                channels = maps
            layers[f"maxpool{stage}"] = nn.MaxPool2d(2)
        self.feature_extractor = nn.Sequential(layers)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(features, 200), relu1=nn.ReLU(), drop=_dropout(dropout),
                fc2=nn.Linear(200, 200), relu2=nn.ReLU(), fc3=nn.Linear(200, classes),
            )
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.feature_extractor(x).flatten(1))
        return logits


def smallcnn(shape: Shape, classes: int, dropout: float = 0.5) -> nn.Module:
    """The CNN for MNIST of Carlini and Wagner (2017, arXiv 1608.04644), as TRADES trains it (Zhang et al. 2019).

    Args:
        dropout: rate after the first hidden layer.

    Raises:
        UsageError: for images smaller than 16 x 16.
    """
    channels, height, width = shape
    if min(height, width) < 16:
        raise UsageError(f"The model smallcnn needs images of at least 16 x 16 pixels, not {height} x {width}.")
    features = 64 * math.prod(((side - 4) // 2 - 4) // 2 for side in (height, width))
    return _initialised(SmallCNN(channels, classes, features, dropout))


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions with biases and without batch norm, and a shortcut that is 1 x 1 where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class PlainResNet(nn.Module):
    """A convolution and two stages of :class:`PlainBlock`, which halve the sides each, and one hidden layer.

    Its names are those of the checkpoints that were published with alpha-beta-CROWN.
    """

    def __init__(self, shape: Shape, classes: int, blocks: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 16, 3, 2, padding=1)
        self.layer1 = self._stage(16, 32, blocks)
        self.layer2 = self._stage(32, 32, blocks)
        self.linear1 = nn.Linear(32 * math.ceil(height / 8) * math.ceil(width / 8), 100)
        self.linear2 = nn.Linear(100, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(
            PlainBlock(inputs, outputs, 2), *(PlainBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer2(self.layer1(F.relu(self.conv1(x))))
        logits: Tensor = self.linear2(F.relu(self.linear1(out.flatten(1))))
        return logits


def resnet4b(shape: Shape, classes: int) -> nn.Module:
    """The ResNet of four blocks without batch norm that verifiers of networks are compared on (VNN-COMP 2021)."""
    return _initialised(PlainResNet(shape, classes, 2))


def torchvision_names() -> list[str]:
    """The names of torchvision's image classifiers, as ``torchvision.models.get_model`` knows them."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def torchvision_model(name: str, classes: int, **params: Any) -> nn.Module:
    """A classifier of torchvision, randomly initialised, with ``classes`` outputs.

    Args:
        name: one of :func:`torchvision_names`.
        params: passed on to torchvision's builder.

    Raises:
        UsageError: if the builder refuses a parameter.
    """
    from torchvision import models

    try:
        # `weights` would download; a suite gives its own file.
        made: nn.Module = models.get_model(name, weights=None, num_classes=classes, **params)
    except (TypeError, ValueError) as error:
        raise UsageError(f"torchvision's model {name} does not take these parameters: {error}.") from error
    return made


def _initialised(network: nn.Module) -> nn.Module:
    """Normal weights of variance 2 / fan-in (He et al. 2015, arXiv 1502.01852), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _dropout(rate: float) -> nn.Module:
    if not 0 <= rate < 1:
        raise UsageError(f"dropout = {rate} is not a rate: give a number from 0 up to, but not, 1.")
    return nn.Dropout(rate)


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} = {size} is too small: give at least 1.")
