"""Tree ensembles against ONNX Runtime: interpreted, as loop nests for several targets, and compiled."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.codegen.engines import Interpreted
from tests.ops.tree_models import Setting, setting

from hasten.loops.evaluate import evaluate
from hasten.loops.verify import verify
from hasten.onnx_backend import HastenRep, prepare_all
from hasten.ops.lowering import lower_graph
from hasten.target import Target


@pytest.fixture(scope="module")
def settings() -> list[Setting]:
    return [setting(seed) for seed in range(90)]


def by_onnxruntime(s: Setting, rows: int) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        s.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": s.x[:rows]})


def agree(found: np.ndarray, right: np.ndarray, text: str) -> None:
    assert found.dtype == right.dtype, text
    np.testing.assert_allclose(found, right.reshape(found.shape), rtol=1e-4, atol=1e-5, err_msg=text)


def test_the_interpreter_and_nests_agree(settings):
    for number, s in enumerate(settings):
        lowered = lower_graph(ir.from_proto(onnx.shape_inference.infer_shapes(s.model)))
        assert not lowered.host_nodes, (s.text, lowered.reasons)
        verify(lowered.program)
        outputs = lowered.program.outputs
        found = evaluate(lowered.program, {"x": s.x})
        for name, right in zip(outputs, by_onnxruntime(s, 41), strict=True):
            agree(found[name], right, s.text)
        if number % 6 < 3:
            target = Target.named(["x86-64-v3", "x86-64-v4", "aarch64"][number // 6 % 3])
            nests = Interpreted.of(lowered.program, target).run({"x": s.x[:11]}, threads=2)
            for name in outputs:
                agree(nests[name], found[name][:11], f"{s.text} {target.name}")


def test_compiled_code_agrees(settings):
    for s, rep in zip(settings, prepare_all([s.model for s in settings]), strict=True):
        assert isinstance(rep, HastenRep), (s.text, rep)
        assert not rep.host, s.text
        for rows in (1, 8, 41):
            for found, right in zip(rep.run({"x": s.x[:rows]}), by_onnxruntime(s, rows), strict=True):
                agree(found, right, f"{s.text} {rows} rows")


def test_no_rows_give_no_results():
    (rep,) = prepare_all([setting(3).model])
    assert isinstance(rep, HastenRep)
    (found,) = rep.run({"x": setting(3).x[:0]})
    assert len(found) == 0


def test_a_damaged_ensemble_is_not_compiled():
    for attribute, value in (("nodes_truenodeids", 99), ("nodes_truenodeids", 0), ("nodes_featureids", -1)):
        model = onnx.ModelProto.FromString(setting(0).model.SerializeToString())
        (found,) = (a for a in model.graph.node[0].attribute if a.name == attribute)
        inner = next(a for a in model.graph.node[0].attribute if a.name == "nodes_modes").strings
        at = next(k for k, mode in enumerate(inner) if mode != b"LEAF")
        found.ints[at] = value
        lowered = lower_graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
        assert lowered.host_nodes, attribute
