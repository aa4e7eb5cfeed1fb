"""The verbs: `hasten.compile`, `hasten.optimize` and `hasten.prune`, and what else the command line needs."""

from hasten.api.compiling import PADDING, PRECISIONS, STORAGE, CompileOptions, compile, compile_payload  # noqa: A004
from hasten.api.optimizing import Optimized, SearchReport, optimize
from hasten.api.pruning import prune
from hasten.passes.quantize import Scheme
from hasten.search.prune.report import Pruned
from hasten.search.prune.training import Training
from hasten.search.quantization import Quantization
from hasten.search.tune_options import Tuning

__all__ = [
    "PADDING",
    "PRECISIONS",
    "STORAGE",
    "CompileOptions",
    "Optimized",
    "Pruned",
    "Quantization",
    "Scheme",
    "SearchReport",
    "Training",
    "Tuning",
    "compile",
    "compile_payload",
    "optimize",
    "prune",
]
