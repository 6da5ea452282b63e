"""Numbers as text, for tables on the terminal and on pages."""

from __future__ import annotations

import math


def number(value: float, digits: int = 4) -> str:
    """A number for a table: `digits` significant ones, and no exponent below a billion.

    >>> number(0.123456), number(0.0), number(-0.0), number(47240.1), number(3e-7)
    ('0.1235', '0', '0', '47240', '3e-07')
    """
    if 10**digits <= abs(value) < 1e9:
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if value else "0"


def counted(count: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(1200, "seed")
    ('1 seed', '1,200 seeds')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def with_error(value: float, error: float) -> str:
    """A value and its standard error, rounded to the error's two leading digits; the value alone where it has none.

    >>> with_error(-0.19204, 0.00872), with_error(12.0, 340.0), with_error(0.123456, math.nan)
    ('-0.1920 ± 0.0087', '12 ± 340', '0.1235')
    """
    if not math.isfinite(error) or not math.isfinite(value):
        return number(value)
    if error == 0:
        return f"{number(value)} ± 0"
    decimals = 1 - math.floor(math.log10(error))
    # An error far below the value's own precision, or far above one, would make a wall of digits.
    if not 0 <= decimals <= 10:
        return f"{number(value)} ± {number(error, 3 if error >= 10 else 2)}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
