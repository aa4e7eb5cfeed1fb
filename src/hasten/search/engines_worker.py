"""What runs in an engine's own process: opens a model, then answers requests, a line of JSON each.

This file is started as a script and imports nothing but what the engine needs, so that the memory of
its process is the engine's. Protocol: after opening and one run it says what that took (`Opened` in
`engines.py`); then `{"runs": n}` is answered with `{"seconds": [...]}`, and `{"save": path}` with `{}`
when the outputs are in that .npz file. An exception ends it; its text is the last line of stderr.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

Feeds = Mapping[str, Any]
Job = Mapping[str, Any]
"""package, precision, mode, model, threads: `Engine` in `engines.py` says what they mean."""
Step = Callable[[], Any]
Named = Callable[[Any], dict[str, Any]]
Open = Callable[[Feeds], tuple[Step, Named]]


def hasten_engine(job: Job) -> Open:
    """Artifacts, by hasten's runtime."""
    from hasten.runtime.session import open_session

    def start(feeds: Feeds) -> tuple[Step, Named]:
        session = open_session(job["model"], threads=job["threads"])
        return functools.partial(session.run, feeds), lambda outputs: outputs

    return start


def onnxruntime_engine(job: Job) -> Open:
    """ONNX files, by ONNX Runtime with its default optimizations."""
    onnxruntime: Any = importlib.import_module("onnxruntime")

    def start(feeds: Feeds) -> tuple[Step, Named]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        step = functools.partial(session.run, None, feeds)
        return step, lambda outputs: dict(zip(names, outputs, strict=True))

    return start


def openvino_engine(job: Job) -> Open:
    """ONNX files, by OpenVINO for one request at a time."""
    openvino: Any = importlib.import_module("openvino")

    def start(feeds: Feeds) -> tuple[Step, Named]:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job["threads"],
            "INFERENCE_PRECISION_HINT": job["precision"],
        }
        core = openvino.Core()
        model = core.read_model(job["model"])
        if job["mode"] == "static":
            model.reshape({name: list(array.shape) for name, array in feeds.items()})
        compiled = core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        step = functools.partial(request.infer, feeds, share_inputs=True)

        def named(outputs: Any) -> dict[str, Any]:
            return {name: outputs[port] for port in compiled.outputs for name in port.get_names()}

        return step, named

    return start


def torch_engine(job: Job) -> Open:
    """Torch modules, by PyTorch: as they are, compiled, or under autocast.

    Its compiler may fold constants ("freezing"), as all the other engines do.
    """
    import torch
    import transformers  # noqa: F401 - loading shall not pay for it

    if job["mode"] == "compile":
        importlib.import_module("torch._inductor.compile_fx")
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.freezing = True

    def start(feeds: Feeds) -> tuple[Step, Named]:
        torch.set_num_threads(job["threads"])
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        module, by_name = torch_module(job["model"])
        tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}
        if job["precision"] == "bf16" and job["mode"] != "autocast":
            module = module.to(torch.bfloat16)
            tensors = {k: t.to(torch.bfloat16) if t.is_floating_point() else t for k, t in tensors.items()}
        if job["mode"] == "compile":
            module = torch.compile(module)
        run = (
            functools.partial(module, **tensors) if by_name else functools.partial(module, *tensors.values())
        )
        if job["mode"] != "autocast":
            return run, torch_outputs

        def step() -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return run()

        return step, torch_outputs

    return start


def torch_module(model: str) -> tuple[Any, bool]:
    """The module that a Hugging Face folder or "path/to/file.py:function" stands for.

    Returns:
        The module in f32, and whether it takes its inputs by name.
    """
    place, _, function = model.rpartition(":")
    if place.endswith(".py"):
        return runpy.run_path(place)[function]().float().eval(), False
    import transformers

    config = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
    name = (config.architectures or ["AutoModel"])[0]
    module = getattr(transformers, name).from_pretrained(model, local_files_only=True).float().eval()
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    return module, True


def torch_outputs(result: Any) -> dict[str, Any]:
    """The tensors in what a module returned, under the names that hasten's frontend gives them."""
    import torch

    named: dict[str, Any] = {}
    items = result.items() if hasattr(result, "items") else [("output", result)]
    for key, value in items:
        found = list(tensors_in(value))
        for index, tensor in enumerate(found):
            array = (
                tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            ).numpy()  # NumPy has no bf16
            named[key if len(found) == 1 else f"{key}_{index}"] = array
    return named


def tensors_in(value: Any) -> list[Any]:
    """The tensors in nested tuples and lists."""
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return [value] if hasattr(value, "numpy") else []


def reference_engine(job: Job) -> Open:
    """ONNX files, by ONNX's reference evaluator."""
    import onnx.reference

    def start(feeds: Feeds) -> tuple[Step, Named]:
        evaluator = onnx.reference.ReferenceEvaluator(job["model"])
        step = functools.partial(evaluator.run, None, dict(feeds))
        return step, lambda outputs: dict(zip(evaluator.output_names, outputs, strict=True))

    return start


ENGINES: Mapping[str, Callable[[Job], Open]] = {
    "hasten": hasten_engine,
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "torch": torch_engine,
    "onnx": reference_engine,
}


def save_npz(path: str | IO[bytes], arrays: Mapping[str, Any]) -> None:
    """`numpy.savez` for any names: its own has arguments that some inputs are called like."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def timed(step: Step, runs: int) -> list[float]:
    """Seconds of each of some runs."""
    seconds = []
    clock = time.perf_counter
    gc.disable()
    for _ in range(runs):
        start = clock()
        step()
        seconds.append(clock() - start)
    gc.enable()
    return seconds


def memory() -> tuple[int | None, int | None]:
    """Bytes of this process in memory: now (Linux), and at the most."""
    if sys.platform != "linux":
        return None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - pathlib is not loaded here
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", file.read(), re.M))
    return int(found["VmRSS"]) << 10, int(found["VmHWM"]) << 10


def die_with_parent() -> None:
    """A stopped process would never notice that nobody needs it any more."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Opens a model as the command line says, then answers requests until stdin ends."""
    job = json.loads(sys.argv[1])
    die_with_parent()
    # Libraries that print shall not disturb the protocol.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.append(job["path"])
    with np.load(job["feeds"]) as loaded:
        feeds = dict(loaded)
    start = ENGINES[job["package"]](job)
    base, _ = memory()
    begin = time.perf_counter()
    step, named = start(feeds)
    load = time.perf_counter() - begin
    (first,) = timed(step, 1)
    _, peak = memory()
    print(json.dumps({"load": load, "first": first, "base": base, "peak": peak}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "runs" in request:
            answer["seconds"] = timed(step, request["runs"])
        else:
            save_npz(request["save"], named(step()))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
