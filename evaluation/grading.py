"""A guide's draws graded by a reference's: errors in posterior standard deviations, distances, coverage, a forest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evaluation.diagnostics import psis, wasserstein
from inference.posterior_draws import posterior_log_weights, sample_posterior
from inference.progress import Stages
from pp_models.arguments import CALLABLE, MOST_DRAWS, SEED, checked, data_set, integer, tensor
from pp_models.data import Dataset, TaskBatch, context_of, require_tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Grade:
    """How a guide compares with a reference.

    Args:
        table: one row a site: ``entries``; ``mean_error`` and ``worst_mean_error``, the mean and largest difference of
            means over entries, in the reference's standard deviations; ``sd_ratio``, the geometric mean of guide's over
            reference's, and its range; ``wasserstein``, mean 1-Wasserstein distance in the reference's standard
            deviations; ``coverage``, the share of the reference's draws inside the guide's central 90 % intervals.
        khat: Pareto k-hat of the guide's importance weights, one a task (or one for all).
        entries: one row an entry, the basis of the forest.
    """

    table: pd.DataFrame
    khat: Tensor
    entries: pd.DataFrame

    def forest(self, most: int = 20) -> Figure:
        """The entries that differ most as intervals; see :func:`evaluation.plots.forest`."""
        from evaluation.plots import forest  # here: a table needs no matplotlib

        return forest(self, most)


@checked(
    model=CALLABLE,
    guide=CALLABLE,
    data=data_set("Dataset", "TaskBatch", instead="from_pyro_svi(model, guide, *args) beside arviz.from_pyro(mcmc)"),
    num_samples=integer(2, MOST_DRAWS),
    seed=SEED,
)
def grade(
    model: Any,
    guide: Any,
    data: Dataset | TaskBatch,
    reference: Any,
    *,
    num_samples: int = 1_000,
    seed: int = 0,
    progress: bool = False,
) -> Grade:
    """Grades a guide's posterior by a reference's, such as :func:`inference.nuts` gives.

    Args:
        model: the model.
        guide: its guide.
        data: the observed data that the reference was sampled for, ``*B`` task dimensions; of a TaskBatch its context,
            as in ``predict``.
        reference: draws by site ``[S, *B, *event]``, or an object that has them as ``draws``.
        num_samples: draws of the guide.
        seed: of those draws.
        progress: show a bar over the sites, where stderr is a terminal.

    Raises:
        ValueError: a site of the reference that the guide has not, or draws of other shapes.
    """
    require_tasks(data, "data")
    data = context_of(data)
    if not isinstance(reference if isinstance(reference, Mapping) else getattr(reference, "draws", None), Mapping):
        raise ValueError(f"reference: got {type(reference).__name__}; it must be what nuts gives, or draws by site")
    draws: Mapping[str, Tensor] = reference if isinstance(reference, Mapping) else reference.draws
    if not draws:
        raise ValueError("reference: got no site; it must have draws of at least one")
    for name, value in draws.items():
        if len(tensor(least=1).check("reference", value)) < 2:
            raise ValueError(f"reference: site {name!r} has {len(value)} draws; it must have at least 2")
    found = sample_posterior(model, guide, data, num_samples, seed=seed)
    missing = sorted(set(draws) - set(found))
    if missing:
        raise ValueError(f"reference: it has a site {missing[0]!r} that the guide does not draw")
    rows, entries = [], []
    with Stages(progress) as shown:
        shown.begin("sites", len(draws))
        for name, true in draws.items():
            ours, true = found[name].double(), true.double()
            if ours.shape[1:] != true.shape[1:]:
                raise ValueError(
                    f"reference: site {name!r} has draws of shape {list(true.shape[1:])}; the guide's have "
                    f"{list(ours.shape[1:])}"
                )
            frame = _entries(name, ours.flatten(1), true.flatten(1), ours.shape[1:])
            entries.append(frame)
            ratio = torch.as_tensor((frame.guide_sd / frame.reference_sd.clip(lower=1e-12)).to_numpy())
            rows.append(
                {
                    "site": name,
                    "entries": len(frame),
                    "mean_error": float(frame.mean_error.mean()),
                    "worst_mean_error": float(frame.mean_error.max()),
                    "sd_ratio": float(ratio.clamp_min(1e-12).log().mean().exp()),
                    "least_sd_ratio": float(ratio.min()),
                    "largest_sd_ratio": float(ratio.max()),
                    "wasserstein": float(frame.wasserstein.mean()),
                    "coverage": float(frame.coverage.mean()),
                }
            )
            shown.advance()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        log_weights = posterior_log_weights(model, guide, data, num_samples=num_samples).double()
    return Grade(pd.DataFrame(rows), psis(log_weights.unsqueeze(0)), pd.concat(entries, ignore_index=True))


def _entries(name: str, ours: Tensor, true: Tensor, shape: torch.Size) -> pd.DataFrame:
    """One row an entry ``[S, E]``."""
    sd = true.std(0).clamp_min(1e-12)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=ours.dtype)
    quantiles = {"guide": torch.quantile(ours, levels, dim=0), "reference": torch.quantile(true, levels, dim=0)}
    inside = (true >= quantiles["guide"][0]) & (true <= quantiles["guide"][-1])
    columns = {
        "guide_mean": ours.mean(0),
        "reference_mean": true.mean(0),
        "guide_sd": ours.std(0),
        "reference_sd": true.std(0),
        "mean_error": (ours.mean(0) - true.mean(0)).abs() / sd,
        "wasserstein": wasserstein(ours, true) / sd,
        "coverage": inside.double().mean(0),
    }
    for who, values in quantiles.items():
        columns |= {f"{who}_{round(100 * float(level))}": value for level, value in zip(levels, values, strict=True)}
    frame = pd.DataFrame({key: value.numpy() for key, value in columns.items()})
    places = zip(*np.unravel_index(np.arange(len(frame)), tuple(shape)), strict=True) if shape else [()]
    labels = [f"{name}[{','.join(map(str, place))}]" if place else name for place in places]
    frame.insert(0, "entry", labels)
    return frame
