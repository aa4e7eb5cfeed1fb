"""Operators that ONNX's reference evaluator gets wrong are not folded with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

import hasten


def test_gather_elements_of_constants() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        agraph (int64[n] x) => (int64[1, 3] y) {
            data = Constant <value = int64[1, 5] {10, 11, 12, 13, 14}> ()
            at = Constant <value = int64[1, 3] {4, 0, -2}> ()
            picked = GatherElements <axis = 1> (data, at)
            zero = Constant <value = int64[1] {0}> ()
            first = Gather <axis = 0> (x, zero)
            y = Add (picked, first)
        }
    """
    session = hasten.compile(ir.from_onnx_text(text))
    out = session.run({"x": np.array([100, 7], np.int64)})["y"]
    np.testing.assert_array_equal(out, [[114, 110, 113]])
