"""Posteriors that do not fit in memory: draws written to Zarr chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray

from evaluation.arviz.arviz_conversion import to_arviz
from pp_models.arguments import CALLABLE, DRAWS, PATH, SEED, checked
from pp_models.data import Dataset, TaskBatch
from pp_models.files import make_folder, replaced_atomically

#: groups whose arrays grow with the draws
DRAWN = (
    *("posterior", "posterior_predictive", "predictions", "log_likelihood", "sample_stats"),
    *("log_prior", "unconstrained_posterior"),
    *("prior", "prior_predictive"),
)


@checked(model=CALLABLE, guide=CALLABLE, num_samples=DRAWS, chunk_size=DRAWS, seed=SEED, path=PATH)
def write_zarr(
    model: Callable,
    guide: Callable,
    data: Dataset | TaskBatch,
    path: str | Path,
    num_samples: int = 1_000,
    *,
    chunk_size: int = 100,
    seed: int = 0,
    **options: Any,
) -> Path:
    """What :func:`evaluation.to_arviz` returns, written to a Zarr store ``chunk_size`` draws at a time.

    Only one chunk is ever in memory. ``xarray.open_datatree(path, engine="zarr")`` opens it lazily. ``bound`` and
    ``khat`` belong to all draws together, and are left out.

    Args:
        model: as for ``to_arviz``.
        guide: as for ``to_arviz``.
        data: as for ``to_arviz``.
        path: the store, a folder that does not exist or is empty.
        num_samples: draws.
        chunk_size: draws of a chunk.
        seed: of the draws; chunk k has seed + k.
        **options: ``coords`` and ``attrs`` of ``to_arviz``.

    Returns:
        The path.

    Raises:
        ValueError: a number out of range.
        CheckpointError: the folder cannot be written to, or holds something.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"path: {path} is a file; name a new store")
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"path: {path} is not empty; name a new store")
    make_folder(path.parent, "path")
    done = 0
    with replaced_atomically(path) as partial:
        for number, start in enumerate(range(0, num_samples, chunk_size)):
            count = min(chunk_size, num_samples - start)
            tree = to_arviz(
                model, guide, data, count, container="datatree", seed=seed + number, chunk_size=count, **options
            )
            for name, node in tree.children.items():
                dataset = node.to_dataset()
                if name in DRAWN:
                    dataset = dataset.drop_vars(["bound", "khat"], errors="ignore")
                    dataset = dataset.assign_coords(draw=range(done, done + count))
                elif number:
                    continue
                grows = {"append_dim": "draw"} if number and name in DRAWN else {"mode": "a"}
                dataset.to_zarr(partial, group=name, consolidated=False, **grows)
            if not number:
                xarray.Dataset(attrs=tree.attrs).to_zarr(partial, mode="a", consolidated=False)
            done += count
    return path
