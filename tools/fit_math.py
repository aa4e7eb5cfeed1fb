"""Fits the coefficients of `hasten.codegen.math`: run it and compare what it prints with the tables there.

The polynomials come from the exchange algorithm of Remez in 50 digits. Needs mpmath, which sympy brings
along. Takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np

Real = Any  # mpmath has no type hints
Function = Callable[[Real], Real]

mp.mp.dps = 50
_GRID = 1200
_HALF_LN2 = mp.log(2) / 2 * mp.mpf("1.002")  # the rounding of x / ln 2 may fall on the far side
_SQRT_HALF = mp.sqrt(mp.mpf(1) / 2)


def minimax(f: Function, weight: Function, low: Real, high: Real, powers: Sequence[int]) -> list[Real]:
    """Coefficients of the powers that minimize the greatest weight * |f - polynomial| on [low, high]."""
    n = len(powers)
    angles = [mp.pi * (i + mp.mpf(1) / 2) / _GRID for i in range(_GRID)]
    xs = [low + (high - low) * (1 - mp.cos(a)) / 2 for a in angles]
    rows = [[weight(x) * x**p for p in powers] for x in xs]
    goal = [weight(x) * f(x) for x in xs]
    reference = [round((_GRID - 1) * i / n) for i in range(n + 1)]
    while True:
        matrix = mp.matrix([[*rows[i], (-1) ** r] for r, i in enumerate(reference)])
        solution = mp.lu_solve(matrix, mp.matrix([goal[i] for i in reference]))
        found = [solution[k] for k in range(n)]
        error = [g - mp.fdot(found, row) for g, row in zip(goal, rows, strict=True)]
        worst = max(abs(e) for e in error)
        if worst <= abs(solution[n]) * mp.mpf("1.001"):
            print(f"    # error {mp.nstr(worst, 3)}")
            return found
        reference = _exchange(error, n + 1)


def _exchange(error: list[Real], count: int) -> list[int]:
    """`count` places of alternating sign, one for each run of equal signs, where the error is greatest."""
    places: list[int] = []
    for i, e in enumerate(error):
        if places and (error[places[-1]] >= 0) == (e >= 0):
            if abs(e) > abs(error[places[-1]]):
                places[-1] = i
        else:
            places.append(i)
    while len(places) > count:
        smallest = min(range(len(places)), key=lambda j: abs(error[places[j]]))
        if smallest in (0, len(places) - 1):
            places.pop(smallest)
        elif len(places) == count + 1:
            places.pop(0 if abs(error[places[0]]) < abs(error[places[-1]]) else -1)
        else:  # take a neighbour along, so that the signs still alternate
            left = abs(error[places[smallest - 1]]) < abs(error[places[smallest + 1]])
            first = smallest - 1 if left else smallest
            del places[first : first + 2]
    return places


def show(name: str, coefficients: Sequence[Real], dtype: type[np.floating[Any]] = np.float32) -> None:
    """Prints a table of coefficients, the highest power first, as the shortest decimals of the type."""
    print(f"{name} = (")
    for c in reversed(coefficients):
        print(f"    {dtype(mp.nstr(c, 40) if isinstance(c, mp.mpf) else c)!s},")
    print(")")


def fit_exp() -> None:
    """exp(r) = 1 + r + r^2 q(r), relative to exp in float32 and to expm1 in float64."""

    def tail(r: Real) -> Real:
        return mp.exp(r) - 1 - r

    for name, degree in (("EXP_FAST", 5), ("EXP", 6)):
        powers = range(2, degree + 1)
        show(name, minimax(tail, lambda r: mp.exp(-r), -_HALF_LN2, _HALF_LN2, powers))
    found = minimax(tail, lambda r: 1 / mp.expm1(r), -_HALF_LN2, _HALF_LN2, range(2, 12))
    show("EXP_F64", found, np.float64)
    two, low = mp.mpf(2), mp.mpf(-1) / 2
    found = minimax(lambda r: two**r, lambda r: two**-r, low, -low, range(7))
    show("EXP2_POW", found, np.float64)
    show("EXP_SHORT", minimax(lambda r: two**-r, lambda r: two**r, low, -low, range(4)))


def fit_log() -> None:
    """log(1 + f) = f - f^2 / 2 + f^3 p(f); in float64 fdlibm's series in s = f / (2 + f)."""
    low, high = _SQRT_HALF - 1, 2 * _SQRT_HALF - 1
    found = minimax(lambda f: mp.log1p(f) - f + f * f / 2, lambda f: 1 / mp.log1p(f), low, high, range(3, 11))
    show("LOG", found)
    found = minimax(mp.log1p, lambda f: 1 / mp.log1p(f), low, high, range(1, 15))
    show("LOG2_POW", [c / mp.log(2) for c in found], np.float64)
    bound = (high / (2 + high)) ** 2

    def series(z: Real) -> Real:
        s = mp.sqrt(z)
        return 2 * mp.atanh(s) / s - 2

    show("LOG_F64", minimax(series, lambda z: 1, mp.mpf("1e-30"), bound, range(1, 8)), np.float64)


def fit_erf() -> None:
    """erf(a) = 1 - exp(a g(a)), weighted by what g does to erf(a) relative to itself."""

    def exponent(a: Real) -> Real:
        return mp.log(mp.erfc(a)) / a

    def weight(a: Real) -> Real:
        return mp.erfc(a) * a / mp.erf(a)

    show("ERF", minimax(exponent, weight, mp.mpf("1e-9"), mp.mpf("3.95"), range(9)))


def fit_gelu() -> None:
    """The 16th root of the normal tail P(Z > a), weighted by what it does to a P(Z > a) / max(a, 1)."""

    def tail(a: Real) -> Real:
        return mp.erfc(a / mp.sqrt(2)) / 2

    def weight(a: Real) -> Real:
        return 16 * tail(a) ** (mp.mpf(15) / 16) * min(1, max(a, mp.mpf("0.05")))

    found = minimax(lambda a: tail(a) ** (mp.mpf(1) / 16), weight, mp.mpf(0), mp.mpf(8), range(7))
    show("GELU_ROOT", found)
    zero = mp.findroot(lambda a: mp.polyval(found[::-1], a), 7.5)
    print(f"GELU_END = {np.float32(float(zero))!s}")


def fit_sin_cos() -> None:
    """Sin r = r + r^3 s(r^2) and cos r = 1 - r^2 / 2 + r^4 c(r^2) on a quarter circle; digits of 1 / 2 pi."""
    end = mp.pi / 4 * mp.mpf("1.001")
    weight: Function = lambda r: 1 / mp.sin(r)  # noqa: E731
    show("SIN", minimax(lambda r: mp.sin(r) - r, weight, mp.mpf("1e-9"), end, (3, 5, 7)))
    low = mp.mpf("1e-9")
    show("COS", minimax(lambda r: mp.cos(r) - 1 + r * r / 2, lambda r: 1, low, end, (4, 6, 8)))
    rest, parts = 1 / (2 * mp.pi), []
    for k in range(5):
        bits = 29 * (k + 1)
        part = mp.floor(mp.ldexp(rest, bits))
        parts.append(mp.ldexp(part, -bits))
        rest -= parts[-1]
    show("TURNS", [*parts, rest][::-1], np.float64)


if __name__ == "__main__":
    fit_exp()
    fit_log()
    fit_erf()
    fit_gelu()
    fit_sin_cos()
