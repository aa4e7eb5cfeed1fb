"""Single operators, each a network of its own, against ONNX Runtime.

    python -m benchmarks.operators [PART ...] [--threads 1] [--rounds 7] [--folder FOLDER]

PART is a part of a name below; without one all are measured. Each operator is compiled by the code generator
and runs in turns with ONNX Runtime, in one process. The table has the time of ONNX Runtime divided by that
of what was compiled, within the same rounds: below 1 the code generator is the slower one.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

import hasten
from hasten.target import cores, describe_machine

Feeds = dict[str, NDArray[np.float32]]

SECONDS = 0.03
"""Seconds that each of the two runs for in a round."""

OPERATORS = {
    "Softmax": "(float[64,1000] x) => (float y) { y = Softmax <axis=-1> (x) }",
    "Softmax of 32000": "(float[8,32000] x) => (float y) { y = Softmax <axis=-1> (x) }",
    "Softmax of scores": "(float[12,128,128] x) => (float y) { y = Softmax <axis=-1> (x) }",
    "Softmax of channels": "(float[1,21,64,64] x) => (float y) { y = Softmax <axis=1> (x) }",
    "Softmax of the first axis": "(float[64,1000] x) => (float y) { y = Softmax <axis=0> (x) }",
    "LogSoftmax": "(float[64,1000] x) => (float y) { y = LogSoftmax <axis=-1> (x) }",
    "LogSoftmax of 32000": "(float[8,32000] x) => (float y) { y = LogSoftmax <axis=-1> (x) }",
    "ReduceLogSumExp": "(float[64,1000] x) => (float y) <int64[1] a = {1}> { y = ReduceLogSumExp (x, a) }",
    "ReduceLogSumExp of channels": """(float[1,21,64,64] x) => (float y) <int64[1] a = {1}>
        { y = ReduceLogSumExp (x, a) }""",
    "ReduceSum of columns": """(float[1000,512] x) => (float y) <int64[1] a = {0}>
        { y = ReduceSum <keepdims=0> (x, a) }""",
    "ReduceMax of the middle": """(float[64,100,64] x) => (float y) <int64[1] a = {1}>
        { y = ReduceMax <keepdims=0> (x, a) }""",
    "ReduceMean of all": "(float[1000,512] x) => (float y) { y = ReduceMean <keepdims=0> (x) }",
    "LayerNormalization": """(float[128,768] x) => (float y) <float[768] w, float[768] b>
        { y = LayerNormalization <axis=-1> (x, w, b) }""",
    "InstanceNormalization": """(float[1,32,64,64] x) => (float y) <float[32] w, float[32] b>
        { y = InstanceNormalization (x, w, b) }""",
    "Resize nearest": """(float[1,3,128,128] x) => (float y) <float[4] s = {1,1,2,2}>
        { y = Resize <mode="nearest"> (x, , s) }""",
    "Resize nearest to 0.8": """(float[1,3,256,256] x) => (float y) <float[4] s = {1,1,0.8,0.8}>
        { y = Resize <mode="nearest"> (x, , s) }""",
    "Resize linear": """(float[1,3,128,128] x) => (float y) <float[4] s = {1,1,2,2}>
        { y = Resize <mode="linear"> (x, , s) }""",
    "Resize linear by 4": """(float[1,3,128,128] x) => (float y) <float[4] s = {1,1,4,4}>
        { y = Resize <mode="linear"> (x, , s) }""",
    "Resize linear to corners": """(float[1,32,64,64] x) => (float y) <float[4] s = {1,1,2,2}>
        { y = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (x, , s) }""",
    "Resize linear to a half": """(float[1,3,512,512] x) => (float y) <float[4] s = {1,1,0.5,0.5}>
        { y = Resize <mode="linear"> (x, , s) }""",
    "Resize cubic": """(float[1,3,128,128] x) => (float y) <float[4] s = {1,1,2,2}>
        { y = Resize <mode="cubic"> (x, , s) }""",
    "MaxPool 3x3": """(float[1,32,64,64] x) => (float y)
        { y = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (x) }""",
    "MaxPool 3x3 / 2": """(float[1,64,112,112] x) => (float y)
        { y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x) }""",
    "MaxPool 2x2 / 2": """(float[1,64,112,112] x) => (float y)
        { y = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }""",
    "AveragePool 3x3": """(float[1,32,64,64] x) => (float y)
        { y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x) }""",
    "AveragePool 2x2 / 2": """(float[1,32,64,64] x) => (float y)
        { y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (x) }""",
    "GlobalAveragePool": "(float[1,256,14,14] x) => (float y) { y = GlobalAveragePool (x) }",
    "Conv depthwise 3x3": """(float[1,32,64,64] x) => (float y) <float[32,1,3,3] w, float[32] b>
        { y = Conv <group=32, pads=[1,1,1,1]> (x, w, b) }""",
    "Conv depthwise 3x3 / 2": """(float[1,32,64,64] x) => (float y) <float[32,1,3,3] w, float[32] b>
        { y = Conv <group=32, strides=[2,2], pads=[1,1,1,1]> (x, w, b) }""",
    "Conv depthwise 7x7": """(float[1,32,64,64] x) => (float y) <float[32,1,7,7] w, float[32] b>
        { y = Conv <group=32, pads=[3,3,3,3]> (x, w, b) }""",
    "Conv depthwise, two for each": """(float[1,32,64,64] x) => (float y) <float[64,1,3,3] w, float[64] b>
        { y = Conv <group=32, pads=[1,1,1,1]> (x, w, b) }""",
    "Conv depthwise 31": """(float[1,64,1000] x) => (float y) <float[64,1,31] w, float[64] b>
        { y = Conv <group=64, pads=[15,15]> (x, w, b) }""",
    "Conv 3x3": """(float[1,64,32,32] x) => (float y) <float[64,64,3,3] w, float[64] b>
        { y = Conv <pads=[1,1,1,1]> (x, w, b) }""",
    "Conv 4 groups": """(float[1,64,32,32] x) => (float y) <float[64,16,3,3] w, float[64] b>
        { y = Conv <group=4, pads=[1,1,1,1]> (x, w, b) }""",
    "Conv 32 groups": """(float[1,128,28,28] x) => (float y) <float[128,4,3,3] w, float[128] b>
        { y = Conv <group=32, pads=[1,1,1,1]> (x, w, b) }""",
    "ConvTranspose 2x2 / 2": """(float[1,64,32,32] x) => (float y) <float[64,32,2,2] w>
        { y = ConvTranspose <strides=[2,2]> (x, w) }""",
    "ConvTranspose 4x4 / 2": """(float[1,64,32,32] x) => (float y) <float[64,32,4,4] w>
        { y = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (x, w) }""",
    "MatMul": "(float[128,768] x) => (float y) <float[768,768] w> { y = MatMul (x, w) }",
    "MatMul of one row": "(float[1,768] x) => (float y) <float[768,768] w> { y = MatMul (x, w) }",
    "Tile of rows": "(float[256,256] x) => (float y) <int64[2] n = {1,4}> { y = Tile (x, n) }",
    "Tile of all": "(float[256,256] x) => (float y) <int64[2] n = {4,1}> { y = Tile (x, n) }",
    "Tile of short rows": "(float[4096,5] x) => (float y) <int64[2] n = {1,4}> { y = Tile (x, n) }",
    "Expand of rows": """(float[64,1,128] x) => (float y) <int64[3] n = {64,128,128}>
        { y = Expand (x, n) }""",
    "Expand of elements": "(float[256,1] x) => (float y) <int64[2] n = {256,1024}> { y = Expand (x, n) }",
    "Concat of rows": """(float[256,256] x, float[256,256] z) => (float y)
        { y = Concat <axis=1> (x, z, x, z) }""",
    "Concat of rows that differ": """(float[256,33] x, float[256,100] z) => (float y)
        { y = Concat <axis=1> (x, z, x, z) }""",
    "Concat of channels": """(float[1,32,64,64] x, float[1,16,64,64] z) => (float y)
        { y = Concat <axis=1> (x, z) }""",
    "Pad": """(float[1,32,64,64] x) => (float y) <int64[8] p = {0,0,1,1,0,0,1,1}>
        { y = Pad (x, p) }""",
    "Pad by reflection": """(float[1,32,64,64] x) => (float y) <int64[8] p = {0,0,1,1,0,0,1,1}>
        { y = Pad <mode="reflect"> (x, p) }""",
    "Slice of rows": """(float[256,1024] x) => (float y)
        <int64[1] a = {10}, int64[1] b = {900}, int64[1] d = {1}> { y = Slice (x, a, b, d) }""",
    "Slice by two": """(float[1,32,64,64] x) => (float y)
        <int64[2] a = {0,0}, int64[2] b = {64,64}, int64[2] d = {2,3}, int64[2] n = {2,2}>
        { y = Slice (x, a, b, d, n) }""",
    "Transpose": "(float[1000,777] x) => (float y) { y = Transpose <perm=[1,0]> (x) }",
    "Transpose of channels": "(float[1,64,56,56] x) => (float y) { y = Transpose <perm=[0,2,3,1]> (x) }",
    "Transpose of heads": "(float[1,128,12,64] x) => (float y) { y = Transpose <perm=[0,2,1,3]> (x) }",
    "DepthToSpace": "(float[1,48,64,64] x) => (float y) { y = DepthToSpace <blocksize=4> (x) }",
    "SpaceToDepth": "(float[1,3,256,256] x) => (float y) { y = SpaceToDepth <blocksize=2> (x) }",
    "TopK 5 of 1000": "(float[64,1000] x) => (float y) <int64[1] k = {5}> { y, i = TopK (x, k) }",
    "TopK 1000 of 30000": "(float[1,30000] x) => (float y) <int64[1] k = {1000}> { y, i = TopK (x, k) }",
    "CumSum": "(float[64,1000] x) => (float y) <int64 a = {1}> { y = CumSum (x, a) }",
    "Gelu": "(float[128,3072] x) => (float y) { y = Gelu (x) }",
    "Exp": "(float[128,3072] x) => (float y) { y = Exp (x) }",
    "Add": "(float[128,768] x) => (float y) <float[768] w> { y = Add (x, w) }",
}
"""What is measured by its name: a graph in ONNX's notation. Constants without values are random weights."""


