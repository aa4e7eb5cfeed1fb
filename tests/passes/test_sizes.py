import itertools

import pytest

from hasten.passes.sizes import broadcast, concatenated, less, reshaped, sliced, total


@pytest.mark.parametrize(
    ("source", "target", "allow_zero", "expected"),
    [
        ((2, 3, 4), (6, -1), False, (6, 4)),
        (("b", "s", 12), ("b", "s", -1, 4), False, ("b", "s", 3, 4)),
        (("b", "s", 12), (0, 0, 3, 4), False, ("b", "s", 3, 4)),
        (("b", "s", 3, 4), ("b", -1, 12), False, ("b", "s", 12)),
        (("b", "s", 4), (-1, 4), False, ("?(b*s*4)/(4)", 4)),
        (("b", 2, 4), (-1, 4), False, ("?(b*2*4)/(4)", 4)),
        (None, (2, -1), False, None),
        (None, (2, "n"), False, (2, "n")),
        ((0, 3), (3, 0), True, (3, 0)),
    ],
)
def test_reshaped(source, target, allow_zero, expected):
    assert reshaped(source, target, allow_zero=allow_zero) == expected


def test_equal_unsolved_reshapes_agree_and_others_do_not():
    first = reshaped(("b", "s", 4), (-1, 4), allow_zero=False)
    assert first == reshaped(("b", "s", 4), (-1, 4), allow_zero=False)
    assert first != reshaped(("b", "t", 4), (-1, 4), allow_zero=False)


def test_broadcast():
    assert broadcast(("b", 1, 4), ("s", 4)) == ("b", "s", 4)
    assert broadcast(("b", 4), (1,)) == ("b", 4)
    assert broadcast(("b",), ("c",)) is None
    assert broadcast(("b",), (5,)) == (5,)


SIZES = (0, 1, 3, "a", "b", "?x:0", "?(a*4)/(3)", "?(a+b)/(2)")


def test_sums_are_equal_however_they_are_made():
    for x, y, z in itertools.product(SIZES, repeat=3):
        one, other = total((x, total((y, z)))), total((total((z, x)), y))
        assert one == other
        assert less(one, z) == total((x, y))
        assert less(one, one) == 0
    assert less("a", "b") is None
    assert less("a", 1) is None
    assert total(("a", -1)) is None
    assert total(("a", -1, 3)) == total(("a", 2))


def test_concatenated():
    assert concatenated([("b", 4, "past"), ("b", "h", "now")], -1) == ("b", 4, total(("past", "now")))
    assert concatenated([("b", 0), ("b", "s")], 1) == ("b", "s")
    assert concatenated([("b", 2), None], 1) is None
    assert concatenated([("b", 2), ("b",)], 0) is None


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("start", [-7, -2, 0, 1, 9])
@pytest.mark.parametrize("end", [-7, -1, 0, 2, 9, 2**31])
def test_slices_of_numbers_are_those_of_python(size, start, end):
    assert sliced(size, start, end) == len(range(size)[start:end])


def test_slices_of_names():
    keys = total(("past", "now"))
    assert sliced(keys, "past", keys) == "now"
    assert sliced(keys, 0, "past") == "past"
    assert sliced(keys, less(keys, "now"), 2**31) == "now"
    assert sliced("n", 0, 0) == 0
    assert sliced("n", 0, 5) is None, "it may be shorter"
    assert sliced("n", 1, 2**31) is None, "it may be empty"
    assert sliced(total(("n", 2)), 1, -1) == "n"
