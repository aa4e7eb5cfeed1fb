import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.ops.conformance import case, elementwise_case

FEW = settings(max_examples=8, deadline=None)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 88.0, -88.0, 1e-8]


def floats(low, high, dtype="float32"):
    width = 64 if dtype == "float64" else 32
    inside = [v for v in SPECIAL if not np.isfinite(v) or low <= v <= high]
    return st.sampled_from(inside) | st.floats(low, high, width=width)


def integers(dtype, low=None, high=None):
    info = np.iinfo(dtype)
    return st.integers(info.min if low is None else low, info.max if high is None else high)


def shapes(rank, least=0):
    return st.tuples(*[st.integers(least, 4)] * rank)


def array(data, dtype, shape, elements):
    return data.draw(hnp.arrays(dtype, shape, elements=elements))


FLOAT_UNARY = {
    **dict.fromkeys(
        ["Abs", "Ceil", "Floor", "Neg", "Round", "Sign", "Sqrt", "Reciprocal", "Log"], (-(2.0**99), 2.0**99)
    ),
    **dict.fromkeys(["Erf", "Exp", "Tanh", "Sinh", "Cosh", "Asinh", "Acosh", "Atan", "Relu"], (-60, 60)),
    **dict.fromkeys(["Sin", "Cos", "Tan"], (-50, 50)),
    **dict.fromkeys(["Acos", "Asin", "Atanh"], (-1, 1)),
    **dict.fromkeys(["Sigmoid", "HardSigmoid", "HardSwish", "Softsign", "IsNaN", "IsInf"], (-60, 60)),
    **dict.fromkeys(["LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Shrink"], (-60, 60)),
}


@pytest.mark.parametrize("name", FLOAT_UNARY)
@FEW
@given(data=st.data())
def test_functions_of_one_float(name, data):
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    if name in ("Celu", "Round", "Shrink"):
        dtype = "float32"
    low, high = FLOAT_UNARY[name]
    prepared = elementwise_case(name, (dtype,), (("n", "m"),))
    prepared.check(array(data, dtype, data.draw(shapes(2)), floats(low, high, dtype)))


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.2}),
        ("Elu", {"alpha": 2.0}),
        ("Selu", {"alpha": 1.5, "gamma": 2.0}),
        ("Celu", {"alpha": 2.0}),
        ("ThresholdedRelu", {"alpha": 0.25}),
        ("HardSigmoid", {"alpha": 0.5, "beta": 0.25}),
        ("Shrink", {"bias": 0.25, "lambd": 0.75}),
        ("IsInf", {"detect_positive": 0}),
        ("IsInf", {"detect_negative": 0}),
        ("IsInf", {"detect_negative": 0, "detect_positive": 0}),
    ],
)
def test_attributes_of_functions(name, attributes):
    x = np.array([-np.inf, -3, -0.75, -0.5, 0, 0.25, 0.5, 0.75, 3, np.inf, np.nan], np.float32)
    case(name, [("float32", ["n"])], **attributes).check(x)


def _erf(x):
    from scipy.special import erf

    return erf(x)


