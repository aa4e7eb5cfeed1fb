import numpy as np
import pytest
from tests.ops.conformance import case

from hasten.errors import InputError
from hasten.loops.evaluate import evaluate


@pytest.mark.parametrize("op_type", ["CumSum", "CumProd"])
@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_scan_along_an_axis_known_at_the_call(op_type, attributes):
    prepared = case(op_type, [("float32", ["n", 3, 2]), ("int64", [])], **attributes)
    x = np.random.default_rng(4).integers(-4, 4, (3, 3, 2)).astype(np.float32)
    for axis in (0, 1, -1):
        prepared.check(x, np.array(axis))
    with pytest.raises(InputError, match=op_type):
        evaluate(prepared.program, {"x0": x, "x1": np.array(3)})


@pytest.mark.parametrize("axis", [0, -1])
def test_products_along_a_constant_axis(axis):
    prepared = case("CumProd", [("int32", [3, "n"]), np.array(axis)])
    prepared.check(np.arange(1, 13, dtype=np.int32).reshape(3, 4))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_sums_along_a_constant_axis(axis, attributes, dtype):
    prepared = case("CumSum", [(dtype, ["n", "t", 37]), np.array(axis)], **attributes)
    for shape in ((2, 50, 37), (1, 1, 37), (3, 0, 37)):
        prepared.check(np.random.default_rng(4).integers(-9, 9, shape).astype(dtype))
