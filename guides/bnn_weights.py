"""BNNP's guide: layer by layer the exact posterior of a linear model of amortised pseudo-observations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from guides.weight_guide import WeightGuide
from guides.whitened_gaussian import Dual, Primal, WhitenedGaussian
from pp_models.bayesian_network import ACTIVATIONS, BayesianNetwork, join
from pp_models.data import Dataset
from pp_models.likelihoods import GaussianLikelihood
from pp_models.linear import linear
from pp_models.parameter_module import mlp
from pp_models.priors import GaussianBlocks
from pp_models.task_plates import task_plates

CHOICES = ("auto", "real", "pseudo")
#: subtracted from the raw log noise, so that pseudo-observations start with sd e^-2 (BNNP, section 2.1)
LOG_NOISE_SHIFT = 2.0
LOG_NOISE_RANGE = (-6.0, 4.0)


class BNNWeightGuide(WeightGuide):
    """Amortised conditional posteriors of the layers of a Bayesian network (BNNP, sections 2.1 to 2.3).

    One inference network a layer maps each context point (x_n, y_n) to a pseudo-target v and a pseudo-noise σ for each
    unit. Given a draw of the layers below, hence the features Φ that enter layer l, a unit's incoming weights have the
    conjugate posterior

        q(w_d | W_<l, D) ∝ p(w_d | W_<l) Π_n N(v_nd; φ_nᵀ w_d, σ_nd²),

    a Gaussian with a closed-form KL to the prior (:class:`guides.whitened_gaussian.WhitenedGaussian`). Layers are drawn
    in turn, so that the joint posterior is not Gaussian. With an empty context it is the prior, exactly.

    The guide shares the model's prior and, with real noise, its noise scale; gradients reach them through the guide.

    Args:
        model: the network; its prior must be Gaussian.
        final_targets: pseudo-targets of the last layer: ``"real"`` takes y itself (a Gaussian likelihood),
            ``"pseudo"`` amortises them (any likelihood); ``"auto"`` is real where it can be.
        final_noise: noise of the last layer: ``"real"`` takes the likelihood's (with real targets the last conditional
            is then exact), ``"pseudo"`` amortises it; ``"auto"`` is pseudo, as in the paper's regressions.
        hidden: hidden widths of the inference networks; the model's own by default.
        use_activation: give the networks of later layers the layer's input as well.
        solver: ``"primal"`` factors matrices of the layer's width, ``"dual"`` of the number of points; ``"auto"`` takes
            the smaller.
        width: width of the encoder of the deterministic path, where the model has one.

    Raises:
        ValueError: an unknown option, real targets or noise without a Gaussian likelihood, or another kind of prior.
    """

    independent_sites = False

    def __init__(
        self,
        model: BayesianNetwork,
        final_targets: str = "auto",
        final_noise: str = "auto",
        hidden: list[int] | None = None,
        use_activation: bool = False,
        solver: str = "auto",
        width: int = 128,
    ) -> None:
        super().__init__(model, width)
        for name, value in (("final_targets", final_targets), ("final_noise", final_noise)):
            if value not in CHOICES:
                raise ValueError(f"{name}: got {value!r}; it must be one of {', '.join(CHOICES)}")
        if solver not in ("auto", "primal", "dual"):
            raise ValueError(f"solver: got {solver!r}; it must be 'auto', 'primal' or 'dual'")
        gaussian = isinstance(model.likelihood, GaussianLikelihood)
        for name, value in (("final_targets", final_targets), ("final_noise", final_noise)):
            if value == "real" and not gaussian:
                raise ValueError(
                    f"{name}: got 'real', but the likelihood is {type(model.likelihood).__name__}; only a "
                    "GaussianLikelihood has observations and a noise of the last layer's outputs"
                )
        model.prior.gaussian(0, [])  # refuses a prior that is not
        self.real_targets = final_targets == "real" or (final_targets == "auto" and gaussian)
        self.real_noise = final_noise == "real"
        self.use_activation, self.solver = use_activation, solver
        self.activation = ACTIVATIONS[model.activation]
        # held in a tuple: their parameters are the model's, not the guide's
        self._shared = (model.prior, model.likelihood)
        sizes = model.layer_sizes[1:-1] if hidden is None else hidden
        self.networks = nn.ModuleList()
        for i, (k_out, columns) in enumerate(self.shapes):
            outputs = k_out * self.amortised(i)
            read = model.dim_x + self.dim_y + (columns - 1 if use_activation and i else 0)
            network = mlp([read, *sizes, outputs]) if outputs else nn.Identity()
            if outputs:  # small outputs at the start: every pseudo-noise is about e^-2, which float32 can solve
                with torch.no_grad():
                    network[-1].weight.mul_(0.1)  # type: ignore[index, operator, union-attr]
            self.networks.append(network)

    def amortised(self, index: int) -> int:
        """How many numbers a unit's point needs from the layer's network: target and noise, less what is real."""
        last = index == len(self.shapes) - 1
        return 2 - (last and self.real_targets) - (last and self.real_noise)

    def layer_distributions(self, data: Dataset) -> list[Any]:
        raise ValueError("data: the layers of this guide depend on draws of those below; call the guide itself")

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every weight matrix in turn, given the data."""
        values: dict[str, Tensor] = {}
        with task_plates(data.batch_shape, data.x.device):
            features = data.x
            context = self.representation(data)
            if context is not None:
                values["representation"] = pyro.sample("representation", dist.Delta(context, event_dim=1))
                features = join(features, values["representation"])
            drawn: list[Tensor] = []
            for i, site in enumerate(self.sites):
                value = pyro.sample(site, self.conditional(i, data, features, drawn))
                values[site] = value
                drawn.append(value)
                if i < len(self.sites) - 1:
                    features = self.activation(linear(features, value))
        return values

    def pseudo_observations(self, index: int, data: Dataset, features: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and precisions ``[*B, N, k_out]`` of a layer; precision 0 where a point does not exist."""
        assert data.y is not None
        y = one_hot(data.y, self.dim_y).to(data.x.dtype) if self.discrete else data.y
        last = index == len(self.shapes) - 1
        parts: Iterator[Tensor] = iter(())
        if self.amortised(index):
            read = torch.cat([data.x, y], -1)
            if self.use_activation and index:
                read = read.expand(*features.shape[:-1], read.shape[-1])
                read = torch.cat([read, features], -1)
            parts = iter(self.networks[index](read).split(self.shapes[index][0], -1))
        target = y if last and self.real_targets else next(parts)
        if last and self.real_noise:
            likelihood = self._shared[1]
            assert isinstance(likelihood, GaussianLikelihood)
            precision = torch.ones_like(target) / likelihood.scale().square()
        else:
            precision = (-2 * (next(parts) - LOG_NOISE_SHIFT).clamp(*LOG_NOISE_RANGE)).exp()
        if data.mask is not None:
            precision = precision * data.mask.unsqueeze(-1)
        return target, precision

    def conditional(self, index: int, data: Dataset, features: Tensor, drawn: list[Tensor]) -> WhitenedGaussian:
        """q(W_l | W_<l, D), batch ``*B`` (with particles to their left after the first layer)."""
        prior = self._shared[0]
        target, precision = self.pseudo_observations(index, data, features)
        ones = features.new_ones(*features.shape[:-1], 1)
        phi = torch.cat([features, ones], -1)
        blocks = prior.gaussian(index, drawn)
        whole = blocks.loc.shape[-2] == 1 and self.shapes[index][0] > 1
        posterior = self._whole_layer if whole else self._by_unit
        key = (id(prior), index)
        whitened = posterior(phi, target, precision, blocks)
        return WhitenedGaussian(blocks.loc, blocks.factor, whitened, self.shapes[index], blocks.diagonal, key)

    def _by_unit(self, phi: Tensor, target: Tensor, precision: Tensor, blocks: GaussianBlocks) -> Primal | Dual:
        """Posterior of each unit's whitened weights, batch ``[..., k_out]``."""
        residual = target - phi @ blocks.loc.mT  # [..., N, k_out]
        points, k = phi.shape[-2:]
        if self._dual(points, k):
            root = precision.sqrt().mT.unsqueeze(-1)  # [..., k_out, N, 1]
            spread = phi.unsqueeze(-3)
            design = spread * blocks.factor.unsqueeze(-2) if blocks.diagonal else spread @ blocks.factor
            return Dual(root * design, root.squeeze(-1) * residual.mT)
        weighed = precision.mT.unsqueeze(-1) * phi.unsqueeze(-3)  # [..., k_out, N, k]
        gram = phi.mT.unsqueeze(-3) @ weighed
        moment = (weighed.mT @ residual.mT.unsqueeze(-1)).squeeze(-1)
        return Primal(*whiten(gram, moment, blocks))

    def _whole_layer(self, phi: Tensor, target: Tensor, precision: Tensor, blocks: GaussianBlocks) -> Primal | Dual:
        """Posterior of all whitened weights of a layer as one block, batch ``[..., 1]``."""
        k_out = target.shape[-1]
        points, k = phi.shape[-2:]
        loc = blocks.loc.unflatten(-1, (k_out, k)).squeeze(-3)
        residual = target - phi @ loc.mT
        if self._dual(points * k_out, k * k_out):
            # rows (unit, point) of the block-diagonal design, times the factor
            eye = torch.eye(k_out, dtype=phi.dtype, device=phi.device)
            wide = torch.einsum("...nk,de->...dnek", phi, eye).flatten(-2).flatten(-3, -2)
            root = precision.sqrt().mT.flatten(-2).unsqueeze(-1)
            design = root * (wide @ blocks.factor.squeeze(-3))
            values = root.squeeze(-1) * residual.mT.flatten(-2)
            return Dual(design.unsqueeze(-3), values.unsqueeze(-2))
        weighed = precision.mT.unsqueeze(-1) * phi.unsqueeze(-3)
        gram = phi.mT.unsqueeze(-3) @ weighed  # [..., k_out, k, k]
        moment = (weighed.mT @ residual.mT.unsqueeze(-1)).flatten(-3)
        eye = torch.eye(k_out, dtype=phi.dtype, device=phi.device)
        dense = torch.einsum("...dkl,de->...dkel", gram, eye).flatten(-2).flatten(-3, -2)
        return Primal(*whiten(dense.unsqueeze(-3), moment.unsqueeze(-2), blocks))

    def _dual(self, rows: int, columns: int) -> bool:
        return self.solver == "dual" or (self.solver == "auto" and rows < columns)


def whiten(gram: Tensor, moment: Tensor, blocks: GaussianBlocks) -> tuple[Tensor, Tensor]:
    """Cᵀ G C and Cᵀ h of natural statistics G ``[..., blocks, k, k]`` and h ``[..., blocks, k]``."""
    c = blocks.factor
    if blocks.diagonal:
        return c.unsqueeze(-1) * gram * c.unsqueeze(-2), c * moment
    return c.mT @ gram @ c, (c.mT @ moment.unsqueeze(-1)).squeeze(-1)
