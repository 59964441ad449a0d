"""Variational Bayesian last layers: a Gaussian over a last layer, trained with what is below it without draws."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from guides.networks.last_layer import OnLastLayer
from guides.networks.module_gaussian import JointModuleGuide, normal_prior
from pp_models.arguments import SCALE, checked, one_of
from pp_models.data import Dataset
from pp_models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from pp_models.networks.bayesian_module import BayesianModule
from pp_models.single_precision import single


def _vbll() -> Any:
    try:
        import vbll
    except ImportError:
        raise ImportError("VBLLGuide: it needs vbll, which is not installed: pip install 'guidebook[vbll]'") from None
    return vbll


class VBLLGuide(OnLastLayer, JointModuleGuide):
    """q(w) = Π_k N(w_k; m_k, S_k) over the weights of each output k of a last layer (VBLL: Harrison et al. 2024).

    Under ``TaskELBO(estimator="analytic")`` nothing is drawn: for a Gaussian likelihood the expectation is exact,

        E_q[log N(y | wᵀφ, σ²)] = log N(y | mᵀφ, σ²) - φᵀSφ / 2σ²,

    for classes it is Jensen's lower bound, m_yᵀφ - log Σ_k exp(m_kᵀφ + φᵀS_kφ / 2). What lies below the layer is
    trained with it, or frozen (``BayesianModule(..., freeze=True)``: post hoc). Other objectives draw from it.

    Means and covariances are those of the package `vbll <https://github.com/VectorInstitute/vbll>`_.

    Args:
        model: ``BayesianModule(module, targets="last")`` whose chosen layer is the Linear that gives the outputs.
        covariance: ``"dense"`` or ``"diagonal"``.
        init_scale: standard deviation of every weight at the start.

    Raises:
        ImportError: vbll is not installed.
        TypeError: another family of model.
        ValueError: other targets, likelihood or prior.
    """

    @checked(covariance=one_of("dense", "diagonal"), init_scale=SCALE)
    def __init__(self, model: BayesianModule, covariance: str = "dense", init_scale: float = 0.1) -> None:
        super().__init__(model)
        self._model = (model,)
        self._find_layer(model)
        if not isinstance(model.likelihood, GaussianLikelihood | CategoricalLikelihood):
            raise ValueError(
                f"model: its likelihood is {type(model.likelihood).__name__}; it must be Gaussian or categorical"
            )
        normal_prior(model, type(self).__name__)
        start = self._by_output(self.flat_loc().detach())
        self.layers = _vbll().Regression(start.shape[1], start.shape[0], 0.0, parameterization=covariance).to(start)
        with torch.no_grad():
            self.layers.W_mean.copy_(start)
            self.layers.W_logdiag.fill_(torch.as_tensor(init_scale).log())
            if covariance == "dense":
                self.layers.W_offdiag.zero_()
        self.layers.noise_logdiag.requires_grad_(False)  # the model has its own
        self.loc = nn.ParameterList()

    def distribution(self) -> TorchDistribution:
        rows = self.layers.W()
        if hasattr(rows, "scale_tril"):
            return dist.MultivariateNormal(single(rows.mean), scale_tril=single(rows.scale_tril)).to_event(1)
        return dist.Normal(rows.mean, rows.scale).to_event(2)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        import pyro

        drawn = pyro.sample("weights", self.distribution(), infer={"is_auxiliary": True})
        parts = zip(self.sites, self._by_site(drawn.to(self.layers.W_mean.dtype)), self.shapes, strict=True)
        return {s: pyro.sample(s, dist.Delta(part, event_dim=len(shape))) for s, part, shape in parts}

    def closed_form(self, model: Any, data: Dataset) -> tuple[Tensor, Tensor] | None:
        """Expected log-likelihood of each task ``[*B]`` (of classes, its lower bound) and the KL."""
        rows = self.layers.W()
        phi = self.features(data.x.reshape(-1, data.x.shape[-1]), check=False)
        mean = (phi @ rows.mean.mT).reshape(*data.x.shape[:-1], -1)
        spread = rows.covariance_weighted_inner_prod(phi[:, None, :, None]).reshape(mean.shape)
        assert data.y is not None
        if isinstance(model.likelihood, GaussianLikelihood):
            scale = torch.as_tensor(model.likelihood.scale(), dtype=mean.dtype, device=mean.device)
            each = (dist.Normal(mean, scale).log_prob(data.y) - 0.5 * spread / scale**2).sum(-1)
        else:
            chosen = mean.gather(-1, data.y.unsqueeze(-1)).squeeze(-1)
            each = chosen - torch.logsumexp(mean + 0.5 * spread, -1)
        each = torch.where(data.full_mask(), each, torch.zeros_like(each)).sum(-1)
        centre, precision = (self._by_output(part) for part in normal_prior(model, type(self).__name__))
        moved = rows.variance + (rows.mean - centre).square()
        kl = 0.5 * ((precision * moved).sum() - precision.log().sum() - rows.logdet_covariance.sum() - moved.numel())
        return each, kl
