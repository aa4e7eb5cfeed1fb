"""What can be proved about the shapes in a graph: dimensions, and the contents of shape tensors.

ONNX's own inference gives up where a size is dynamic and unnamed. Here every such size gets a name
of its own, and the small integer tensors that compute shapes are followed symbolically, so that two
dimensions with the same name are equal and `Reshape` targets are understood.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.graph.inference import infer_node
from hasten.passes.sizes import (
    Dim,
    Dims,
    broadcast,
    concatenated,
    is_private,
    less,
    reshaped,
    sliced,
    total,
)

_SMALL = 64  # elements of a tensor whose values may describe a shape
_UNKNOWN_NAMES = frozenset({"", "?"})  # exporters write "?" for several unrelated sizes
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})


class Facts:
    """Dimensions of all values of a graph and the contents of its shape tensors.

    A dimension is an int or a name; equal names are equal sizes. Names that begin with "?" were
    made up for sizes that the model leaves unnamed.

    Args:
        graph: a model's, or the body of an If, Loop or Scan.
        around: of the graph in which the body stands, whose values it may read.
    """

    def __init__(self, graph: ir.Graph, around: Facts | None = None) -> None:
        self.graph = graph
        self._around = around
        self._imports = {"": onnx.defs.onnx_opset_version(), **self.outermost.opset_imports}
        self._dims: dict[ir.Value, Dims] = {}
        self._contents: dict[ir.Value, Dims] = {}
        for node in graph:
            self.infer(node)

    @property
    def outermost(self) -> ir.Graph:
        """The model's own graph."""
        return self.graph if self._around is None else self._around.outermost

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Dimensions of a value, or None where not even its rank is known."""
        if value is None:
            return None
        if self._around is not None and value.graph is not self.graph:
            return self._around.dims(value)
        known = self._dims.get(value)
        if known is None:
            known = _complete(value, declared_dims(value))
            if known is not None:
                self._dims[value] = known
        return known

    def contents(self, value: ir.Value | None) -> Dims | None:
        """Elements of a small integer tensor of rank 0 or 1, each an int or a named size."""
        if value is None:
            return None
        if self._around is not None and value.graph is not self.graph:
            return self._around.contents(value)
        known = self._contents.get(value)
        if known is not None:
            return known
        array = small_constant(value)
        if array is None or array.ndim > 1 or array.dtype.kind not in "iu":
            return None
        known = tuple(int(item) for item in array.reshape(-1))
        self._contents[value] = known
        return known

    def infer(self, node: ir.Node) -> None:
        """Record what is known about the outputs of one node; its inputs come first."""
        inferred = infer_node(node, self._imports, self.dims, self._data)
        for index, value in enumerate(node.outputs):
            proto = inferred.get(value.name or "")
            if proto is not None and value.type is None and proto.elem_type:
                value.type = ir.TensorType(ir.DataType(proto.elem_type))
            found = _proto_dims(proto)
            if index == 0:
                found = _merge(self._shape_rule(node), found)
            merged = _complete(value, _merge(found, declared_dims(value)))
            if merged is not None:
                self._dims[value] = merged
        self._follow(node)

    def write_shapes(self, values: Iterable[ir.Value]) -> None:
        """Store the proved dimensions as the values' shapes; unnamed sizes stay unnamed."""
        for value in values:
            dims = self._dims.get(value)
            if dims is not None:
                value.shape = ir.Shape([None if is_private(d) else d for d in dims])

    def _data(self, value: ir.Value) -> np.ndarray | None:
        array = small_constant(value)
        if array is not None:
            return array
        contents = self.contents(value)
        if contents is None or value.dtype not in _INTEGERS:
            return None
        integers = [d for d in contents if isinstance(d, int)]
        if len(integers) != len(contents):
            return None
        kind = np.int32 if value.dtype == ir.DataType.INT32 else np.int64
        scalar = self.dims(value) == ()
        return np.array(integers[0] if scalar else integers, dtype=kind)

    def _shape_rule(self, node: ir.Node) -> tuple[Dim | None, ...] | None:
        if node.domain or not node.inputs:
            return None
        match node.op_type:
            case "ConstantOfShape":
                return self.contents(node.inputs[0])
            case "Range":
                length = self._steps(node)
                return None if length is None else (length,)
            case "Concat":
                return concatenated([self.dims(value) for value in node.inputs], integer(node, "axis", 0))
            case "Slice":
                return self._part(node)
            case "Reshape" | "Expand":
                source, target = self.dims(node.inputs[0]), self.contents(node.inputs[1])
                if target is None:
                    return None
                if node.op_type == "Reshape":
                    allow_zero = bool(integer(node, "allowzero", 0))
                    return reshaped(source, target, allow_zero=allow_zero)
                return None if source is None else broadcast(source, target)
        return None

    def _steps(self, node: ir.Node) -> Dim | None:
        """The length of a Range in steps of 1."""
        start, limit, step = (self.contents(value) for value in node.inputs)
        if start is None or limit is None or step != (1,):
            return None
        return less(limit[0], start[0]) if _counts(limit[0]) and _counts(start[0]) else None

    def _part(self, node: ir.Node) -> tuple[Dim | None, ...] | None:
        """Dimensions of a Slice."""
        source, *limits = node.inputs
        dims, starts = self.dims(source), self.contents(limits[0])
        if dims is None or starts is None:
            return None
        left_out = (None, tuple(range(len(starts))), (1,) * len(starts))  # ends, axes, steps
        given = [*limits[1:], None, None, None][:3]
        found = [e if v is None else self.contents(v) for v, e in zip(given, left_out, strict=True)]
        known = [starts, *(numbers for numbers in found if numbers is not None)]
        if len(known) < 4 or len({len(numbers) for numbers in known}) != 1:
            return None
        result: list[Dim | None] = list(dims)
        for start, end, axis, step in zip(*known, strict=True):
            if not isinstance(axis, int) or not -len(dims) <= axis < len(dims):
                return None
            result[axis] = sliced(dims[axis], start, end) if step == 1 else None
        return tuple(result)

    def _follow(self, node: ir.Node) -> None:
        """Record the elements of a shape tensor that the node computes from others."""
        if node.domain or not node.outputs:
            return
        output = node.outputs[0]
        dims = self.dims(output)
        if dims is not None and len(dims) > 1:
            return
        if node.op_type == "Shape":
            elements = self.dims(node.inputs[0])
            if elements is not None:
                end = node.attributes.get("end")
                stop = None if end is None else end.as_int()
                elements = elements[slice(integer(node, "start", 0), stop)]
        elif node.op_type in _FOLLOWED and output.dtype in (*_INTEGERS, None):
            elements = self._computed(node)
        else:
            return
        if elements is not None and len(elements) <= _SMALL and _fits(elements, output.dtype):
            self._contents[output] = elements

    def _computed(self, node: ir.Node) -> Dims | None:
        if node.op_type == "Slice" and None in node.inputs:
            return None  # what stands behind what is left out has another place
        parts: list[Dims] = []
        for value in node.inputs:
            if value is None:
                continue
            part = self.contents(value)
            if part is None:
                return None
            parts.append(part)
        if not parts:
            return None
        first, rest = parts[0], parts[1:]
        match node.op_type:
            case "Concat":
                return tuple(d for part in parts for d in part)
            case "Gather":
                return _gather(first, rest[0])
            case "Slice":
                return _slice(first, rest)
            case "Add" | "Sub" | "Mul" | "Div":
                return _arithmetic(node.op_type, first, rest[0])
            case _:  # one of _SAME_ELEMENTS
                return first


