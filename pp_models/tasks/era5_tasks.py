"""Precipitation as a function of place and temperature, from a user's copy of ERA5-Land, as in BNNP."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pp_models.arguments import checked, number, one_of
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.data_files import reading
from pp_models.tasks.downloads import find
from pp_models.tasks.point_counts import ShareCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream

FOLDER = "era5"
#: degrees north and east
BOX = {"latitude": (45.0, 50.0), "longitude": (5.0, 12.0)}
#: a rectangle around Switzerland
SWITZERLAND = {"latitude": (45.8, 47.9), "longitude": (5.9, 10.6)}
#: the last time steps are for testing
TEST_STEPS = 16
#: of one variable of one file: ten years twice a day in the box are 26 million
MOST_VALUES = 2**28


def read_era5() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places ``[P, 2]`` (longitude, latitude), temperatures ``[time, P]`` (K) and precipitation ``[time, P]`` (mm).

    Reads every ``era5/*.nc`` of the data folder or the cache: variables ``t2m`` (K) and ``tp`` (m), dimensions ``time``
    (or ``valid_time``), ``latitude`` and ``longitude``. Places without a value (sea) are left out.

    Raises:
        DataError: no files, or one that is not of this kind.
    """
    import xarray

    folder = find(FOLDER)
    files = sorted(Path(folder).glob("*.nc")) if folder is not None else []
    if not files:
        raise DataError(
            f"era5: no {FOLDER}/*.nc; ERA5-Land is free at cds.climate.copernicus.eu but its licence must be accepted "
            "there, so that nothing is downloaded here: ask for t2m and tp over 45-50 N, 5-12 E, 2010-2019, 00:00 and "
            "12:00 as NetCDF, and put the files into the folder that GUIDEBOOK_DATA names"
        )
    temperatures, rains, places = [], [], None
    for path in files:
        if not path.is_file():
            raise DataError(f"{path.name}: it is not a regular file; replace {path}")
        with reading(path, "file of ERA5-Land"), xarray.open_dataset(path) as file:
            time = "time" if "time" in file.dims else "valid_time"
            part = file[["t2m", "tp"]].sortby("latitude").sortby("longitude")
            part = part.sel({name: slice(*ends) for name, ends in BOX.items()})
            part = part.transpose(time, "latitude", "longitude")
            if not 0 < math.prod(part.sizes.values()) <= MOST_VALUES:
                raise ValueError(f"the box holds values of sizes {dict(part.sizes)}")
            part = part.load()
        latitude, longitude = np.meshgrid(part.latitude.values, part.longitude.values, indexing="ij")
        here = np.stack([longitude.ravel(), latitude.ravel()], -1)
        if places is not None and (here.shape != places.shape or not np.allclose(here, places)):
            raise DataError(f"{path.name}: its grid is not that of {files[0].name}")
        places = here
        steps = part.sizes[time]
        temperatures.append(part.t2m.values.reshape(steps, -1))
        rains.append(part.tp.values.reshape(steps, -1) * 1000)
    temperature, rain = np.concatenate(temperatures), np.concatenate(rains)
    assert places is not None
    land = np.isfinite(temperature).all(0) & np.isfinite(rain).all(0)
    if not land.any():
        raise DataError(f"era5: no place in {BOX} has values at all times")
    return places[land], temperature[:, land], rain[:, land]


class ERA5Tasks(TaskStream):
    """A task is one time: x ``[T, N, 3]`` longitude, latitude and 2 m temperature, y ``[T, N, 1]`` precipitation.

    All are standardised by the training times. The last 16 times are for testing; a batch has no time twice unless it
    is larger than what there is, so ``batch_size=16`` shows every test time once.

    ``tp`` of ERA5-Land is what has fallen since midnight UTC, so 12:00 holds half a day and 00:00 the whole day before.

    Args:
        split: ``"train"`` or ``"test"``.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        point_share: share of the places used a task.
        context_share: see ``ShareCounts``; by default 0.01 to 0.5, and 0.025 to 0.25 for the test.
        without_switzerland: leave out the places of a rectangle around Switzerland (``SWITZERLAND``).
        dtype: of x and y.

    Attributes:
        rain_scale: millimetres in one unit of y.

    Raises:
        ValueError: unknown split, or a share out of range.
        DataError: see :func:`read_era5`, or too few times.
    """

    @checked(split=one_of("train", "test"), point_share=number(0, 1, "(]"))
    def __init__(
        self,
        split: str = "train",
        batch_size: int = 5,
        seed: int = 0,
        *,
        point_share: float = 0.25,
        context_share: tuple[float, float] | None = None,
        without_switzerland: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        places, temperature, rain = read_era5()
        if without_switzerland:
            west, east = SWITZERLAND["longitude"]
            south, north = SWITZERLAND["latitude"]
            inside = (places[:, 0] >= west) & (places[:, 0] <= east)
            inside &= (places[:, 1] >= south) & (places[:, 1] <= north)
            places, temperature, rain = places[~inside], temperature[:, ~inside], rain[:, ~inside]
        if len(rain) <= TEST_STEPS:
            raise DataError(f"era5: got {len(rain)} times; the last {TEST_STEPS} are for testing, and more are needed")
        train = slice(0, len(rain) - TEST_STEPS)
        self.rain_scale = float(rain[train].std())

        def standard(values: np.ndarray, by: Any) -> torch.Tensor:
            return torch.as_tensor((values - by.mean()) / by.std()).to(dtype)

        self.places = torch.stack([standard(places[:, i], places[:, i]) for i in range(2)], -1)
        chosen = train if split == "train" else slice(len(rain) - TEST_STEPS, None)
        self.temperature = standard(temperature[chosen], temperature[train])
        self.rain = standard(rain[chosen], rain[train])
        count = max(2, round(point_share * len(places)))
        if context_share is None:
            context_share = (0.01, 0.5) if split == "train" else (0.025, 0.25)
        self.counts = ShareCounts((count, count), context_share)

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, times, then places."""
        m, n = self.counts.draw(generator)
        order = torch.randperm(len(self.rain), generator=generator)
        time = order.repeat(-(-self.batch_size // len(order)))[: self.batch_size]
        chosen = torch.cat(random_subsets(self.batch_size, len(self.places), (m, n - m), generator), -1)
        temperature = self.temperature[time].gather(1, chosen).unsqueeze(-1)
        x = torch.cat([self.places[chosen], temperature], -1)
        y = self.rain[time].gather(1, chosen).unsqueeze(-1)
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), {"time": time})
