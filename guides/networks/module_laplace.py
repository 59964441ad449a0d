"""Laplace's approximation over chosen weights of any module."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.func import vjp, vmap

from guides.curvature import fisher_roots
from guides.networks.module_gaussian import FittedLaterGuide, rows_of
from pp_models.arguments import checked, one_of
from pp_models.data import Dataset
from pp_models.networks.bayesian_module import BayesianModule
from pp_models.single_precision import single

STRUCTURES = ("diagonal", "full")
#: weights beyond which a full covariance is refused
MOST_FULL = 8192
#: rows of one pass of the curvature
AT_ONCE = 64


class ModuleLaplaceGuide(FittedLaterGuide):
    """The mode while it trains; after :meth:`fit_curvature` Laplace's Gaussian around it (MacKay 1992; Daxberger 2021).

    The precision is the prior's plus the generalised Gauss-Newton matrix of the likelihood, whole or its diagonal. With
    Gaussian outputs that are linear in the weights, the whole one is the posterior's own.

    Draws of a deep module's weights under it may predict badly, for the module is not of first order in them; its
    expansion is what the Gaussian is of: ``predict(guide.linearised(), guide, ...)`` (Immer et al. 2021).

    Args:
        model: the module with its prior, which must be normal.
        structure: ``"diagonal"`` or ``"full"``.

    Raises:
        TypeError: another family of model.
        ValueError: an unknown structure, a full one of more than 8192 weights, or a prior that is not normal.
    """

    @checked(structure=one_of(*STRUCTURES))
    def __init__(self, model: BayesianModule, structure: str = "diagonal") -> None:
        super().__init__(model)
        self.structure = structure
        size = sum(shape.numel() for shape in self.shapes)
        if structure == "full" and size > MOST_FULL:
            raise ValueError(
                f"structure: got 'full' for {size:,} weights; it takes at most {MOST_FULL:,}: choose fewer targets, "
                "or 'diagonal'"
            )
        self.prior_moments()
        self._tril: Tensor | None = None  # of a full covariance, made when it is first asked for
        shape = (size,) if structure == "diagonal" else (size, size)
        self.register_buffer("curvature", torch.zeros(shape, dtype=self.loc[0].dtype))

    curvature: Tensor

    def fit_curvature(self, data: Dataset, num_data: int | None = None, seed: int | None = 0) -> ModuleLaplaceGuide:
        """Sums the curvature over points; from then on draws are Gaussian.

        Args:
            data: inputs of training points (of y only which outputs are missing); task dimensions are flattened.
            num_data: number of training points where these are only some of them.
            seed: of labels, which are drawn where the likelihood's own curvature is not known.

        Raises:
            DataError: no points.
        """
        model = self._model[0]
        x, _, observed = rows_of(data)
        weights = {site: loc.detach() for site, loc in zip(self.sites, self.loc, strict=True)}
        training = model.training
        model.eval()
        total = torch.zeros_like(self.curvature)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for start in range(0, len(x), AT_ONCE):
                rows = x[start : start + AT_ONCE]
                known = None if observed is None else observed[start : start + AT_ONCE]
                with torch.enable_grad():
                    outputs = model.outputs(rows, weights).detach().requires_grad_(True)
                    roots = [root.detach() for root in fisher_roots(model.likelihood(outputs), outputs, known)]

                def pulled(row: Tensor, root: Tensor) -> Tensor:
                    """Jᵀ v of one point ``[P]``."""
                    pull: Any = vjp(lambda w: model.outputs(row.unsqueeze(0), w)[0], weights)
                    (found,) = pull[1](root)
                    return torch.cat([found[site].flatten() for site in self.sites])

                for root in roots:
                    each = vmap(pulled, randomness="different")(rows, root)
                    total += each.square().sum(0) if self.structure == "diagonal" else each.mT @ each
        model.train(training)
        with torch.no_grad():
            self.curvature.copy_(total * (1.0 if num_data is None else num_data / len(x)))
        self._tril = None
        self._done()
        return self

    def linearised(self) -> BayesianModule:
        """The model with outputs of first order in the weights around this guide's means."""
        return self._model[0].linearised(dict(zip(self.sites, self.loc, strict=True)))

    def distribution(self) -> TorchDistribution:
        loc, (_, precision) = single(self.flat_loc()), self.prior_moments()
        if self.structure == "diagonal":
            return dist.Normal(loc, single(self.curvature + precision).rsqrt()).to_event(1)
        if self._tril is None:
            whole = (self.curvature + precision.diag()).double()
            covariance = torch.cholesky_inverse(torch.linalg.cholesky(whole))
            self._tril = torch.linalg.cholesky(covariance).to(loc.dtype)
        return dist.MultivariateNormal(loc, scale_tril=self._tril)

    def _apply(self, fn, *args):
        self._tril = None
        return super()._apply(fn, *args)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._tril = None
