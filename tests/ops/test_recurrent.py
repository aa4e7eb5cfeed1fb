"""RNN, GRU and LSTM against ONNX Runtime, interpreted and compiled."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree

from hasten.loops.evaluate import evaluate
from hasten.loops.verify import verify
from hasten.onnx_backend import HastenRep, prepare_all
from hasten.ops.lowering import lower_graph
from hasten.target import Target, runs_here

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
ACTIVATIONS = ["Sigmoid", "Tanh", "Relu", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh",
               "HardSigmoid", "Elu", "Softsign", "Softplus"]  # fmt: skip
# alpha and beta of those that take them; ONNX Runtime wants one of each for every activation that does.
NUMBERS = {"Affine": (0.7, 0.2), "LeakyRelu": (0.1,), "ThresholdedRelu": (0.4,), "ScaledTanh": (0.9, 0.6),
           "HardSigmoid": (0.3, 0.4), "Elu": (0.8,)}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A node and its feeds."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    text: str
    units: int


def setting(seed: int) -> Setting:
    """A random node: sizes, direction, which inputs there are, attributes."""
    rng = np.random.default_rng(seed)
    op = ["RNN", "GRU", "LSTM"][seed % 3]
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    directions = 2 if direction == "bidirectional" else 1
    steps, batch, features = (int(n) for n in rng.integers(1, 7, 3))
    units = int(rng.choice([1, 3, 16, 20, 70]))
    gates = GATES[op] * units
    attributes = {"hidden_size": units, "direction": direction}
    if rng.random() < 0.4:
        names = [str(n) for n in rng.choice(ACTIVATIONS, FUNCTIONS[op] * directions)]
        if op != "RNN":  # gates in [0, 1], so that no state grows beyond measure
            gates_of = range(0, len(names), FUNCTIONS[op])
            names = [
                str(rng.choice(["Sigmoid", "HardSigmoid"])) if k in gates_of else n
                for k, n in enumerate(names)
            ]
        numbers = [NUMBERS.get(n, ()) for n in names]
        attributes |= {"activations": names}
        if any(numbers):
            attributes["activation_alpha"] = [n[0] for n in numbers if n]
        if any(len(n) > 1 for n in numbers):
            attributes["activation_beta"] = [n[1] for n in numbers if len(n) > 1]
    if rng.random() < 0.3:
        attributes["clip"] = 0.5
    if op == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(0, 2))
    if op == "LSTM" and rng.random() < 0.3:
        attributes["input_forget"] = 1

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    values = {
        "x": floats(steps, batch, features),
        "w": floats(directions, gates, features),
        "r": floats(directions, gates, units),
    }
    optional = {
        "bias": floats(directions, 2 * gates),
        "lengths": rng.integers(1, steps + 1, batch).astype(np.int32),
        "h": floats(directions, batch, units),
    }
    if op == "LSTM":
        optional |= {"c": floats(directions, batch, units), "p": floats(directions, 3 * units)}
    present = [name for name in optional if rng.random() < 0.6]
    values |= {name: optional[name] for name in present}
    names = ["x", "w", "r", *(name if name in present else "" for name in optional)]
    outputs = ["y", "y_h", "y_c"] if op == "LSTM" else ["y", "y_h"]
    node = helper.make_node(op, names, outputs, **attributes)
    constant = {"w", "r", "bias", "p"} if rng.random() < 0.7 else set()
    given = {n: a for n, a in values.items() if n not in constant}
    dims = {
        "x": ["t", "n", features],
        "lengths": ["n"],
        "h": [directions, "n", units],
        "c": [directions, "n", units],
    }
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(a.dtype), dims.get(n, list(a.shape))
            )
            for n, a in given.items()
        ],
        [
            helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * (4 if n == "y" else 3))
            for n in outputs
        ],
        [onnx.numpy_helper.from_array(a, n) for n, a in values.items() if n in constant],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return Setting(model, given, f"{op} {attributes} {present} {steps}x{batch}x{features}", units)


def by_onnxruntime(s: Setting) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(s.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, s.feeds)


@pytest.fixture(scope="module")
def settings() -> list[Setting]:
    return [setting(seed) for seed in range(60)]


def test_the_interpreter_agrees(settings):
    for s in settings:
        model = ir.from_proto(onnx.shape_inference.infer_shapes(s.model))
        lowered = lower_graph(model)
        assert not lowered.host_nodes, (s.text, lowered.reasons)
        verify(lowered.program)
        found = evaluate(lowered.program, s.feeds)
        for name, right in zip(lowered.program.outputs, by_onnxruntime(s), strict=True):
            np.testing.assert_allclose(found[name], right, rtol=1e-4, atol=1e-5, err_msg=s.text)


def test_compiled_code_agrees(settings):
    for s, rep in zip(settings, prepare_all([s.model for s in settings]), strict=True):
        assert isinstance(rep, HastenRep), rep
        assert not rep.host
        for found, right in zip(rep.run(s.feeds), by_onnxruntime(s), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5, err_msg=s.text)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "aarch64"])
def test_lanes_side_by_side_are_lanes_one_by_one(settings, name):
    """With more lanes than go together, and on any number of threads, on each width of vectors."""
    target = Target.named(name)
    many = [s for s in settings if s.feeds["x"].shape[1] >= 5 and s.units >= 16]
    here = runs_here(target)
    many = many[:6] if here else [min(many, key=lambda s: s.feeds["x"].shape[0] * s.units)]
    programs = [lower_graph(ir.from_proto(onnx.shape_inference.infer_shapes(s.model))).program for s in many]
    if here:
        engines = compile_programs(programs, target, parallel=True)
    else:
        engines = [Interpreted.of(p, target) for p in programs]
    for s, engine in zip(many, engines, strict=True):
        agree(engine, s.feeds, (1, 2, 3) if here else (1,))


def test_batch_first_is_the_same_with_axes_exchanged():
    pairs = []
    for seed in (1, 2, 5, 8):  # GRU and LSTM
        s = setting(seed)
        other = onnx.ModelProto.FromString(s.model.SerializeToString())
        other.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
        feeds = {n: a.swapaxes(0, 1) if n in ("x", "h", "c") else a for n, a in s.feeds.items()}
        for value in other.graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name in ("x", "h", "c"):
                axes = [dims[1], dims[0], dims[2]]
                value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=axes))
        pairs.append((s, other, feeds))
    for (s, _, feeds), rep in zip(pairs, prepare_all([other for _, other, _ in pairs]), strict=True):
        assert isinstance(rep, HastenRep), rep
        assert not rep.host
        y, *ends = rep.run(feeds)
        right, *last = by_onnxruntime(s)
        np.testing.assert_allclose(y, right.transpose(2, 0, 1, 3), rtol=1e-4, atol=1e-5)
        for found, state in zip(ends, last, strict=True):
            np.testing.assert_allclose(found, state.swapaxes(0, 1), rtol=1e-4, atol=1e-5)


def test_empty_sequences_keep_their_state():
    s = next(t for t in map(setting, range(100)) if {"lengths", "h"} <= t.feeds.keys())
    (rep,) = prepare_all([s.model])
    assert isinstance(rep, HastenRep)
    feeds = s.feeds | {"lengths": np.zeros_like(s.feeds["lengths"])}
    y, y_h, *_ = rep.run(feeds)
    assert not y.any()
    np.testing.assert_array_equal(y_h, feeds["h"])
