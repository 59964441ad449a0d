"""A table from whatever holds one: pandas, polars, xarray, or a CSV, Parquet or NetCDF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from pp_models.arguments import shown
from pp_models.data import DataError

#: endings of files that are read
ENDINGS = (".csv", ".csv.gz", ".tsv", ".txt", ".parquet", ".nc")


def read_frame(source: Any, argument: str = "frame") -> pd.DataFrame:
    """The table as a DataFrame with string column names, its rows numbered from 0.

    Args:
        source: a pandas DataFrame; anything with ``to_pandas()`` (polars, pyarrow) or ``to_dataframe()`` (xarray); or
            the path of a CSV, Parquet or NetCDF file. An index that has a name becomes a column.
        argument: whose value it is, for the message.

    Raises:
        DataError: it is none of them, cannot be read, has no rows, or has two columns of one name.
    """
    frame = _read(source, argument)
    names = [str(name) for name in frame.index.names if name is not None and name not in frame.columns]
    frame = frame.reset_index(drop=not names)
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{argument}: two columns are named {shown(twice[0])}; names must differ: rename one")
    if not len(frame):
        raise DataError(f"{argument}: got a table without rows; it must have at least one")
    return frame


def _read(source: Any, argument: str) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source), argument)
    for method in ("to_pandas", "to_dataframe"):  # polars and pyarrow; xarray
        convert = getattr(source, method, None)
        found = convert() if callable(convert) else None
        if isinstance(found, pd.DataFrame):
            return found
    raise DataError(
        f"{argument}: got {shown(source)}; it must be a DataFrame (pandas, polars), an xarray Dataset, "
        "or the path of a "
        "CSV, Parquet or NetCDF file"
    )


def _read_file(path: Path, argument: str) -> pd.DataFrame:
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise DataError(f"{argument}: got {str(path)!r}; its name must end in one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise DataError(f"{argument}: got {str(path)!r}; there must be such a file")
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
        if name.endswith(".nc"):
            import xarray

            with xarray.open_dataset(path) as held:
                return held.to_dataframe()
        table = pd.read_csv(path, sep="\t" if name.endswith(".tsv") else ",", encoding="utf-8", index_col=False)
    except ImportError:
        raise DataError(
            f"{argument}: {path} is a Parquet file, which pandas reads by pyarrow: pip install guidebook[parquet]"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{argument}: {path} is not text in UTF-8; save it as such") from None
    except Exception as error:  # whatever a parser makes of what is none of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{argument}: {path} cannot be read as a table ({reason[:200]})") from None
    return table.rename(columns=str.strip)
