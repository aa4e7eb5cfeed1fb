"""What runs in an engine's own process: opens a model, then answers requests, a line of JSON each.

This file is started as a script and imports nothing but what the engine needs, so that the memory of
its process is the engine's. Protocol: after opening and one run it says what that took (`Opened` in
`engines.py`); then `{"runs": n}` is answered with `{"seconds": [...]}`, and `{"save": path}` with `{}`
when the outputs that are arrays are in that .npz file. With `"feeds": path` beside it the inputs of that
file are taken from then on. An exception ends the process; its text is the last line of stderr.
"""

from __future__ import annotations

import contextlib
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

_OF_ANOTHER_PACKAGE = 2  # what `numpy.dtype.isbuiltin` says of such types

Feeds = Mapping[str, Any]
Job = Mapping[str, Any]
"""package, precision, mode, model, threads: `Engine` in `engines.py` says what they mean."""
Step = Callable[[], Any]
Bind = Callable[[Feeds], Step]
"""Gives what runs the model on some inputs."""
Named = Callable[[Any], dict[str, Any]]
Open = Callable[[Feeds], tuple[Bind, Named]]
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
Arrange = Callable[[Feeds], Arguments]
"""Gives the arguments of a module's call, by place and by name."""


def hasten_engine(job: Job) -> Open:
    """Artifacts, by hasten's runtime."""
    from hasten.runtime.session import open_session

    def start(feeds: Feeds) -> tuple[Bind, Named]:
        session = open_session(job["model"], threads=job["threads"])
        return functools.partial(functools.partial, session.run), lambda outputs: outputs

    return start


def onnxruntime_engine(job: Job) -> Open:
    """ONNX files, by ONNX Runtime with its default optimizations."""
    onnxruntime: Any = importlib.import_module("onnxruntime")

    def start(feeds: Feeds) -> tuple[Bind, Named]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        bind = functools.partial(functools.partial, session.run, None)
        return bind, lambda outputs: dict(zip(names, outputs, strict=True))

    return start


def openvino_engine(job: Job) -> Open:
    """ONNX files, by OpenVINO for one request at a time."""
    openvino: Any = importlib.import_module("openvino")

    def start(feeds: Feeds) -> tuple[Bind, Named]:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job["threads"],
        }
        if job["precision"] != "int8":
            settings["INFERENCE_PRECISION_HINT"] = job["precision"]
        core = openvino.Core()
        model = core.read_model(job["model"])
        if job["mode"] == "static":
            model.reshape({name: list(array.shape) for name, array in feeds.items()})
        compiled = core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        bind = functools.partial(functools.partial, request.infer, share_inputs=True)

        def named(outputs: Any) -> dict[str, Any]:
            return {name: outputs[port] for port in compiled.outputs for name in port.get_names()}

        return bind, named

    return start


def torch_engine(job: Job) -> Open:
    """Torch modules, by PyTorch: as they are, compiled, or under autocast.

    Its compiler may fold constants ("freezing"), as all the other engines do.
    """
    import torch

    with contextlib.suppress(ImportError):
        importlib.import_module("transformers")  # loading shall not pay for it

    if job["mode"] == "compile":
        importlib.import_module("torch._inductor.compile_fx")
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.freezing = True

    def start(feeds: Feeds) -> tuple[Bind, Named]:
        torch.set_num_threads(job["threads"])
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        module, arranged = torch_module(job["model"])
        converted = job["precision"] == "bf16" and job["mode"] != "autocast"
        if converted:
            module = module.to(torch.bfloat16)
        if job["mode"] == "compile":
            module = torch.compile(module)

        def bind(feeds: Feeds) -> Step:
            tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}
            if converted:
                tensors = {
                    k: t.to(torch.bfloat16) if t.is_floating_point() else t for k, t in tensors.items()
                }
            args, named = arranged(tensors)
            run = functools.partial(module, *args, **named)
            if job["mode"] != "autocast":
                return run

            def step() -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return run()

            return step

        return bind, torch_outputs

    return start


def torch_module(model: str) -> tuple[Any, Arrange]:
    """The module that a Hugging Face folder, a saved module or "path/to/file.py:function" stands for.

    Returns:
        The module, in f32 unless it was exported, and how it takes its inputs.
    """
    import torch

    place, _, function = model.rpartition(":")
    if place.endswith(".py"):
        return runpy.run_path(place)[function]().float().eval(), in_order
    if model.endswith(".pt2"):
        program = torch.export.load(model)
        return program.module(), functools.partial(as_exported, program)
    if model.endswith(".pt"):
        return torch.load(model, weights_only=False).float().eval(), by_name
    import transformers

    config = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
    name = (config.architectures or ["AutoModel"])[0]
    module = getattr(transformers, name).from_pretrained(model, local_files_only=True).float().eval()
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    return module, by_name


