"""Matrix products whose weights are kept in 8 or 4 bits: time and memory moved, beside ONNX Runtime's.

    python -m benchmarks.weight_only

Each row is one product, 1 row by default, on two threads. All contestants take turns in rounds, each in a
process of its own (`hasten.search.measure`): in one process, pools that keep their threads spinning after a
run take a core from whoever comes next. Given is the median time, what of the weights is read in that time,
and the median of the ratios to hasten's product in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import hasten
from hasten.search.engines import HASTEN, ONNXRUNTIME, Engine
from hasten.search.measure import Contestant, Plan, measure

Array = NDArray[Any]

SHAPES = ((768, 3072), (3072, 768), (4096, 4096))
BLOCK = 32


def model(
    depth: int, columns: int, nodes: list[onnx.NodeProto], arrays: Mapping[str, Array]
) -> onnx.ModelProto:
    """A model x [rows, depth] -> y [rows, columns]."""
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", columns])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def plain(weight: Array) -> onnx.ModelProto:
    """The product in floats."""
    depth, columns = weight.shape
    return model(depth, columns, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})


def in_blocks(weight: Array, bits: int, accuracy: int) -> onnx.ModelProto:
    """The product as a MatMulNBits with symmetric weights in blocks of `BLOCK`."""
    depth, columns = weight.shape
    half = 1 << (bits - 1)
    blocks = weight.T.reshape(columns, depth // BLOCK, BLOCK)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / (half - 1)
    codes = (np.rint(blocks / scales) + half).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    sizes = {"K": depth, "N": columns, "bits": bits, "block_size": BLOCK, "accuracy_level": accuracy}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **sizes)
    return model(depth, columns, [node], {"w": codes, "s": scales.reshape(-1).astype(np.float32)})


def contestants(weight: Array, folder: Path) -> dict[str, tuple[Contestant, float]]:
    """What is timed, by name, and the bytes of its weights."""
    found: dict[str, tuple[Contestant, float]] = {}
    coded = {bits: {level: in_blocks(weight, bits, level) for level in (0, 4)} for bits in (8, 4)}
    scales = 4 / BLOCK

    def add(engine: Engine, name: str, model: Path, size: float) -> None:
        label = f"{engine.package} {name}"
        found[label] = (Contestant(engine, model, [model], label), size * weight.size)

    def saved(proto: onnx.ModelProto) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.onnx"
        onnx.save(proto, path)
        return path

    def ours(name: str, proto: onnx.ModelProto, size: float, precision: str = "f32") -> None:
        model = saved(proto)
        artifact = model.with_suffix(".hasten")
        hasten.compile(model, precision=precision).save(artifact)
        add(HASTEN, name, artifact, size)

    ours("f32", plain(weight), 4)
    ours("bf16", plain(weight), 2, "bf16")
    for bits, levels in coded.items():
        ours(f"int{bits}", levels[0], bits / 8 + scales)
        ours(f"int{bits} with bf16", levels[0], bits / 8 + scales, "bf16")
    add(ONNXRUNTIME, "f32", saved(plain(weight)), 4)
    for bits, levels in coded.items():
        for level, proto in levels.items():
            add(ONNXRUNTIME, f"int{bits} level {level}", saved(proto), bits / 8 + scales)
    return found


def main() -> None:
    """Prints a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    plan = Plan(options.threads, options.rounds, turn=0.1, openings=1)
    for depth, columns in SHAPES:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((depth, columns), np.float32)
        feeds = {"x": rng.standard_normal((options.rows, depth), np.float32)}
        with TemporaryDirectory() as folder:
            found = contestants(weight, Path(folder))
            measured = measure([contestant for contestant, _ in found.values()], feeds, plan)
        for name, reason in measured.failures.items():
            print(f"{name}: {reason}", file=sys.stderr)
        print(f"\n| {options.rows} x {depth} x {columns} | us | GB/s | x hasten f32 |\n|---|---|---|---|")
        first = measured.results[0]
        for result in measured.results:
            passed = result.run_ms.median / 1e3
            ratio = first.ratio_to(result).median
            speed = found[result.engine][1] / passed / 1e9
            print(f"| {result.engine} | {passed * 1e6:.0f} | {speed:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
