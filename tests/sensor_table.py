"""A table as people have it: ragged tasks, three inputs of which one is text, two outputs, some of them missing."""

import numpy as np
import pandas as pd

LEVELS = {"north": 0.0, "süd": 50.0, "west [old]": -20.0}


def sensor_table(tasks: int = 24, seed: int = 0) -> pd.DataFrame:
    """One row a reading: id, x1, x2, site, y1 (about 1000), y2 (about 0.01); rows 3 and 17 lack y1, row 5 both."""
    rng = np.random.default_rng(seed)
    rows = []
    for task in range(tasks):
        slope = rng.normal()
        site = list(LEVELS)[task % len(LEVELS)]
        for _ in range(rng.integers(3, 9)):
            x1, x2 = rng.normal(50, 10), rng.uniform(0, 1)
            y1 = 1000 + slope * (x1 - 50) + LEVELS[site] + rng.normal()
            rows.append((f"sensor {task}", x1, x2, site, y1, 0.01 * x2 * slope))
    table = pd.DataFrame(rows, columns=["id", "x1", "x2", "site", "y1", "y2"])
    table.loc[[3, 17], "y1"] = np.nan
    table.loc[5, ["y1", "y2"]] = np.nan
    return table
