"""Fashion-MNIST: the data of Debian's package dataset-fashion-mnist, and a small network trained on it.

    python benchmarks/fashion.py

trains it (about two minutes on two cores) and says how many of the 10,000 test pictures it names rightly.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models import export_pictures, kept

Array = NDArray[Any]
FOLDER = Path("/usr/share/datasets/fashion-mnist")
_EPOCHS, _BATCH = 2, 128
_TOGETHER = 250  # pictures in a batch of a test


def pictures(part: Literal["train", "t10k"]) -> tuple[Array, Array]:
    """The 60,000 or 10,000 pictures, `[pictures, 1, 28, 28]` of mean 0 and variance 1, and their classes.

    Raises:
        FileNotFoundError: the package is not installed: apt-get install dataset-fashion-mnist.
    """
    with gzip.open(FOLDER / f"{part}-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(FOLDER / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return (raw.astype(np.float32) / 255 - 0.286) / 0.353, labels.astype(np.int64)


def samples(part: Literal["train", "t10k"], count: int | None = None) -> list[tuple[dict[str, Array], int]]:
    """Pictures as `hasten.optimize` takes them: input and label of each."""
    images, labels = pictures(part)
    return [({"pixels": images[i : i + 1]}, int(labels[i])) for i in range(count or len(labels))]


def network() -> Any:
    """Four convolutions, of which two halve the picture, and a linear layer."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def block(channels: int, filters: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(filters), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16, 1), *block(16, 32, 2), *block(32, 64, 1), *block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def train(module: Any, count: int = 60_000) -> None:
    """Two passes over the first pictures of the train part, mirrored at random, with a rate that falls."""
    import torch

    images, labels = (torch.from_numpy(array[:count]) for array in pictures("train"))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = _EPOCHS * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for first in range(0, len(images) - _BATCH + 1, _BATCH):
            chosen = order[first : first + _BATCH]
            batch = images[chosen]
            mirrored = torch.rand(len(batch), generator=generator) < 0.5
            batch[mirrored] = batch[mirrored].flip(-1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(batch), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    module.eval()


def model() -> Path:
    """The trained network as ONNX: pixels [batch, 1, 28, 28] to ten logits."""

    def write(path: Path) -> None:
        module = network()
        train(module)
        export_pictures(module, path, (1, 28, 28))

    return kept("fashion", write)


def logits(onnx_model: Path | bytes, images: Sequence[Array] | Array) -> Array:
    """What a model says of pictures, by ONNX Runtime, [pictures, 10]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_model)
    found = [
        session.run(None, {"pixels": np.asarray(images[first : first + _TOGETHER])})[0]
        for first in range(0, len(images), _TOGETHER)
    ]
    return np.concatenate(found)


def report(path: Path) -> None:
    """Says how many of the 10,000 test pictures a model names rightly."""
    images, labels = pictures("t10k")
    right = int((logits(path, images).argmax(1) == labels).sum())
    print(f"{path}: {right} of {len(labels)} are right")


def main() -> None:
    """Trains the network if that was not done before, and tests it."""
    report(model())


if __name__ == "__main__":
    main()
