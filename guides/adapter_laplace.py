"""Laplace's approximation around a trained adapter."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.adapter_guide import AdapterGuide
from pp_models.data import Dataset
from pp_models.low_rank_adapted import LowRankAdapted


class LaplaceAdapterGuide(AdapterGuide):
    """Plain LoRA while it trains; after :meth:`fit_curvature` a Gaussian around the factors (cf. Laplace-LoRA).

    Each weight of A and B is N(trained value, 1 / (prior precision + Fisher information)), the diagonal of the Fisher
    information from labels drawn from the model itself.

    Args:
        model: the adapted model.
        prior_precision: of the Gaussian prior on factors; may be changed at any time.

    Raises:
        TypeError: another family of model.
        ValueError: a precision that is not positive.
    """

    def __init__(self, model: LowRankAdapted, prior_precision: float = 1.0) -> None:
        super().__init__(model)
        if not 0 < prior_precision < float("inf"):
            raise ValueError(f"prior_precision: got {prior_precision}; it must be positive and finite")
        self.prior_precision = float(prior_precision)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.fisher = nn.ParameterList()
        for module in model.rank_modules().values():
            for factor in module.factors() or ():
                self.fisher.append(nn.Parameter(torch.zeros_like(factor), requires_grad=False))
        # known on the host, so that no forward pass reads the device
        self._is_fitted: bool | None = None

    fitted: Tensor

    def fit_curvature(self, data: Dataset, num_data: int | None = None, seed: int | None = 0) -> LaplaceAdapterGuide:
        """Estimates the Fisher information, one backward pass a point; from then on draws are Gaussian.

        Args:
            data: inputs of training points (y is not looked at); task dimensions are flattened.
            num_data: number of training points where these are only some of them.
            seed: of the labels drawn; the global random state is left as it was. None draws from that one.
        """
        model = self.model
        factors = [f for m in model.rank_modules().values() for f in m.factors() or ()]
        x = data.x.reshape(-1, data.x.shape[-1])
        if data.mask is not None:
            x = x[data.mask.reshape(-1)]
        training = model.training
        model.eval()
        totals = [torch.zeros_like(f) for f in factors]
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for i in range(len(x)):
                likelihood = model.likelihood(model.outputs(x[i : i + 1]))
                gradients = torch.autograd.grad(likelihood.log_prob(likelihood.sample()).sum(), factors)
                for total, gradient in zip(totals, gradients, strict=True):
                    total += gradient.square()
        model.train(training)
        scale = 1.0 if num_data is None else num_data / max(len(x), 1)
        with torch.no_grad():
            for stored, total in zip(self.fisher, totals, strict=True):
                stored.copy_(total * scale)
            self.fitted.fill_(True)
        self._is_fitted = True
        return self

    def is_fitted(self) -> bool:
        """Whether draws are Gaussian."""
        if self._is_fitted is None:
            self._is_fitted = bool(self.fitted)
        return self._is_fitted

    def load_state_dict(self, *args, **kwargs):
        self._is_fitted = None
        return super().load_state_dict(*args, **kwargs)

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        values = self.point_rank_scale(path, lora_A)
        if self.training or not self.is_fitted():
            return values
        at = 2 * index
        for name, mean, fisher in (("lora_A", lora_A, self.fisher[at]), ("lora_B", lora_B, self.fisher[at + 1])):
            scale = (self.prior_precision + fisher).rsqrt()
            values |= self.factor(path, name, dist.Normal(mean, scale), 1)
        return values
