"""Growing a valid ONNX graph node by node: what is known of each value, and the model that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from tests.differential.compare import Tolerance

Dim = tuple[int, ...]
"""The length of an axis in each binding of the graph's symbolic sizes."""

Shape = tuple[Dim, ...]
Maker = Callable[[np.random.Generator, int, tuple[int, ...]], np.ndarray]

FLOATS = ("float32", "float64", "float16", "bfloat16")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = (*SIGNED, *UNSIGNED)
SIGNIFICANT = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}
LARGEST_BOUND = {"float16": 1000.0}
MOST_ELEMENTS = 6000
MOST_RANK = 6


class Unfit(Exception):  # noqa: N818 - not an error: another step is tried
    """A step has nothing to work on in this graph."""


@dataclass(frozen=True)
class Value:
    """A value of the graph.

    Attributes:
        name: its name.
        dtype: NumPy's name of its element type.
        shape: its lengths in all bindings.
        bound: no element is larger in magnitude.
        fraction: binary digits behind the point of every element where all engines must find exactly the
            same; None where they may round differently.
        epsilon: relative rounding error of the least precise arithmetic on the way to it.
    """

    name: str
    dtype: str
    shape: Shape
    bound: float
    fraction: int | None = 0
    epsilon: float = 0.0

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def exact(self) -> bool:
        return self.fraction is not None

    def elements(self) -> int:
        """The most elements in any binding."""
        return elements(self.shape)


def elements(shape: Shape) -> int:
    """The most elements in any binding."""
    if not shape:
        return 1
    return max(int(np.prod([d[b] for d in shape])) for b in range(len(shape[0])))


def fixed(d: Dim) -> bool:
    """Whether the length is the same in all bindings."""
    return len(set(d)) == 1


def numpy_type(dtype: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)


def onnx_type(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(numpy_type(dtype)))


def spacing(dtype: str) -> float:
    """Relative rounding error of a float type."""
    return 2.0 ** -SIGNIFICANT[dtype] if dtype in SIGNIFICANT else 0.0


@dataclass(frozen=True)
class Graph:
    """A random graph and what to run it on.

    Attributes:
        seed: it was made from.
        model: the model.
        feeds: inputs by name, one set for each binding.
        tolerances: of the values of the graph by name.
    """

    seed: int
    model: onnx.ModelProto
    feeds: tuple[dict[str, np.ndarray], ...]
    tolerances: Mapping[str, Tolerance]


