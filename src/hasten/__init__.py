"""hasten: a trained model in, the fastest verified version of it out.

    import hasten

    fast = hasten.compile("model.onnx")          # same answers, compiled to machine code
    out = fast.run({"x": array})                 # NumPy in, NumPy out
    fast.save("model.hasten")
    fast = hasten.open("model.hasten")           # no compiler, no framework

Importing `hasten` needs NumPy alone; `compile` loads the compile side when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten import errors
from hasten.errors import HastenError, MissingDependencyError
from hasten.runtime.manifest import TensorInfo
from hasten.runtime.session import Session
from hasten.runtime.session import open_session as open  # noqa: A004 - the field's word
from hasten.target import Target

if TYPE_CHECKING:
    from hasten.api import compile, optimize, prune  # noqa: A004 - the field's word
    from hasten.search.prune.report import Pruned
    from hasten.search.prune.training import Training
    from hasten.search.quantization import Quantization
    from hasten.search.tune_options import Tuning

__version__ = "0.1.0"
__all__ = [
    "HastenError",
    "Pruned",
    "Quantization",
    "Session",
    "Target",
    "TensorInfo",
    "Training",
    "Tuning",
    "__version__",
    "compile",
    "errors",
    "open",
    "optimize",
    "prune",
]


def __getattr__(name: str) -> Any:
    """Loads `compile` and the like, which need more than NumPy, when they are first used (PEP 562)."""
    if name not in ("Pruned", "Quantization", "Training", "Tuning", "compile", "optimize", "prune"):
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    try:
        from hasten import api
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "hasten":
            raise
        raise MissingDependencyError(
            f"hasten.{name} needs the package {error.name.partition('.')[0]}, which is not installed: "
            "pip install 'hasten[compile]'"
        ) from error
    return getattr(api, name)