def network(text: str) -> onnx.ModelProto:
    """A model of a graph in ONNX's notation."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> operator {text}')
    rng, known = np.random.default_rng(0), {w.name for w in model.graph.initializer}
    for info in model.graph.value_info:
        if info.name not in known:
            shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
            weights = rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(math.prod(shape[1:])))
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(weights), info.name))
    del model.graph.value_info[:]
    for result in model.graph.output:
        result.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model)


def inputs_of(model: onnx.ModelProto) -> Feeds:
    """Normally distributed inputs."""
    rng = np.random.default_rng(1)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def microseconds(run: Callable[[], object]) -> float:
    """The median time of a call, over as many as fit in `SECONDS`."""
    run()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def compiled(name: str, folder: Path) -> Path:
    """The artifact of an operator, next to its ONNX file; made where it does not exist."""
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.hasten"
    if not path.exists():
        onnx.save(network(OPERATORS[name]), path.with_suffix(".onnx"))
        hasten.compile(path.with_suffix(".onnx")).save(path)
    return path


def row(name: str, artifact: Path, threads: int, rounds: int) -> str:
    """Measures an operator; its row of the table.

    Raises:
        AssertionError: the two do not agree.
    """
    import onnxruntime as ort

    model = onnx.load(artifact.with_suffix(".onnx"))
    feeds = inputs_of(model)
    session = hasten.open(artifact, threads=threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    other = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (own,), (expected,) = session.run(feeds).values(), other.run(None, feeds)
    np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4)
    pairs = [
        (microseconds(lambda: session.run(feeds)), microseconds(lambda: other.run(None, feeds)))
        for _ in range(rounds)
    ]
    low, middle, high = statistics.quantiles([theirs / ours for ours, theirs in pairs], n=4)
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return f"| {name} | {ours:.1f} | {theirs:.1f} | {middle:.2f} [{low:.2f}, {high:.2f}] |"


def named(parts: Iterable[str]) -> list[str]:
    """The operators that have one of these parts in their names; all where there are none."""
    wanted = [p.lower() for p in parts]
    return [n for n in OPERATORS if not wanted or any(p in n.lower() for p in wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time single operators against ONNX Runtime.")
    parser.add_argument("part", nargs="*", help="parts of the names of operators, in any case of letters")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--folder", type=Path, help="keeps what is compiled, and uses what is there")
    options = parser.parse_args()
    names = named(options.part)
    if not names:
        parser.error(f"no operator's name contains any of {options.part}")
    with tempfile.TemporaryDirectory(prefix="hasten-") as temporary:
        folder = options.folder or Path(temporary)
        artifacts = {name: compiled(name, folder) for name in names}
        print(f"{describe_machine()}; threads: {options.threads} of {cores()}\n")
        print(
            "| operator | hasten, us | ONNX Runtime, us | ratio [quartiles] |\n|---|---|---|---|", flush=True
        )
        for name, artifact in artifacts.items():
            print(row(name, artifact, options.threads, options.rounds), flush=True)


if __name__ == "__main__":
    main()
