"""A residual network trained on Fashion-MNIST, with all that pruning of channels has to get right.

    python -m benchmarks.fashion_residual

trains it (some minutes on two cores) and says how many of the 10,000 test pictures it names rightly. It has
residual additions with and without a projection, an inverted residual with a depthwise convolution, and a
concatenation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import fashion
from benchmarks.models import export_pictures, kept

TRAINED = 50_000
"""Pictures of the train part that the network learns; the others are for choices after that."""


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
        module = network()
        fashion.train(module, TRAINED)
        export_pictures(module, path, (1, 28, 28))

    return kept(f"fashion-residual-{TRAINED}", write)


def main() -> None:
    """Trains the network if that was not done before, and tests it."""
    fashion.report(model())


if __name__ == "__main__":
    main()
