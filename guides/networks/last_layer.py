"""The exact posterior of a last linear layer."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from guides.networks.module_gaussian import FittedLaterGuide, rows_of
from pp_models.arguments import checked
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import GaussianLikelihood
from pp_models.networks.bayesian_module import BayesianModule
from pp_models.single_precision import single


class OnLastLayer:
    """What guides over one last linear layer share: its features, and its weights as rows."""

    sites: list[str]
    shapes: list[torch.Size]
    _model: tuple[BayesianModule]
    _layer: tuple[nn.Linear]
    path: str

    def _find_layer(self, model: BayesianModule) -> None:
        """Finds the layer.

        Raises:
            ValueError: the chosen weights are not those of one Linear layer.
        """
        owners = {site.rpartition(".")[0] for site in model.sites}
        self.path = owners.pop()
        layer = model.module.get_submodule(self.path)
        if owners or not isinstance(layer, nn.Linear):
            raise ValueError(f"model: got sites {', '.join(model.sites[:4])}; they must be those of one Linear layer")
        self._layer = (layer,)  # in a tuple, for it is the model's

    @property
    def layer(self) -> nn.Linear:
        """The model's last layer."""
        return self._layer[0]

    def features(self, x: Tensor, check: bool = True) -> Tensor:
        """What the last layer reads at inputs ``[rows, Dx]``, with a 1 for the bias: ``[rows, k]``.

        Raises:
            ValueError: the layer's outputs are not the module's.
        """
        seen: list[Tensor] = []
        hook = self.layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            outputs = self._model[0].outputs(x)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].dim() != 2 or (check and not torch.equal(self.layer(seen[0]), outputs)):
            raise ValueError(f"model: {self.path!r} does not give the module's outputs; it must be the last layer")
        ones = [seen[0].new_ones(len(x), 1)] if self.layer.bias is not None else []
        return torch.cat([seen[0], *ones], -1)

    def _by_output(self, flat: Tensor) -> Tensor:
        """``[P]``, site after site, as rows ``[K, k]``."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return torch.cat([part.view(self.layer.out_features, -1) for part in parts], -1)

    def _by_site(self, rows: Tensor) -> list[Tensor]:
        """``[..., K, k]`` as the sites' shapes."""
        width = self.layer.in_features
        return [rows[..., :width], rows[..., width]] if len(self.sites) > 1 else [rows[..., :width]]


class LastLayerGuide(OnLastLayer, FittedLaterGuide):
    """The exact posterior of a last linear layer given the features below it, each output on its own.

    For a Gaussian likelihood of one noise scale and a normal prior this is Bayesian linear regression; below lies
    whatever the module is (deep kernel and ALPaCA's kin; Bayesian last layers). The guide is a point while it trains,
    and :meth:`fit` computes mean and covariance from data in one pass.

    Args:
        model: ``BayesianModule(module, targets="last")`` whose chosen layer is the Linear that gives the outputs.

    Raises:
        TypeError: another family of model.
        ValueError: other targets, likelihood or prior.
    """

    @checked()
    def __init__(self, model: BayesianModule) -> None:
        super().__init__(model)
        self._find_layer(model)
        if not isinstance(model.likelihood, GaussianLikelihood):
            raise ValueError(
                f"model: its likelihood is {type(model.likelihood).__name__}; a closed form needs GaussianLikelihood; "
                "take ModuleLaplaceGuide(model, structure='full')"
            )
        self.prior_moments()
        k_out, k_in = self.layer.weight.shape
        size = k_in + (self.layer.bias is not None)
        self.register_buffer("tril", torch.eye(size, dtype=self.loc[0].dtype).repeat(k_out, 1, 1))

    tril: Tensor

    @torch.no_grad()
    def fit(self, data: Dataset) -> LastLayerGuide:
        """Sets mean and covariance to the posterior's given these data; from then on draws are Gaussian.

        Args:
            data: observed points; task dimensions are flattened.

        Raises:
            DataError: no points, or no y.
        """
        model = self._model[0]
        x, y, observed = rows_of(data)
        if y is None:
            raise DataError("data: y is None; a posterior needs observed points")
        model.likelihood.check(y, self.layer.out_features)
        training = model.training
        model.eval()
        phi = self.features(x).double()
        model.train(training)
        noise = torch.as_tensor(model.likelihood.scale(), dtype=torch.float64, device=x.device)  # type: ignore[operator]
        mean, precision = (self._by_output(part).double() for part in self.prior_moments())
        pairs = phi.mT @ phi
        if observed is not None:  # of each output the points where it is known
            pairs = torch.einsum("nd,nk,nl->dkl", observed.double(), phi, phi)
        full = torch.diag_embed(precision) + pairs / noise**2  # [K, k, k]
        right = precision * mean + (y.double().mT @ phi) / noise**2
        lower = torch.linalg.cholesky(full)
        loc = torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)
        self.tril.copy_(torch.linalg.cholesky(torch.cholesky_inverse(lower)))
        for own, part in zip(self.loc, self._by_site(loc), strict=True):
            own.copy_(part)
        self._done()
        return self

    def distribution(self) -> TorchDistribution:
        rows = self._by_output(self.flat_loc())
        return dist.MultivariateNormal(single(rows), scale_tril=single(self.tril)).to_event(1)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        if not self.is_fitted:
            return super().forward(data)
        drawn = pyro.sample("weights", self.distribution(), infer={"is_auxiliary": True}).to(self.loc[0].dtype)
        parts = zip(self.sites, self._by_site(drawn), self.shapes, strict=True)
        return {s: pyro.sample(s, dist.Delta(part, event_dim=len(shape))) for s, part, shape in parts}
