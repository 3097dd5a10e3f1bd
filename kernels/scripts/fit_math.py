#!/usr/bin/env python3
"""Fits the polynomial coefficients of src/math.rs and prints them with the error each one reaches.

    python3 kernels/scripts/fit_math.py        (needs numpy and mpmath)

Each fit is a weighted least-squares polynomial on Chebyshev nodes, solved in extended precision; with this many nodes it
is within a few per cent of the minimax error. The error printed is the polynomial's own, in exact arithmetic.
"""
import mpmath as mp
import numpy as np

mp.mp.dps = 40


def nodes(lo, hi, n=400):
    return [(lo + hi) / 2 + (hi - lo) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]


def fit(target, weight, basis, xs):
    """Coefficients c minimising sum (weight * (sum c_j basis_j(x) - target(x)))^2."""
    a = mp.matrix(len(xs), len(basis))
    b = mp.matrix(len(xs), 1)
    for i, x in enumerate(xs):
        w = weight(x)
        for j, f in enumerate(basis):
            a[i, j] = w * f(x)
        b[i] = w * target(x)
    return list(mp.lu_solve(a.T * a, a.T * b))


def show(name, coefficients):
    print(f"const {name}: [f32; {len(coefficients)}] = [" + ", ".join(repr(np.float32(c)).replace("np.float32(", "").rstrip(")") for c in coefficients) + "];")


def power(j):
    return lambda x: x**j


# 2^r = 1 + r * p(r) on [-1/2, 1/2], relative error.
half = mp.mpf(1) / 2
xs = nodes(-half, half)
c = fit(lambda r: (mp.power(2, r) - 1), lambda r: 1 / mp.power(2, r), [lambda r, j=j: r ** (j + 1) for j in range(6)], xs)
worst = max(abs(1 + sum(c[j] * x ** (j + 1) for j in range(6)) - mp.power(2, x)) / mp.power(2, x) for x in xs)
show("EXP2", c)
print("// worst relative error", mp.nstr(worst, 3))

# erf(t) = t * p(t^2) on [0, 1], relative error.
xs = nodes(mp.mpf("1e-6"), mp.mpf(1))
c = fit(mp.erf, lambda t: 1 / mp.erf(t), [lambda t, j=j: t ** (2 * j + 1) for j in range(7)], xs)
worst = max(abs(sum(c[j] * x ** (2 * j + 1) for j in range(7)) / mp.erf(x) - 1) for x in xs)
show("ERF", c)
print("// worst relative error", mp.nstr(worst, 3))

# log2(erfc(t)) = p(t) on [1, 4.5]; weighted by erfc so that the error of 2^p is an absolute one.
lo, hi = mp.mpf(1), mp.mpf("4.5")
xs = nodes(lo, hi)
weight = lambda t: mp.erfc(t) + mp.mpf("2e-7")
c = fit(lambda t: mp.log(mp.erfc(t), 2), weight, [power(j) for j in range(8)], xs)
worst = max(abs(mp.power(2, sum(c[j] * x**j for j in range(8))) - mp.erfc(x)) for x in xs)
show("LOG2_ERFC", c)
print("// worst absolute error of erfc", mp.nstr(worst, 3), " extrapolated to 12:", mp.nstr(sum(c[j] * mp.mpf(12) ** j for j in range(8)), 5))
