"""scikit-learn: a fitted estimator, through skl2onnx; LightGBM and XGBoost, through onnxmltools."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from hasten.errors import MissingDependencyError, ModelError, OptionError
from hasten.frontends.onnx import load as load_onnx
from hasten.frontends.protocol import Dynamic, Example
from hasten.frontends.quiet import silent
from hasten.frontends.sklearn_converters import RoundedBooster, know, of_histograms
from hasten.graph.classical import ML
from hasten.graph.inference import one_line

# What both converters and ONNX Runtime know.
_OPSETS = {"": 21, ML: 3}
_OPSET_OF_BOOSTERS = 15
# Distances are one operator instead of a loop over rows. Scalers divide in the type in which scikit-learn
# does: trees behind them ask on which side of a number lies what comes out, and the last bit decides.
_DISTANCE: dict[str, str] = {"optim": "cdist"}
_DIVISION: dict[str, str] = {"div": "div"}
_WIDE_DIVISION: dict[str, str] = {"div": "div_cast"}
_OPTIONS = {
    "GaussianProcessClassifier": _DISTANCE,
    "GaussianProcessRegressor": _DISTANCE,
    "KNNImputer": _DISTANCE,
    "KNeighborsClassifier": _DISTANCE,
    "KNeighborsRegressor": _DISTANCE,
    "KNeighborsTransformer": _DISTANCE,
    "KernelPCA": _DISTANCE,
    "LocalOutlierFactor": _DISTANCE,
    "NearestNeighbors": _DISTANCE,
    "RadiusNeighborsClassifier": _DISTANCE,
    "RadiusNeighborsRegressor": _DISTANCE,
    "MaxAbsScaler": _WIDE_DIVISION,
    "RobustScaler": _WIDE_DIVISION,
    "StandardScaler": _DIVISION,
}
ROWS = "rows"
"""The name of the number of rows."""

_NAMES = {"output_label": "label", "output_probability": "probabilities"}
_FAILURES = (
    ArithmeticError, AttributeError, ImportError, LookupError, NameError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def accepts(source: object) -> bool:
    """Return whether `source` is an estimator of scikit-learn's kind, or a booster of LightGBM or XGBoost."""
    base = sys.modules.get("sklearn.base")
    return (base is not None and isinstance(source, base.BaseEstimator)) or _booster(source) is not None


def load(source: object, *, example: Example | None = None, dynamic: Dynamic | None = None) -> ir.Model:
    """Convert a fitted estimator, which takes any number of rows.

    The model has one input `X`, float32 [rows, columns]. An estimator that chooses columns by name, or has
    columns of texts, has an input [rows, 1] for each column instead, by its name. Classifiers give `label`
    and `probabilities` [rows, classes] in the order of `classes_`, no maps.

    Args:
        source: The estimator, pipeline or booster.
        example: Rows of what it takes, where the types of its columns cannot be told from the estimator: an
            array, or an array for each input by name. Integers and texts stay what they are.
        dynamic: Not allowed: the number of rows is symbolic, all else is fixed.

    Returns:
        The converted model.

    Raises:
        ModelError: It is not fitted, or there is no conversion for a part of it.
        MissingDependencyError: `skl2onnx`, or for boosters `onnxmltools`, is not installed.
        OptionError: `dynamic` was given, or `example` is of another kind.
    """
    if dynamic is not None:
        raise OptionError(
            "`dynamic` cannot be used with an estimator, whose number of rows is symbolic and whose columns "
            f"are fixed: got {dict(dynamic)}. Leave it out."
        )
    return load_onnx(convert(source, example))


def convert(source: object, example: Example | None = None) -> onnx.ModelProto:
    """The ONNX model of an estimator, as `load` describes it.

    Raises:
        ModelError, MissingDependencyError, OptionError: See `load`.
    """
    boosted = _booster(source)
    library = "onnxmltools" if boosted else "skl2onnx"
    with _explained(source, library):
        _check_fitted(source)
        if boosted:
            columns = int(getattr(source, "num_feature", getattr(source, "num_features", lambda: 0))())
            proto = _from_booster(boosted, source, columns)
        else:
            proto = _from_estimator(source, _types(source, example))
    return _without_maps(proto)


