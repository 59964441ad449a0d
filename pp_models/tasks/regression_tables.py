"""Tables with several outputs: SARCOS, water quality, supply chains, and a function that needs no file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pp_models.data import DataError
from pp_models.tasks.data_files import read_matlab, read_npz, reading, text_of
from pp_models.tasks.downloads import DATA_VARIABLE, find


@dataclass(frozen=True, eq=False)
class RegressionTable:
    """Rows of inputs and outputs, in the order of the file.

    Args:
        x: ``[n, Dx]`` float64.
        y: ``[n, Dy]`` float64, in the file's units.
        source: what the rows are, for tables and captions.
        duplicates: repeated rows that were left out.
    """

    x: Tensor
    y: Tensor
    source: str
    duplicates: int = 0


def load_table(name: str) -> RegressionTable:
    """A table by name.

    Args:
        name: ``"sarcos"`` (21 joint states to 7 torques), ``"wq"`` (water quality, 16 to 14), ``"scm20d"`` (supply
            chain, 61 to 16) or ``"synthetic"`` (21 to 7, made here).

    Raises:
        ValueError: unknown name.
        DataError: the file is nowhere, or is not what it should be.
    """
    if name not in TABLES:
        raise ValueError(f"name: got {name!r}; it must be one of {', '.join(TABLES)}")
    return TABLES[name]()


def _distinct(rows: np.ndarray) -> np.ndarray:
    """The first occurrence of every row, in the order of the table."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def _table(rows: np.ndarray, inputs: int, source: str, duplicates: int = 0) -> RegressionTable:
    values = torch.as_tensor(np.ascontiguousarray(rows, dtype=np.float64))
    if not torch.isfinite(values).all():
        raise DataError(f"{source}: it holds missing values; every entry must be finite")
    return RegressionTable(values[:, :inputs], values[:, inputs:], source, duplicates)


def _read_arrays(path: Path, inputs: int, outputs: int) -> np.ndarray:
    """Rows ``[n, inputs + outputs]`` of an npz file with arrays X and Y, or of a dense numeric ARFF file."""
    with reading(path, "table"):
        if path.suffix == ".npz":
            rows = np.concatenate(read_npz(path, ("X", "Y")), 1)
        else:
            lines = [line.strip() for line in text_of(path).splitlines()]
            start = [line.lower() for line in lines].index("@data") + 1
            rows = np.array([[float(v) for v in line.split(",")] for line in lines[start:] if line and line[0] != "%"])
    if rows.ndim != 2 or rows.shape[1] != inputs + outputs or not len(rows) or rows.dtype.kind not in "iuf":
        raise DataError(f"{path.name}: it has shape {rows.shape}; {inputs} inputs and {outputs} outputs were expected")
    return rows


def _mulan(name: str, title: str, inputs: int, outputs: int) -> RegressionTable:
    path = find(f"mulan/{name}.npz") or find(f"mulan/{name}.arff")
    if path is None:
        raise DataError(
            f"{name}: no file mulan/{name}.arff; take it from the multi-target sets of mulan.sourceforge.net and put "
            f"it into the folder that {DATA_VARIABLE} names"
        )
    rows = _read_arrays(path, inputs, outputs)
    kept = _distinct(rows)
    return _table(kept, inputs, f"{title}, {len(kept)} rows", len(rows) - len(kept))


def _sarcos() -> RegressionTable:
    """Both published files pooled where they are there, else the 4,449 rows of the test file.

    The published pair is no split: the test file is every tenth row of the trajectory, and 4,368 of its 4,449 rows
    occur in the training file too. So rows are pooled, each kept once, and split here.
    """
    both = [find(f"sarcos/{name}.mat") for name in ("sarcos_inv", "sarcos_inv_test")]
    if both[0] is not None and both[1] is not None:
        parts = []
        for path in both:
            assert path is not None
            parts.append(read_matlab(path, {path.stem: (None, 28)})[0].astype(np.float64))  # 21 inputs and 7 outputs
        rows = np.concatenate(parts)
        kept = _distinct(rows)
        source = f"SARCOS, {len(kept)} distinct rows of both published files"
        return _table(kept, 21, source, len(rows) - len(kept))
    small = find("sarcos/sarcos_test4449.npz")
    if small is None:
        raise DataError(
            "sarcos: no files sarcos/sarcos_inv.mat and sarcos/sarcos_inv_test.mat; take them from "
            f"gaussianprocess.org/gpml/data and put them into the folder that {DATA_VARIABLE} names"
        )
    rows = _read_arrays(small, 21, 7)
    kept = _distinct(rows)
    source = f"the {len(kept)} rows of SARCOS's test file alone, not comparable with published results"
    return _table(kept, 21, source, len(rows) - len(kept))


def synthetic_table(rows: int = 2000, inputs: int = 21, outputs: int = 7, noise: float = 0.1) -> RegressionTable:
    """A fixed smooth function of SARCOS's widths, the same at every call: y = sin(x A) B + noise.

    Inputs lie near a plane of three dimensions, x = u C + 0.2 e with u and e standard normal, so that they have near
    neighbours, as the states of a moving arm do.

    Args:
        rows: how many.
        inputs, outputs: widths.
        noise: standard deviation of the noise, where the function's own is 1.
    """
    generator = torch.Generator().manual_seed(21)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    plane, hidden = 3, 16
    x = normal(rows, plane) @ normal(plane, inputs) / plane**0.5 + 0.2 * normal(rows, inputs)
    signal = (x @ (1.5 * normal(inputs, hidden) / inputs**0.5)).sin() @ normal(hidden, outputs)
    signal = signal / signal.std(0)
    source = f"a synthetic function of {inputs} inputs and {outputs} outputs, {rows} rows, noise sd {noise:g}"
    return RegressionTable(x, signal + noise * normal(rows, outputs), source)


TABLES: dict[str, Callable[[], RegressionTable]] = {
    "sarcos": _sarcos,
    "wq": lambda: _mulan("wq", "water quality (Mulan)", 16, 14),
    "scm20d": lambda: _mulan("scm20d", "supply chain management, 20 days (Mulan)", 61, 16),
    "synthetic": synthetic_table,
}
