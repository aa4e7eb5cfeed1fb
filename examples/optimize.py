"""The search of the README, on a small classifier that this script trains first: a minute or two."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch

import hasten


def points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in 64 dimensions, each near one of ten centres, and which centre: float32 and int64."""
    centres = np.random.default_rng(0).standard_normal((10, 64)) * 0.6
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    return (centres[labels] + rng.standard_normal((count, 64))).astype(np.float32), labels


def classifier() -> torch.nn.Module:
    """A network of three layers, trained on some of the points."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 10),
    )
    x, labels = (torch.from_numpy(a) for a in points(4000, seed=1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval()


def export(model: torch.nn.Module) -> None:
    """Writes it as model.onnx, without what PyTorch's exporter says of itself."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example, sizes = (torch.ones(2, 64),), [{0: "batch"}]
        torch.onnx.export(
            model, example, "model.onnx", input_names=["x"], dynamic_shapes=sizes, verbose=False
        )


def main() -> None:
    """Trains, searches, and says what was found."""
    export(classifier())
    x, labels = points(4000, seed=2)
    samples = [({"x": row[None]}, label) for row, label in zip(x, labels, strict=True)]
    # samples: (inputs, label) pairs, as in examples/optimize.py
    fast = hasten.optimize("model.onnx", data=samples, metric="accuracy", max_drop=0.01)
    print(fast.report)  # how certain it is that the drop is within the budget, on how many samples
    fast.report.to_html("report.html")  # what was tried, what was kept, and why


if __name__ == "__main__":
    main()
