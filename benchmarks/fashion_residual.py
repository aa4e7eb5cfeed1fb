"""A residual network trained on Fashion-MNIST, with all that pruning of channels has to get right.

    python -m benchmarks.fashion_residual

trains it (some minutes on two cores) and says how many of the 10,000 test pictures it names rightly. It has
residual additions with and without a projection, an inverted residual with a depthwise convolution, and a
concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import fashion
from benchmarks.models import kept

Array = NDArray[Any]
TRAINED = 50_000
"""Pictures of the train part that the network learns; the others are for choices after that."""
_TOGETHER = 250  # pictures in a batch of a test


def network() -> Any:
    """The network, 18 million multiplications for a picture."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def block(channels: int, filters: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
        padding = side // 2
        convolution = nn.Conv2d(
            channels, filters, side, stride=stride, padding=padding, groups=groups, bias=False
        )
        return nn.Sequential(convolution, nn.BatchNorm2d(filters))

    class Residual(nn.Module):
        def __init__(self, channels: int, filters: int, stride: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                block(channels, filters, 3, stride), nn.ReLU(), block(filters, filters, 3)
            )
            same = channels == filters and stride == 1
            self.shortcut = nn.Identity() if same else block(channels, filters, 1, stride)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.branch(x) + self.shortcut(x))

    class Inverted(nn.Module):
        def __init__(self, channels: int, wide: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                block(channels, wide, 1), nn.ReLU6(), block(wide, wide, 3, groups=wide), nn.ReLU6(),
                block(wide, channels, 1),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return x + self.branch(x)

    class Concatenated(nn.Module):
        def __init__(self, channels: int, filters: int) -> None:
            super().__init__()
            self.narrow, self.wide = block(channels, filters, 1), block(channels, filters, 3)

        def forward(self, x: Any) -> Any:
            return torch.relu(torch.cat([self.narrow(x), self.wide(x)], 1))

    return nn.Sequential(
        block(1, 16, 3), nn.ReLU(), block(16, 32, 3, 2), nn.ReLU(), Residual(32, 32, 1), Inverted(32, 128),
        Concatenated(32, 48), Residual(96, 96, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def model() -> Path:
    """The trained network as ONNX: pixels [batch, 1, 28, 28] to ten logits."""

    def write(path: Path) -> None:
        import torch

        module = network()
        fashion.train(module, TRAINED)
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 1, 28, 28),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["pixels"],
            output_names=["logits"],
            verbose=False,
        )
        program.save(str(path), external_data=False)

    return kept(f"fashion-residual-{TRAINED}", write)


def logits(onnx_model: Path | bytes, images: Sequence[Array] | Array) -> Array:
    """What a model says of pictures, by ONNX Runtime, [pictures, 10]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_model)
    found = [
        session.run(None, {"pixels": np.asarray(images[first : first + _TOGETHER])})[0]
        for first in range(0, len(images), _TOGETHER)
    ]
    return np.concatenate(found)


def main() -> None:
    """Trains the network if that was not done before, and tests it."""
    path = model()
    images, labels = fashion.pictures("t10k")
    right = int((logits(path, images).argmax(1) == labels).sum())
    print(f"{path}: {right} of {len(labels)} are right")


if __name__ == "__main__":
    main()
