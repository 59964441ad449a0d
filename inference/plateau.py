"""Whether a noisy training curve has settled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pp_models.arguments import NOT_NEGATIVE, POSITIVE, checked, each, instance

#: logged rows below which nothing is said
LEAST_ROWS = 20


@checked(history=each(instance(Mapping), must="be the rows of a history"), tolerance=POSITIVE, errors=NOT_NEGATIVE)
def settled(
    history: Sequence[Mapping[str, float]], key: str = "loss", tolerance: float = 0.01, errors: float = 2.0
) -> bool:
    """Whether what is still gained is negligible beside what was gained, noise considered.

    The mean over the newest quarter of the rows is compared with that over the quarter before. The curve has settled
    where the upper confidence bound of the gain between them, gain + ``errors`` standard errors, is below ``tolerance``
    times the whole gain since the start (the first tenth of the rows). Standard errors are of batch means, which a
    correlated curve does not deceive; a curve too noisy to tell has not settled.

    Args:
        history: rows as ``FitResult.history`` has them; rows without the key, or where it is not finite, are left out.
        key: what is minimised.
        tolerance: share of the whole gain that is negligible.
        errors: standard errors of the confidence bound.

    Returns:
        False with fewer than 20 rows.

    Raises:
        ValueError: a tolerance that is not positive.
    """
    values = [float(row[key]) for row in history if key in row and math.isfinite(row[key])]
    if len(values) < LEAST_ROWS:
        return False
    quarter, tenth = len(values) // 4, max(1, len(values) // 10)
    before, after = values[-2 * quarter : -quarter], values[-quarter:]
    gain = _mean(before) - _mean(after)
    error = math.sqrt(_error(before) ** 2 + _error(after) ** 2)
    whole = _mean(values[:tenth]) - _mean(after)
    return whole > 0 and gain + errors * error <= tolerance * whole


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean, by means of batches of about the square root of the length."""
    size = max(1, math.isqrt(len(values)))
    means = [_mean(values[i : i + size]) for i in range(0, len(values) - size + 1, size)]
    if len(means) < 2:
        return math.inf
    centre = _mean(means)
    return math.sqrt(math.fsum((m - centre) ** 2 for m in means) / (len(means) - 1) / len(means))
