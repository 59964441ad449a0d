"""A mean-field Gaussian over the factor A of an adapter, after BLoB."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.adapters.adapter_guide import AdapterGuide
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import SCALE, checked


class AdapterMeanFieldGuide(AdapterGuide):
    """A ~ N(μ, ρ⁴) for every weight, B a point estimate (BLoB, Wang et al. 2024: standard deviation ρ²).

    μ is the model's A. BLoB's prior is ``LowRankAdapted(factor_prior=0.2)``, N(0, 0.2²); with it take
    ``kl_count="weights"``, the plain sum over weights. It adds r k_in numbers a module, and no rank can be pruned by
    it.

    Args:
        model: the adapted model.
        init_scale: ρ starts uniform on (init_scale / √2, init_scale).

    Raises:
        TypeError: another family of model.
        ValueError: ``init_scale`` out of range.
    """

    @checked(init_scale=SCALE)
    def __init__(self, model: LowRankAdapted, init_scale: float = 0.05) -> None:
        super().__init__(model)
        self.roots = nn.ParameterList()
        for module in model.rank_modules().values():
            factors = module.factors()
            shape = (0, 0) if factors is None else factors[0].shape
            root = torch.empty(shape) if factors is None else torch.empty_like(factors[0])
            self.roots.append(nn.Parameter(root.uniform_(init_scale / 2**0.5, init_scale)))

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        scale = self.roots[index].square() + 1e-8
        values = self.point_rank_scale(path, lora_A)
        return values | self.factor(path, "lora_A", dist.Normal(lora_A, scale))

    def weights_per_rank(self, path: str) -> int:
        lora_A, _ = self.model.rank_modules()[path].factors()  # type: ignore[misc]
        return lora_A.shape[1]