def in_order(feeds: Feeds) -> Arguments:
    """Inputs as positional arguments."""
    return tuple(feeds.values()), {}


def by_name(feeds: Feeds) -> Arguments:
    """Inputs as arguments by name."""
    return (), feeds


def as_exported(program: Any, feeds: Feeds) -> Arguments:
    """Inputs as a program was exported with them: of `original.py`, one mapping has them all."""
    example: Arguments | None = program.example_inputs
    args, named = example or ((), {})
    if len(args) == 1 and isinstance(args[0], Mapping) and feeds.keys() <= args[0].keys():
        return ({name: feeds.get(name, given) for name, given in args[0].items()},), {}
    rest = {name: value for name, value in feeds.items() if name not in named}
    names = [name for name in program.graph_signature.user_inputs if name in rest]
    values = [rest[name] for name in names] if len(names) == len(rest) else rest.values()
    return tuple(values), {name: feeds[name] for name in named}


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

    def start(feeds: Feeds) -> tuple[Bind, Named]:
        evaluator = onnx.reference.ReferenceEvaluator(job["model"])

        def bind(feeds: Feeds) -> Step:
            return functools.partial(evaluator.run, None, dict(feeds))

        return bind, lambda outputs: dict(zip(evaluator.output_names, outputs, strict=True))

    return start


ENGINES: Mapping[str, Callable[[Job], Open]] = {
    "hasten": hasten_engine,
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "torch": torch_engine,
    "onnx": reference_engine,
}


def read_feeds(path: str) -> dict[str, Any]:
    """The arrays of an .npz file; texts are objects, as engines take them."""
    return {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in read_npz(path).items()}


def read_npz(path: str) -> dict[str, Any]:
    """What `save_npz` wrote, with the element types that NumPy itself knows no name for."""
    with np.load(path) as loaded:
        kinds = {name: loaded.zip.getinfo(f"{name}.npy").comment.decode() for name in loaded.files}
        if any(kinds.values()):
            importlib.import_module("ml_dtypes")
        return {name: a.view(np.dtype(kinds[name])) if kinds[name] else a for name, a in loaded.items()}


def save_npz(path: str | IO[bytes], arrays: Mapping[str, Any]) -> None:
    """`numpy.savez` for any names: its own has arguments that some inputs are called like.

    An element type of another package, bfloat16 for one, is bytes to NumPy: a comment beside them names it.

    Raises:
        ValueError: there are Python objects that are no texts.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, given in arrays.items():
            array = np.asanyarray(given)
            if array.dtype == object and all(isinstance(text, str) for text in array.flat):
                array = array.astype(str)
            member = zipfile.ZipInfo(f"{name}.npy")
            if array.dtype.isbuiltin == _OF_ANOTHER_PACKAGE:
                member.comment = array.dtype.name.encode()
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def without_maps(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What can be written and compared: arrays, but no maps, sequences and missing values."""
    return {name: array for name, array in outputs.items() if isinstance(array, np.ndarray | np.generic)}


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


def limit_memory(most: int | None) -> None:
    """Lets allocations fail beyond some bytes of this process's own data: Linux, mapped files not counted."""
    if most is not None and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def die_with_parent() -> None:
    """A stopped process would never notice that nobody needs it any more."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Opens a model as the command line says, then answers requests until stdin ends."""
    job = json.loads(sys.argv[1])
    die_with_parent()
    limit_memory(job["memory"])
    # Libraries that print shall not disturb the protocol.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.append(job["path"])
    feeds = read_feeds(job["feeds"])
    start = ENGINES[job["package"]](job)
    base, _ = memory()
    begin = time.perf_counter()
    bind, named = start(feeds)
    step = bind(feeds)
    load = time.perf_counter() - begin
    (first,) = timed(step, 1)
    _, peak = memory()
    print(json.dumps({"load": load, "first": first, "base": base, "peak": peak}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "feeds" in request:
            step = bind(read_feeds(request["feeds"]))
        if "runs" in request:
            answer["seconds"] = timed(step, request["runs"])
        else:
            save_npz(request["save"], without_maps(named(step())))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
