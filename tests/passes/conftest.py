"""Small graphs in ONNX's text form: optimized, and compared with what they computed before."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from hasten.graph.opset import OPSET
from hasten.passes.pipeline import optimize_graph
from hasten.passes.rule import PassReport

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Optimized:
    model: ir.Model
    report: PassReport
    kinds: Counter[str]

    def declines(self, rule: str) -> list[str]:
        return [item.reason for item in self.report.declined if item.rule == rule]

    def only(self, kind: str) -> ir.Node:
        (node,) = (node for node in self.model.graph if node.op_type == kind)
        return node


def build(signature: str, body: str, constants: Arrays) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["": {OPSET}]> main {signature} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    onnx.checker.check_model(proto)
    return proto


def compute(proto: onnx.ModelProto, feed: Arrays, engine: str) -> list[npt.NDArray[np.generic]]:
    if engine == "reference":
        return list(ReferenceEvaluator(proto).run(None, dict(feed)))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return list(session.run(None, dict(feed)))


@pytest.fixture
def optimized() -> Callable[..., Optimized]:
    """Optimize a graph; its outputs on `feeds` stay as they were, within `tolerance`."""

    def run(
        signature: str,
        body: str,
        constants: Arrays,
        *feeds: Arrays,
        tolerance: float = 2e-6,
        engine: str = "reference",
    ) -> Optimized:
        proto = build(signature, body, constants)
        model = ir.from_proto(proto)
        report = optimize_graph(model)
        after = ir.to_proto(model)
        onnx.checker.check_model(after)
        assert [v.name for v in after.graph.input] == [v.name for v in proto.graph.input]
        assert [v.name for v in after.graph.output] == [v.name for v in proto.graph.output]
        assert feeds, "a graph that is not run proves nothing"
        for feed in feeds:
            expected = compute(proto, feed, engine)
            found = compute(after, feed, engine)
            for old, new in zip(expected, found, strict=True):
                np.testing.assert_allclose(new, old, rtol=tolerance, atol=tolerance)
                assert new.dtype == old.dtype
        return Optimized(model, report, Counter(node.op_type for node in model.graph))

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
