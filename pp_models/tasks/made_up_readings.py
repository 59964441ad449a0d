"""A table as people have it, made up: for the documentation, and to try things on before one's own is at hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pp_models.arguments import SEED, checked, integer


@checked(num_tasks=integer(1, 100_000), seed=SEED)
def example_table(num_tasks: int = 40, seed: int = 0) -> pd.DataFrame:
    """Readings of sensors, 4 to 11 of each, one a row; one of them failed and lacks its outputs.

    Args:
        num_tasks: sensors.
        seed: of all numbers.

    Returns:
        Columns ``id`` (which sensor), ``x1``, ``x2`` and the text ``site`` as inputs, ``y1`` (about 1000) and ``y2``
        (about 0.01) as outputs: y1 rises with x1 by a slope that each sensor has of its own, y2 with x2, and both are
        read with noise, of standard deviation 1 and 0.0005.
    """
    rng = np.random.default_rng(seed)
    sensor = np.repeat(np.arange(num_tasks), rng.integers(4, 12, num_tasks))
    table = pd.DataFrame({"id": sensor, "x1": rng.normal(50, 10, len(sensor)), "x2": rng.uniform(0, 1, len(sensor))})
    table["site"] = np.array(["north", "south", "west"])[sensor % 3]
    slopes = rng.normal(0, 1, (2, num_tasks))[:, sensor]
    noise = rng.normal(0, 1, (2, len(sensor)))
    table["y1"] = 1000 + slopes[0] * (table["x1"] - 50) + 20 * (table["site"] == "south") + noise[0]
    table["y2"] = 0.01 * slopes[1] * table["x2"] + 0.0005 * noise[1]
    table.loc[len(table) // 2, ["y1", "y2"]] = np.nan
    return table
