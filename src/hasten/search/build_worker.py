"""What runs in a process that compiles one candidate: an optimized graph in, an artifact out.

Started as a script with its job as JSON; see `build.py`. An exception's text is the last line of stderr.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Compiles as the command line says."""
    job = json.loads(sys.argv[1])
    sys.path.append(job["path"])
    from pathlib import Path

    import onnx_ir as ir

    from hasten.backends.native import Options, compile_graph
    from hasten.loops.dtypes import DType
    from hasten.runtime.artifact import write_artifact
    from hasten.search.engines_worker import die_with_parent, limit_memory
    from hasten.target import Target, with_factors

    die_with_parent()
    limit_memory(job["memory"])
    model = ir.load(job["graph"])
    factors = {"u8"} if any(node.op_type == "QuantizeLinear" for node in model.graph) else set()
    factors |= {"bf16"} if job["precision"] == "bf16" else set()
    targets = [t for name in job["targets"] for t in with_factors(Target.named(name), factors)]
    options = Options(
        tuple(dict.fromkeys(targets)),
        job["threads"],
        DType(job["precision"]),
        Path(job["cache"]),
        job["padding"],
    )
    payload = compile_graph(model, options, job["report"], job["version"])
    write_artifact(job["output"], payload.manifest, payload.members)


if __name__ == "__main__":
    main()