_SAME_ELEMENTS = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape")
_FOLLOWED = frozenset({"Concat", "Gather", "Slice", "Add", "Sub", "Mul", "Div", *_SAME_ELEMENTS})


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node, or the default where it is not set."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """A list-of-integers attribute of a node, or None where it is not set."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def small_constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant of at most 64 elements; None for anything else."""
    if value is None or (value.producer() is None and value.const_value is None):
        return None
    if value.shape is not None and value.shape.is_static():
        if math.prod(value.shape.numpy()) > _SMALL:
            return None
    elif value.const_value is not None and value.const_value.size > _SMALL:
        return None
    array = constant_value(value)
    return array if array is not None and array.size <= _SMALL else None


def declared_dims(value: ir.Value) -> tuple[Dim | None, ...] | None:
    """Dimensions that the model states for a value; None for those it does not name."""
    if value.shape is None:
        if value.const_value is not None:
            return tuple(int(d) for d in value.const_value.shape.numpy())
        return None
    dims: list[Dim | None] = []
    for dim in value.shape:
        if isinstance(dim, int):
            dims.append(dim if dim >= 0 else None)
        else:
            name = None if dim.value is None else str(dim.value)
            dims.append(None if name is None or name in _UNKNOWN_NAMES else name)
    return tuple(dims)


