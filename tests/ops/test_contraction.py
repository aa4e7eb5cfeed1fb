import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.loops.descriptions import Gemm

RNG = np.random.default_rng(2)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_matmul_of_all_ranks(check_node, data):
    m, k, n = (data.draw(st.integers(1, 4)) for _ in range(3))
    batch = data.draw(st.lists(st.integers(2, 3), max_size=2))
    a_batch = [1 if data.draw(st.booleans()) else d for d in batch]
    b_batch = batch[data.draw(st.integers(0, len(batch))) :]
    a_shape = data.draw(st.sampled_from([[*a_batch, m, k], [m, k], [k]]))
    b_shape = data.draw(st.sampled_from([[*b_batch, k, n], [k, n], [k]]))
    symbolic = {0: [f"m{d}" if d == len(a_shape) - 2 else n for d, n in enumerate(a_shape)]}
    check_node("MatMul", [floats(*a_shape), floats(*b_shape)], symbolic=symbolic)


def test_a_matrix_on_the_right_takes_all_leading_dims_as_rows(check_node):
    lowered = check_node("MatMul", [floats(2, 3, 4), floats(4, 5)], symbolic={0: ["b", "s", 4]}, constant=[1])
    body = lowered.program.definitions["y"].body
    assert isinstance(body, Gemm)
    assert len(body.rows) == 2
    assert not body.batch
    check_node("MatMul", [floats(2, 3, 4), floats(4, 5)], symbolic={0: ["b", "s", "k"]})


def test_matmul_of_integers_and_of_nothing(check_node):
    whole = RNG.integers(-9, 9, (3, 4)).astype(np.int64)
    check_node("MatMul", [whole, whole.T.copy()])
    check_node("MatMul", [floats(3, 0), floats(0, 2)], expected=[np.zeros((3, 2), np.float32)])


@pytest.mark.parametrize("turn_a", [0, 1])
@pytest.mark.parametrize("turn_b", [0, 1])
@pytest.mark.parametrize("c_shape", [None, (5,), (1, 5), (3, 1), (3, 5), ()])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0)])
def test_gemm(check_node, turn_a, turn_b, c_shape, alpha, beta):
    a = floats(4, 3) if turn_a else floats(3, 4)
    b = floats(5, 4) if turn_b else floats(4, 5)
    c = None if c_shape is None else floats(*c_shape)
    symbolic = {} if c_shape and c_shape[0] == 3 else {0: [4, "m"] if turn_a else ["m", 4]}
    attributes = {"transA": turn_a, "transB": turn_b, "alpha": alpha, "beta": beta}
    lowered = check_node("Gemm", [a, b, c], symbolic=symbolic, **attributes)
    plain = alpha == 1 and (c is None or beta == 0)
    assert len(lowered.program.definitions) == (1 if plain else 2)


@pytest.mark.parametrize(
    ("equation", "shapes", "contraction"),
    [
        ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)], True),
        ("bhqk,bkhd->bqhd", [(2, 4, 3, 6), (2, 6, 4, 5)], True),
        ("ij,jk", [(2, 3), (3, 4)], True),
        ("ij,j->i", [(2, 3), (3,)], False),
        ("j,ji->i", [(3,), (3, 2)], False),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 2)], True),
        ("abc,cd->dab", [(2, 3, 4), (4, 5)], True),
        ("ii->i", [(3, 3)], False),
        ("ii", [(3, 3)], False),
        ("ij->ji", [(2, 3)], False),
        ("i,j->ij", [(2,), (3,)], False),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)], False),
        ("ab,bc->", [(2, 3), (3, 4)], False),
        ("b...->...", [(3, 2, 2)], False),
    ],
)
def test_einsum(check_node, equation, shapes, contraction):
    arrays = [floats(*s) for s in shapes]
    lowered = check_node("Einsum", arrays, equation=equation)
    body = lowered.program.definitions["y"].body
    assert isinstance(body, Gemm) == contraction
