"""The number whose softplus is a scale."""

from __future__ import annotations

import math


def raw_scale(scale: float) -> float:
    """Softplus's inverse, written so that no large scale overflows."""
    return scale + math.log(-math.expm1(-scale))