def _booster(source: object) -> str | None:
    """The package of a booster that is no estimator."""
    for package in ("lightgbm", "xgboost"):
        module = sys.modules.get(package)
        if module is not None and isinstance(source, module.Booster):
            return package
    return None


@contextlib.contextmanager
def _explained(source: object, library: str) -> Iterator[None]:
    """Turns what a converter raises into errors of ours."""
    kind = type(source).__name__
    try:
        with silent("skl2onnx"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Reading a {kind} needs the package {error.name}: pip install 'hasten[sklearn]'"
            + (" onnxmltools" if (error.name or "").startswith("onnxmltools") else "")
        ) from error
    except _FAILURES as error:
        raise ModelError(
            f"{library} cannot convert this {kind}: {one_line(error)[:400]}. Give example= if its columns "
            "have several types, replace the part that it names, or convert it yourself and give the ONNX "
            "model."
        ) from error


def _check_fitted(source: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if _booster(source):
        return
    try:
        check_is_fitted(source)
    except NotFittedError as error:
        raise ModelError(f"This {type(source).__name__} is not fitted. Call its fit first.") from error


def _from_booster(package: str, source: Any, columns: int) -> onnx.ModelProto:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    converter = getattr(onnxmltools, f"convert_{package}")
    types = [("X", FloatTensorType([None, columns]))]
    if package == "lightgbm":
        from onnxmltools.convert.lightgbm._parse import WrappedBooster

        source = WrappedBooster(RoundedBooster(source))
    made: onnx.ModelProto = converter(source, initial_types=types, target_opset=_OPSET_OF_BOOSTERS)
    return made


def _from_estimator(source: Any, types: list[tuple[str, Any]]) -> onnx.ModelProto:
    from skl2onnx import convert_sklearn

    parts = list(_parts(source))
    for part in parts:
        if _OPTIONS.get(type(part).__name__) is _DISTANCE and _weighs(part):
            raise ValueError(f"{type(part).__name__} with weights other than 'uniform' becomes a wrong model")
    options = {id(p): _OPTIONS[type(p).__name__] for p in parts if type(p).__name__ in _OPTIONS}
    kinds = {type(p) for p in parts}
    know(kinds)
    converters, shapes = of_histograms(kinds)
    made: onnx.ModelProto = convert_sklearn(
        source,
        initial_types=types,
        options=options or None,
        target_opset=_OPSETS,
        custom_conversion_functions=converters or None,
        custom_shape_calculators=shapes or None,
    )
    return made


def _weighs(part: Any) -> bool:
    return getattr(part, "weights", "uniform") not in ("uniform", None)


def _parts(source: Any) -> Iterator[Any]:
    """An estimator and all that it holds."""
    base = sys.modules["sklearn.base"].BaseEstimator
    stack, seen = [source], set[int]()
    while stack:
        at = stack.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at, base):
            yield at
            stack += vars(at).values()
        elif isinstance(at, Mapping):
            stack += at.values()
        elif isinstance(at, list | tuple):
            stack += at
        elif isinstance(at, np.ndarray) and at.dtype == object:
            stack += at.reshape(-1).tolist()


def _types(source: Any, example: Example | None) -> list[tuple[str, Any]]:
    """Names and types of the inputs, as skl2onnx takes them."""
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    if example is not None:
        return _types_of(example)
    count = getattr(source, "n_features_in_", None)
    if count is None:
        raise ModelError(
            f"This {type(source).__name__} does not say how many columns it takes. Give example= with some "
            "rows."
        )
    names = getattr(source, "feature_names_in_", None)
    columns = [f"x{k}" for k in range(count)] if names is None else [str(n) for n in names]
    texts, by_name = set[int](), False
    for part, chosen in _encoded(source, list(range(count)), columns):
        by_name = by_name or chosen is None
        for place, categories in zip(chosen or (), getattr(part, "categories_", ()), strict=False):
            if np.asarray(categories).dtype.kind in "OUS" and any(isinstance(c, str) for c in categories):
                texts.add(place)
    if not by_name and not texts:
        return [("X", FloatTensorType([None, count]))]
    if len(texts) == count and names is None:
        return [("X", StringTensorType([None, count]))]
    return [
        (name, (StringTensorType if k in texts else FloatTensorType)([None, 1]))
        for k, name in enumerate(columns)
    ]


