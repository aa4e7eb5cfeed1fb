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


def _run(work: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray] | None:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return [np.asarray(a) for a in work()]
    except Exception:  # noqa: BLE001 - as above
        return None


Known = tuple[str, Callable[[onnx.ModelProto], bool]]


def _has(*operators: str) -> Callable[[onnx.ModelProto], bool]:
    return lambda model: any(n.op_type in operators for n in model.graph.node)


def _grouped_bias(model: onnx.ModelProto) -> bool:
    return any(
        n.op_type == "ConvTranspose"
        and len(n.input) == 3
        and any(a.name == "group" and a.i > 1 for a in n.attribute)
        for n in model.graph.node
    )


def _loop_without_condition(model: onnx.ModelProto) -> bool:
    return any(n.op_type == "Loop" and not n.input[1] for n in model.graph.node)


def _squares_of_unsigned(model: onnx.ModelProto) -> bool:
    unsigned = any(v.type.tensor_type.elem_type == onnx.TensorProto.UINT32 for v in model.graph.input)
    return unsigned and _has("ReduceSumSquare")(model)


def _cubic_at_border(model: onnx.ModelProto) -> bool:
    return any(
        n.op_type == "GridSample" and {b"cubic", b"border"} <= {a.s for a in n.attribute}
        for n in model.graph.node
    )


REFERENCE_ERRORS: tuple[Known, ...] = (
    ("takes no step of a Loop without a condition", _loop_without_condition),
    ("gives squares of uint32 the type uint64", _squares_of_unsigned),
    ("adds the bias of the first group to all groups of ConvTranspose", _grouped_bias),
    ("takes the axes of GlobalMaxPool from the wrong end", _has("GlobalMaxPool")),
)
ONNXRUNTIME_ERRORS: tuple[Known, ...] = (
    ("samples past the border otherwise than ONNX says in cubic mode", _cubic_at_border),
)


def known(model: onnx.ModelProto, errors: Sequence[Known]) -> str:
    """Why an engine's answers to a model are not counted; "" where they are."""
    return next((reason for reason, found in errors if found(model)), "")
