r"""sin, cos, exp, log and sqrt in plain IEEE arithmetic: the same bits from NumPy arrays and from compiled scalars.

The simulation promises the same bits with and without compilation. The functions of NumPy and of the C library differ
in the last bit, and the latter cost as much as the random numbers; these are compiled to vector instructions instead.
Each is a reduction of the argument followed by its Taylor series, long enough that the truncation is below the
rounding. Errors, as tested against 40 digits: at most 2 units in the last place for arguments up to 10^6 in size, and
as if the argument were changed in its last place for larger ones of sin and cos; beyond 10^15, where a number has no
phase left, these two grow without bound, and a replicate that far out has diverged.
"""

from __future__ import annotations

import math

import numpy as np

_TWO_OVER_PI, _LOG2_E, _SQRT_2 = 2.0 / math.pi, 1.0 / math.log(2.0), math.sqrt(2.0)
# pi/2 and ln 2 as sums of numbers of few bits each, so that their products with a whole number k < 2^20 are exact.
_HALF_PI_1, _HALF_PI_2, _HALF_PI_3 = map(
    float.fromhex, ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")
)
_LN2_1, _LN2_2 = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")

_S3, _S5, _S7, _S9, _S11, _S13, _S15 = ((-1) ** (n // 2) / math.factorial(n) for n in range(3, 16, 2))
_C4, _C6, _C8, _C10, _C12, _C14, _C16 = ((-1) ** (n // 2) / math.factorial(n) for n in range(4, 17, 2))
_E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12, _E13 = (1 / math.factorial(n) for n in range(2, 14))
_L3, _L5, _L7, _L9, _L11, _L13, _L15, _L17, _L19, _L21 = (2.0 / n for n in range(3, 22, 2))

_LOWEST, _HIGHEST = -746.0, 710.0  # exp is 0 below and infinite above
LEAST_POWER = -1100
POWERS_OF_TWO = np.array([math.ldexp(1.0, k) for k in range(LEAST_POWER, 1024)])

sqrt = np.sqrt  # exact to the last bit everywhere


def sin(x):  # type: ignore[no-untyped-def]
    """sin(x) of a number or an array; nan where x is not finite."""
    k = np.floor(x * _TWO_OVER_PI + 0.5)
    s, c = sin_cos(x, k)
    half = np.floor(k * 0.5)
    odd = k - 2.0 * half
    sign = 1.0 - 2.0 * (half - 2.0 * np.floor(half * 0.5))
    return s * (sign * (1.0 - odd)) + c * (sign * odd)


def cos(x):  # type: ignore[no-untyped-def]
    """cos(x) of a number or an array; nan where x is not finite."""
    k = np.floor(x * _TWO_OVER_PI + 0.5)
    s, c = sin_cos(x, k)
    half = np.floor(k * 0.5)
    odd = k - 2.0 * half
    up = half + odd  # cos is sin a quarter turn on: where k is odd the sign is that of the next half
    sign = 1.0 - 2.0 * (up - 2.0 * np.floor(up * 0.5))
    return c * (sign * (1.0 - odd)) + s * (sign * odd)


def sin_cos(x, k):  # type: ignore[no-untyped-def]
    """Sine and cosine of r = x - k pi/2, which is at most pi/4 in size.

    The polynomials are summed in pairs, then pairs of pairs, because updates of few replicates wait for their result.
    """
    r = ((x - k * _HALF_PI_1) - k * _HALF_PI_2) - k * _HALF_PI_3
    z = r * r
    z2 = z * z
    z4 = z2 * z2
    s = ((_S3 + z * _S5) + z2 * (_S7 + z * _S9)) + z4 * ((_S11 + z * _S13) + z2 * _S15)
    c = ((_C4 + z * _C6) + z2 * (_C8 + z * _C10)) + z4 * ((_C12 + z * _C14) + z2 * _C16)
    return r + (r * z) * s, (1.0 - 0.5 * z) + z2 * c


def exp(x):  # type: ignore[no-untyped-def]
    """exp(x) of a number or an array."""
    x = np.minimum(np.maximum(x, _LOWEST), _HIGHEST)
    k = np.floor(x * _LOG2_E + 0.5)
    r = (x - k * _LN2_1) - k * _LN2_2
    p = _E8 + r * (_E9 + r * (_E10 + r * (_E11 + r * (_E12 + r * _E13))))
    p = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * (_E7 + r * p)))))
    p = 1.0 + (r + r * r * p)
    return p * power_of_two(k - 1.0) * 2.0  # 2^(k-1) is finite wherever the result is


def log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a number or an array; -inf at 0, nan below."""
    m, e = split(x)  # x = m 2^e with m in [0.5, 1)
    low = np.floor(m * _SQRT_2)  # 1 where m is at least sqrt(1/2), else 0
    m = m * (2.0 - low)
    e = e - (1.0 - low)
    f = (m - 1.0) / (m + 1.0)  # log m = 2 artanh f
    z = f * f
    p = _L13 + z * (_L15 + z * (_L17 + z * (_L19 + z * _L21)))
    p = _L3 + z * (_L5 + z * (_L7 + z * (_L9 + z * (_L11 + z * p))))
    # 2 f = (m - 1) - f (m - 1), whose first term is exact.
    return e * _LN2_1 + ((m - 1.0) - f * ((m - 1.0) - z * p) + e * _LN2_2) + edge(x)


# --- the three that see bits; the compiler has its own (see `riverval.toy._kernels`), which give the same -------------
def power_of_two(k):  # type: ignore[no-untyped-def]
    """2^k of whole numbers -1100..1023; anything where k is nan."""
    return POWERS_OF_TWO[np.where(np.isnan(k), 0.0, k).astype(np.int64) - LEAST_POWER]


def split(x):  # type: ignore[no-untyped-def]
    """Mantissa in [0.5, 1) and exponent of positive finite numbers, as floats; (0.5, 0) of all others."""
    inside = (x > 0.0) & (x < np.inf)
    m, e = np.frexp(np.where(inside, x, 0.5))
    return m, e.astype(np.float64)


def edge(x):  # type: ignore[no-untyped-def]
    """What `log` adds to be right where x is not positive and finite: 0, -inf, inf or nan."""
    return np.where(x > 0.0, np.where(x < np.inf, 0.0, np.inf), np.where(x == 0.0, -np.inf, np.nan))
