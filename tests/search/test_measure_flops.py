"""Counts of arithmetic, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from hasten.runtime.artifact import read_artifact
from hasten.search.measure_flops import count_flops


def graph(node: onnx.NodeProto, shapes: dict[str, list[int | str | None]]) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()]
    return helper.make_graph([node], "g", [], [], value_info=values)


@pytest.mark.parametrize(
    ("node", "shapes", "multiply_adds"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": ["n", 5], "y": ["n", 7]}, 4 * 5 * 7),
        (
            helper.make_node("Gemm", ["a", "b"], ["y"], transA=1),
            {"a": [5, "n"], "y": ["n", 7]},
            4 * 5 * 7,
        ),
        (
            helper.make_node("Conv", ["x", "w"], ["y"], group=2),
            {"w": [8, 3, 3, 3], "y": ["n", 8, "n + 6", "2*n"]},
            4 * 8 * 10 * 8 * 27,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"]),
            {"x": [1, 6, 5, 5], "w": [6, 8, 2, 2]},
            6 * 25 * 8 * 4,
        ),
        (
            helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=2),
            {"q": [2, 3, 32], "k": [2, "n", 16], "v": [2, "n", 20]},
            2 * 3 * 4 * (32 + 40),
        ),
        (
            helper.make_node("Attention", ["q", "k", "v", "", "p", "p"], ["y"]),
            {"q": [2, 4, 3, 8], "k": [2, 4, "n", 8], "v": [2, 4, "n", 6], "p": [2, 4, 5, 8]},
            2 * 4 * 3 * (5 + 4) * (8 + 6),
        ),
        (
            helper.make_node("Einsum", ["a", "b"], ["y"], equation="b i j, b j k -> b i k"),
            {"a": [2, "n", 5], "b": [2, 5, 7]},
            2 * 4 * 5 * 7,
        ),
        (helper.make_node("Einsum", ["a"], ["y"], equation="ij->ji"), {}, 0),
        (helper.make_node("MatMulInteger", ["a", "b"], ["y"]), {"a": ["n", 5], "y": ["n", 7]}, 4 * 5 * 7),
        (
            helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
            {"w": [8, 3, 3, 3], "y": ["n", 8, 6, 6]},
            4 * 8 * 36 * 27,
        ),
        (helper.make_node("Relu", ["q"], ["y"]), {}, 0),
    ],
)
def test_counts(node: onnx.NodeProto, shapes: dict[str, list[int | str | None]], multiply_adds: int) -> None:
    assert count_flops(graph(node, shapes), {"n": 4}) == 2 * multiply_adds


def test_unknown_shapes_are_no_number() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    assert count_flops(graph(node, {"a": [2, 5], "y": [2, None]}), {}) is None
    assert count_flops(graph(node, {"a": [2, 5]}), {}) is None


def test_a_value_without_a_shape_is_no_scalar() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    nothing = onnx.ValueInfoProto(name="y")
    nothing.type.tensor_type.elem_type = TensorProto.FLOAT
    known = graph(node, {"a": [2, 5]})
    known.value_info.append(nothing)
    assert count_flops(known, {}) is None


BODY = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "body", [], [])


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("If", ["c"], ["y"], then_branch=BODY, else_branch=BODY),
        helper.make_node("DeformConv", ["a", "b", "c"], ["y"]),
        helper.make_node("Einsum", ["a", "b", "b"], ["y"], equation="ij,jk,kl->il"),
        helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft"),
    ],
    ids=lambda node: node.op_type,
)
def test_what_multiplies_without_being_counted_is_no_number(node: onnx.NodeProto) -> None:
    square: list[int | str | None] = [2, 2]
    assert count_flops(graph(node, dict.fromkeys("abcy", square)), {}) is None


def test_an_artifact_has_all_that_is_needed(mlp_artifact: Path) -> None:
    content = bytes(read_artifact(mlp_artifact).members["graph.onnx"])
    flops = count_flops(onnx.load_from_string(content).graph, {"batch": 3})
    assert flops == 2 * 3 * (64 * 128 + 128 * 64 + 64)