SMOOTH = {
    "Gelu": ({}, lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2)))),
    "Gelu tanh": (
        {"approximate": "tanh"},
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "Softplus": ({}, lambda x: np.logaddexp(0, x)),
    "Mish": ({}, lambda x: x * np.tanh(np.logaddexp(0, x))),
    "Swish": ({}, lambda x: x / (1 + np.exp(-x))),
    "Swish alpha": ({"alpha": 1.5}, lambda x: x / (1 + np.exp(-1.5 * x))),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_over_the_whole_range(name):
    """Against f64: ONNX's own evaluation overflows where the function does not."""
    attributes, function = SMOOTH[name]
    prepared = case(
        name.split()[0],
        [("float32", ["n"])],
        reference=lambda x: function(x.astype(np.float64)).astype(np.float32),
        **attributes,
    )
    x = np.concatenate([np.linspace(-100, 100, 2001), np.linspace(-1e-3, 1e-3, 101), [np.nan]])
    prepared.check(x.astype(np.float32), rtol=2e-5, atol=1e-6)


BROADCASTS = [
    (("n", "m"), ("n", "m")),
    (("n", "m"), ("m",)),
    (("n", "m"), ()),
    (("n", 1), (1, "m")),
    (("n",), ("k", 1, "n")),
    (("n", 3), (3,)),
]


def operands(data, pattern, dtype, elements, least=0):
    sizes = {name: data.draw(st.integers(least, 4)) for name in "nmk"}
    concrete = [tuple(sizes.get(d, d) for d in shape) for shape in pattern]
    return [array(data, dtype, shape, elements) for shape in concrete]


BINARY = {
    **dict.fromkeys(["Add", "Sub", "Mul"], ("float32", "float64", "int8", "int32", "int64", "uint8")),
    **dict.fromkeys(
        ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"], ("float32", "int32", "uint8")
    ),
    **dict.fromkeys(["Max", "Min"], ("float32", "float64", "int32", "int64", "uint8")),
    "Div": ("float32", "float64"),
    **dict.fromkeys(["BitwiseAnd", "BitwiseOr", "BitwiseXor"], ("uint8", "int32", "int64")),
    **dict.fromkeys(["And", "Or", "Xor"], ("bool",)),
}


@functools.cache
def elements(dtype):
    if dtype == "bool":
        return st.booleans()
    return floats(-1e6, 1e6, dtype) if dtype.startswith("float") else integers(dtype)


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_functions_of_two_operands(name, data):
    dtype = data.draw(st.sampled_from(BINARY[name]))
    pattern = data.draw(st.sampled_from(BROADCASTS))
    prepared = elementwise_case(name, (dtype, dtype), pattern)
    prepared.check(*operands(data, pattern, dtype, elements(dtype)))


def c_division(a, b):
    return np.trunc(a.astype(np.float64) / b).astype(a.dtype)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8"])
@FEW
@given(data=st.data())
def test_integer_division_truncates(dtype, data):
    shape = (("n", "m"), ("m",))
    prepared = case("Div", [(dtype, s) for s in shape], reference=c_division)
    a, b = operands(data, shape, dtype, integers(dtype))
    lowest = np.iinfo(dtype).min
    b[(b == 0) | ((b == -1) & (a == lowest).any())] = 3
    prepared.check(a, b)


def test_integer_division_never_traps():
    prepared = case(
        "Div", [("int32", ["n"])] * 2, reference=lambda a, b: np.array([7, -(2**31), 0], np.int32)
    )
    prepared.check(np.array([7, -(2**31), 0], np.int32), np.array([0, -1, 0], np.int32))


@pytest.mark.parametrize("fmod", [0, 1])
@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "float32"])
@FEW
@given(data=st.data())
def test_remainders(dtype, fmod, data):
    shape = (("n", "m"), ("n", 1))
    function = np.fmod if fmod else np.mod
    prepared = case("Mod", [(dtype, s) for s in shape], fmod=fmod, reference=function)
    inside = st.integers(0 if dtype == "uint16" else -50, 50)
    a, b = operands(data, shape, dtype, inside)
    b[b == 0] = 7
    prepared.check(a, b)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        ("float32", "float32"),
        ("float32", "int64"),
        ("float64", "float32"),
        ("int32", "int32"),
        ("int64", "float32"),
    ],
)
def test_powers(base, exponent):
    prepared = case(
        "Pow", [(base, ["n", "m"]), (exponent, ["m"])], reference=lambda a, b: (a**b).astype(a.dtype)
    )
    bases = np.array([[0, 1, 2, 3, 5]] * 3, base).T
    prepared.check(bases, np.array([0, 1, 4], exponent), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("exponent", [1, 2, 3, 7, 0])
def test_powers_by_a_constant(dtype, exponent):
    x = np.array([0, 1, 2, 3, 11], dtype)
    prepared = case("Pow", [(dtype, ["n"]), np.array(exponent, dtype)])
    prepared.check(x, rtol=1e-5)


def test_constant_square_is_a_product():
    x = np.array([-np.inf, -3e-20, -2, np.nan], np.float32)
    prepared = case("Pow", [("float32", ["n"]), np.array([2], np.float32)])
    prepared.check(x)
    assert "pow" not in repr(prepared.program.definitions["y0"].body)


@pytest.mark.parametrize("name", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_operands(name, count):
    rng = np.random.default_rng(count)
    pattern = [["n", "m"], ["m"], ["n", 1]][:count]
    prepared = case(name, [("float32", s) for s in pattern])
    for n, m in ((2, 3), (1, 4), (0, 2)):
        sizes = {"n": n, "m": m, 1: 1}
        prepared.check(*(rng.normal(size=[sizes[d] for d in s]).astype(np.float32) for s in pattern))


@pytest.mark.parametrize("bounds", [(None, None), (-1, None), (None, 2), (-1, 2), (2, -1)])
@pytest.mark.parametrize("dtype", ["float32", "int32", "int8"])
def test_clip(dtype, bounds):
    limits = [None if b is None else np.array(b, dtype) for b in bounds]
    x = np.array([-7, -1, 0, 1, 2, 9], dtype)
    if dtype == "float32":
        x = np.append(x, [np.nan, np.inf, -np.inf]).astype(dtype)
    low, high = (np.array(v if b is None else b, dtype) for b, v in zip(bounds, (-100, 100), strict=True))
    if dtype == "float32":
        low, high = (
            np.array(v if b is None else b, dtype) for b, v in zip(bounds, (-np.inf, np.inf), strict=True)
        )
    prepared = case(
        "Clip", [(dtype, ["n"]), *limits], reference=lambda a: np.minimum(np.maximum(a, low), high)
    )
    prepared.check(x)
    if None not in limits:
        given_later = case("Clip", [(dtype, ["n"]), (dtype, []), (dtype, [])])
        given_later.check(x, *limits)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_shifts_past_the_width_give_zero(dtype, direction):
    bits = np.iinfo(dtype).bits
    x = np.full(4, np.iinfo(dtype).max, dtype)

    def reference(a, b):
        exact = [
            int(v) << int(s) if direction == "LEFT" else int(v) >> int(s) for v, s in zip(a, b, strict=True)
        ]
        return np.array([v % 2**bits for v in exact], dtype)

    prepared = case("BitShift", [(dtype, ["n"])] * 2, direction=direction, reference=reference)
    prepared.check(x, np.array([0, 1, bits - 1, bits], dtype))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("BitwiseNot", "int16"),
        ("BitwiseNot", "uint32"),
        ("Not", "bool"),
        ("Neg", "int8"),
        ("Abs", "int64"),
        ("Abs", "uint8"),
        ("Sign", "int32"),
        ("Relu", "int32"),
    ],
)
@FEW
@given(data=st.data())
def test_functions_of_one_integer(name, dtype, data):
    prepared = elementwise_case(name, (dtype,), (("n", "m"),))
    prepared.check(array(data, dtype, data.draw(shapes(2)), elements(dtype)))


def test_prelu_broadcasts_its_slope():
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    for shape in ([1], [3, 1], [4], [2, 3, 4]):
        slope = np.linspace(0.1, 0.9, np.prod(shape), dtype=np.float32).reshape(shape)
        case("PRelu", [("float32", [2, 3, 4]), ("float32", shape)]).check(x, slope)


def test_shrink_of_integers_is_by_fractions():
    right = np.array([1, -1, 0, 0, 0], np.int32)
    made = case("Shrink", [("int32", [5])], lambd=1.5, bias=1.5, reference=lambda x: [right])
    made.check(np.array([3, -3, 1, -1, 0], np.int32))
