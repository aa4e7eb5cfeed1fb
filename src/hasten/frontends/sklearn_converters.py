"""Converters that skl2onnx is given in addition: estimators of LightGBM and XGBoost, histogram boosting.

Trees of LightGBM and of histogram boosting ask `x <= limit` with limits in float64. Converters round them to
the nearest float32, which may lie above; here they are rounded down: every float32 is answered as before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Custom = dict[type, Callable[..., Any]]

_BOOSTERS = ("lightgbm", "xgboost")
_HISTOGRAMS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")


def know(kinds: Iterable[type]) -> None:
    """Tells skl2onnx of the estimators of LightGBM and XGBoost among some, as their documentation says."""
    for kind in kinds:
        package = kind.__module__.split(".")[0]
        if package not in _BOOSTERS:
            continue
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
        from skl2onnx import update_registered_converter

        classifies = hasattr(kind, "predict_proba")
        options = {"nocl": [True, False], "zipmap": [True, False, "columns"]} if classifies else {}
        converter = _with_rounded_limits(convert_lightgbm) if package == "lightgbm" else convert_xgboost
        alias = f"{package}{kind.__name__}"
        update_registered_converter(kind, alias, _shapes(kind), converter, options=options)


def of_histograms(kinds: Iterable[type]) -> tuple[Custom, Custom]:
    """Converters of histogram boosting, and of the shapes of its outputs, for those among some types."""
    from skl2onnx.operator_converters.random_forest import (
        convert_sklearn_random_forest_classifier,
        convert_sklearn_random_forest_regressor_converter,
    )

    converters = dict(
        zip(
            _HISTOGRAMS,
            (convert_sklearn_random_forest_classifier, convert_sklearn_random_forest_regressor_converter),
            strict=True,
        )
    )
    found = [k for k in kinds if k.__name__ in converters]
    return {k: _with_plain_numbers(converters[k.__name__]) for k in found}, {k: _shapes(k) for k in found}


class RoundedBooster:
    """A booster of LightGBM, to be converted, whose limits are float32 and which answers as before."""

    is_mock = True  # the converter then takes what `dump_model` gives

    def __init__(self, booster: Any) -> None:
        self._booster = booster

    def __getattr__(self, name: str) -> Any:
        return getattr(self._booster, name)

    def dump_model(self, *args: Any, **options: Any) -> dict[str, Any]:
        """What LightGBM says of the booster, with limits rounded down."""
        described: dict[str, Any] = self._booster.dump_model(*args, **options)
        stack = [info["tree_structure"] for info in described["tree_info"]]
        while stack:
            node = stack.pop()
            limit = node.get("threshold")
            if isinstance(limit, float):
                node["threshold"] = float(rounded_down(np.array(limit)))
            stack += [node[side] for side in ("left_child", "right_child") if side in node]
        return described


def rounded_down(limits: np.ndarray) -> np.ndarray:
    """The greatest numbers of float32 that are not above, in the type that was given."""
    with np.errstate(over="ignore"):
        near = limits.astype(np.float32)
    return np.where(near > limits, np.nextafter(near, np.float32(-np.inf)), near).astype(limits.dtype)


def _with_rounded_limits(converter: Callable[..., Any]) -> Callable[..., Any]:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        rounded = copy.copy(operator.raw_operator)
        rounded._Booster = RoundedBooster(rounded.booster_)
        operator.raw_operator = rounded
        converter(scope, operator, container)

    return convert


def _shapes(kind: type) -> Callable[..., Any]:
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    shapes: Callable[..., Any] = (
        calculate_linear_classifier_output_shapes
        if hasattr(kind, "predict_proba")
        else calculate_linear_regressor_output_shapes
    )
    return shapes


def _with_plain_numbers(converter: Callable[..., Any]) -> Callable[..., Any]:
    """A converter of trees whose attributes become numbers that protobuf takes: no booleans."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        if getattr(operator.raw_operator, "is_categorical_", None) is not None:
            raise ValueError("its trees ask for categories (categorical_features), which is not converted")
        rounded = copy.copy(operator.raw_operator)
        rounded._predictors = copy.deepcopy(rounded._predictors)
        for tree in (t for group in rounded._predictors for t in group):
            tree.nodes["num_threshold"] = rounded_down(tree.nodes["num_threshold"])
        operator.raw_operator = rounded
        converter(scope, operator, _Plain(container))

    return convert


class _Plain:
    """A container of skl2onnx that turns lists of attributes into plain numbers."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, *args: Any, **attributes: Any) -> None:
        """Adds a node."""
        plain = {
            name: [int(v) for v in value]
            if isinstance(value, list) and all(isinstance(v, bool | int | np.integer) for v in value)
            else value
            for name, value in attributes.items()
        }
        self._container.add_node(*args, **plain)
