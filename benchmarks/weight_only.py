"""Matrix products whose weights are kept in 8 or 4 bits: time and memory moved, beside ONNX Runtime's.

    python -m benchmarks.weight_only

Each row is one product, 1 row by default, on two threads. All contestants take turns in rounds; given is the
median time, what of the weights is read in that time, and the ratio to hasten's product in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import hasten

Array = NDArray[Any]

SHAPES = ((768, 3072), (3072, 768), (4096, 4096))
BLOCK = 32
_SECONDS = 0.6  # that a contestant is timed for, for each product
_SLICE = 0.02


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


def contestants(weight: Array, folder: Path, threads: int) -> dict[str, tuple[Callable[..., Any], float]]:
    """What is timed, by name, and the bytes of its weights."""
    import onnxruntime

    found: dict[str, tuple[Callable[..., Any], float]] = {}
    coded = {bits: {level: in_blocks(weight, bits, level) for level in (0, 4)} for bits in (8, 4)}
    scales = 4 / BLOCK

    def ours(name: str, proto: onnx.ModelProto, size: float, precision: str = "f32") -> None:
        path = folder / f"{name.replace(' ', '-')}.onnx"
        onnx.save(proto, path)
        session = hasten.compile(path, threads=threads, precision=precision)
        found[f"hasten {name}"] = session.run, size * weight.size

    def theirs(name: str, proto: onnx.ModelProto, size: float) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        data = proto.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found[f"onnxruntime {name}"] = (lambda feeds: session.run(None, feeds)), size * weight.size

    ours("f32", plain(weight), 4)
    ours("bf16", plain(weight), 2, "bf16")
    for bits, levels in coded.items():
        ours(f"int{bits}", levels[0], bits / 8 + scales)
        ours(f"int{bits} with bf16", levels[0], bits / 8 + scales, "bf16")
    theirs("f32", plain(weight), 4)
    for bits, levels in coded.items():
        for level, proto in levels.items():
            theirs(f"int{bits} level {level}", proto, bits / 8 + scales)
    return found


def timed(
    found: Mapping[str, tuple[Callable[..., Any], float]], feeds: Mapping[str, Array]
) -> dict[str, list[float]]:
    """Seconds of a run, in rounds in which all contestants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for run, _ in found.values():
        for _ in range(3):
            run(feeds)
    for _ in range(round(_SECONDS / _SLICE)):
        for name, (run, _) in found.items():
            begin, count = time.perf_counter(), 0
            while (passed := time.perf_counter() - begin) < _SLICE:
                run(feeds)
                count += 1
            seconds[name].append(passed / count)
    return seconds


def main() -> None:
    """Prints a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for depth, columns in SHAPES:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((depth, columns), np.float32)
        feeds = {"x": rng.standard_normal((options.rows, depth), np.float32)}
        with TemporaryDirectory() as folder:
            found = contestants(weight, Path(folder), options.threads)
            seconds = {name: statistics.median(s) for name, s in timed(found, feeds).items()}
        print(f"\n| {options.rows} x {depth} x {columns} | us | GB/s | x hasten f32 |\n|---|---|---|---|")
        for name, passed in seconds.items():
            ratio = seconds["hasten f32"] / passed
            print(f"| {name} | {passed * 1e6:.0f} | {found[name][1] / passed / 1e9:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
