"""Global inducing points: a layerwise conjugate posterior whose pseudo-observations are free parameters."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from guides.networks.conjugate_layer import layer_posterior
from guides.networks.weight_guide import WeightGuide
from guides.networks.whitened_gaussian import WhitenedGaussian
from pp_models.arguments import POINTS, SCALE, checked
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import GaussianLikelihood
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.networks.linear import linear
from pp_models.observation_model import ACTIVATIONS
from pp_models.task_plates import task_plates


class GlobalInducingGuide(WeightGuide):
    """q(W_l | W_<l) ∝ p(W_l) Π_m N(v_m; W_l φ_m, σ_m²) with learned inducing inputs, targets and noises.

    The inducing inputs are propagated through the weights drawn, as BNNP's context is; nothing is amortised (Ober and
    Aitchison 2021; docs/papers/bnnp.md#experiments). Each task has its own.

    Args:
        model: the network; its prior must be Gaussian.
        data: where inducing inputs start: random points of it (with their y in the last layer, where the likelihood is
            Gaussian), and its task dimensions. Masked points are not chosen.
        num_inducing: inducing points M; no more than the points there are.
        initial_noise: standard deviation of the pseudo-observations at the start.

    Raises:
        ValueError: an argument out of range, another kind of prior, or a model with a representation.
        DataError: the data has no y, or a task has no point.
    """

    independent_sites = False
    of_given_tasks = True

    @checked(num_inducing=POINTS, initial_noise=SCALE)
    def __init__(
        self, model: BayesianNetwork, data: Dataset, num_inducing: int = 32, initial_noise: float = 1.0
    ) -> None:
        super().__init__(model)
        if self.representation_encoder is not None or self.memory_encoder is not None:
            raise ValueError("model: it has a representation or path, which this guide cannot supply: it reads no data")
        model.prior.gaussian(0, [])  # refuses a prior that is not Gaussian
        model.check(data)
        if data.y is None:
            raise DataError("data: y is None; inducing points start at observed points")
        exists = torch.ones(data.x.shape[:-1]) if data.mask is None else data.mask.float()
        if not data.num_points or not bool(exists.any(-1).all()):
            raise DataError("data: a task has no point for inducing inputs to start at")
        self.activation = ACTIVATIONS[model.activation]
        self.batch_shape = tuple(data.batch_shape)
        self._shared = (model.prior,)
        # points that do not exist come last; a task with fewer than M starts with some twice
        order = torch.rand(exists.shape).add(exists).argsort(-1, descending=True)
        fewest = int(exists.sum(-1).min())
        chosen = order[..., torch.arange(min(num_inducing, data.num_points)) % max(fewest, 1)].unsqueeze(-1)
        x = data.x.take_along_dim(chosen, -2)
        self.inputs = nn.Parameter(x.clone())
        self.targets, self.log_noises = nn.ParameterList(), nn.ParameterList()
        for i, (k_out, _) in enumerate(self.shapes):
            start: Tensor = torch.randn(*x.shape[:-1], k_out, dtype=x.dtype)
            if i == len(self.shapes) - 1 and isinstance(model.likelihood, GaussianLikelihood):
                start = data.y.take_along_dim(chosen, -2).clone()
            self.targets.append(nn.Parameter(start))
            self.log_noises.append(nn.Parameter(torch.full_like(start, initial_noise).log()))

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every weight matrix in turn; of the data only the task dimensions are looked at."""
        if data.batch_shape != self.batch_shape:
            raise DataError(
                f"data: got task dimensions {list(data.batch_shape)}; this guide was made for tasks "
                f"{list(self.batch_shape)}"
            )
        values: dict[str, Tensor] = {}
        features: Tensor = self.inputs
        with task_plates(data.batch_shape, data.x.device):
            for i, site in enumerate(self.sites):
                values[site] = pyro.sample(site, self.conditional(i, features, list(values.values())))
                if i < len(self.sites) - 1:
                    features = self.activation(linear(features, values[site]))
        return values

    def conditional(self, index: int, features: Tensor, drawn: list[Tensor]) -> WhitenedGaussian:
        """q(W_l | W_<l), batch ``*B`` (with particles to their left after the first layer)."""
        blocks = self._shared[0].gaussian(index, drawn)
        precision = (-2 * self.log_noises[index]).exp()
        key = (id(self._shared[0]), index)
        return layer_posterior(features, self.targets[index], precision, blocks, self.shapes[index], key)