@dataclass
class Builder:
    """A graph under construction.

    Attributes:
        rng: decides everything.
        sizes: values of the symbolic sizes in each binding, by name.
        version: the graph's opset.
        recency: how likely a step takes the latest value that fits; else an older one.
        preferred: name of the value that a step takes if it fits.
    """

    rng: np.random.Generator
    sizes: dict[str, Dim]
    version: int
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, tuple[Value, Maker]] = field(default_factory=dict)
    recency: float = 0.4
    preferred: str = ""

    @property
    def bindings(self) -> int:
        return len(next(iter(self.sizes.values())))

    # Choices.

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def int(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[Any]) -> Any:
        if not options:
            raise Unfit
        return options[int(self.rng.integers(len(options)))]

    def need(self, version: int) -> None:
        """The step uses what is new in an opset."""
        if self.version < version:
            raise Unfit

    def source(self, fits: Callable[[Value], bool] = lambda v: True) -> Value:
        """A value, rather a late one, so that graphs are deep."""
        found = [v for v in self.values if fits(v)]
        if not found:
            raise Unfit
        named = [v for v in found if v.name == self.preferred]
        if named:
            return named[0]
        return found[-1 - min(int(self.rng.geometric(self.recency)) - 1, len(found) - 1)]

    def attempt(self, step: Callable[[Builder], None]) -> bool:
        """Takes a step, or none of it where it does not fit."""
        nodes, values, inputs = list(self.nodes), list(self.values), dict(self.inputs)
        try:
            step(self)
        except Unfit:
            self.nodes, self.values, self.inputs = nodes, values, inputs
            return False
        return True

    def floating(self, most: float = 1e4, *, rank: int = 0, exact: bool = False) -> Value:
        """A float value of at least some rank."""
        return self.source(
            lambda v: v.is_float and v.bound <= most and v.rank >= rank and (v.exact or not exact)
        )

    def dim(self, *names: str) -> Dim:
        """A symbolic size, or a number."""
        if self.chance(0.45):
            return self.sizes[self.pick(list(self.sizes))]
        if self.chance(0.01):
            return (0,) * self.bindings
        return (self.pick([1, 2, 3, 4, 5, 7, 8, 16, 17, 33]),) * self.bindings

    def const_dim(self, n: int) -> Dim:
        return (n,) * self.bindings

    # Making values.

    def add_input(self, dtype: str, shape: Shape, maker: Maker, bound: float, fraction: int | None) -> Value:
        value = Value(f"x{len(self.inputs)}", dtype, shape, bound, fraction)
        self.inputs[value.name] = (value, maker)
        self.values.append(value)
        return value

    def numbers(self, dtype: str, shape: Shape) -> Value:
        """An input of small numbers that add and multiply without rounding."""
        kind = numpy_type(dtype)
        if dtype == "bool":
            return self.add_input(dtype, shape, lambda r, _, s: np.asarray(r.random(s) < 0.5), 1, 0)
        if dtype in INTEGERS:
            low, high = (0 if dtype in UNSIGNED else -9), 9
            return self.add_input(
                dtype, shape, lambda r, _, s: np.asarray(r.integers(low, high + 1, s)).astype(kind), 9, 0
            )
        return self.add_input(
            dtype, shape, lambda r, _, s: np.asarray(r.integers(-32, 33, s) / 8).astype(kind), 4, 3
        )

    def indices(self, shape: Shape, limit: Dim, dtype: str = "int64") -> Value:
        """An input of indices into an axis, some counted from its end."""
        if min(limit) == 0 and elements(shape):
            raise Unfit
        kind = numpy_type(dtype)
        return self.add_input(
            dtype,
            shape,
            lambda r, b, s: np.asarray(r.integers(-limit[b], max(limit[b], 1), s)).astype(kind),
            max(limit),
            0,
        )

    def constant(self, array: Any, dtype: str | None = None) -> Value:
        """A weight, or the output of a Constant node."""
        array = np.asarray(array)
        if dtype is not None:
            array = array.astype(numpy_type(dtype))
        name = f"c{len(self.weights)}"
        self.weights[name] = array
        found = array.astype(np.float64)
        bound = float(np.abs(found).max()) if array.size else 0.0
        eighths = bool((found * 8 == np.round(found * 8)).all())
        fraction = None if not eighths else 0 if array.dtype.kind in "iub" else 3
        return Value(name, array.dtype.name, tuple(self.const_dim(n) for n in array.shape), bound, fraction,
                     spacing(array.dtype.name))  # fmt: skip

    def ints(self, *numbers: int) -> str:
        """The name of a constant list of 64-bit integers."""
        return self.constant(np.array(numbers, np.int64)).name

    def weights_of(self, dtype: str, *shape: int) -> Value:
        """A constant of small numbers."""
        if dtype == "bool":
            return self.constant(self.rng.random(shape) < 0.5)
        if dtype in INTEGERS:
            return self.constant(self.rng.integers(0 if dtype in UNSIGNED else -5, 6, shape), dtype)
        return self.constant(self.rng.integers(-16, 17, shape) / 8, dtype)

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | str],
        like: Value,
        shape: Shape | None = None,
        *,
        dtype: str | None = None,
        bound: float | None = None,
        fraction: int | str | None = "same",
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Adds a node of one output.

        Args:
            op: its operator.
            inputs: values, or names.
            like: what the result inherits where nothing else is said.
            shape: of the result.
            dtype: of the result.
            bound: of the result.
            fraction: of the result; see `Value`.
            domain: of the operator.
            attributes: of the node.
        """
        (value,) = self.emit_all(
            op, inputs, like, [like.shape if shape is None else shape],
            dtypes=[dtype or like.dtype], bound=bound, fraction=fraction, domain=domain, **attributes,
        )  # fmt: skip
        return value

    def emit_all(
        self,
        op: str,
        inputs: Sequence[Value | str],
        like: Value,
        shapes: Sequence[Shape],
        *,
        dtypes: Sequence[str] | None = None,
        bound: float | None = None,
        fraction: int | str | None = "same",
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """Adds a node of several outputs."""
        bound = like.bound if bound is None else bound
        digits = like.fraction if fraction == "same" else fraction
        made = []
        for k, shape in enumerate(shapes):
            dtype = dtypes[k] if dtypes else like.dtype
            if (
                len(shape) > MOST_RANK
                or elements(shape) > MOST_ELEMENTS
                or bound > LARGEST_BOUND.get(dtype, 1e6)
            ):
                raise Unfit
            if any(n < 0 for d in shape for n in d):
                raise Unfit
            known = digits
            if known is not None and dtype in FLOATS and known + np.log2(bound + 1) > SIGNIFICANT[dtype]:
                known = None
            epsilon = max(
                [spacing(dtype), like.epsilon, *(v.epsilon for v in inputs if isinstance(v, Value))]
            )
            made.append(Value(f"t{len(self.nodes)}_{k}", dtype, shape, float(bound), known, epsilon))
        names = [v if isinstance(v, str) else v.name for v in inputs]
        outputs = [v.name for v in made]
        node = helper.make_node(
            op, names, outputs, name=f"{op}_{len(self.nodes)}", domain=domain, **attributes
        )
        self.nodes.append(node)
        self.values += made
        return made

    def again(self, v: Value, **changes: Any) -> Value:
        """What else is known of a value; replaces what was."""
        new = replace(v, **changes)
        self.values[self.values.index(v)] = new
        return new

    # The end.

    def graph(self, seed: int) -> Graph:
        """The model: its outputs are what nobody reads, and some of what others read too."""
        read = {name for node in self.nodes for name in reads(node)}
        made = [v for v in self.values if v.name not in self.inputs]
        if not made:
            raise Unfit
        outputs = [v for v in made if v.name not in read]
        outputs += [v for v in made if v.name in read and self.chance(0.15)]
        if self.chance(0.04):
            outputs.append(next(iter(self.inputs.values()))[0])
        order = self.rng.permutation(len(outputs))
        outputs = [outputs[i] for i in order]
        used = {*read, *(v.name for v in outputs)}
        inputs = [v for v, _ in self.inputs.values() if v.name in used]
        named = {n: name for name, n in self.sizes.items()}
        graph = helper.make_graph(
            self.nodes,
            f"seed {seed}",
            [_info(v, named) for v in inputs],
            [_info(v, {}) for v in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items() if n in used],
        )
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [
            helper.make_opsetid("", self.version),
            *(helper.make_opsetid(d, 1) for d in sorted(domains)),
        ]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        feeds = tuple(
            {
                v.name: np.asarray(self.inputs[v.name][1](self.rng, b, tuple(d[b] for d in v.shape)))
                for v in inputs
            }
            for b in range(self.bindings)
        )
        return Graph(seed, model, feeds, {v.name: Tolerance(v.exact, v.epsilon) for v in self.values})


def reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node and the bodies in it read."""
    found = [name for name in node.input if name]
    for a in node.attribute:
        for body in [a.g] if a.type == onnx.AttributeProto.GRAPH else []:
            found += [name for inner in body.node for name in reads(inner)]
            found += [o.name for o in body.output]
    return found


def _info(v: Value, named: dict[Dim, str]) -> onnx.ValueInfoProto:
    dims = [d[0] if fixed(d) else named.get(d) for d in v.shape]
    return helper.make_tensor_value_info(v.name, onnx_type(v.dtype), dims)


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape that both broadcast to.

    Raises:
        Unfit: there is none, or it depends on the binding which dim is repeated.
    """
    rank = max(len(a), len(b))
    result = []
    for k in range(rank):
        x = a[k - rank + len(a)] if k - rank + len(a) >= 0 else None
        y = b[k - rank + len(b)] if k - rank + len(b) >= 0 else None
        if x is None or y is None:
            result.append(y if x is None else x)
        elif x == y or set(y) == {1}:
            result.append(x)
        elif set(x) == {1}:
            result.append(y)
        else:
            raise Unfit
    return tuple(d for d in result if d is not None)
