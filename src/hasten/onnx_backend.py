"""ONNX's backend interface, so that `onnx.backend.test` and programs written against it can use hasten.

import onnx.backend.test
import hasten.onnx_backend

tests = onnx.backend.test.BackendTest(hasten.onnx_backend.HastenBackend, __name__).test_cases
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx.backend.base import Backend, BackendRep

from hasten import __version__, api, frontends
from hasten.backends.batch import compile_batch
from hasten.backends.native import Payload, plan_graph
from hasten.codegen.toolchain import default_cache
from hasten.errors import HastenError, HostOperatorWarning, InputError
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import Session, open_session
from hasten.target import Target


class HastenRep(BackendRep):
    """A model that is ready to run.

    Attributes:
        session: What runs it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def host(self) -> dict[str, str]:
        """Why nodes run on the host, by node; empty where all of the model is compiled."""
        return dict(self.session.report["host"])

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Runs the model.

        Args:
            inputs: A value for each input in order, or by name.
            kwargs: Not used.

        Returns:
            The outputs in order.

        Raises:
            InputError: The inputs do not fit the model.
        """
        names = [info.name for info in self.session.inputs]
        if not isinstance(inputs, dict):
            given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(given) != len(names):
                raise InputError(
                    f"the model takes {len(names)} inputs ({', '.join(names)}), got {len(given)}"
                )
            inputs = dict(zip(names, given, strict=True))
        return tuple(self.session.run(inputs).values())


class HastenBackend(Backend):
    """Runs ONNX models through hasten, on the CPU."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> HastenRep:
        """Compiles a model.

        Args:
            model: The model.
            device: "CPU".
            kwargs: Arguments of `hasten.compile`.

        Raises:
            HastenError: See `hasten.compile`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HostOperatorWarning)  # `HastenRep.host` says it
            return HastenRep(api.compile(model, **kwargs))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compiles a model and runs it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compiles one node for its inputs' types and shapes, and runs it once.

        Args:
            node: The node, of the newest opset that `onnx` has unless `opset_version` is given.
            inputs: An array for each input in order.
            device: "CPU".
            outputs_info: Not used: types and shapes are inferred.
            kwargs: Arguments of `hasten.compile`, and `opset_version`.
        """
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        arrays = [np.asarray(a) for a in inputs]
        names = [name for name in node.input if name]
        values = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names, arrays, strict=True)
        ]
        made = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", values, made)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        model = onnx.shape_inference.infer_shapes(model)
        return cls.run_model(model, arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for the CPU."""
        return device.partition(":")[0] == "CPU"


Opener = Callable[[Path], Session]


def open_for_one_thread(path: Path) -> Session:
    """A session whose runs use one thread."""
    return open_session(path, threads=1)


def prepare_all(
    models: Sequence[onnx.ModelProto], cache: Path | None = None, opener: Opener = open_for_one_thread
) -> list[HastenRep | HastenError]:
    """Compiles many small models at once, in one shared object, for one thread and little optimization.

    Args:
        models: The models.
        cache: Folder of compiled objects; None for the user's.
        opener: Opens an artifact.

    Returns:
        For each model what runs it, or the error that `HastenBackend.prepare` would raise.

    Raises:
        ToolchainError: There is no compiler.
    """
    planned = []
    results: list[HastenRep | HastenError | None] = []
    for model in models:
        try:
            graph = frontends.load(model)
            optimize_graph(graph)
            planned.append(plan_graph(graph, "skip"))
            results.append(None)
        except HastenError as error:
            results.append(error)
    payloads = iter(
        compile_batch(planned, Target.named("native"), __version__, cache=cache or default_cache())
    )
    return [_opened(next(payloads), opener) if r is None else r for r in results]


def _opened(payload: Payload, opener: Opener) -> HastenRep | HastenError:
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        path = Path(folder) / "model.hasten"
        write_artifact(path, payload.manifest, payload.members)
        try:
            return HastenRep(opener(path))
        except HastenError as error:
            return error


prepare = HastenBackend.prepare
run_model = HastenBackend.run_model
run_node = HastenBackend.run_node
supports_device = HastenBackend.supports_device
