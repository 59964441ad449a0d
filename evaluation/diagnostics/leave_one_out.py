"""Leave-one-out predictive density by Pareto-smoothed importance sampling, of all tasks and points at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.pareto_smoothing import psis_weights
from pp_models.arguments import POSITIVE, checked, one_of, tensor


@dataclass(frozen=True)
class LOO:
    """Leave-one-out scores of points.

    Args:
        elpd: expected log pointwise predictive density of each point ``[*batch, point]``.
        khat: Pareto k-hat of each point's weights ``[*batch, point]``.
        p_loo: what each point's own presence gains, log p(y_i | y) - elpd_i; their sum is the effective number of
            parameters.
    """

    elpd: Tensor
    khat: Tensor
    p_loo: Tensor

    @property
    def total(self) -> Tensor:
        """Σ over points ``[*batch]``."""
        return self.elpd.sum(-1)

    @property
    def standard_error(self) -> Tensor:
        """Of the total, √(n Var elpd_i) ``[*batch]`` by the sample variance; NaN for a single point."""
        n = self.elpd.shape[-1]
        if n < 2:
            return torch.full_like(self.total, torch.nan)
        return (n * self.elpd.var(-1)).sqrt()


@checked(
    log_likelihood=tensor(least=3),
    log_p=tensor(finite=False),
    log_q=tensor(finite=False),
    reff=POSITIVE,
    rounding=one_of("up", "down"),
)
def loo(
    log_likelihood: Tensor,
    log_p: Tensor | None = None,
    log_q: Tensor | None = None,
    reff: float = 1.0,
    *,
    rounding: str = "up",
) -> LOO:
    """PSIS-LOO (Vehtari et al. 2017), for draws of a guide with the correction of Magnusson et al. (2019).

    Draws of a guide are not draws of the posterior: with ``log_p`` and ``log_q`` each draw also weighs p / q, in the
    full predictive of ``p_loo`` too (where ArviZ leaves that uncorrected).

    Args:
        log_likelihood: of each point given each draw ``[chain, draw, *batch, point]``.
        log_p: joint log-density of latents and data under the model ``[chain, draw, *batch]``, up to a constant.
        log_q: log-density under the guide ``[chain, draw, *batch]``.
        reff: relative efficiency of the draws; 1 for independent ones.
        rounding: see :func:`evaluation.diagnostics.psis_weights`.

    Raises:
        ValueError: only one of ``log_p`` and ``log_q``, or shapes that do not fit.
    """
    if (log_p is None) != (log_q is None):
        raise ValueError("log_p, log_q: got one of them; the correction needs both")
    ratios = -log_likelihood
    if log_p is not None and log_q is not None:
        if log_p.shape != log_likelihood.shape[:-1] or log_q.shape != log_p.shape:
            raise ValueError(
                f"log_p, log_q: got shapes {list(log_p.shape)} and {list(log_q.shape)}; they must be "
                f"{list(log_likelihood.shape[:-1])}, as the log-likelihood without its points"
            )
        ratios = ratios + (log_p - log_q).unsqueeze(-1)
    weights, khat = psis_weights(ratios, reff, rounding=rounding)
    elpd = torch.logsumexp((weights + log_likelihood).flatten(0, 1), 0)
    if log_p is None:
        full = torch.logsumexp(log_likelihood.flatten(0, 1), 0) - math.log(
            log_likelihood.shape[0] * log_likelihood.shape[1]
        )
    else:
        assert log_q is not None
        corrected = psis_weights(log_p - log_q, reff, rounding=rounding)[0].unsqueeze(-1)
        full = torch.logsumexp((corrected + log_likelihood).flatten(0, 1), 0)
    return LOO(elpd, khat, full - elpd)
