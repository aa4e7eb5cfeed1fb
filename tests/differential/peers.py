"""The two engines that hasten is compared with, and what they are known to get wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

Feeds = Mapping[str, np.ndarray]
Results = list[list[np.ndarray] | None]
"""The outputs for each set of inputs; None where the engine cannot run it."""


def by_onnxruntime(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Results:
    """ONNX Runtime's answers, without its own rewriting of graphs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # noqa: BLE001 - it has exceptions of its own for each kind of failure
        return [None] * len(feeds)
    return [_run(lambda f=f: session.run(None, dict(f))) for f in feeds]


def by_reference(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Results:
    """The answers of ONNX's reference evaluator."""
    try:
        evaluator = ReferenceEvaluator(model)
    except Exception:  # noqa: BLE001 - anything may come out of it
        return [None] * len(feeds)
    return [_run(lambda f=f: evaluator.run(None, dict(f))) for f in feeds]


def all_values(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """What the values of a graph hold whose type and shape can be inferred; none where no engine runs it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {o.name for o in model.graph.output}
    copy.graph.output.extend(
        v for v in inferred.value_info if v.name not in known and v.type.tensor_type.HasField("shape")
    )
    held = by_onnxruntime(copy, [feeds])[0] or by_reference(copy, [feeds])[0]
    return {} if held is None else dict(zip([o.name for o in copy.graph.output], held, strict=True))


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the values of a graph, as far as they can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    held = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return {**held, **{w.name: w.data_type for w in graph.initializer}}


def _run(work: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray] | None:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return [np.asarray(a) for a in work()]
    except Exception:  # noqa: BLE001 - as above
        return None


Known = tuple[str, Callable[[onnx.ModelProto, Feeds], bool]]
"""What an engine gets wrong, and whether a graph and its inputs meet it."""


def known(model: onnx.ModelProto, feeds: Feeds, errors: Sequence[Known]) -> str:
    """Why an engine's answers are not counted; "" where they are."""
    return next((reason for reason, met in errors if met(model, feeds)), "")


def _has(*operators: str) -> Callable[[onnx.ModelProto, Feeds], bool]:
    return lambda model, feeds: any(n.op_type in operators for n in model.graph.node)


def _grouped_bias(model: onnx.ModelProto, feeds: Feeds) -> bool:
    return any(
        n.op_type == "ConvTranspose"
        and len(n.input) == 3
        and any(a.name == "group" and a.i > 1 for a in n.attribute)
        for n in model.graph.node
    )


def _loop_without_condition(model: onnx.ModelProto, feeds: Feeds) -> bool:
    return any(n.op_type == "Loop" and not n.input[1] for n in model.graph.node)


def _squares_of_int32(model: onnx.ModelProto, feeds: Feeds) -> bool:
    squares = [n for n in model.graph.node if n.op_type == "ReduceSumSquare"]
    types = element_types(model) if squares else {}
    return any(types.get(n.input[0]) in (onnx.TensorProto.INT32, onnx.TensorProto.UINT32) for n in squares)


def _cubic_at_border(model: onnx.ModelProto, feeds: Feeds) -> bool:
    return any(
        n.op_type == "GridSample" and {b"cubic", b"border"} <= {a.s for a in n.attribute}
        for n in model.graph.node
    )


def _same_over_gaps(model: onnx.ModelProto, feeds: Feeds) -> bool:
    """Pooling with SAME whose windows leave gaps: what the padding comes to may be less than nothing."""
    for n in model.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
        if n.op_type.endswith("Pool") and given.get("auto_pad", b"").startswith(b"SAME"):
            kernel = given["kernel_shape"]
            windows = [
                (k - 1) * d + 1
                for k, d in zip(kernel, given.get("dilations", [1] * len(kernel)), strict=True)
            ]
            if any(s > w for s, w in zip(given.get("strides", [1] * len(kernel)), windows, strict=True)):
                return True
    return False


def _resized_to_one(model: onnx.ModelProto, feeds: Feeds) -> bool:
    resized = [
        n.output[0]
        for n in model.graph.node
        if n.op_type == "Resize" and any(a.s == b"pytorch_half_pixel" for a in n.attribute)
    ]
    held = all_values(model, feeds) if resized else {}
    return any(name not in held or 1 in held[name].shape for name in resized)


def _operands(model: onnx.ModelProto, feeds: Feeds, operator: str) -> list[np.ndarray]:
    """What the nodes of an operator read first, as far as it can be found."""
    nodes = [n for n in model.graph.node if n.op_type == operator]
    held = {**all_values(model, feeds), **feeds} if nodes else {}
    return [held[n.input[0]].astype(np.float64) for n in nodes if n.input[0] in held]


def _gelu_of_infinity(model: onnx.ModelProto, feeds: Feeds) -> bool:
    return any(np.isneginf(x).any() for x in _operands(model, feeds, "Gelu"))


def _constant_channels(model: onnx.ModelProto, feeds: Feeds) -> bool:
    return any(
        bool(
            (
                x.min((0, *range(2, x.ndim)), initial=np.inf)
                == x.max((0, *range(2, x.ndim)), initial=-np.inf)
            ).any()
        )
        for x in _operands(model, feeds, "MeanVarianceNormalization")
    )


_GELU: Known = ("multiplies -inf by the probability 0 in Gelu, whose limit is 0", _gelu_of_infinity)

REFERENCE_ERRORS: tuple[Known, ...] = (
    ("takes no step of a Loop without a condition", _loop_without_condition),
    ("gives squares of 32-bit integers a type of 64 bits", _squares_of_int32),
    ("adds the bias of the first group to all groups of ConvTranspose", _grouped_bias),
    ("takes the axes of GlobalMaxPool from the wrong end", _has("GlobalMaxPool")),
    ("cuts off where pooling with SAME needs less than no padding", _same_over_gaps),
    ("takes the only element of pytorch_half_pixel at -0.5, which is at 0", _resized_to_one),
    _GELU,
)
ONNXRUNTIME_ERRORS: tuple[Known, ...] = (
    ("samples past the border otherwise than ONNX says in cubic mode", _cubic_at_border),
    ("divides by the deviation of a constant, 0, in MeanVarianceNormalization", _constant_channels),
    _GELU,
)
