"""A few kernels whose C is kept in `golden/`, so that a change of generated code shows in review.

To write the files anew: `python -m tests.codegen.kernels`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.codegen.graphs import program

from hasten.codegen.elementary import expand_operation
from hasten.codegen.emit_c import emit_functions
from hasten.codegen.lower_stages import lower_program
from hasten.loops.program import Program
from hasten.target import Target

GOLDEN = Path(__file__).parent / "golden"
TARGET = Target.named("x86-64-v3")


def programs() -> dict[str, Program]:
    """The graphs by the name of their file."""
    weight, bias = np.ones((48, 40), np.float32), np.ones(40, np.float32)
    one = np.ones(100, np.float32)
    return {
        "element_wise": program(
            "(float[n, 100] x, float[100] w) => (float[n, 100] y) "
            "{ p = Mul(x, w) q = Sigmoid(p) y = Add(p, q) }"
        ),
        "layer_norm": program(
            "(float[n, 100] x) => (float[n, 100] y) { y = LayerNormalization(x, w, c) }", {"w": one, "c": one}
        ),
        "softmax": program("(float[n, m] x) => (float[n, m] y) { y = Softmax(x) }"),
        "matmul": program(
            "(float[n, 48] x, float[n, 40] r) => (float[n, 40] y) "
            "{ p = MatMul(x, w) q = Add(p, c) s = Relu(q) y = Add(s, r) }",
            {"w": weight, "c": bias},
        ),
        "winograd": program(
            "(float[n, 16, h, w] x) => (float[n, 40, h, w] y) "
            "{ p = Conv<pads = [1, 1, 1, 1]>(x, k, c) y = Relu(p) }",
            {"k": np.ones((40, 16, 3, 3), np.float32), "c": bias},
        ),
        "attention": program(
            "(float[b, s, 64] q, float[b, t, 64] k, float[b, t, 64] v, bool[b, 1, 1, t] m) => "
            "(float[b, s, 64] y) "
            "{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v, m) }"
        ),
    }


def source(p: Program) -> str:
    """The C of a program's kernels."""
    functions = [k.function for k in lower_program(p, TARGET).kernels]
    return emit_functions(functions, expand_operation, exported=[f.name for f in functions])


def main() -> None:
    """Writes all files."""
    GOLDEN.mkdir(exist_ok=True)
    for name, p in programs().items():
        (GOLDEN / f"{name}.c").write_text(source(p), "utf-8")


if __name__ == "__main__":
    main()
