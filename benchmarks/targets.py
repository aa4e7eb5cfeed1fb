"""Whole models on every instruction set that this processor runs: how far their answers differ.

    python -m benchmarks.targets

One artifact has code for all of them; it is opened once with the code of each alone. Differences are from the
answers of the first row, in standard deviations of these: none, as sums have one order on all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import models
from hasten.api import CompileOptions, compile_payload
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import open_session
from hasten.target import TARGETS, Target, runs_here

Array = NDArray[Any]
PLAIN = tuple(t.name for t in TARGETS if runs_here(t) and not t.factors)


def on_each_target(
    source: object, feeds: Mapping[str, Array], cache: Path, **options: Any
) -> dict[str, Array]:
    """The first output of a model, by the instructions that computed it.

    Args:
        source: the model.
        feeds: its inputs.
        cache: folder of compiled objects, and for the artifact.
        options: of `CompileOptions`.
    """
    payload = compile_payload(source, CompileOptions(target=PLAIN, cache=cache, **options))
    codes = {n: n.removeprefix("code/").removesuffix(".so") for n in payload.members if n.startswith("code/")}
    found = {}
    for code, target in codes.items():
        if runs_here(Target.named(target)):
            members = {n: m for n, m in payload.members.items() if n not in codes or n == code}
            write_artifact(cache / "one.hasten", payload.manifest, members)
            with open_session(cache / "one.hasten") as session:
                assert session.target is not None
                assert session.target.name == target
                found[target] = next(iter(session.run(feeds).values()))
    return found


def cases() -> dict[str, tuple[object, Mapping[str, Array], dict[str, Any]]]:
    """Models by name, with inputs and options."""
    texts = models.news(80)
    seen = [models.sentence_inputs(texts[start : start + 4]) for start in range(40, 80, 4)]
    pictures, _ = models.labelled_pictures()
    sentences, network = models.sentence_inputs(texts[:8]), models.efficientnet_lite0_onnx()
    return {
        "EfficientNet-lite0 int8": (
            network,
            {"pixels": pictures},
            {"precision": "int8", "data": [{"pixels": pictures}]},
        ),
        "EfficientNet-lite0 f32": (network, {"pixels": pictures}, {}),
        "MiniLM int8": (models.minilm(), sentences, {"precision": "int8", "data": seen}),
        "MiniLM f32": (models.minilm(), sentences, {}),
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder of compiled objects")
    asked = parser.parse_args()
    print("| model | code | elements that differ | by at most | root mean square |\n|---|---|---|---|---|")
    with TemporaryDirectory(prefix="hasten-") as folder:
        for name, (source, feeds, options) in cases().items():
            found = on_each_target(source, feeds, asked.cache or Path(folder), **options)
            first = next(iter(found.values())).astype(np.float64)
            for target, answers in found.items():
                off = np.abs(answers - first) / first.std()
                shown = f"{(off > 0).mean():.1%} | {off.max():.2g} | {np.sqrt((off**2).mean()):.2g}"
                print(f"| {name} | {target} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
