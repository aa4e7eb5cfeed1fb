"""What is pruned in `benchmarks.pruning`: models with data to choose by, to train with and to test on.

| case | model | choices and repair look at | distillation | checked on | tested on |
|---|---|---|---|---|---|
| r8 | MiniLM and a head trained on the first 1,500 texts of Reuters R8's train part | 256 texts of the train part after those | the 3,000 texts after the 1,500 | the last 986 | the test part, 2,189 |
| fashion | `fashion_residual`, trained on the first 50,000 pictures of the train part | 512 pictures after those | the 8,000 after the 50,000 | the last 2,000 | the test part, 10,000 |
| efficientnet | EfficientNet-lite0, no labels | 768 crops, half of them mirrored, of three of four pictures of scikit-image and foolbox | 3,000 such | 600 other crops of those pictures | 3,000 other crops of those pictures |

The crops that EfficientNet-lite0 is tested on are of the pictures that it was pruned by: what is certified there is for
data like the user's own. `--on unseen` looks at 600 crops of the fourth of the pictures that nothing has seen.
Who tries settings does so on the checked part. What a figure is published of is tested once.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import fashion, fashion_residual, r8
from benchmarks.models import Inputs, efficientnet_lite0_onnx, token_inputs
from benchmarks.optimize import crops, pictures
from hasten.search.samples import Samples

Array = NDArray[Any]
Part = Literal["check", "test", "unseen"]
"""Only efficientnet has samples of the last kind; the others take those of the test."""
_TOGETHER = 50


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        model: an ONNX file.
        choose: the first samples of those that pruning may look at, and how many by default.
        learn: all of them, for distillation.
        examine: the samples and labels of a part.
        metric: what the drop is of.
        units: what is pruned by default.
        shape: of `fixed`, for people.
        fixed: inputs to take times with.
        answers: the first output of an ONNX model, by ONNX Runtime, [samples, classes].
    """

    model: Path
    choose: int
    learn: Callable[[int | None], Samples]
    examine: Callable[[Part], Samples]
    metric: str
    units: tuple[str, ...]
    shape: str
    fixed: Inputs
    answers: Callable[[Path | bytes, Sequence[Mapping[str, Array]]], Array]


def _r8() -> Case:
    def learn(count: int | None) -> Samples:
        feeds, labels = r8.calibration(3000 if count is None else count)
        return Samples(tuple(feeds), labels)

    def examine(part: Part) -> Samples:
        feeds, labels = (
            r8.samples("test", 0, 10_000) if part != "check" else r8.samples("train", 4500, 10_000)
        )
        return Samples(tuple(feeds), labels)

    fixed = token_inputs(1, r8.LONGEST)
    units = ("heads", "neurons")
    answers: Any = r8.logits
    return Case(r8.model(), 256, learn, examine, "accuracy", units, "1 x 128 tokens", fixed, answers)


def _fashion() -> Case:
    def some(images: Array, labels: Array) -> Samples:
        return Samples(tuple({"pixels": image[None]} for image in images), labels)

    def learn(count: int | None) -> Samples:
        images, labels = fashion.pictures("train")
        chosen = slice(
            fashion_residual.TRAINED, fashion_residual.TRAINED + (8000 if count is None else count)
        )
        return some(images[chosen], labels[chosen])

    def examine(part: Part) -> Samples:
        images, labels = fashion.pictures("t10k" if part != "check" else "train")
        return some(images, labels) if part != "check" else some(images[-2000:], labels[-2000:])

    fixed = {"pixels": fashion.pictures("t10k")[0][:1]}
    return Case(
        fashion_residual.model(),
        512,
        learn,
        examine,
        "accuracy",
        ("channels",),
        "1 picture",
        fixed,
        _pictures,
    )


def _efficientnet() -> Case:
    images = pictures()
    unseen = images[3::4]
    seen = [image for number, image in enumerate(images) if number % 4 != 3]
    parts = {"check": (600, seen, 2), "test": (3000, seen, 3), "unseen": (600, unseen, 4)}

    def learn(count: int | None) -> Samples:
        return Samples(tuple(crops(3000 if count is None else count, seen, seed=1, flip=True)))

    def examine(part: Part) -> Samples:
        count, of, seed = parts[part]
        return Samples(tuple(crops(count, of, seed=seed)))

    fixed = {"pixels": crops(1)[0]["pixels"]}
    return Case(
        efficientnet_lite0_onnx(),
        768,
        learn,
        examine,
        "agreement",
        ("channels",),
        "1 picture",
        fixed,
        _pictures,
    )


def _pictures(model: Path | bytes, given: Sequence[Mapping[str, Array]]) -> Array:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may need the cores
    session = onnxruntime.InferenceSession(model, settings)
    found = []
    for first in range(0, len(given), _TOGETHER):
        batch = np.concatenate([feeds["pixels"] for feeds in given[first : first + _TOGETHER]])
        found.append(session.run(None, {"pixels": batch})[0])
    return np.concatenate(found)


CASES: Mapping[str, Callable[[], Case]] = {"r8": _r8, "fashion": _fashion, "efficientnet": _efficientnet}
