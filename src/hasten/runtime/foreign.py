"""A whole model that another engine runs: ONNX Runtime or OpenVINO, imported when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ArtifactError, EngineError, MissingDependencyError
from hasten.runtime.manifest import ForeignStep

Array = NDArray[Any]
Call = Callable[[Sequence[Array]], list[Array]]


class ForeignRunner:
    """Runs a step by its engine. Several threads may call it at once."""

    def __init__(self, step: ForeignStep, model: memoryview, threads: int) -> None:
        """Opens the model.

        Args:
            step: what to run, and by which engine.
            model: an ONNX model with its weights.
            threads: threads of a run.

        Raises:
            MissingDependencyError: the engine is not installed.
            ArtifactError: this hasten does not know the engine.
            EngineError: the engine cannot open the model.
        """
        self.step = step
        start = _STARTS.get(step.engine)
        if start is None:
            known = ", ".join(_STARTS)
            raise ArtifactError(f"it needs the engine {step.engine!r}, and this hasten knows {known}")
        try:
            engine = importlib.import_module(step.engine)
        except ModuleNotFoundError:
            raise MissingDependencyError(
                f"this artifact runs on {step.engine}, which is not installed: "
                f"pip install '{step.engine}=={step.version}'"
            ) from None
        try:
            self.run: Call = start(engine, step, model, threads)
        except _failures(engine) as error:
            version = getattr(engine, "__version__", "?")
            raise EngineError(
                f"{step.engine} {version} cannot open the model ({_first_line(error)}): it was made with "
                f"{step.engine} {step.version}, install that"
            ) from None


def _start_onnxruntime(engine: Any, step: ForeignStep, model: memoryview, threads: int) -> Call:
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = engine.InferenceSession(bytes(model), options, providers=["CPUExecutionProvider"])
    names = list(step.outputs)

    def run(arrays: Sequence[Array]) -> list[Array]:
        try:
            return [np.asarray(a) for a in session.run(names, dict(zip(step.inputs, arrays, strict=True)))]
        except _failures(engine) as error:
            raise EngineError(f"onnxruntime failed: {_first_line(error)}") from None

    return run


def _start_openvino(engine: Any, step: ForeignStep, model: memoryview, threads: int) -> Call:
    core = engine.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": step.precision,
    }
    compiled = core.compile_model(core.read_model(bytes(model)), "CPU", settings)
    ports = [compiled.output(name) for name in step.outputs]

    def run(arrays: Sequence[Array]) -> list[Array]:
        request = compiled.create_infer_request()
        try:
            found = request.infer(dict(zip(step.inputs, arrays, strict=True)), share_inputs=True)
        except _failures(engine) as error:
            raise EngineError(f"openvino failed: {_first_line(error)}") from None
        return [np.array(found[port]) for port in ports]

    return run


_STARTS = {"onnxruntime": _start_onnxruntime, "openvino": _start_openvino}


def _failures(engine: Any) -> tuple[type[Exception], ...]:
    """What an engine raises. ONNX Runtime's exceptions have no base of their own."""
    state = getattr(getattr(engine, "capi", None), "onnxruntime_pybind11_state", None)
    kinds = vars(state).values() if state is not None else ()
    own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, ValueError, *own)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