def _encoded(source: Any, columns: list[int], names: Sequence[str]) -> Iterator[tuple[Any, list[int] | None]]:
    """What reads columns of the input, with their numbers; without them where names choose."""
    steps = getattr(source, "steps", None)
    if steps is not None:
        kept = [s for _, s in steps if s is not None and s != "passthrough"]
        # Filling in keeps the columns, so that what follows it reads them too.
        for step in kept:
            yield from _encoded(step, columns, names)
            if not type(step).__name__.endswith("Imputer"):
                return
        return
    transformers = getattr(source, "transformers_", None)
    if transformers is None:
        yield source, columns
        return
    for _, part, chosen in transformers:
        given: Any = [chosen] if isinstance(chosen, str | int) else chosen
        if isinstance(given, slice) or any(isinstance(c, bool | np.bool_) for c in given):
            given = np.arange(len(columns))[given].tolist()
        if any(isinstance(c, str) for c in given):
            yield source, None
            given = [names.index(c) for c in given]
        if not isinstance(part, str):
            yield from _encoded(part, [columns[c] for c in given], names)


def _types_of(example: Any) -> list[tuple[str, Any]]:
    """Types of rows: an array, a mapping of arrays by name, or a data frame."""
    if isinstance(example, tuple) and len(example) == 1:
        (example,) = example
    if isinstance(example, Mapping) or hasattr(example, "columns"):
        names = list(example) if isinstance(example, Mapping) else list(example.columns)
        return [(str(n), _type_of(np.asarray(example[n]))) for n in names]
    if isinstance(example, tuple):
        raise OptionError(f"example= of an estimator is one array or one for each input, got {len(example)}.")
    return [("X", _type_of(np.asarray(example)))]


def _type_of(array: np.ndarray) -> Any:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    width = array.shape[1] if array.ndim > 1 else 1
    kinds = {"f": FloatTensorType, "i": Int64TensorType, "u": Int64TensorType, "b": Int64TensorType}
    return kinds.get(array.dtype.kind, StringTensorType)([None, width])


def _flatten_label(graph: onnx.GraphProto) -> None:
    """Makes labels a vector: some converters make a row or a column of them."""
    label = next((v for v in graph.output if v.name == "label"), None)
    if label is None or any(d.dim_value > 1 for d in label.type.tensor_type.shape.dim):
        return
    for node in graph.node:
        node.output[:] = [f"{n}_unshaped" if n == label.name else n for n in node.output]
        node.input[:] = [f"{n}_unshaped" if n == label.name else n for n in node.input]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "label_shape"))
    graph.node.append(onnx.helper.make_node("Reshape", ["label_unshaped", "label_shape"], ["label"], "label"))
    kind = label.type.tensor_type.elem_type
    label.CopyFrom(onnx.helper.make_tensor_value_info(label.name, kind, [None]))


def _without_maps(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with probabilities as a matrix instead of maps, labels as a vector, and the usual names."""
    graph = proto.graph
    outputs = {v.name: v for v in graph.output}
    renamed = {old: new for old, new in _NAMES.items() if old in outputs and new not in outputs}
    renamed |= {new: f"{new}_inside" for new in renamed.values()}
    for node in list(graph.node):
        if node.domain == ML and node.op_type == "ZipMap" and node.output[0] in outputs:
            classes = max(len(a.ints) or len(a.strings) for a in node.attribute)
            matrix = onnx.helper.make_tensor_value_info(
                node.output[0], onnx.TensorProto.FLOAT, [None, classes]
            )
            outputs[node.output[0]].CopyFrom(matrix)
            copied = onnx.helper.make_node("Identity", node.input, node.output, node.name)
            node.CopyFrom(copied)
    for node in graph.node:
        node.input[:] = [renamed.get(n, n) for n in node.input]
        node.output[:] = [renamed.get(n, n) for n in node.output]
    for value in (*graph.output, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    _flatten_label(graph)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = ROWS
    if not any(o.domain == "" for o in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("", _OPSETS[""]))
    return proto
