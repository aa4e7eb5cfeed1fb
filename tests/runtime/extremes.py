"""Models that read numbers (indices, sizes, counts, axes) from an input, and numbers that no one expects."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

INDICES = (0, 1, -1, 4, 5, -5, -6, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
SIZES = (0, 1, -1, 3, 5, -5, 2**40, 2**62, 2**63 - 1, -(2**63), -(2**31))
"""Without such as a machine may just have the memory for."""

MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Slice from": ("""(float[5] x, int64[1] i) => (float[m] y) <int64[1] e = {9}>
        { [it] y = Slice (x, i, e) }""", INDICES),
    "Slice to": ("""(float[5] x, int64[1] i) => (float[m] y) <int64[1] s = {1}>
        { [it] y = Slice (x, s, i) }""", INDICES),
    "Slice backwards": ("""(float[5] x, int64[1] i) => (float[m] y) <int64[1] s = {9}, int64[1] a = {0},
        int64[1] d = {-2}> { [it] y = Slice (x, s, i, a, d) }""", INDICES),
    "OneHot": ("""(int64[1] i) => (float[1, 5] y) <int64 d = {5}, float[2] v = {0, 1}>
        { [it] y = OneHot (i, d, v) }""", INDICES),
    "OneHot of a depth": ("""(int64[1] i) => (float[2, m] y) <int64[2] k = {0, 3}, float[2] v = {0, 1}>
        { [it] y = OneHot (k, i, v) }""", SIZES),
    "Trilu": ("""(float[5, 5] x, int64[1] i) => (float[5, 5] y) <int64[0] s = {}>
        { k = Reshape (i, s) [it] y = Trilu (x, k) }""", INDICES),
    "TopK": ("(float[5] x, int64[1] i) => (float[m] y, int64[m] z) { [it] y, z = TopK (x, i) }", SIZES),
    "Tile": ("(float[5] x, int64[1] i) => (float[m] y) { [it] y = Tile (x, i) }", SIZES),
    "Expand": ("(float[1] x1, int64[1] i) => (float[m] y) { [it] y = Expand (x1, i) }", SIZES),
    "Reshape": ("(float[5] x, int64[1] i) => (float[m] y) { [it] y = Reshape (x, i) }", SIZES),
    "ConstantOfShape": ("(int64[1] i) => (float[m] y) { [it] y = ConstantOfShape (i) }", SIZES),
    "Range": ("""(int64[1] i) => (int64[m] y) <int64[0] s = {}, int64 a = {0}, int64 d = {1}>
        { k = Reshape (i, s) [it] y = Range (a, k, d) }""", SIZES),
    "Range by a step": ("""(int64[1] i) => (int64[m] y) <int64[0] s = {}, int64 a = {0}, int64 d = {7}>
        { k = Reshape (i, s) [it] y = Range (a, d, k) }""", INDICES),
    "Pad": ("""(float[5] x, int64[1] i) => (float[m] y) <int64[1] o = {2}>
        { p = Concat <axis = 0> (i, o) [it] y = Pad (x, p) }""", SIZES),
    "Pad by reflection": ("""(float[5] x, int64[1] i) => (float[m] y) <int64[1] o = {2}>
        { p = Concat <axis = 0> (i, o) [it] y = Pad <mode = "reflect"> (x, p) }""", SIZES),
    "Split": ("""(float[5] x, int64[1] i) => (float[m] y, float[k] z) <int64[1] n = {5}>
        { r = Sub (n, i) s = Concat <axis = 0> (i, r) [it] y, z = Split (x, s) }""", INDICES),
    "CumSum": ("(float[5] x, int64[1] i) => (float[5] y) { [it] y = CumSum (x, i) }", INDICES),
    "Unsqueeze": ("(float[5] x, int64[1] i) => (float[m, k] y) { [it] y = Unsqueeze (x, i) }", INDICES),
    "ReduceSum": ("""(float[5, 2] x2, int64[1] i) => (float[m, k] y)
        { [it] y = ReduceSum (x2, i) }""", INDICES),
    "ReverseSequence": ("""(float[5, 1] x3, int64[1] i) => (float[5, 1] y)
        { [it] y = ReverseSequence (x3, i) }""", INDICES),
    "CenterCropPad": ("""(float[5] x, int64[1] i) => (float[m] y)
        { [it] y = CenterCropPad <axes = [0]> (x, i) }""", SIZES),
    "Resize": ("""(float[5] x, int64[1] i) => (float[m] y) { [it] y = Resize (x, , , i) }""", SIZES),
    "TensorScatter": ("""(float[1, 5, 2] c, float[1, 2, 2] u, int64[1] i) => (float[1, 5, 2] y)
        { [it] y = TensorScatter <axis = 1> (c, u, i) }""", INDICES),
    "TensorScatter around": ("""(float[1, 5, 2] c, float[1, 2, 2] u, int64[1] i) => (float[1, 5, 2] y)
        { [it] y = TensorScatter <axis = 1, mode = "circular"> (c, u, i) }""", INDICES),
    "GRU": ("""(float[5, 1, 2] s, int64[1] i) => (float[5, 1, 1, 2] y)
        <float[1, 6, 2] w = {1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0},
         float[1, 6, 2] r = {1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0}>
        { l = Cast <to = 6> (i) [it] y = GRU <hidden_size = 2> (s, w, r, , l) }""", INDICES),
    "LSTM": ("""(float[5, 1, 1] s1, int64[1] i) => (float[5, 1, 1, 1] y)
        <float[1, 4, 1] w = {1, 2, 1, 2}, float[1, 4, 1] r = {1, 2, 1, 2}>
        { l = Cast <to = 6> (i)
          [it] y = LSTM <hidden_size = 1, direction = "reverse"> (s1, w, r, , l) }""", INDICES),
    "Attention": ("""(float[1, 1, 5, 4] q, int64[1] i) => (float[1, 1, 5, 4] y)
        { [it] y = Attention (q, q, q, , , , i) }""", INDICES),
    "RotaryEmbedding": ("""(float[1, 1, 1, 4] q1, float[5, 2] c5, int64[1] i) => (float[1, 1, 1, 4] y)
        <int64[2] s = {1, 1}> { p = Reshape (i, s) [it] y = RotaryEmbedding (q1, c5, c5, p) }""", INDICES),
    "MaxUnpool": ("""(float[1, 1, 1] p, int64[1] i) => (float[1, 1, 2] y) <int64[3] s = {1, 1, 1}>
        { k = Reshape (i, s) [it] y = MaxUnpool <kernel_shape = [2], strides = [2]> (p, k) }""", INDICES),
    "ArrayFeatureExtractor": ("""(float[1, 5] a, int64[1] i) => (float[1, 1] y)
        { [it] y = ai.onnx.ml.ArrayFeatureExtractor (a, i) }""", INDICES),
    "EmbedLayerNormalization": ("""(int64[1] i) => (float[1, 1, 2] y, int32[1] m)
        <int64[2] s = {1, 1}, float[5, 2] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, float[2] g = {1, 2}>
        { k = Reshape (i, s) ids = Cast <to = 6> (k)
          [it] y, m = com.microsoft.EmbedLayerNormalization (ids, , w, w, , g, g) }""", INDICES),
}  # fmt: skip

_HEAD = '<ir_version: 10, opset_import: ["": 24, "ai.onnx.ml": 4, "com.microsoft": 1]> g '


def models() -> dict[str, onnx.ModelProto]:
    """All of them by name; the node that reads the number is called "it"."""
    return {name: onnx.parser.parse_model(_HEAD + text) for name, (text, _) in MODELS.items()}


def feeds(proto: onnx.ModelProto, number: int) -> dict[str, np.ndarray]:
    """Inputs in which the number is what is given, and all else is small."""
    made = {}
    for value in proto.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        ramp = np.arange(int(np.prod(shape))).reshape(shape).astype(np.float32) / 8
        made[value.name] = np.full(shape, number, np.int64) if value.name == "i" else ramp
    return made