def _merge(
    found: tuple[Dim | None, ...] | None, declared: tuple[Dim | None, ...] | None
) -> tuple[Dim | None, ...] | None:
    if found is None or declared is None or len(found) != len(declared):
        return found if found is not None else declared

    def better(a: Dim | None, b: Dim | None) -> Dim | None:
        if isinstance(a, int):
            return a
        if isinstance(b, int) or a is None or (is_private(a) and b is not None):
            return b
        return a

    return tuple(better(a, b) for a, b in zip(found, declared, strict=True))


def _complete(value: ir.Value, dims: tuple[Dim | None, ...] | None) -> Dims | None:
    if dims is None:
        return None
    return tuple(f"?{value.name}:{axis}" if d is None else d for axis, d in enumerate(dims))


def _proto_dims(proto: onnx.TypeProto.Tensor | None) -> tuple[Dim | None, ...] | None:
    if proto is None or not proto.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or None) for d in proto.shape.dim
    )


def _counts(dim: Dim) -> bool:
    return isinstance(dim, str) or dim >= 0


def _fits(elements: Dims, dtype: ir.DataType | None) -> bool:
    """Whether whole numbers have the bits that their type has: Python's have any number."""
    most = 1 << (31 if dtype == ir.DataType.INT32 else 63)
    return all(not isinstance(e, int) or -most <= e < most for e in elements)


def _gather(elements: Dims, indices: Dims) -> Dims | None:
    size = len(elements)
    if not all(isinstance(i, int) and -size <= i < size for i in indices):
        return None
    return tuple(elements[i] for i in indices if isinstance(i, int))


def _slice(elements: Dims, limits: Sequence[Dims]) -> Dims | None:
    numbers = [limit[0] for limit in limits if len(limit) == 1 and isinstance(limit[0], int)]
    if len(numbers) != len(limits):
        return None
    defaults = (0, 0, 0, 1)  # the last two, axis and step, may be left out
    start, stop, axis, step = (int(n) for n in (*numbers, *defaults[len(numbers) :]))
    return elements[start:stop] if axis in (0, -1) and step == 1 else None


def _arithmetic(op: str, left: Dims, right: Dims) -> Dims | None:
    if len(left) != len(right) and 1 not in (len(left), len(right)):
        return None
    if not left or not right:
        return ()
    count = max(len(left), len(right))
    result: list[Dim] = []
    for a, b in zip(left * (count // len(left)), right * (count // len(right)), strict=True):
        found = _computed(op, a, b)
        if found is None:
            return None
        result.append(found)
    return tuple(result)


def _computed(op: str, a: Dim, b: Dim) -> Dim | None:
    """One number of another two."""
    if isinstance(a, int) and isinstance(b, int):
        if op == "Div":
            return None if b == 0 or a < 0 or b < 0 else a // b
        return {"Add": a + b, "Sub": a - b, "Mul": a * b}[op]
    match op:
        case "Add":
            return total((a, b))
        case "Sub":
            return less(a, b)
        case _ if b == 1:
            return a
        case _:
            return b if op == "Mul" and a == 1 else None


QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators between numbers and the small integers that stand for them."""


def is_quantized(model: ir.Model) -> bool:
    """Whether a model computes with quantized numbers anywhere in its main graph."""
    return any(node.op_type in QUANTIZATION and not node.domain for node in model.graph)
